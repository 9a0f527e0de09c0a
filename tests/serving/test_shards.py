"""A folder of shards is served as one file is, and opened anew where its manifest is another."""

import life
import numpy as np
import pytest

import scqfaiss
from scqfaiss.serving.settings import settings_of
from serving.conftest import KEY, client_of


@pytest.fixture(scope="module")
def folder(shop, tmp_path_factory):
    made = tmp_path_factory.mktemp("sharded") / "x.shards"
    scqfaiss.export(shop / "sure.safetensors", life.X, ids=life.IDS, path=made, shards=3)
    return made


def test_a_folder_of_shards_is_served(shop, folder):
    of_one = scqfaiss.open(shop / "sure.faissindex")
    settings = settings_of(
        (f"x={folder}",),
        items=(f"x={shop}/sure.csv",),
        port=0,
        reload=0,
        api_key_file=f"{shop}/keys",
        allow_writes=True,
    )
    with client_of(settings) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        post = lambda **body: client.post("/v1/galleries/x/search", json=body)  # noqa: E731
        found = post(queries=life.XQ.tolist(), k=5, probability=True)
        assert found.status_code == 200, found.text
        D, _ = of_one.search(life.XQ, 5)
        assert np.allclose(found.json()["scores"], D, rtol=1e-5, atol=1e-5)
        assert np.allclose(found.json()["probability"], of_one.probability(D), rtol=0.1, atol=0.05)
        assert post(ids=life.IDS[[0, 399]].tolist(), k=3).status_code == 200
        assert post(ids=[1]).status_code == 404
        told = client.get("/v1/galleries/x").json()
        assert told["vectors"] == 400 and told["version"] == scqfaiss.open(folder).checksum[:12]
        # Through the routes, by another process, and where the manifest breaks.
        new = client.post("/v1/galleries/x/items", json={"rows": life.XQ.tolist()})
        assert new.json()["vectors"] == 409, new.text
        scqfaiss.remove(folder, life.IDS[:5])
        g = client.service.galleries["x"]
        assert g.reload() and g.gallery.ntotal == 404 and not g.reload()
        (folder / "manifest.json").write_text("{}")
        assert not g.reload() and g.fault.startswith("x.shards/manifest.json")
        assert post(queries=life.XQ.tolist()).status_code == 200
