"""Faults of labels and configuration, rows B5 to B14 of the fault table, through the command line."""

import json

import numpy as np
import pytest

from scqfaiss import errors
from scqfaiss.arrays import MAX_CLASSES, as_features, as_ids, as_labels
from scqfaiss.codebooks import Codebooks
from scqfaiss.data import ArraySource
from scqfaiss.errors import DataError
from scqfaiss.methods import REGISTRY

from .conftest import TINY, blobs, write_h5


def refused(result, code, message):
    assert (result.code, result.error) == (code, f"Error: {message}")


def test_b5_one_class(run, here, untouched):
    x, _ = blobs(50)
    write_h5("a.h5", x, np.zeros(50, int))
    write_h5("b.h5", x, np.ones(50, int), None, ["cat", "dog"])
    untouched(again=True)
    refused(run("train", "a.h5", "-o", "x.safetensors", *TINY), 3, "scq needs at least 2 classes, found 1 ('0')")
    refused(run("train", "b.h5", "-o", "x.safetensors", *TINY), 3, "scq needs at least 2 classes, found 1 ('dog')")
    untouched()


def test_b5_class_with_one_row_and_class_without(run, here):
    x, y = blobs(50, C=3)
    y[y == 1] = 0
    y[7] = 1
    write_h5("a.h5", x, y, None, ["cat", "dog", "emu", "fox"])
    result = run("train", "a.h5", "-o", "x.safetensors", *TINY)
    assert (result.code, result.warnings) == (0, ["1 of 4 classes have no rows (fox)"])


def test_b6_splits_name_classes_differently(run, here, untouched):
    x, y = blobs(20)
    write_h5("q.h5", x, y, None, ["ant", "bee", "deer", "cat"])
    write_h5("b.h5", *blobs(200, seed=1), np.arange(200) + 1000, ["ant", "bee", "cat", "deer"])
    write_h5("short.h5", x, y % 3, None, ["ant", "bee", "cat"])
    untouched(again=True)
    result = run("evaluate", "g.faissindex", "q.h5", "b.h5", "--model", "m.safetensors")
    refused(result, 2, "class 2 is 'deer' in q.h5 and 'cat' in b.h5")
    result = run("evaluate", "g.faissindex", "short.h5", "b.h5", "--model", "m.safetensors")
    refused(result, 2, "short.h5 names 3 classes, b.h5 names 4")
    untouched()


def test_b7_fewer_rows_than_codewords(run, here, untouched):
    write_h5("few.h5", *blobs(100))
    untouched(again=True)
    long = ("--bits", "8", "--nbits", "8", *TINY[4:])
    result = run("train", "few.h5", "-o", "x.safetensors", *long)
    assert (result.code, result.warnings) == (0, ["100 rows can use at most 100 of 256 codewords"])
    (here / "x.safetensors").unlink()
    result = run("train", "few.h5", "-o", "x.safetensors", "--method", "pq", "--bits", "8")
    refused(result, 2, "100 rows cannot train K=256 codewords; need --nbits 6 or less")
    untouched()


def test_b7_one_row_has_no_nbits_that_fits(run, here, untouched):
    write_h5("one.h5", blobs(1)[0])
    untouched(again=True)
    result = run("train", "one.h5", "-o", "x.safetensors", "--method", "opq", "--bits", "1", "--nbits", "1")
    refused(result, 2, "1 rows cannot train K=2 codewords; need at least 2 rows")
    untouched()


