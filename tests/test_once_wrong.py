"""Answers that were once wrong in silence, and requests that were once refused."""

import faiss
import numpy as np
import pytest

import scqfaiss
from scqfaiss.cli.program import run
from scqfaiss.data import ArraySource
from scqfaiss.data.writing import write_rows
from scqfaiss.distributed import pick_device
from scqfaiss.errors import ConfigError, DataError, ScqWarning
from scqfaiss.evaluation.ranking import measure_vectors
from scqfaiss.options import TrainOptions
from scqfaiss.training.fitting import build
from scqfaiss.training.planning import make_plan

SETTINGS = {"features.epochs": 1, "hidden": 8, "members": 1, "codebooks.copies": 1}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(240) % 4
    x = (rng.standard_normal((240, 16)) + 2 * np.eye(4, 16)[y]).astype(np.float32)
    model = scqfaiss.train(x, y, bits=8, nbits=4, epochs=40, **SETTINGS)
    return x, y, model


def opened(model, x, tmp_path, **more):
    scqfaiss.export(model, x, path=tmp_path / "g.faissindex", **more)
    return scqfaiss.open(tmp_path / "g.faissindex", model=model)


def test_evaluate_takes_plain_arrays_and_counts_them(data, tmp_path):
    x, y, model = data
    gallery = opened(model, x, tmp_path)
    found = scqfaiss.evaluate(gallery, x[:20], y[:20], np.arange(240), y)
    assert found["map"] > 0.5 and found["search_agreement"] == 1
    with pytest.raises(DataError, match="labels has 20 rows, features has 10"):
        scqfaiss.evaluate(gallery, x[:10], y[:20], np.arange(240), y)
    with pytest.raises(DataError, match="queries holds 0 rows"):
        scqfaiss.evaluate(gallery, x[:0], y[:0], np.arange(240), y)


def test_rows_that_share_an_id_keep_labels_of_their_own(data, tmp_path):
    x, y, model = data
    shared = np.arange(240) // 2  # neighbours share an id, but no class
    with open(tmp_path / "rows.h5", "x+b") as f:
        write_rows(f, x, y, shared)
    model.save(tmp_path / "m.safetensors")
    with pytest.warns(ScqWarning, match="repeat an id"):
        files = [str(tmp_path / name) for name in ("m.safetensors", "rows.h5", "twice.faissindex")]
        code = run(["export", *files[:2], "-o", files[2], "--allow-duplicate-ids"])
    assert code == 0
    gallery = scqfaiss.open(tmp_path / "twice.faissindex", model=model)
    once = scqfaiss.evaluate(opened(model, x, tmp_path), x[:20], y[:20], np.arange(240), y)
    assert scqfaiss.evaluate(gallery, x[:20], y[:20], shared, y)["map"] == once["map"]
    with pytest.raises(ConfigError, match="ids repeat in the database"):
        scqfaiss.evaluate(gallery, x[:20], y[:20], shared[::-1], y[::-1])


