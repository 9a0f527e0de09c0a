"""The rules of the house, read from the source: who imports whom, who writes files, what an import loads."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "scqfaiss"
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}

# Imports point from right to left; packages and modules of one line do not import one another.
ORDER = [
    ["errors", "forks", "signals"],
    ["dependencies", "devices", "options"],
    ["tables", "modality"],
    ["arrays"],
    ["exponents"],
    ["codebooks"],
    ["calibration"],
    ["files", "metadata"],
    ["bundle", "footer"],
    ["contract"],
    ["faiss_calls", "distributed", "items"],
    ["data", "encoders", "methods", "targets", "baselines"],
    ["content"],
    ["model"],
    ["features"],
    ["training", "galleries"],
    ["evaluation", "checking"],
    ["sklearn"],
    ["comparison"],
    ["attack"],
    ["report"],
    ["progress"],
    ["serving"],
    ["cluster"],
    ["demo"],
    ["cli"],
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
ENTRANCES = {"scqfaiss", "scqfaiss.__init__", "scqfaiss.__main__"}  # they open rooms, no room opens them

# Who may load what. Types alone (under TYPE_CHECKING) are free: they load nothing.
ALLOWED = {
    "torch": r"scqfaiss\.(attack\.(?!__init__|options|registry|attacking)|"
    r"encoders\.(?!__init__|chain)|methods\.(?!__init__)|training\.(?!__init__)|distributed$|devices$|"
    r"galleries\.onnx_export$)",
    "faiss": r"scqfaiss\.(faiss_calls$|targets\.(?!__init__)|baselines$|galleries\.(?!__init__|onnx_export)|"
    r"comparison\.(faiss_codes|growth|measuring|points|ranking|rows)$|serving\.batching$|demo\.|cluster\.replicas$)",
    "h5py": r"scqfaiss\.data\.",
    "PIL": r"scqfaiss\.(data\.(images|decoding)|attack\.examples|comparison\.examples|report\.page|report\.charts\.drawing)$",
    "matplotlib": r"scqfaiss\.report\.charts\.",
    "pydantic": r"scqfaiss\.comparison\.(fields|schema)$",
    "pyarrow": r"scqfaiss\.(items\.reading|tables\.\w+|data\.parquet)$",
    "pandas": r"scqfaiss\.galleries\.hits$",
    "sqlite3": r"scqfaiss\.items\.store$",
    "ray": r"scqfaiss\.cluster\.",
    "fastapi": r"scqfaiss\.serving\.",
    "fastapi_offline": r"scqfaiss\.serving\.app$",
    "starlette": r"scqfaiss\.serving\.",
    "uvicorn": r"scqfaiss\.serving\.",
    "orjson": r"scqfaiss\.serving\.fast_json$",
    "prometheus_client": r"scqfaiss\.serving\.(metrics|workers)$",
    "jinja2": r"scqfaiss\.report\.page$",
    "selenium": r"$^",
    "sklearn": r"scqfaiss\.(comparison\.examples|sklearn)$",
    "onnx": r"scqfaiss\.galleries\.onnx_export$",
    "onnxruntime": r"scqfaiss\.(galleries\.onnx_export|serving\.galleries)$",
    "click": r"scqfaiss\.(cli\.|progress$)",
    "safetensors": r"scqfaiss\.bundle$",
    "hypothesis": r"$^",
    "pytest": r"$^",
}


def imports(tree, package):
    """(full name, only for types) of everything a module imports, wherever in it."""
    types_only = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            types_only |= {id(n) for part in node.body for n in ast.walk(part)}
    for node in ast.walk(tree):
        quiet = id(node) in types_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, quiet
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{stem}.{alias.name}"
                yield (full if full in MODULES or f"{full}.__init__" in MODULES else stem), quiet


def package_of(name):
    return name.rpartition(".")[0]  # scqfaiss.data.hdf5 and scqfaiss.data.__init__ both lie in scqfaiss.data


def room(name):
    return name.split(".")[1]


@cache
def tree_of(name):
    return ast.parse(MODULES[name].read_text("utf-8"))


@cache
def found_imports(name):
    return list(imports(tree_of(name), package_of(name)))


def test_every_room_has_a_place():
    assert {room(name) for name in MODULES if name not in ENTRANCES} == set(LEVEL)


def test_imports_point_one_way():
    against = []
    for name in MODULES:
        for other, _ in found_imports(name) if name not in ENTRANCES else ():
            # __version__ alone comes from the package itself
            inside = other.split(".")[0] == "scqfaiss" and other != "scqfaiss"
            if inside and room(other) != room(name) and LEVEL[room(other)] >= LEVEL[room(name)]:
                against.append(f"{name} imports {other}")
    assert against == []


def test_each_library_is_loaded_in_its_rooms_only():
    outside = []
    for name in MODULES:
        for other, quiet in found_imports(name):
            library = other.split(".")[0]
            if library in ALLOWED and not quiet and not re.match(ALLOWED[library], name):
                outside.append(f"{name} imports {library}")
    assert outside == []


def test_methods_and_targets_do_not_know_each_others_library():
    def libraries(folder):
        return {
            other.split(".")[0]
            for name in MODULES
            if name.startswith(f"scqfaiss.{folder}.")
            for other, _ in found_imports(name)
        }

    assert "torch" in libraries("methods") & libraries("encoders")
    assert "faiss" in libraries("targets")
    assert "faiss" not in libraries("methods") | libraries("encoders") | libraries("data")
    assert "torch" not in libraries("targets") | libraries("data")
    core = {
        other.split(".")[0]
        for name in ("codebooks", "arrays", "files", "model")
        for other, _ in found_imports(f"scqfaiss.{name}")
    }
    assert not core & {"torch", "faiss", "h5py", "click"}


def test_the_reader_of_imports_sees_every_form():
    code = """