def test_b8_k_below_c(run, here):
    write_h5("wide.h5", *blobs(300, C=100))
    result = run("train", "wide.h5", "-o", "x.safetensors", *TINY, "--set", "private=class")
    message = "K=16 codewords cannot serve C=100 classes; need --nbits 7 or more, or private=public"
    refused(result, 2, message)
    assert not (here / "x.safetensors").exists()
    result = run("train", "wide.h5", "-o", "x.safetensors", *TINY, "--set", "quantizer=arsq")
    assert result.code == 0
    shared = "K=16 codewords are fewer than 2 for each of 100 classes: all classes share them"
    assert result.warnings == [shared]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--bits", "24", "--set", "d=16"], "d=16 is not divisible by M=3 codebooks; need M of 2 or 4"),
        (["--bits", "30"], "bits=30 is not a multiple of nbits=8; need 24 or 32"),
        (["--bits", "7"], "bits=7 is not a multiple of nbits=8; need 8"),
        (
            ["--bits", "0"],
            "bits=0 is not a multiple of nbits=8; need 8, or --lists auto, whose lists alone are a code of 0 bits",
        ),
        (["--bits", "-8"], "bits=-8 is not a multiple of nbits=8; need 8"),
        (["--bits", "1000000000"], "bits is 1,000,000,000, needs 8 to 4,096"),
        (["--nbits", "0"], "nbits is 0, needs 1 to 16"),
        (["--nbits", "17"], "nbits is 17, needs 1 to 16"),
        (["--method", "pq", "--bits", "24"], "rows of d=16 is not divisible by M=3 codebooks; need M of 2 or 4"),
        (["--method", "opq", "--bits", "256"], "rows of d=16 cannot fill M=32 codebooks"),
        (
            ["--bits", "2", "--nbits", "1", "--set", "d=4"],
            "d=4 in M=2 codebooks leaves 2 dimensions a codebook, which needs --nbits 3 or more",
        ),
    ],
)
def test_b9_shapes_that_cannot_be(run, here, untouched, options, message):
    refused(run("train", "train.h5", "-o", "x.safetensors", *options), 2, message)
    untouched()


def test_b9_pairs_the_gpu_cannot_run_are_named_before_training(run, here, untouched):
    result = run("train", "train.h5", "-o", "x.safetensors", "--dry-run", "--bits", "12", "--nbits", "6")
    assert result.code == 0
    needs = "nbits 8, or 4 in an even number of codebooks; got 2 x 6"
    assert f"CPU yes, GPU no (the GPU kernels need {needs})" in result.out
    result = run("train", "train.h5", "-o", "x.safetensors", "--dry-run", "--bits", "392")
    assert (
        "GPU no (the look-up tables of 49 codebooks exceed the shared memory of the GPU; at most 48 fit)" in result.out
    )
    result = run("train", "train.h5", "-o", "x.safetensors", "--dry-run", "--bits", "40")
    assert "target ivfpq: 13.0 MB a million rows, CPU yes, GPU yes" in result.out  # 5 codebooks are made 8 there
    untouched()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--set", "sofft=1"], "unknown key 'sofft' for method scq; did you mean 'soft'?"),
        (["--set", "zzz=1"], "unknown key 'zzz' for method scq"),
        (["--set", "d=eight"], "d is 'eight', needs a whole number"),
        (["--set", "d=8.5"], "d is '8.5', needs a whole number"),
        (["--set", "omega=much"], "omega is 'much', needs a number"),
        (["--set", "rescale=maybe"], "rescale is 'maybe', needs true or false"),
        (["--set", "omega=-1"], "omega is -1.0, needs 0 to 2147483647"),
        (["--set", "omega=nan"], "omega is nan, needs 0 to 2147483647"),
        (["--set", "omega=inf"], "omega is inf, needs 0 to 2147483647"),
        (["--set", "features.lr=1e300"], "features.lr is 1e+300, needs 0 to 2147483647"),
        (["--set", "private=clas"], "private is 'clas', needs one of auto, class, public; did you mean 'class'?"),
        (["--set", "novalue"], "--set is 'novalue', needs key=value"),
        (["--set", "=3"], "--set is '=3', needs key=value"),
        (["--set", "a\nb"], "--set is 'a\\nb', needs key=value"),
        (["--method", "sqc"], f"unknown method 'sqc'; did you mean 'scq'?; there are {', '.join(REGISTRY)}"),
        (
            ["--encoder", "mpl"],
            "unknown encoder 'mpl'; did you mean 'mlp'?; there are identity, linear, mlp, "
            "squeezenet, and any network for images as package.module:factory",
        ),
        (["--device", "tpu"], "device is 'tpu', needs auto, cpu, cuda or cuda:N"),
        (["--epochs", "-1"], "epochs is -1, needs 0 or more"),
        (["--batch-size", "0"], "batch-size is 0, needs 1 or more"),
        (["--batch-size", "9" * 20], f"batch-size is {'9' * 20}, needs 1 to 2147483647"),
        (["--seed", "-1"], "seed is -1, needs 0 or more"),
        (["--seed", "9" * 11], f"seed is {'9' * 11}, needs 0 to 2147483647"),
        (["--bit", "8"], None),
    ],
)
def test_b10_unknown_or_mistyped_setting(run, here, untouched, options, message):
    result = run("train", "train.h5", "-o", "x.safetensors", *options)
    assert result.code == 2
    if message:
        assert result.error == f"Error: {message}"
    else:
        assert "No such option" in result.error and "--bits" in result.error
    untouched()