def test_codes_of_residuals_are_not_taken_for_vectors(data, tmp_path):
    x, y, _ = data
    index = faiss.index_factory(16, "IVF4,PQ4x4np", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.train(x)
    index.add(x)
    faiss.write_index(index, str(tmp_path / "f.faissindex"))
    with pytest.warns(ScqWarning, match="no checksum"):
        gallery = scqfaiss.open(tmp_path / "f.faissindex")
    codebooks, codes, ids = gallery.unpack()  # the list of each row is part of its code
    index.make_direct_map()
    wanted = np.array([index.reconstruct(int(i)) for i in ids])
    np.testing.assert_allclose(codebooks.decode(codes), wanted, rtol=1e-5, atol=1e-5)
    # Had they been taken for vectors, FAISS's own scores would be found to be others.
    assert scqfaiss.evaluate(gallery, x[:20], y[:20], np.arange(240), y)["lists"] == 4


def test_a_model_checks_the_rows_it_is_given(data):
    x, _, model = data
    bad = x[:3].copy()
    bad[1, 2] = np.nan
    with pytest.raises(DataError, match="row 1, column 2 is NaN"):
        model.encode(bad)
    np.testing.assert_array_equal(model.embed(x[0]), model.embed(x[:1]))
    with pytest.raises(DataError, match=r"rows is \(1, 1, 16\) float32, needs \(n, d\)"):
        model.embed(x[:1, None])
    np.testing.assert_array_equal(model.embed(x[:2].tolist()), model.embed(x[:2]))


def test_a_changed_config_changes_the_hash(data):
    _, _, model = data
    before = model.sha256
    model.config["note"] = "mine"
    changed = model.sha256
    del model.config["note"]
    assert (changed != before, model.sha256) == (True, before)


def test_labels_that_are_not_needed_are_not_read(data, tmp_path):
    x, _, model = data
    with open(tmp_path / "unlabelled.h5", "x+b") as f:
        write_rows(f, x, np.full(240, -1))
    model.save(tmp_path / "m.safetensors")
    gallery, rows = str(tmp_path / "g.faissindex"), str(tmp_path / "unlabelled.h5")
    assert run(["export", str(tmp_path / "m.safetensors"), rows, "-o", gallery]) == 0
    assert run(["search", gallery, rows, "--model", str(tmp_path / "m.safetensors")]) == 0
    with open(tmp_path / "train.h5", "x+b") as f:
        write_rows(f, x, np.arange(240) % 4)
    options = ["--bits", "8", "--nbits", "4", "--epochs", "1", "--set", "hidden=8", "--codebook-rows", rows]
    assert run(["train", str(tmp_path / "train.h5"), "-o", str(tmp_path / "n.safetensors"), *options]) == 0


@pytest.mark.parametrize("method", ["scq", "label", "pq", "opq"])
def test_every_method_has_a_dry_run(method, data, tmp_path, capsys):
    x, y, _ = data
    with open(tmp_path / "train.h5", "x+b") as f:
        write_rows(f, x, None if method in ("pq", "opq") else y)
    command = ["train", str(tmp_path / "train.h5"), "--method", method, "--bits", "8", "--nbits", "4", "--dry-run"]
    assert run([*command, "-o", str(tmp_path / "m.safetensors")]) == 0
    assert "target ivfpq" in capsys.readouterr().out
    assert run([*command, "-o", str(tmp_path / "m.wrong")]) == 2
    assert run([*command, "-o", str(tmp_path / "no" / "m.safetensors")]) == 4
    assert run([*command, "-o", str(tmp_path / "m.safetensors"), "--codebook-rows", str(tmp_path / "no.h5")]) == 2
    assert not (tmp_path / "m.safetensors").exists()


def test_unlabelled_rows_are_never_taken_for_classes_that_were_not_trained():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 8)).astype(np.float32), np.arange(60) % 3 * 2  # classes 0, 2, 4 of 6
    with pytest.warns(ScqWarning, match="have no rows"):
        method = build(
            make_plan(
                TrainOptions(bits=8, nbits=4, settings=SETTINGS),
                ArraySource(x, y, class_names=list("abcdef")),
                codebook_source=ArraySource(rng.standard_normal((500, 8)).astype(np.float32) * 30),
            )
        )
    _, found = method.rows_for_codebooks()
    assert set(found.tolist()) <= {0, 1, 2} and method.task.labels.numbers.tolist() == [0, 2, 4]


def test_without_other_noise_dropout_stays_on_for_the_codebooks_however_often_the_rows_are_encoded(monkeypatch, data):
    x, y, _ = data
    seen = []
    for settings in ({"codebooks.copies": 1}, {"codebooks.copies": 3}, {"codebooks.rows": 250}):
        method = build(
            make_plan(
                TrainOptions(bits=8, nbits=4, settings={**SETTINGS, "codebooks.noise": 0.0, **settings}),
                ArraySource(x, y),
            )
        )
        embed = method.features.embed
        monkeypatch.setattr(
            method.features, "embed", lambda rows, dropout, embed=embed: seen.append(dropout) or embed(rows, dropout)
        )
        method.rows_for_codebooks()
    assert seen == [True, *3 * [True], True]


def test_query_classes_may_be_fewer_than_those_of_the_database():
    z = np.eye(3, dtype=np.float32)
    from scqfaiss.arrays import as_labels

    assert measure_vectors(z[:1], as_labels([0], 1), z, as_labels([0, 1, 2], 3))["map"] == 1


@pytest.mark.parametrize("name", ["cuda:x", "cuda:", "cuda:-1", "gpu"])
def test_devices_that_do_not_exist_are_refused(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match="needs auto, cpu, cuda or cuda:N"):
        pick_device(name)
    assert pick_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="sees 2 GPUs"):
        pick_device("cuda:2")


def test_kept_rows_far_apart_are_read_a_block_at_a_time(monkeypatch):
    x = np.full((5000, 4), np.nan, np.float32)
    x[[0, 7, 4000, 4999]] = 1
    with pytest.warns(ScqWarning, match="left out"):
        source = ArraySource(x, skip_bad_rows=True)
    monkeypatch.setattr(type(source), "block_rows", 100)
    asked = []
    fetch = source.fetch
    monkeypatch.setattr(source, "fetch", lambda i, j: asked.append(j - i) or fetch(i, j))
    assert (source.read(0, 4) == 1).all()
    assert asked == [8, 1, 1]
