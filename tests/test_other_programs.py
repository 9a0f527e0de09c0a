"""What programs that know FAISS alone do with our files: they count positions, and clone."""

import json
import os

import faiss
import h5py
import numpy as np
import pytest
from faults.conftest import run, write_h5  # noqa: F401

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import DataError, ScqWarning

# ruff: noqa: F811  (fixtures are imported by name)
X = np.random.default_rng(0).standard_normal((700, 8)).astype(np.float32)
IDS = np.random.default_rng(1).permutation(2000)[:700]
OWN = (
    "no: Hugging Face datasets, txtai, sentence-transformers and autofaiss take ids for row numbers, and need `export "
    "--positions`"
)


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(2)

    def model(*layers, kind="product", lists=None):
        table = rng.standard_normal((4, 16, 2 if kind == "product" else 8)).astype(np.float32)
        if lists is not None:
            lists = rng.standard_normal((lists, 8)).astype(np.float32)
        config = {"method": "pq", "rule": "l2", "encoder": "linear" if layers else "identity"}
        return scqfaiss.Model(Chain(8, list(layers)), Codebooks(kind, table, "ip", lists), config)

    centered = ("center", {"mean": X.mean(0)}), ("normalize", {})
    return {
        "folded": model(*centered),
        "rotated": model(*centered, ("linear", {"A": np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)})),
        "plain": model(),
        "lists": model(lists=4),
        "additive": model(kind="additive"),
    }


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def told(run, name="g.faissindex"):
    return json.loads(run("info", name, "--json").out)


def test_positions_stand_in_the_gallery_and_ids_beside_it(models, run):
    models["plain"].save("m.safetensors")
    with h5py.File("rows.h5", "w") as f:
        f["features"], f["ids"] = X, IDS
    out = run("export", "m.safetensors", "rows.h5", "-o", "g.faissindex", "--positions").out.strip()
    assert out.endswith("ids are positions, the rows' own are in g.ids.npy")
    own = np.load("g.ids.npy")
    assert (own.dtype, own.tolist()) == (np.int64, IDS.tolist())
    D, I = faiss.read_index("g.faissindex").search(X[:9], 5)
    scqfaiss.export(models["plain"], X, ids=IDS, path="own.faissindex")
    D2, I2 = faiss.read_index("own.faissindex").search(X[:9], 5)
    np.testing.assert_array_equal(D, D2)
    assert [sorted(own[i]) for i in I] == [sorted(i) for i in I2]
    facts = told(run)
    assert facts["positions"] == "yes: ids are 0 to 699"
    assert facts["ids_file"] == "g.ids.npy: the rows' own ids"
    assert told(run, "own.faissindex")["positions"] == OWN
    plan = run("export", "m.safetensors", "rows.h5", "-o", "g.faissindex", "--positions", "--dry-run").out.strip()
    assert plan.endswith("ids: 0 to 699; the rows' own go into g.ids.npy")


def test_ids_that_no_longer_fit_are_told(models, run):
    scqfaiss.export(models["plain"], X, ids=IDS, path="g.faissindex", positions=True)
    np.save("g.ids.npy", IDS[::-1])
    assert told(run)["ids_file"] == "g.ids.npy: of another gallery"
    with open("g.ids.npy", "wb"):
        pass
    assert told(run)["ids_file"] == "g.ids.npy: of another gallery"
    os.remove("g.ids.npy")
    assert told(run)["ids_file"] == "g.ids.npy: missing; it holds the rows' own ids"
    with pytest.warns(ScqWarning, match="g.faissindex: the file of ids beside it no longer fits; export all rows"):
        scqfaiss.remove("g.faissindex", [3])
    facts = told(run)
    assert facts["positions"] == OWN and "ids_file" not in facts


def test_nothing_is_left_where_rows_are_bad(models, tmp_path):
    with pytest.raises(DataError):
        scqfaiss.export(models["plain"], np.full((3, 8), np.nan), path="g.faissindex", positions=True)
    assert list(tmp_path.iterdir()) == []


FILES = [
    *[("folded", t, {}) for t in ("ivfpq", "pq", "buckets", "fastscan")],
    *[("plain", t, {}) for t in ("ivfpq", "pq", "buckets", "fastscan")],
    ("plain", "ivfpq", {"nlist": 4}),
    ("rotated", "ivfpq", {}),
    ("lists", "ivfpq", {}),
    ("lists", "buckets", {}),
    *[("additive", t, {}) for t in ("lift", "residual", "buckets", "fastscan")],
]


@pytest.mark.parametrize("name, target, options", FILES)
def test_every_file_clones_or_info_says_why_not(models, run, name, target, options):
    scqfaiss.export(models[name], X, ids=IDS, path="g.faissindex", target=target, **options)
    index = faiss.read_index("g.faissindex")
    D, I = index.search(X[:9], 5)
    z, behind, said = X[:9], index, told(run)["clone"]
    if said != "yes":
        assert said == "no: FAISS cannot clone CenteringTransform and NormalizationTransform; clone what is behind"
        with pytest.raises(RuntimeError, match="clone not supported"):
            faiss.clone_index(index)
        for i in range(index.chain.size()):
            z = faiss.downcast_VectorTransform(index.chain.at(i)).apply(z)
        behind = index.index
    copied = faiss.clone_index(behind)
    D2, I2 = copied.search(z, 5)
    np.testing.assert_array_equal(I, I2)
    np.testing.assert_allclose(D, D2, rtol=1e-6)
    assert (said == "yes") is (name not in ("folded", "rotated"))