def test_b13_codes_do_not_fit():
    codebooks = Codebooks("product", np.zeros((2, 256, 4), np.float32))
    for codes, message in (
        (np.array([[0, 1], [2, 300]]), "codes: row 1 is [2, 300], codebooks hold codewords 0 to 255"),
        (np.array([[0, -1]]), "codes: row 0 is [0, -1], codebooks hold codewords 0 to 255"),
        (np.zeros((3, 3), int), "codes are (3, 3) int64, need (n, 2) integers"),
        (np.zeros((3, 2)), "codes are (3, 2) float64, need (n, 2) integers"),
        (np.zeros(3, int), "codes are (3,) int64, need (n, 2) integers"),
    ):
        with pytest.raises(DataError) as caught:
            codebooks.check_codes(codes)
        assert (caught.value.exit_code, str(caught.value)) == (3, message)


def test_b14_splits_overlap(run, here):
    result = run("evaluate", "g.faissindex", "database.h5", "database.h5", "--model", "m.safetensors", "--json")
    assert (result.code, json.loads(result.out)["overlap"]) == (0, 200)
    assert result.warnings == ["200 of 200 queries are also in the database"]
    result = run("evaluate", "g.faissindex", "query.h5", "database.h5", "--model", "m.safetensors", "--json")
    assert (result.code, json.loads(result.out)["overlap"], result.warnings) == (0, 0, [])


def test_labels_that_are_ids(run, here, untouched, monkeypatch):
    x, _ = blobs(50)
    write_h5("ids.h5", x, np.arange(50) + 2**40)
    write_h5("wide.h5", x, np.arange(50) * 10_000)
    untouched(again=True)
    message = "ids.h5: labels: row 0 is 1099511627776, at most 1,048,576 classes can be told apart"
    refused(run("train", "ids.h5", "-o", "x.safetensors", *TINY), 3, message)
    refused(run("info", "ids.h5"), 3, message)
    refused(run("evaluate", "g.faissindex", "ids.h5", "database.h5", "--model", "m.safetensors"), 3, message)
    monkeypatch.setattr("scqfaiss.training.planning.free_memory", lambda: 100_000)
    message = "wide.h5: centers of 50 classes need about 120 kB, 100 kB free; are the labels class numbers?"
    result = run("train", "wide.h5", "-o", "x.safetensors", *TINY)
    refused(result, 5, message)
    untouched()
    warned = "wide.h5: every row has a class of its own, numbered up to 490,000; are the labels class numbers?"
    assert result.warnings == [warned]


def test_class_limit_is_exact():
    assert as_labels([MAX_CLASSES - 1], 1).C == MAX_CLASSES
    with pytest.raises(DataError):
        as_labels([MAX_CLASSES], 1)


def test_many_classes_evaluate_in_little_memory(run, here):
    x, _ = blobs(20)
    write_h5("q.h5", x, np.arange(20) * 50_000)
    result = run("evaluate", "g.faissindex", "q.h5", "database.h5", "--model", "m.safetensors", "--json")
    assert (result.code, json.loads(result.out)["queries_without_relevant"]) == (0, 19)


@pytest.mark.parametrize("ragged", [[[1.0, 2.0], [3.0]], [[1.0], None], [[1.0, [2.0]]]])
def test_ragged_lists_are_data_errors(ragged):
    for check in (as_features, lambda a: as_labels(a, 2), lambda a: as_ids(a, 2), ArraySource):
        with pytest.raises(DataError) as caught:
            check(ragged)
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)


def test_size_is_what_a_person_would_say():
    assert [errors.format_bytes(n) for n in (180, 1200, 1.2e9, 20.5e12, 999_999)] == [
        "180 bytes",
        "1.2 kB",
        "1.2 GB",
        "20.5 TB",
        "1.0 MB",
    ]
