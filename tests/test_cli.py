"""The command line: options, configuration files, what goes to stdout and what to stderr."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from faults.conftest import TINY, blobs, here, made, run, start, untouched, write_h5  # noqa: F401

import scqfaiss
from scqfaiss.cli import program as cli

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
    Path("c.toml").write_text(
        'bits = 8\nnbits = 4\nencoder = "linear"\nepochs = 1\nseed = 7\nforecast = "off"\n[set]\ncodebooks.copies = 1\n'
    )
    assert run("train", "train.h5", "-o", "a.safetensors", "--config", "c.toml").code == 0
    assert run("train", "train.h5", "-o", "b.safetensors", *TINY, "--seed", "7").code == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    # An option overrides the file, and --set its table.
    overriding = ("--config", "c.toml", "--bits", "12", "--set", "codebooks.copies=2", "--set", "omega=0.5")
    assert run("train", "train.h5", "-o", "c.safetensors", *overriding).code == 0
    config = scqfaiss.Model.load("c.safetensors").config
    assert (config["bits"], config["seed"], config["encoder"]) == (12, 7, "linear")
    assert (config["settings"]["codebooks.copies"], config["settings"]["omega"]) == (2, 0.5)


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
    result = run("train", "train.h5", "-o", "x.safetensors", *TINY, "--set", "quantizer=arsq", "--dry-run")
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
    assert targets["ivfpq:"] == "target ivfpq: 9.0 MB a million rows, CPU yes, GPU yes"
    assert "a million rows" in targets["pq:"]
    assert targets["lift:"].startswith("target lift: no (it holds additive codebooks, these are product; use ")
    result = run("export", "m.safetensors", "database.h5", "-o", "x.faissindex", "--dry-run")
    assert result.out.splitlines() == [
        "rows: 200 of d=16",
        "file: about 6.9 kB",
        "target ivfpq: CPU yes, GPU yes",
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
    Path("m.toml").write_text("")
    refused(
        run("info", "m.toml"),
        2,
        "m.toml: ending '.toml' is unknown, needs one of .h5 .hdf5 .hdf .npy .fvecs .bvecs .npz .parquet, or images: a folder, "
        ".csv, .jsonl, .jpg ...",
    )
    os.unlink("m.toml")
    untouched()


def test_verify(run, here, untouched):
    assert run("verify", "g.faissindex").out == "g.faissindex: valid, 200 vectors, checksum and metadata agree\n"
    assert run("verify", "m.safetensors").out.startswith("m.safetensors: valid, model of method scq, SHA-256 ")
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


@pytest.mark.slow
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
    printable = capsys.readouterr().err
    assert printable.startswith("Traceback") and "faiss" in printable and printable.endswith(plain)


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


@pytest.mark.slow
def test_names_beyond_the_letters_of_the_locale(here, start):
    """Escaped where stdout cannot show them, never an error."""
    os.rename("g.faissindex", "日.faissindex")
    for encoding, text in (("latin-1", "\\u65e5"), ("utf-8", "日")):
        result = start("verify", "日.faissindex", env=os.environ | {"PYTHONIOENCODING": encoding})
        sound = f"{text}.faissindex: valid, 200 vectors, checksum and metadata agree\n"
        assert (result.code, result.out) == (0, sound)


# ------------------------------------------------------------------------------------------------- the life of a gallery
def hits(path):
    with h5py.File(path) as f:
        return {name: f[name][()] for name in f}


def test_append_remove_merge(run, here):
    result = run("append", "folded.faissindex", "query.h5")
    size = os.path.getsize("folded.faissindex") / 1000
    want = f"folded.faissindex: 20 vectors added (ids 5000 to 5019), 220 in all, {size:.1f} kB\n"
    assert (result.code, result.out, result.warnings) == (0, want, [])
    taken = "ids 5000, 5001, 5002, 5003, 5004 are already in folded.faissindex (20 of 20); remove them first"
    refused(run("append", "folded.faissindex", "query.h5"), 3, taken)
    result = run("remove", "folded.faissindex", "--ids", "5000, 5001,7,5000")
    assert (result.code, result.out) == (0, "folded.faissindex: 2 vectors removed, 1 ids were not there, 218 left\n")
    result = run("remove", "folded.faissindex", "--ids", "query.h5")
    assert result.out == "folded.faissindex: 18 vectors removed, 2 ids were not there, 200 left\n"
    result = run("remove", "folded.faissindex", "--ids", "5000")
    assert result.out == "folded.faissindex: 0 vectors removed, 1 ids were not there, 200 left\n"
    np.save("some.npy", np.arange(1000, 1100))
    result = run("remove", "folded.faissindex", "--ids", "some.npy")
    assert result.out == "folded.faissindex: 100 vectors removed, 100 left\n"
    refused(
        run("remove", "folded.faissindex", "--ids", "database.h5"),
        3,
        "folded.faissindex: nothing would be left; delete the file instead",
    )
    assert run("export", "pq.safetensors", "query.h5", "-o", "more.faissindex").code == 0
    result = run("merge", "folded.faissindex", "more.faissindex", "-o", "both.faissindex")
    assert (result.code, result.out) == (0, "both.faissindex: 120 vectors from 2 galleries\n")
    assert run("verify", "both.faissindex").out == "both.faissindex: valid, 120 vectors, checksum and metadata agree\n"
    refused(
        run("merge", "both.faissindex", "more.faissindex", "-o", "x.faissindex"),
        3,
        "ids 5000, 5001, 5002, 5003, 5004 stand in more than one of the galleries (20 such ids)",
    )


def test_append_numbers_rows_on(run, here):
    np.save("rows.npy", blobs(3)[0])
    assert "3 vectors added (ids 1200 to 1202), 203 in all" in run("append", "folded.faissindex", "rows.npy").out


def test_append_with_bad_rows(run, here, untouched):
    x = blobs(5)[0]
    x[2] = np.nan
    np.save("rows.npy", x)
    untouched(again=True)
    assert run("append", "folded.faissindex", "rows.npy").code == 3
    untouched()
    result = run("append", "folded.faissindex", "rows.npy", "--skip-bad-rows")
    assert "4 vectors added (ids 1200 to 1203), 204 in all" in result.out
    assert result.warnings == ["rows.npy: left out 1 of 5 rows that are not finite"]


def test_edits_that_are_refused(run, here, untouched):
    sha = {name: scqfaiss.Model.load(f"{name}.safetensors").sha256[:12] for name in ("m", "other", "pq")}
    needs = f"g.faissindex: new rows need the model its codes came from ({sha['m']}); give --model"
    refused(run("append", "g.faissindex", "query.h5"), 2, needs)
    other = f"the model is {sha['other']}, g.faissindex was made by {sha['m']}; give that model"
    refused(run("append", "g.faissindex", "query.h5", "--model", "other.safetensors"), 2, other)
    refused(run("append", "nope.faissindex", "query.h5"), 2, "nope.faissindex: no such file")
    refused(run("append", "g.faissindex", "nope.h5", "--model", "m.safetensors"), 2, "nope.h5: no such file")
    refused(run("append", "train.h5", "query.h5"), 2, "train.h5: galleries end in .faissindex")
    refused(run("remove", "nope.faissindex", "--ids", "1"), 2, "nope.faissindex: no such file")
    refused(run("remove", "g.faissindex"), 2, "Missing option '--ids'.")
    refused(run("remove", "g.faissindex", "--ids", "nope.txt"), 2, "nope.txt: no such file")
    wrong = "ids: entry 2 is 'x', needs an id (0 to 9,223,372,036,854,775,807)"
    refused(run("remove", "g.faissindex", "--ids", "1,x"), 3, wrong)
    refused(run("merge", "g.faissindex", "-o", "x.faissindex"), 2, "a merge needs at least 2 galleries")
    refused(run("merge", "-o", "x.faissindex"), 2, "Missing argument 'GALLERIES...'.")
    refused(
        run("merge", "g.faissindex", "p.faissindex", "-o", "x.faissindex"),
        2,
        "p.faissindex has target pq, g.faissindex has ivfpq",
    )
    refused(
        run("merge", "g.faissindex", "other.faissindex", "-o", "x.faissindex"),
        2,
        f"other.faissindex has model_sha256 {sha['other']}, g.faissindex has {sha['m']}",
    )
    untouched()


def test_search_among_some_ids(run, here):
    Path("allow.txt").write_text("1000 1001 1002\n1003\n")
    search = ("search", "folded.faissindex", "query.h5", "-k", "3", "-o", "h.h5")
    result = run(*search, "--filter-ids", "allow.txt", "--deny-ids", "1003,5")
    assert result.out.startswith("20 queries, 3 hits each, written to h.h5\n")
    assert set(hits("h.h5")["ids"].ravel()) == {1000, 1001, 1002}
    result = run(*search, "--filter-ids", "1001,1002,7")
    assert result.out.startswith("20 queries, 3 hits each but for 20 with fewer, written to h.h5\n")
    assert "-1:" not in result.out
    ids = hits("h.h5")["ids"]
    assert (ids[:, 2] == -1).all() and (ids[:, :2] > 0).all()
    every = "0 hits of"
    result = run(*search, "--deny-ids", "database.h5")
    assert every not in result.out and (hits("h.h5")["ids"] == -1).all()
    words = "p.faissindex: target pq cannot filter by id; export with ivfpq or buckets"
    model = ("--model", "m.safetensors")
    refused(run("search", "p.faissindex", "query.h5", *model, "--filter-ids", "1"), 2, words)
    refused(run(*search, "--filter-ids", "nope.txt"), 2, "nope.txt: no such file")
    Path("allow.txt").write_text("1 two")
    wrong = "allow.txt: entry 2 is 'two', needs an id (0 to 9,223,372,036,854,775,807)"
    refused(run(*search, "--deny-ids", "allow.txt"), 3, wrong)


def test_search_by_threshold(run, here):
    search = ("search", "folded.faissindex", "query.h5")
    assert run(*search, "-k", "200", "-o", "all.h5").code == 0
    found = hits("all.h5")
    threshold = float(np.median(found["scores"])) + 1e-3
    result = run(*search, "--threshold", str(threshold), "-o", "h.h5")
    beyond = found["scores"] > threshold
    assert result.out.startswith(f"20 queries, {beyond.sum():,} hits, written to h.h5\n")
    lines = result.out.splitlines()[1:]
    assert len(lines) == 5 and all(len(line.split("  ")) <= 11 for line in lines)
    got = hits("h.h5")
    assert sorted(got) == ["ids", "lims", "query_ids", "scores"]
    np.testing.assert_array_equal(got["query_ids"], np.arange(5000, 5020))
    np.testing.assert_array_equal(np.diff(got["lims"]), beyond.sum(1))
    for q in range(20):
        own = slice(*got["lims"][q : q + 2])
        np.testing.assert_allclose(got["scores"][own], found["scores"][q][beyond[q]], rtol=1e-5)
        assert set(got["ids"][own]) == set(found["ids"][q][beyond[q]])
    result = run(*search, "--threshold", "1e30", "-o", "h.h5", "--filter-ids", "1000")
    assert result.out.startswith("20 queries, 0 hits, written to h.h5\n")
    assert hits("h.h5")["lims"].tolist() == [0] * 21
    refused(run(*search, "--threshold", "nan"), 2, "threshold is nan, needs a number")
    refused(run(*search, "--threshold", "x"), 2, "Invalid value for '--threshold': 'x' is not a valid float.")
    all_hits = "a search by threshold gives every hit beyond it; leave -k out"
    refused(run(*search, "--threshold", "1", "-k", "10"), 2, all_hits)
    every = "a search by threshold looks into every list; leave --nprobe out"
    refused(run(*search, "--threshold", "1", "--nprobe", "2"), 2, every)


def test_search_mapped_and_by_lists(run, here):
    export = ("export", "pq.safetensors", "database.h5", "-o", "lists.faissindex", "--nlist", "8", "--nprobe", "2")
    assert run(*export).code == 0
    search = ("search", "lists.faissindex", "query.h5", "-k", "200")
    assert "20 queries, 200 hits each but for 20 with fewer" in run(*search, "--nprobe", "2").out
    everything = run(*search, "--nprobe", "8")
    assert run(*search).out == everything.out  # two lists do not hold so many hits: the search goes on
    assert everything.out.startswith("20 queries, 200 hits each\n")
    assert run(*search, "--nprobe", "8", "--mmap").out == everything.out
    result = run(*search, "--nprobe", "9")
    assert result.out == everything.out
    assert result.warnings == ["nprobe=9 is more than the 8 lists of lists.faissindex: visited all of them"]
    refused(run(*search, "--nprobe", "0"), 2, "nprobe is 0: needs 1 or more")
    refused(run("search", "p.faissindex", "query.h5", "--model", "m.safetensors", "--nprobe", "3"), 2,
            "nprobe is 3: p.faissindex has no lists")  # fmt: skip
    model = ("--model", "m.safetensors")
    assert (
        run("search", "p.faissindex", "query.h5", *model, "--mmap").out
        == run("search", "p.faissindex", "query.h5", *model).out
    )


def test_options_of_an_export(run, here, untouched):
    export = ("export", "pq.safetensors", "database.h5", "-o", "x.faissindex")
    refused(run(*export, "--nlist", "201"), 2, "nlist is 201, needs at most the 200 rows")
    refused(run(*export, "--nlist", "8", "--nprobe", "9"), 2, "nprobe is 9, needs at most the 8 lists")
    refused(run(*export, "--nlist", "-1"), 2, "nlist is -1, needs a whole number from 0 to 16,777,216")
    refused(run(*export, "--refine", "8"), 2, "target ivfpq takes no refine, fastscan can")
    refused(run(*export, "--target", "pq", "--nlist", "8"), 2, "target pq takes no nlist, ivfpq and buckets can")
    refused(
        run(*export, "--target", "fastscan", "--refine", "1001"),
        2,
        "refine is 1001, needs a whole number from -1 to 1,000",
    )
    untouched()
    assert run(*export, "--target", "fastscan", "--refine", "-1").code == 0
    words = "fast scan without refine has no range search; export without --refine -1"
    refused(run("search", "x.faissindex", "query.h5", "--threshold", "0"), 2, words)


# Commands that read labels, with rows of .npy files that hold none, and what gives the labels of each file.
THREE = ("--train=train.npy", "--query=query.npy", "--database=database.npy", "--out=out")
OF_THREE = {f"--{part}-labels": f"{part}.npy" for part in ("train", "query", "database")}
LABELLED = {
    "train": (
        ("train.npy", "-o", "x.safetensors", *TINY, "--validation", "query.npy", "--calibrate", "database.npy"),
        {"--labels": "train.npy", "--validation-labels": "query.npy", "--calibrate-labels": "database.npy"},
    ),
    "extend": (("m.safetensors", "train.npy", "-o", "x.safetensors"), {"--labels": "train.npy"}),
    "calibrate": (("m.safetensors", "train.npy", "-o", "x.safetensors"), {"--labels": "train.npy"}),
    "check": (("train.npy", "--quick"), {"--labels": "train.npy"}),
    "info": (("train.npy",), {"--labels": "train.npy"}),
    "evaluate": (
        ("g.faissindex", "query.npy", "database.npy", "--model", "m.safetensors"),
        {"--labels": "query.npy", "--database-labels": "database.npy"},
    ),
    "attack": (
        ("m.safetensors", "query.npy", "database.npy", "--out", "out"),
        {"--labels": "query.npy", "--database-labels": "database.npy"},
    ),
    "compare": (THREE, OF_THREE),
    "compare-growth": ((*THREE, "--rows=100"), OF_THREE),
}
UNREAD = {"export", "append", "search", "features"}  # labels play no part there


def write_npy(*names):
    for name in names:
        with h5py.File(f"{name}.h5") as f:
            np.save(f"{name}.npy", f["features"])
            np.save(f"{name}-y.npy", f["labels"])


def test_every_command_that_reads_labels_takes_them_from_files(run, here):
    taking = {name for name, c in cli.cli.commands.items() if any(p.name == "labels_key" for p in c.params)}
    assert taking == set(LABELLED) | UNREAD
    write_npy("train", "query", "database")
    for name, (words, labels) in LABELLED.items():
        flags = {flag for p in cli.cli.commands[name].params for flag in p.opts if flag.endswith("labels")}
        assert flags == set(labels), name
        whole = {flag: f"{of.removesuffix('.npy')}-y.npy" for flag, of in labels.items()}
        for flag, of in labels.items():
            np.save("short.npy", np.load(whole[flag])[1:])
            given = [word for pair in (whole | {flag: "short.npy"}).items() for word in pair]
            result, n = run(name, *words, *given), len(np.load(of))
            assert result.code == 3, (name, flag, result.err)
            assert f"{of}: labels of short.npy has {n - 1} rows, features has {n}" in result.err, (
                name,
                flag,
                result.err,
            )


def test_labels_of_a_comparison_in_files_of_their_own(here):
    from scqfaiss.comparison.inputs import label_files, read_inputs, row_facts
    from scqfaiss.comparison.options import CompareOptions

    write_npy("train", "query", "database")
    parts = ("train", "query", "database")
    keys = {f"{part}_labels": f"{part}-y.npy" for part in parts} | {"skip_bad_rows": False}
    want, got = (
        read_inputs(CompareOptions(**{part: Path(f"{part}.{kind}") for part in parts}, out=Path("out")), given)
        for kind, given in (("h5", {}), ("npy", keys))
    )
    for part in parts:
        a, b = getattr(want, part), getattr(got, part)
        assert np.array_equal(a.x, b.x) and np.array_equal(a.labels.y, b.labels.y) and a.labels.C == b.labels.C
    assert set(label_files(keys)) == {"train labels", "query labels", "database labels"}
    assert set(label_files({"labels_file": "y.npy"}, "query")) == {"query labels"}
    assert row_facts(keys) == {} and row_facts({"scale": 2.0}) == {"row_options": {"scale": 2.0}}


def test_missing_labels_name_the_option_that_brings_them(run, here):
    write_npy("train", "query", "database")
    result = run("compare", *THREE)
    said = "train.npy has no labels, which a comparison needs; name them with --labels-key, or bring them with --train-labels"
    assert result.code == 3 and said in result.err
    result = run("attack", "m.safetensors", "query.npy", "database.npy", "--out", "out", "--labels", "query-y.npy")
    assert result.code == 3 and "or bring them with --database-labels FILE" in result.err


def test_config_file_names_labels_as_the_command_does(run, here):
    write_npy("train")
    Path("c.toml").write_text('labels = "train-y.npy"\nencoder-arg = ["width=8"]\n')
    said = "--encoder-arg goes with a network for images, encoder mlp is none"
    refused(run("train", "train.npy", "-o", "x.safetensors", "--config", "c.toml"), 2, said)
    Path("c.toml").write_text('labels = "train-y.npy"\n')
    assert run("train", "train.npy", "-o", "x.safetensors", *TINY, "--config", "c.toml").code == 0