import torch.nn as nn
from . import cfa
from .. import files
from ..errors import warn
from ..data import open_rows
if TYPE_CHECKING:
    from torch import Tensor
def later():
    from ..targets import pq
"""
    assert sorted(imports(ast.parse(code), "scqfaiss.methods")) == [
        ("scqfaiss.data", False),
        ("scqfaiss.errors", False),
        ("scqfaiss.files", False),
        ("scqfaiss.methods.cfa", False),
        ("scqfaiss.targets.pq", False),
        ("torch", True),
        ("torch.nn", False),
    ]


# ------------------------------------------------------------------------------------------------------------- writing
WRITERS = {"write_text", "write_bytes", "touch", "tofile", "mkfifo", "mknod", "rename", "copyfile", "copy2", "copytree"}
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def dotted(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "?", *reversed(parts)])


def constant(call, place, name, default):
    given = [k.value for k in call.keywords if k.arg == name] or call.args[place : place + 1]
    return given[0].value if given and isinstance(given[0], ast.Constant) else "unknown" if given else default


def dangers(tree):
    """What a module does that could write a file behind files.py's back, or run what a file says."""
    in_memory = {
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and dotted(getattr(node.value, "func", None)) == "io.BytesIO"
        for name in node.targets
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {n}" for n in names if n.split(".")[0] in LOADERS)
        if not isinstance(node, ast.Call):
            continue
        call = dotted(node.func)
        last, first = call.rpartition(".")[2], node.args[0] if node.args else None
        if call in ("open", "io.open") and not set(constant(node, 1, "mode", "r")) <= set("rbt"):
            yield "opens for writing"
        elif call == "io.FileIO" and constant(node, 1, "mode", "r") != "r":
            yield "opens for writing"
        elif last == "open" and call.startswith("?") and constant(node, 0, "mode", "r") not in ("r", "rb"):
            yield "opens for writing"
        elif call == "os.open" and re.search("O_(WRONLY|RDWR|CREAT)", ast.dump(node)) and dotted(first) != "os.devnull":
            yield "os.open for writing"
        elif last in WRITERS:
            yield call
        elif re.fullmatch(r"(np|numpy)\.(save|savez|savez_compressed|savetxt|memmap)", call):
            yield call
        elif call == "torch.load" and constant(node, 3, "weights_only", False) is not True:
            yield "torch.load that unpickles"  # with weights_only it reads tensors and plain containers alone
        elif call in ("torch.save", "eval", "exec", "np.fromfile"):
            yield call
        elif call == "np.load" and constant(node, 9, "allow_pickle", True) is not False:
            yield "np.load with pickle"
        elif call.startswith("faiss.write_") and "PyCallbackIOWriter" not in ast.dump(node):
            yield call
        elif call == "h5py.File" and constant(node, 1, "mode", "r") != "r" and dotted(first) not in in_memory:
            yield "h5py.File for writing"


def test_only_files_py_writes_and_nothing_is_unpickled():
    found = [f"{name}: {danger}" for name in MODULES if name != "scqfaiss.files" for danger in dangers(tree_of(name))]
    assert found == []


def test_the_guard_sees_every_way_to_write():
    codes = [
        "open(p, 'w')",
        "open(p, mode='ab')",
        "open(p, 'r+b')",
        "open(p, mode)",
        "(a / b).open('w')",
        "io.open(p, 'x')",
        "os.open(p, os.O_RDWR)",
        "Path(p).write_text('x')",
        "p.write_bytes(b'')",
        "np.save(p, a)",
        "numpy.savez(p, a)",
        "torch.save(a, p)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, 'cpu', weights_only=w)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "faiss.write_index(index, p)",
        "h5py.File(p, 'w')",
        "h5py.File(p, mode='a')",
        "a.tofile(p)",
        "import pickle",
        "from joblib import load",
        "eval(text)",
    ]
    assert {code: len(list(dangers(ast.parse(code)))) for code in codes} == dict.fromkeys(codes, 1)


def test_the_guard_lets_reading_pass():
    codes = [
        "open(p)",
        "open(p, 'rb')",
        "os.open(os.devnull, os.O_WRONLY)",
        "os.open(p, os.O_RDONLY)",
        "np.load(p, allow_pickle=False)",
        "torch.load(p, weights_only=True)",
        "h5py.File(p, 'r')",
        "made = io.BytesIO()\nh5py.File(made, 'w')",
        "faiss.write_index(index, faiss.PyCallbackIOWriter(put))",
        "gallery.open(p)",
    ]
    assert {code: list(dangers(ast.parse(code))) for code in codes} == {code: [] for code in codes}


# ------------------------------------------------------------------------------------------------------------- loading
def loaded_by(code, *names):
    script = f"{code}\nimport sys\nprint(sorted(set({names!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return ast.literal_eval(done.stdout.splitlines()[-1])


HEAVY = ("torch", "faiss", "numpy", "h5py", "safetensors", "matplotlib", "jinja2", "pydantic")


@pytest.mark.parametrize(
    "code, loads",
    [
        ("import scqfaiss", []),
        ("import scqfaiss; scqfaiss.Codebooks", ["numpy"]),
        ("import scqfaiss; scqfaiss.Model", ["numpy", "safetensors"]),
        ("import scqfaiss.targets", []),
        ("from scqfaiss.methods import REGISTRY", []),
        ("import scqfaiss.comparison.options", []),
        ("import scqfaiss.evaluation.ties", ["numpy"]),
        ("import scqfaiss.evaluation.measures", ["numpy"]),
        ("import scqfaiss; scqfaiss.open", ["faiss", "numpy", "safetensors"]),
    ],
)
def test_names_load_no_more_than_they_need(code, loads):
    assert loaded_by(code, *HEAVY) == loads


def test_help_loads_neither_torch_nor_faiss_nor_numpy():
    code = """
import runpy, sys
from scqfaiss.cli.commands import cli
assert len(cli.commands) > 10
for command in ["", *cli.commands]:
    sys.argv = ["scqfaiss", *command.split(), "--help"]
    try:
        runpy.run_module("scqfaiss", run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)"""
    assert loaded_by(code, *HEAVY) == []


def test_the_module_is_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "scqfaiss", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("Usage: scqfaiss [OPTIONS] COMMAND")
    assert done.stderr == ""


def test_public_names_are_all_there_and_no_others():
    import scqfaiss

    for name in scqfaiss.__all__:
        assert getattr(scqfaiss, name) is not None
    assert sorted(scqfaiss.__all__) == scqfaiss.__all__
    with pytest.raises(AttributeError, match=r"^module 'scqfaiss' has no attribute 'serach'$"):
        _ = scqfaiss.serach


def test_a_missing_extra_is_one_line_with_what_to_type():
    code = "import sys\nsys.modules['faiss'] = None\nimport scqfaiss\ntry:\n    scqfaiss.open\n"
    code += "except scqfaiss.ConfigError as e:\n    print(e)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == 'open needs faiss, which is not installed: pip install "scqfaiss[cpu]"\n'


# ---------------------------------------------------------------------------------------------------------------- text
def test_the_text_names_no_machine():
    folders = [ROOT / name for name in ("scqfaiss", "tests", "tools", "benchmarks", "docs", "deploy", ".ci")]
    files = [p for p in ROOT.iterdir() if p.is_file()] + [p for f in folders for p in f.rglob("*") if p.is_file()]
    endings = {".py", ".md", ".html", ".css", ".toml", ".cfg", ".txt", ".json", ".yml", ".yaml", ".sh", ""}
    texts = [p for p in files if p.suffix in endings and "__pycache__" not in p.parts]
    assert len(texts) > 50
    # Written so that this file does not find itself.
    machine = re.compile(rb"(?<![\w.<>-])/(w[o]rk|t[m]p/dev|r[o]ot|h[o]me/\w+|m[n]t|Users/\w+)(/|\b)")
    assert machine.search(b"cd " + b"/" + b"work/main") and not machine.search(b"a/root/b")
    for path in texts:
        hit = machine.search(path.read_bytes())
        assert hit is None, f"{path.relative_to(ROOT)} names {hit.group().decode()}"
