"""docs/clients.md as it stands: every recipe in the client it is about, golden files in every FAISS of its table.

Both in environments of tools/client_environments.py, named by SCQFAISS_CLIENTS; without it, where the package is installed here.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import faiss
import numpy as np
import pytest
from clients import matrix

from scqfaiss.errors import ScqWarning

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
ENVIRONMENTS = os.environ.get("SCQFAISS_CLIENTS", "")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

# Heading of a recipe -> its environment, and the module without which it is skipped.
RECIPES = {
    "FAISS": ("faiss-newest", "faiss"),
    "FAISS, memory-mapped": ("faiss-newest", "faiss"),
    "Hugging Face datasets": ("datasets", "datasets"),
    "LangChain": ("langchain", "langchain_community"),
    "LlamaIndex": ("llama_index", "llama_index"),
    "Haystack": ("haystack", "haystack_integrations"),
    "txtai": ("txtai", "txtai"),
    "sentence-transformers": ("sentence_transformers", "sentence_transformers"),
    "autofaiss": ("autofaiss", "autofaiss"),
}
VERSIONS = ("1.7.4", "1.9.0", "1.12.0", "1.14.2", "1.15.1", "newest")
ANSWER = """
import json as _json, numpy as _np
print("\\n" + _json.dumps({"found": found, "scores": [float(s) for s in _np.ravel(scores)]}))
"""
REPORT = """
import json as _json
print("\\n" + _json.dumps({name: float(value) for name, value in report.items()}))
"""


def sections():
    """Heading -> its fenced blocks of Python."""
    parts = re.split(r"^## (.*)\n", PAGE, flags=re.MULTILINE)[1:]
    return {
        name: re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for name, text in zip(parts[::2], parts[1::2])
    }


def python_of(environment, module=None):
    """The Python to run in; the test is skipped where there is none."""
    python = Path(ENVIRONMENTS) / environment / "bin" / "python"
    if ENVIRONMENTS and python.exists():
        return str(python)
    if module == "faiss" or (not ENVIRONMENTS and module and importlib.util.find_spec(module)):
        return sys.executable
    pytest.skip(f"{environment} is not installed: python tools/client_environments.py FOLDER {environment}")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with the files that the recipes begin with; what is searched for, and what plain FAISS finds."""
    folder, before = tmp_path_factory.mktemp("clients"), Path.cwd()
    space = {}
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScqWarning)
            for text in sections()["What the recipes begin with"]:
                exec(compile(text, "docs/clients.md", "exec"), space)
        index = faiss.read_index("gallery.faissindex")
    finally:
        os.chdir(before)
    z = space["embed"]([space["question"]])
    scores, ids = index.search(z, 5)
    return folder, z, scores[0], [space["texts"][i] for i in ids[0]]


def test_every_recipe_is_tried():
    shown = [name for name, blocks in sections().items() if blocks and name != "What the recipes begin with"]
    assert sorted(shown) == sorted(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_finds_what_plain_faiss_finds(name, shop, tmp_path):
    python = python_of(*RECIPES[name])
    folder, _, scores, found = shop
    place = tmp_path / "files"
    shutil.copytree(folder, place)
    (recipe,) = sections()[name]
    program = place / "recipe.py"
    program.write_text(
        sections()["What the recipes begin with"][1] + recipe + (REPORT if "report =" in recipe else ANSWER)
    )
    # Nothing of a recipe needs a network.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [python, "-W", "ignore", program], cwd=place, env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    if "found" in answer:
        assert answer["found"] == found
        np.testing.assert_allclose(answer["scores"], scores, rtol=1e-5)
    else:
        assert answer["nb vectors"] == 600 and 0.8 < answer["20-recall@20"] <= 1
    assert (place / "gallery.faissindex").read_bytes() == (folder / "gallery.faissindex").read_bytes()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    return folder, matrix.prepare(folder)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_of_faiss_reads_the_golden_files(version, prepared):
    folder, names = prepared
    found = matrix.read_with(python_of(f"faiss-{version}", "faiss" if version == "newest" else None), folder)
    assert sorted(found["files"]) == sorted(names)
    assert version in (found["faiss"], "newest")
    for name, pairs in found["files"].items():
        for off, same in pairs:  # whole, mapped
            assert same and off < 1e-5, (name, off)


def test_the_cpp_program_searches(shop, tmp_path):
    """Where a compiler and libfaiss are there (CPATH and LIBRARY_PATH name other places)."""
    folder, z, scores, found = shop
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (text,) = re.findall(
        r"^```cpp\n(.*?)^```$", (ROOT / "docs" / "production.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "search.cpp").write_text(text)
    words = re.search(r"^c\+\+ (.* -lfaiss .*)$", PAGE, re.MULTILINE)[1].split()
    probe = ["#include <faiss/IVFlib.h>", "int main() { return 0; }"]
    (tmp_path / "probe.cpp").write_text("\n".join(probe))
    trial = [compiler, *words]
    trial[trial.index("search.cpp")], trial[trial.index("search")] = "probe.cpp", "probe"
    if subprocess.run(trial, cwd=tmp_path, capture_output=True, timeout=60).returncode:
        pytest.skip("no libfaiss")
    done = subprocess.run([compiler, *words], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    z.tofile(tmp_path / "embeddings.f32")
    with (tmp_path / "embeddings.f32").open("rb") as queries:
        done = subprocess.run(
            [tmp_path / "search", folder / "gallery.faissindex", "5"], stdin=queries, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    texts = json.loads((folder / "texts.json").read_text())
    assert [texts[int(i)] for _, i, _ in lines] == found
    np.testing.assert_allclose([float(s) for *_, s in lines], scores, rtol=1e-4)
