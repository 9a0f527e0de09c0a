"""docs/serving.md and deploy/: the clients run, and options, routes and figures that they name are there."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import life
import numpy as np
import pytest

import scqfaiss
from scqfaiss.cli import program
from scqfaiss.serving.settings import settings_of
from serving.conftest import client_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")
DEPLOY = {path.name: path.read_text("utf-8") for path in sorted((ROOT / "deploy").iterdir())}


@pytest.fixture(scope="module")
def client(shop):
    settings = settings_of(
        (f"shop={shop}/sure.faissindex",), model=(f"{shop}/sure.safetensors",), port=0, reload=0, threads=1
    )
    with client_of(settings) as found:
        yield found


def test_the_python_client_runs(client, shop):
    space, url = {}, f"http://127.0.0.1:{client.port}/v1/galleries/shop"
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(code, "docs/serving.md", "exec"), space)
    gallery = scqfaiss.open(shop / "sure.faissindex", model=str(shop / "sure.safetensors"))
    D, I = gallery.search(life.XQ, 4)
    for (scores, ids), d, i in zip(space["search"](url, life.XQ, 4, "unused"), D, I):
        np.testing.assert_array_equal(ids, i)
        np.testing.assert_allclose(scores, d, rtol=1e-5, atol=1e-5)
    want = gallery.search(gallery.reconstruct([5]), 2, decoded=True)[1].tolist()
    assert space["search_json"](url, ids=[5], k=2)["ids"] == want


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_curl_client_runs(client):
    line = next(line for line in PAGE.splitlines() if line.startswith("curl") and "-d" in line)
    words = shlex.split(line.replace("localhost:8080", f"127.0.0.1:{client.port}").replace("[17]", "[5]"))
    done = subprocess.run([*words, "-s"], capture_output=True, text=True, timeout=20)
    assert [len(row) for row in json.loads(done.stdout)["ids"]] == [5], done.stdout


def test_options_are_those_of_the_command():
    options = {option for p in program.cli.commands["serve"].params for option in p.opts if option.startswith("--")}
    table = PAGE.partition("## Options")[2].partition("## Routes")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", table)) == options
    for name in ("scqfaiss.service", "Containerfile", "kubernetes.yaml"):
        text = "\n".join(line for line in DEPLOY[name].splitlines() if re.search('serve |CMD|"--|--log', line))
        lines = [line for line in text.splitlines() if not line.startswith(("#", "RUN")) and "pip" not in line]
        found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines))) - {
            "--interval",
            "--timeout",
            "--start-period",
        }
        assert found and found <= options, (name, found - options)


def test_routes_and_figures_are_those_of_the_service(client):
    client.post("/v1/galleries/shop/search", json={"ids": [5]})
    figures = client.get("/metrics").text
    for name, text in {**DEPLOY, "serving.md": PAGE}.items():
        for figure in re.findall(r"\bscqfaiss_[a-z_]+", text):
            assert re.search(rf"^{figure}[{{ ]", figures, re.MULTILINE) or f"# TYPE {figure} " in figures, (
                name,
                figure,
            )
    routes = set(client.get("/openapi.json").json()["paths"])
    for route in re.findall(r"(?:GET|POST|DELETE) (/[\w/-]+)", PAGE):
        assert route.replace("NAME", "{name}") in routes | {"/"}, route
    for path in re.findall(r"path: (/\w+)", DEPLOY["kubernetes.yaml"]):
        assert client.get(path).status_code == 200


def test_files_of_deploy_are_sound():
    board = json.loads(DEPLOY["grafana.json"])
    assert len({p["id"] for p in board["panels"]}) == len(board["panels"]) >= 6
    assert {name for name in DEPLOY if f"deploy/{name}" not in PAGE} == set()
    container = DEPLOY["Containerfile"]
    assert "USER 10001" in container and ":latest" not in container and "torch" not in container.partition("RUN")[2]
    yaml = pytest.importorskip("yaml")
    for name in ("alerts.yml", "kubernetes.yaml"):
        assert list(yaml.safe_load_all(DEPLOY[name]))
