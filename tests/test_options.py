"""Options of a training: declared once, the same on the command line, as keywords and in the dataclass."""

import ast
import dataclasses
from pathlib import Path

import click
import pytest

from scqfaiss.cli.commands import cli
from scqfaiss.errors import ConfigError
from scqfaiss.methods import REGISTRY as METHODS
from scqfaiss.options import RunOptions, TrainOptions, check_whole, parse_request
from scqfaiss.training.engine import Engine

PACKAGE = Path(__file__).parents[1] / "scqfaiss"
FIELDS = {f.name: f for options in (TrainOptions, RunOptions) for f in dataclasses.fields(options)}


def default(field):
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def test_the_command_line_is_made_from_the_fields():
    params = {p.name: p for p in cli.commands["train"].params if isinstance(p, click.Option)}
    assert set(FIELDS) < set(params)
    for name, field in FIELDS.items():
        assert params[name].help == field.metadata["help"].format(methods=", ".join(METHODS)), name
    with cli.make_context("scqfaiss", ["train"]) as group:
        parsed = cli.commands["train"].make_context("train", ["x.npy", "-o", "m.safetensors"], parent=group).params
    assert {name: parsed[name] for name in FIELDS} == {name: default(f) for name, f in FIELDS.items()}


def test_keywords_are_the_fields_and_anything_else_is_a_setting():
    given = {"method": "dpq", "patience": 2, "resume": True, "start": "kmeans", "hidden": 8}
    request, run = parse_request(given, of_files=False)
    assert request == TrainOptions("dpq", patience=2, settings={"start": "kmeans", "hidden": 8})
    assert run == RunOptions(resume=True)
    assert parse_request({}, of_files=False) == parse_request({}) == (TrainOptions(), RunOptions())
    train, run = parse_request(given)  # of files too `start` is a model, and other names are settings
    assert (train.start, dict(train.settings), run.resume) == ("kmeans", {"hidden": 8}, True)


def test_the_engine_has_no_defaults_of_its_own():
    shared = {
        f.name: f.default
        for f in dataclasses.fields(Engine)
        if f.name in FIELDS and f.name not in ("method", "checkpoints")
    }
    assert shared == {name: FIELDS[name].default for name in shared} and len(shared) == 5


def test_no_default_of_an_option_is_declared_twice():
    """No function or class of training and the command line gives an option a constant of its own as its default."""
    twice = []
    for path in [*PACKAGE.glob("training/*.py"), PACKAGE / "cli" / "train.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                a = node.args
                given = [*zip(a.args[len(a.args) - len(a.defaults) :], a.defaults), *zip(a.kwonlyargs, a.kw_defaults)]
                twice += [f"{path.name}: {arg.arg}" for arg, value in given if own(arg.arg, value)]
            elif isinstance(node, ast.ClassDef):
                fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
                twice += [f"{path.name}: {n.target.id}" for n in fields if own(n.target.id, n.value)]
    # A switch of one engine's run, and the log's own files: no options.
    assert set(twice) <= {"engine.py: resume"}, twice


def own(name, value):
    return name in FIELDS and isinstance(value, ast.Constant) and value.value is not None


@pytest.mark.parametrize(
    "value, said",
    [(True, "needs a whole number"), (1.0, "needs a whole number"), (-1, "needs 0 or more"), (2**31, "needs 0 to")],
)
def test_whole_numbers(value, said):
    with pytest.raises(ConfigError, match=f"^n is {value}, {said}"):
        check_whole("n", value, 0)
