"""The command line: options, configuration files, what goes to stdout and what to stderr."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from faults.conftest import TINY, blobs, here, made, run, start, untouched, write_h5  # noqa: F401

import scqfaiss
from scqfaiss import cli

# ruff: noqa: F811  (fixtures are imported by name)
COMMANDS = sorted(cli.cli.commands)
TRAIN = ("train", "train.h5", "-o", "x.safetensors", "--epochs", "1")
EVALUATE = ("evaluate", "g.faissindex", "query.h5", "database.h5", "--model", "m.safetensors")


def refused(result, code, message):
    assert (result.code, result.error) == (code, f"Error: {message}")


def test_help_of_every_command(run):
    assert {"train", "export", "search", "evaluate", "info", "verify", "demo"} <= set(COMMANDS)
    for arguments in ([], *([c] for c in COMMANDS)):
        result = run(*arguments, "--help")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith("Usage: scqfaiss")
        assert run(*arguments, "-h").out == result.out
    assert run("--version").out == f"scqfaiss, version {scqfaiss.__version__}\n"


def test_no_command_prints_help_and_is_an_error(capsys):
    assert cli.run([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Usage: scqfaiss")


def test_wrong_usage(run):
    refused(run("nope"), 2, "No such command 'nope'.")
    refused(run("train"), 2, "Missing argument 'ROWS'.")
    refused(run("train", "x.h5"), 2, "Missing option '-o' / '--out'.")
    refused(run("info", "a.h5", "b.h5"), 2, "Got unexpected extra argument (b.h5)")


def test_config_file(run, here):
    Path("c.toml").write_text('bits = 8\nnbits = 4\nencoder = "linear"\nepochs = 1\nseed = 7\n[set]\nbook_copies = 1\n')
    assert run("train", "train.h5", "-o", "a.safetensors", "--config", "c.toml").code == 0
    assert run("train", "train.h5", "-o", "b.safetensors", *TINY, "--seed", "7").code == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    # An option overrides the file, and --set its table.
    overriding = ("--config", "c.toml", "--bits", "12", "--set", "book_copies=2", "--set", "omega=0.5")
    assert run("train", "train.h5", "-o", "c.safetensors", *overriding).code == 0
    config = scqfaiss.Model.load("c.safetensors").config
    assert (config["bits"], config["seed"], config["encoder"]) == (12, 7, "linear")
    assert (config["settings"]["book_copies"], config["settings"]["omega"]) == (2, 0.5)


def test_config_file_may_name_the_output(run, here):
    Path("c.toml").write_text('out = "named.safetensors"\nmethod = "pq"\nbits = 8\nnbits = 4\nskip-bad-rows = true\n')
    assert run("train", "train.h5", "--config", "c.toml").code == 0
    assert Path("named.safetensors").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("bitz = 8", "c.toml: unknown key 'bitz'; method settings go into a table [set]"),
        ("omega = 1", "c.toml: unknown key 'omega'; method settings go into a table [set]"),
        ('rows = "x"', "c.toml: unknown key 'rows'; method settings go into a table [set]"),
        ("help = true", "c.toml: unknown key 'help'; method settings go into a table [set]"),
        ('config = "c.toml"', "c.toml: unknown key 'config'; method settings go into a table [set]"),
        ("set = 5", "c.toml: set is 5, needs a table [set]"),
        ("bits = 8.5", "c.toml: bits is 8.5, needs a whole number"),
        ("bits = true", "c.toml: bits is True, needs a whole number"),
        ("epochs = [1]", "c.toml: epochs is [1], needs a whole number"),
        ('bits = "x"', "Invalid value for '--bits': 'x' is not a valid integer."),
        ("codebook-rows = 5", "Invalid value for '--codebook-rows': 5 is no file name"),
        ('codebook-rows = "a\\u0000b"', "Invalid value for '--codebook-rows': 'a\\x00b' is no file name"),
        ("[set]\nd = [1, 2]", "d is [1, 2], needs a whole number"),
        ('[set]\nd = "eight"', "d is 'eight', needs a whole number"),
        ("[set]\nsofft = 1", "unknown key 'sofft' for method scq; did you mean 'soft'?"),
        (
            "a.a.a",
            "c.toml: not a readable TOML file (Expected '=' after a key in a key/value pair (at end of document))",
        ),
        (b"\xff", None),
        ("a = " + "[" * 5000, None),
    ],
)
def test_config_file_that_is_wrong(run, here, untouched, text, message):
    Path("c.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    untouched(again=True)
    result = run("train", "train.h5", "-o", "x.safetensors", "--config", "c.toml")
    assert result.code == 2
    if message:
        assert result.error == f"Error: {message}"
    else:
        assert result.error.startswith("Error: c.toml: not a readable TOML file (")
    untouched()


def test_config_file_missing(run, here, untouched):
    refused(run(*TRAIN, "--config", "no.toml"), 2, "no.toml: no such file")
    refused(run(*TRAIN, "--config", "train.h5/x"), 2, "train.h5/x: no such file")
    untouched()


def test_dry_run_writes_nothing_and_says_all(run, here, untouched):
    result = run("train", "train.h5", "-o", "x.safetensors", *TINY, "--dry-run")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[:3] == [
        "rows: 300 of d=16 (19.2 kB as float32)",
        "classes: 4",
        "codes: 2 x 4 bits, 1 bytes a vector, z of d=4",
    ]
    stages = [line for line in lines if line.startswith("stage ")]
    assert [s.split()[1] for s in stages] == ["features:", "codebooks:"]
    assert all("1 epochs, " in s and s.endswith(" steps") for s in stages)
    targets = {line.split()[1]: line for line in lines if line.startswith("target ")}
    assert "CPU yes, GPU no (the GPU kernels need nbits 8, got 4)" in targets["ivfpq:"]
    assert "a million rows" in targets["pq:"]
    result = run("export", "m.safetensors", "database.h5", "-o", "x.faissindex", "--dry-run")
    assert result.out.splitlines() == [
        "rows: 200 of d=16",
        "file: about 3.1 kB",
        "target ivfpq: CPU yes, GPU no (the GPU kernels need nbits 8, got 4)",
    ]
    # What is wrong is found, though nothing would be written.
    refused(
        run("train", "train.h5", "-o", "x.safetensors", "--dry-run", "--bits", "7"),
        2,
        "bits=7 is not a multiple of nbits=8; need 8",
    )
    refused(run("export", "m.safetensors", "no.h5", "-o", "x.faissindex", "--dry-run"), 2, "no.h5: no such file")
    untouched()


def test_info_on_every_kind_of_file(run, here, untouched):
    kinds = {"g.faissindex": "gallery", "p.faissindex": "gallery", "folded.faissindex": "gallery"}
    kinds |= {"m.safetensors": "model", "pq.safetensors": "model", "train.h5": "rows"}
    np.save("x.npy", blobs(5)[0])
    untouched(again=True)
    for name, kind in (kinds | {"x.npy": "rows"}).items():
        result = run("info", name)
        assert (result.code, result.out.splitlines()[0]) == (0, f"{name}: {kind}")
        found = json.loads(run("info", name, "--json").out)
        assert found["kind"] == kind
    gallery = json.loads(run("info", "g.faissindex", "--json").out)
    assert (gallery["vectors"], gallery["bits"], gallery["query_d"], gallery["bytes"]) == (
        200,
        8,
        16,
        os.stat("g.faissindex").st_size,
    )
    refused(
        run("info", "m.toml"), 2, "m.toml: ending '.toml' is unknown, needs one of .h5 .hdf5 .hdf .npy .fvecs .bvecs"
    )
    untouched()


def test_verify(run, here, untouched):
    assert run("verify", "g.faissindex").out == "g.faissindex: sound, 200 vectors, checksum and card agree\n"
    assert run("verify", "m.safetensors").out.startswith("m.safetensors: sound, model of method scq, SHA-256 ")
    refused(run("verify", "no.faissindex"), 2, "no.faissindex: no such file")
    refused(run("verify", "train.h5"), 3, "train.h5: not a FAISS index, or damaged")
    untouched()


def test_evaluate_json_keeps_the_contract(run, here):
    result = run(*EVALUATE, "--at", "50", "--json")
    found = json.loads(result.out)
    assert {"map", "at", "precision_at_k", "recall_at_k", "bits", "distinct_codes"} <= set(found)
    assert (found["at"], found["bits"], found["search_agreement"]) == (50, 8, 1.0)
    assert set(found["precision_at_k"]) == set(found["recall_at_k"]) == {"1", "10", "100"}
    assert 0 <= found["map"] <= 1
    assert result.out.count("\n") == 1
    text = run(*EVALUATE, "--at", "50").out
    assert text.startswith(f"mAP@50  {found['map']:.4f}")


def test_progress_goes_to_stderr_only(run, here, start):
    result = start("train", "train.h5", "-o", "x.safetensors", *TINY)
    assert result.code == 0
    assert result.out.startswith("x.safetensors: scq, 8 bits (2 x 4)") and result.out.count("\n") == 1
    assert "features: " in result.err and "\r" not in result.err and "\x1b" not in result.err
    result = run("export", "m.safetensors", "database.h5", "-o", "x.faissindex")
    assert result.out.count("\n") == 1 and result.out.startswith("x.faissindex: 200 vectors, 8 bits each")
    assert result.err == "encode: 200 of 200\n"


def test_debug_prints_the_cause(here, capsys, monkeypatch):
    Path("g.faissindex").write_bytes(b"IxPQ" + b"\xff" * 100)
    assert cli.run(["verify", "g.faissindex"]) == 3
    plain = capsys.readouterr().err
    assert plain == "Error: g.faissindex: not a FAISS index, or damaged\n"
    monkeypatch.setenv("SCQFAISS_DEBUG", "1")
    assert cli.run(["verify", "g.faissindex"]) == 3
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and "faiss" in shown and shown.endswith(plain)


@pytest.mark.parametrize(
    "name, text",
    [
        ("with space", "with space"),
        ('l\'été "x"', 'l\'été "x"'),
        ("two\nlines", "two\\nlines"),
        (b"\xff\xfe", "\\udcff\\udcfe"),
        ("\x1b[31m", "\\x1b[31m"),
        ("-rf", "-rf"),
    ],
)
def test_file_names_of_every_kind(run, here, name, text):
    name = os.fsdecode(name)
    for ending in (".h5", ".faissindex", ".safetensors"):
        refused(run("info", "--", name + ending), 2, f"{text}{ending}: no such file")
    os.rename("database.h5", name + ".h5")
    os.rename("m.safetensors", name + ".safetensors")
    result = run("export", f"./{name}.safetensors", f"./{name}.h5", "-o", f"./{name}.faissindex")
    assert (result.code, result.out.count("\n")) == (0, 1)
    assert result.out.startswith(f"{text}.faissindex: 200 vectors")
    result = run(
        "search", f"./{name}.faissindex", "query.h5", "--model", f"./{name}.safetensors", "-o", f"./{name}.hits.h5"
    )
    assert result.out.splitlines()[0] == f"20 queries, 10 hits each, written to {text}.hits.h5"
    for ending in (".h5", ".faissindex", ".safetensors"):
        result = run("info", f"./{name}{ending}")
        assert result.code == 0 and "\x1b" not in result.out
    data = bytearray(Path(name + ".faissindex").read_bytes())
    data[100] ^= 1
    Path(name + ".faissindex").write_bytes(data)
    refused(
        run("verify", f"./{name}.faissindex"),
        3,
        f"{text}.faissindex: checksum mismatch; export again or restore a copy",
    )


def test_texts_out_of_files_stay_on_their_line(run, here):
    """Class names are chosen by whoever made the file: no line breaks and no terminal codes in what we print."""
    x, y = blobs(50, C=3)
    names = ["a\nError: forged", "\x1b[31mred", "plain", "gone\r\n"]
    write_h5("odd.h5", x, y, None, names)
    write_h5("even.h5", x, y, None, names[::-1])
    result = run("train", "odd.h5", "-o", "x.safetensors", *TINY)
    assert (result.code, result.warnings) == (0, ["1 of 4 classes have no rows (gone )"])
    for file in ("odd.h5", "x.safetensors"):
        result = run("info", file)
        assert result.code == 0 and "\x1b" not in result.out and "\nError" not in result.out
        assert json.loads(run("info", file, "--json").out)["class_names"] == names
    result = run("evaluate", "g.faissindex", "odd.h5", "even.h5", "--model", "m.safetensors")
    refused(result, 2, "class 0 is 'a Error: forged' in odd.h5 and 'gone ' in even.h5")


def test_names_beyond_the_letters_of_the_locale(here, start):
    """Escaped where stdout cannot show them, never an error."""
    os.rename("g.faissindex", "日.faissindex")
    for encoding, text in (("latin-1", "\\u65e5"), ("utf-8", "日")):
        result = start("verify", "日.faissindex", env=os.environ | {"PYTHONIOENCODING": encoding})
        sound = f"{text}.faissindex: sound, 200 vectors, checksum and card agree\n"
        assert (result.code, result.out) == (0, sound)
