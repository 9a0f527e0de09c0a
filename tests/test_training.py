"""Training: rows held or streamed, settings, notices, and what stops it."""

import os
from functools import partial

import numpy as np
import pytest
import torch

import scqfaiss
from scqfaiss.arrays import Labels
from scqfaiss.codebooks import Codebooks
from scqfaiss.contract import OptimizerStep, Stage, batch_count
from scqfaiss.data import ArraySource
from scqfaiss.data.writing import write_rows
from scqfaiss.distributed import pick_device
from scqfaiss.errors import CheckpointError, ConfigError, DataError, ScqWarning, WriteError
from scqfaiss.methods import REGISTRY, centers, method_class
from scqfaiss.model import Model
from scqfaiss.options import TrainOptions
from scqfaiss.training.dry_run import dry_run
from scqfaiss.training.engine import Engine
from scqfaiss.training.fitting import build, fit, free_memory
from scqfaiss.training.interface import train_file
from scqfaiss.training.planning import make_plan, split_bits
from scqfaiss.training.rows import SourceRows, statistics

FAST = {"bits": 8, "nbits": 4, "epochs": 1, "hidden": 8}
SCQ = FAST | {"similarity": "identity"}


class SmallBlocks(ArraySource):
    """Rows that come 16 at a time, as those of a large file come block by block."""

    block_rows = 16


def batches_of(rows, size=8, seed=0, some=None):
    return list(rows.batches(size, torch.Generator().manual_seed(seed), some))


# ----------------------------------------------------------------------------------------------------------------- rows
@pytest.mark.parametrize("kept", [None, np.flatnonzero(np.arange(100) % 3)], ids=["all", "some kept"])
@pytest.mark.parametrize("some", [None, np.arange(5, 60, 2)], ids=["all", "some wanted"])
@pytest.mark.parametrize("memory", [0, 16 * 4 * 4 * 9, 1 << 20], ids=["a block", "three blocks", "held"])
def test_every_row_comes_once_an_epoch_with_its_own_number(memory, some, kept):
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    rows = SourceRows(SmallBlocks(x), "cpu", memory, kept)
    assert (rows.x is None) == (memory < 1600)
    held = x if kept is None else x[kept]
    wanted = np.arange(len(held)) if some is None else some
    orders = []
    for seed in (0, 0, 1):
        batches = batches_of(rows, seed=seed, some=some)
        index = torch.cat([i for _, i in batches]).numpy()
        np.testing.assert_array_equal(np.sort(index), wanted)
        np.testing.assert_array_equal(torch.cat([b for b, _ in batches]), held[index])
        sizes = [len(b) for b, _ in batches]
        assert len(batches) == batch_count(len(wanted), 8)  # what steps_per_epoch counts with
        assert max(sizes) - min(sizes) <= 1
        orders.append(index.tolist())
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != wanted.tolist()


@pytest.mark.parametrize("memory", [0, 1 << 20])
@pytest.mark.parametrize("kept", [None, np.arange(3, 90, 3)], ids=["all", "some kept"])
def test_blocks_and_samples_keep_the_order_of_the_file(memory, kept):
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    rows = SourceRows(SmallBlocks(x), "cpu", memory, kept)
    held = x if kept is None else x[kept]
    assert len(rows) == len(held)
    place = 0
    for i, block in rows.blocks():
        assert i == place
        np.testing.assert_array_equal(block, held[i : i + len(block)])
        place += len(block)
    assert place == len(held)
    few, numbers = rows.sample(10, seed=3)
    assert (len(few), (np.diff(numbers) > 0).all()) == (10, True)
    np.testing.assert_array_equal(few, held[numbers])
    every, numbers = rows.sample(1000, seed=3)
    np.testing.assert_array_equal(every, held)
    np.testing.assert_array_equal(numbers, np.arange(len(held)))


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_statistics_equal_numpy(memory):
    x = (np.random.default_rng(0).standard_normal((100, 5)) * [1, 10, 0, 3, 1e-3] + [0, 5, 2, -9, 0]).astype(np.float32)
    found = statistics(SourceRows(SmallBlocks(x), "cpu", memory))
    x64 = x.astype(np.float64)
    root = np.sign(x64) * np.sqrt(np.abs(x64))
    assert (found.n, found.minimum) == (100, x.min())
    for name, want in (
        ("mean", x64.mean(0)),
        ("sd", x64.std(0)),
        ("power_mean", root.mean(0)),
        ("power_sd", root.std(0)),
    ):
        np.testing.assert_allclose(getattr(found, name), want, rtol=1e-5, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_streamed_rows_train_like_held_ones(one):
    x, y = one
    source = SmallBlocks(x, y)
    request = TrainOptions(bits=8, nbits=4, encoder="linear", settings={"features.epochs": 2, "codebooks.epochs": 1})
    held, streamed = (fit(make_plan(request, source), memory=m) for m in (1 << 30, 0))
    again = fit(make_plan(request, source), memory=0)
    assert streamed.to_bytes() == again.to_bytes()
    # Another order of the same rows: not the same model, but one that is about as good, far from chance (a quarter).
    for model in (held, streamed):
        p = (1 + 3 * model.embed(x) @ aligned().T) / 4
        assert (p.argmax(1) == y).mean() > 0.75


def aligned():
    from scqfaiss.methods.centers import aligned_simplex

    return aligned_simplex(4, 4)


def test_only_rows_that_fit_are_trained_on(one, monkeypatch):
    """Held-out rows fit kappa and nothing else."""
    x, y = one
    seen = []
    whole = SourceRows.batches

    def spied(self, size, generator, rows=None):
        for batch, index in whole(self, size, generator, rows):
            seen.append((size, index.numpy()))
            yield batch, index

    monkeypatch.setattr(SourceRows, "batches", spied)
    model = scqfaiss.train(x, y, **SCQ | {"epochs": 2}, holdout=0.25, **{"features.batch_size": 30})
    fitted = [np.concatenate([i for s, i in seen if s == 30])[k * 300 : (k + 1) * 300] for k in range(2)]
    held = np.concatenate([i for s, i in seen if s == 4096])
    for epoch in fitted:
        np.testing.assert_array_equal(np.sort(np.r_[epoch, held]), np.arange(400))
    facts = model.config["training"]
    assert facts["held_out"] == 100
    assert facts["nll_after"] <= facts["nll_before"]


@pytest.mark.parametrize("n, size, count", [(1, 8, 1), (8, 8, 1), (11, 8, 1), (13, 8, 2), (100, 8, 12), (3, 512, 1)])
def test_an_epoch_is_cut_into_the_nearest_number_of_batches(n, size, count):
    assert batch_count(n, size) == count


def test_free_memory_is_a_plausible_number():
    assert 1 << 20 < free_memory() < 1 << 50


# ------------------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    "settings, words",
    [
        ({"kapa": 3}, "^unknown key 'kapa' for method scq; did you mean 'kappa'\\?$"),
        ({"hiden": 3}, "^unknown key 'hiden' for method scq; did you mean 'hidden'\\?$"),
        ({"cfa": "calibratd"}, "^cfa is 'calibratd', needs one of auto, calibrated, .*; did you mean 'calibrated'"),
        ({"hidden": -1}, "^hidden is -1, needs 0 to 65536$"),
        ({"omega": "much"}, "^omega is 'much', needs a number$"),
        ({"epochs": -1}, "^epochs is -1, needs 0 or more$"),
        ({"batch_size": 0}, "^batch-size is 0, needs 1 or more$"),
        ({"bits": 30}, "^bits=30 is not a multiple of nbits=8; need 24 or 32$"),
        ({"bits": 5}, "^bits=5 is not a multiple of nbits=8; need 8$"),
        ({"nbits": 17, "bits": 34}, "^nbits is 17, needs 1 to 16$"),
        ({"bits": 24, "d": 16}, "^d=16 is not divisible by M=3 codebooks; need M of 2 or 4$"),
        (
            {"bits": 8, "nbits": 2, "d": 8},
            "^d=8 in M=4 codebooks leaves 2 dimensions a codebook, which needs --nbits 3 or more$",
        ),
        ({"method": "scp"}, f"^unknown method 'scp'; did you mean 'scq'.; there are {', '.join(REGISTRY)}$"),
        (
            {"encoder": "mpl"},
            "^unknown encoder 'mpl'; did you mean 'mlp'.; there are identity, linear, mlp, squeezenet, and any network "
            "for images as package.module:factory$",
        ),
        ({"device": "tpu"}, "^device is 'tpu', needs auto, cpu, cuda or cuda:N$"),
        ({"method": "opq", "bits": 136}, "^rows of d=16 cannot fill M=17 codebooks$"),
        (
            {"method": "pq", "bits": 24},
            "^rows of d=16 is not divisible by M=3 codebooks|^rows of d=16 .*need M of 2 or 4$",
        ),
        (
            {"method": "label", "encoder": "identity"},
            "^the label code needs a classifier; choose --encoder mlp or linear$",
        ),
        ({"method": "label", "cfa": "cosine"}, "^the label code needs a posterior, which cfa=cosine does not give"),
        ({"cfa": "none"}, "^cfa=none trains nothing"),
        (
            {"nbits": 1, "private": "class"},
            "^K=2 codewords cannot serve C=4 classes; need --nbits 2 or more, or private=",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_row_is_read(settings, words, one, monkeypatch):
    monkeypatch.setattr(SourceRows, "__init__", lambda *a, **k: pytest.fail("rows were read"))
    y = one[1] if settings.get("method") not in ("pq", "opq") else None
    with pytest.raises(ConfigError, match=words):
        scqfaiss.train(one[0], y, **settings)


def test_bits_are_split_exactly():
    assert [split_bits(*a) for a in ((32, 8), (8, 8), (12, 4), (16, 16))] == [(4, 8), (1, 8), (3, 4), (1, 16)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_not_promised():
    assert pick_device("auto") == "cpu"
    with pytest.raises(
        ConfigError, match=r"^device cuda:1 was asked for, but this torch sees no GPU; use --device cpu$"
    ):
        pick_device("cuda:1")


def config_of(**settings):
    x = np.zeros((4, 6), np.float32)
    return make_plan(TrainOptions(settings=settings), ArraySource(x, np.arange(4))).config


def test_the_released_recipe_replaces_defaults_and_yields_to_settings():
    ours, released = config_of(), config_of(recipe="reference")
    assert (released.cfa, released.d, released.hard, released.hard_max) == ("reference", 360, 1.0, 30.0)
    assert (released.start, released.refit, released.rescale, released.rho) == ("normal", 0, False, 0.1)
    assert (ours.cfa, ours.d, ours.start, ours.recipe) == ("auto", 0, "kmeans", "calibrated")
    changed = config_of(recipe="reference", hard_max=50, d=8)
    assert (changed.hard_max, changed.d, changed.hard) == (50.0, 8, 1.0)
    assert config_of(recipe="calibrated") == ours


def test_the_released_recipe_trains(one):
    model = scqfaiss.train(*one, **FAST | {"epochs": 2}, recipe="reference", d=8)
    assert [op for op, _ in model.chain.layers] == ["linear", "relu", "linear", "tanh"]
    assert set(model.config["training"]["loss"]["features"]) == {"align and pull", "ce"}
    assert set(model.config["training"]["loss"]["codebooks"]) == {"soft", "hard", "regulation"}


def stages_of(one, request):
    source = ArraySource(*one)
    return {s.name: s for s in build(make_plan(request, source)).stages()}


def test_epochs_and_batch_size_go_to_every_stage(one):
    default = stages_of(one, TrainOptions(bits=8, nbits=4))
    assert default["features"].steps_per_epoch == 8  # batches of an eighth
    assert default["features"].epochs * 8 >= 400
    assert (default["codebooks"].epochs, default["codebooks"].steps_per_epoch) == (0, 3)  # 4 copies of 400 rows by 512
    annealed = {"quantizer": "arsq"}
    assert stages_of(one, TrainOptions(bits=8, nbits=4, settings=annealed))["codebooks"].epochs == 5
    asked = stages_of(one, TrainOptions(bits=8, nbits=4, epochs=3, batch_size=100, settings=annealed))
    assert {(s.epochs, s.steps_per_epoch) for s in asked.values() if s.epochs} == {(3, 4), (3, 16)}
    none = stages_of(one, TrainOptions(bits=8, nbits=4, epochs=0))
    assert {s.epochs for s in none.values()} == {0}


def test_the_annealing_moves_both_temperatures(one):
    source = ArraySource(*one)
    settings = {"hard": 10, "hard_max": 40, "soft": 1, "anneal_every": 2, "similarity": "identity"}
    method = build(make_plan(TrainOptions(bits=8, nbits=4, epochs=0, settings=settings), source))
    Engine(method).run()
    seen = []
    for epoch in (0, 1, 2, 3, 4, 8, 40):
        method.stages()[-1].on_epoch(epoch)
        seen.append((method.quantizer.hard, method.quantizer.soft))
    np.testing.assert_allclose(seen, [(10, 1), (10, 1), (15, 0.5), (15, 0.5), (22.5, 0.25), (40, 1 / 16), (40, 0.01)])


# ------------------------------------------------------------------------------------------------------------- training
def test_codebooks_fit_the_features_they_code(one):
    x, y = one
    model = scqfaiss.train(x, y, bits=16, nbits=4, encoder="identity", epochs=4)
    again = Codebooks("product", model.codebooks.centroids)
    coded = again.decode(model.encode(x))
    error, energy = np.square(x - coded).sum(), np.square(x - x.mean(0)).sum()
    assert error < 0.35 * energy
    assert model.config["training"]["codewords_used"] == [
        len(np.unique(model.encode(x)[:, m])) for m in range(model.codebooks.M)
    ]


def test_the_callers_random_state_is_left_alone(one):
    torch.manual_seed(5)
    np.random.seed(5)
    a = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    scqfaiss.train(*one, **SCQ)
    assert torch.equal(torch.rand(3), a[0])
    np.testing.assert_array_equal(np.random.rand(3), a[1])


def test_the_callers_random_state_does_not_matter(one):
    torch.manual_seed(1)
    first = scqfaiss.train(*one, **SCQ)
    torch.manual_seed(2)
    assert scqfaiss.train(*one, **SCQ).to_bytes() == first.to_bytes()


class Toy:
    """A method of the given stages."""

    def __init__(self, *stages):
        self.stages = lambda: stages

    def state_dict(self):
        return {}


def test_a_diverging_training_names_stage_and_term(one):
    with pytest.raises(
        ConfigError, match=r"^loss is NaN at step \d+ \(stage features, term ce, lr .*\); lower the rate$"
    ):
        scqfaiss.train(*one, **_linear() | {"epochs": 50}, **{"features.lr": 2e9})


@pytest.mark.parametrize("value, what", [(np.nan, "NaN"), (np.inf, "infinite")])
def test_the_term_that_is_not_finite_is_named(value, what):
    w = torch.full((1,), 10.0, requires_grad=True)
    stage = Stage(
        name="s",
        epochs=2,
        steps_per_epoch=3,
        batches=lambda generator: iter([(i,) for i in range(3)]),
        optimizer_steps=[
            OptimizerStep(
                lambda i: {"good": w.sum(), "bad": w.sum() * (value if i == 2 else 1)},
                lambda steps: (torch.optim.SGD([w], 0.25), None),
            )
        ],
    )
    with pytest.raises(
        ConfigError, match=rf"^loss is {what} at step 2 \(stage s, term bad, lr 0.25\); lower the rate$"
    ):
        Engine(Toy(stage)).run()


def test_what_an_epoch_draws_does_not_depend_on_what_ran_before():
    def drawn(before, seed=0, number=1):
        torch.manual_seed(before)
        w, out = torch.ones(1, requires_grad=True), []
        stage = Stage(
            name="s",
            epochs=2,
            steps_per_epoch=1,
            batches=lambda generator: iter([(torch.rand(1, generator=generator),)]),
            optimizer_steps=[
                OptimizerStep(
                    lambda x: out.append((x.item(), torch.rand(1).item())) or {"a": w.sum()},
                    lambda steps: (torch.optim.SGD([w], 0.1), None),
                )
            ],
        )
        Engine(Toy(*[Stage(name="before")] * number, stage), seed).run()
        return out

    assert drawn(1) == drawn(2)
    assert len({*drawn(1), *drawn(1, seed=1), *drawn(1, number=2)}) == 6


@pytest.mark.parametrize("rescale", [True, False])
def test_codebooks_are_trained_at_the_scale_their_constants_are_made_for(rescale, one):
    source = ArraySource(*one)
    request = TrainOptions(bits=8, nbits=4, encoder="identity", epochs=0, settings={"rescale": rescale})
    method = build(make_plan(request, source))
    Engine(method).run()
    found = float(method.z.square().sum(1).mean())
    np.testing.assert_allclose(found, 16 if rescale else np.square(one[0]).sum(1).mean(), rtol=1e-4)
    np.testing.assert_allclose(method.z / method.scale, one[0], rtol=1e-5, atol=1e-6)


def test_codebooks_learn_from_no_more_rows_than_asked(one):
    source = ArraySource(*one)
    request = TrainOptions(
        bits=8, nbits=4, encoder="identity", epochs=0, settings={"codebooks.rows": 90, "rescale": False}
    )
    method = build(make_plan(request, source))
    Engine(method).run()
    x, y = one
    rows = [np.flatnonzero((x == z).all(1))[0] for z in method.z.numpy()]
    assert (len(rows), len(set(rows)), (np.diff(rows) > 0).all()) == (90, 90, True)
    np.testing.assert_array_equal(method.pattern, y[rows])  # each with its own class


def test_a_stage_reports_every_step_and_the_mean_of_its_last_epoch():
    w, said, began = torch.zeros(1, requires_grad=True), [], []
    stage = Stage(
        name="s",
        begin=lambda: began.append("begin"),
        epochs=2,
        steps_per_epoch=2,
        batches=lambda generator: iter([(1.0,), (3.0,)]),
        optimizer_steps=[
            OptimizerStep(
                lambda i: {"a": 0 * w.sum() + i, "b": 0 * w.sum() + 1},
                lambda steps: (torch.optim.SGD([w], 1.0), began.append(steps)),
            )
        ],
        on_epoch=began.append,
        end=lambda: began.append("end"),
    )
    assert Engine(Toy(stage), progress=lambda *a: said.append(a)).run() == {"s": {"a": 2.0, "b": 1.0}}
    assert began == ["begin", 4, 0, 1, "end"]
    assert said == [("s", k, 4, f"loss {v:.4f}") for k, v in ((1, 2), (2, 4), (3, 2), (4, 4))]


def test_rows_without_a_label_are_refused_or_left_out(multilabel):
    x, y = multilabel[0], multilabel[1].copy()
    y[[3, 7]] = 0
    with pytest.raises(DataError, match=r"^labels: row 3 has no label \(2 of 400 rows\); --set unlabeled=drop trains"):
        scqfaiss.train(x, y, **SCQ)
    with pytest.warns(ScqWarning, match=r"^left out 2 of 400 rows that have no label$"):
        dropped = scqfaiss.train(x, y, **SCQ, unlabeled="drop")
    labelled = y.sum(1) > 0
    without = scqfaiss.train(x[labelled], y[labelled], **SCQ, unlabeled="drop")
    # The same rows in the same order, hence the same numbers.
    np.testing.assert_array_equal(dropped.codebooks.centroids, without.codebooks.centroids)


def test_a_class_without_rows_keeps_its_name_and_gets_no_center_and_no_codewords(one):
    x, y = one
    with pytest.warns(ScqWarning, match=r"^1 of 5 classes have no rows \(owl\)$"):
        model = scqfaiss.train(x, y, **SCQ, class_names=["a", "b", "c", "d", "owl"])
    assert (model.config["C"], model.config["classes"]) == (4, [0, 1, 2, 3])
    assert model.config["class_names"] == ["a", "b", "c", "d", "owl"]
    assert model.config["training"]["private"] == "class"  # 16 codewords for 4 classes, not 5


@pytest.mark.parametrize("nbits, C, notice", [(1, 4, True), (2, 4, True), (3, 4, False)])
def test_few_codewords_are_shared_by_all_classes_with_a_notice(nbits, C, notice, one):
    settings = SCQ | {"nbits": nbits, "bits": 2 * nbits, "d": 6, "quantizer": "arsq"}
    if notice:
        words = f"^K={1 << nbits} codewords are fewer than 2 for each of 4 classes: all classes share them$"
        with pytest.warns(ScqWarning, match=words):
            model = scqfaiss.train(*one, **settings)
    else:
        model = scqfaiss.train(*one, **settings)
    assert model.config["training"]["private"] == ("public" if notice else "class")
    assert scqfaiss.train(*one, **settings, private="public").config["training"]["private"] == "public"  # no notice


def test_each_class_may_own_a_single_codeword(one):
    model = scqfaiss.train(*one, **SCQ | {"nbits": 2, "bits": 4, "d": 6}, private="class", quantizer="arsq")
    assert model.config["training"]["private"] == "class"
    assert model.config["training"]["loss"]["codebooks"]["regulation"] == 0


def test_codebooks_can_learn_from_other_rows(one):
    x, y = one
    other = x[:200] + 3
    own = scqfaiss.train(x, y, **SCQ)
    model = scqfaiss.train(x, y, **SCQ, codebook_rows=other)
    for (_, a), (_, b) in zip(own.chain.layers, model.chain.layers):
        assert all(np.array_equal(a[k], b[k]) for k in a)  # the encoder is that of the training rows
    z = model.embed(other)
    errors = [np.square(z - m.codebooks.decode(m.codebooks.assign(z, "l2"))).sum() for m in (model, own)]
    assert errors[0] < errors[1]
    with pytest.raises(ConfigError, match=r"^codebook_rows: rows have d=15, x has d=16$"):
        scqfaiss.train(x, y, **SCQ, codebook_rows=other[:, :15])
    with pytest.raises(DataError, match=r"^codebook_rows holds 0 rows, codebooks need at least 1$"):
        scqfaiss.train(x, y, **SCQ, codebook_rows=other[:0])


def test_codebook_rows_without_a_classifier_need_public_codewords(one):
    x, y = one
    settings = {"bits": 8, "nbits": 4, "encoder": "identity", "epochs": 1, "codebook_rows": x + 1}
    with pytest.raises(
        ConfigError, match=r"^codebook rows have no labels and cfa=none predicts none; use --set private=pub"
    ):
        scqfaiss.train(x, y, **settings)
    shifted = scqfaiss.train(x, y, **settings, private="public").codebooks.centroids
    own = scqfaiss.train(x, y, bits=8, nbits=4, encoder="identity", epochs=1, private="public").codebooks.centroids
    np.testing.assert_allclose((shifted - own).mean(), 1, atol=0.2)


def test_pq_learns_from_codebook_rows_too(one):
    with pytest.warns(ScqWarning, match=r"^400 rows are few for 16 codewords a codebook; FAISS advises 624$"):
        model = scqfaiss.train(one[0] + 49, method="pq", bits=8, nbits=4, raw=True, codebook_rows=one[0] + 50)
    np.testing.assert_allclose(model.codebooks.centroids.mean(), one[0].mean() + 50, atol=0.3)


@pytest.mark.slow
def test_a_similarity_file_is_averaged_and_checked(one, tmp_path):
    S = np.full((4, 4), 0.2) + 0.8 * np.eye(4)
    S[0, 1] = 0.9
    path = str(tmp_path / "s.npy")
    np.save(path, S)
    with pytest.warns(
        ScqWarning, match=r"s.npy is not symmetric \(largest difference 0.70\): averaged with its transpose$"
    ):
        model = scqfaiss.train(*one, **FAST, similarity=path, target="simplex", d=8)
    facts = model.config["training"]
    assert facts["centers"].startswith("similarity ")
    assert 0 < facts["centers_rms_error"] < facts["centers_max_error"] < 1
    assert model.config["settings"]["similarity"] == "s.npy"  # no folder enters the model
    assert str(tmp_path).encode() not in model.to_bytes()
    np.save(path, np.eye(5))
    with pytest.raises(DataError, match=r"s.npy is \(5, 5\) float64, needs \(4, 4\) numbers, a row for each class$"):
        scqfaiss.train(*one, **FAST, similarity=path)
    with pytest.raises(ConfigError, match=r"none.npy: no such file$"):
        scqfaiss.train(*one, **FAST, similarity=str(tmp_path / "none.npy"))


@pytest.mark.slow
def test_class_vectors_make_centers_of_that_similarity(one, tmp_path, near_centers):
    path = str(tmp_path / "v.npy")
    v = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1.0]])
    np.save(path, v)
    model = scqfaiss.train(*one, **_linear(), class_vectors=path)
    c = model.chain.layers[-1][1]["A"].T  # z = p @ centers
    cos = c @ c.T
    assert cos[0, 1] > cos[0, 2] + 0.3
    v[2] = 0
    np.save(path, v)
    with pytest.raises(DataError, match=r"^the vector of class 2 is zero, it has no direction$"):
        scqfaiss.train(*one, **_linear(), class_vectors=path)
    with pytest.raises(ConfigError, match=r"^similarity and class_vectors exclude each other; give one$"):
        scqfaiss.train(*one, **_linear(), class_vectors=path, similarity="means")


def _linear():
    return {"bits": 8, "nbits": 4, "epochs": 1, "encoder": "linear"}


@pytest.fixture
def near_centers(monkeypatch):
    """Centers of 4 classes from 1,000 steps instead of 10,000: near enough for what is asked of them here."""
    monkeypatch.setattr(centers, "optimise", partial(centers.optimise, steps=1000, decay_every=200))


@pytest.mark.slow
def test_similarity_of_means_is_that_of_the_rows(one, near_centers):
    model = scqfaiss.train(*one, **_linear(), similarity="means")
    assert model.config["training"]["centers"] == "means"
    c = model.chain.layers[-1][1]["A"].T.astype(np.float64)
    x, y = one
    means = np.array([x[y == k].mean(0) for k in range(4)], np.float64)
    v = means - means.mean(0)
    want = (v @ v.T) / np.linalg.norm(v, axis=1)[:, None] / np.linalg.norm(v, axis=1)
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose((c @ c.T)[off], want[off], atol=0.1)


def test_fewer_rows_than_codewords_are_a_notice(one):
    x, y = one
    with pytest.warns(ScqWarning, match=r"^12 rows can use at most 12 of 16 codewords$"):
        model = scqfaiss.train(x[:12], y[:12], **_linear() | {"encoder": "identity"}, private="public")
    assert max(model.config["training"]["codewords_used"]) <= 12


def test_repeated_rows_are_seen_in_the_use_of_codewords():
    x, y = np.ones((300, 16), np.float32), np.arange(300) % 2
    with pytest.warns(ScqWarning, match=r"^codebook 0 uses 1 of 256 codewords$"):
        scqfaiss.train(x, y, bits=8, encoder="identity", epochs=1)


def test_labels_that_are_not_used_are_a_notice(one):
    with pytest.warns(ScqWarning) as said:
        scqfaiss.train(*one, method="pq", bits=8, nbits=4)
    assert [str(w.message) for w in said] == [
        "method pq does not use labels: they are ignored",
        "400 rows are few for 16 codewords a codebook; FAISS advises 624",
    ]


@pytest.mark.slow
def test_many_labels_train_from_sets_of_classes(multilabel):
    x, y = multilabel
    model = scqfaiss.train(x, y, **SCQ | {"epochs": 40})
    assert model.config["labels"] == "many"
    z = model.embed(x)
    s = z @ z.T
    share = (y.astype(int) @ y.T) > 0
    assert s[share].mean() > s[~share].mean() + 0.3


def test_the_sigmoid_head_and_many_labels_go_together(multilabel):
    model = scqfaiss.train(*multilabel, **SCQ, multi="sigmoid")
    assert [op for op, _ in model.chain.layers][-3:] == ["sigmoid", "average", "linear"]
    assert set(model.config["training"]["loss"]["features"]) == {"bce"}


# ----------------------------------------------------------------------------------------------------------------- file
@pytest.fixture
def rows_file(one, tmp_path):
    with open(tmp_path / "t.h5", "w+b") as f:
        write_rows(f, one[0], one[1], class_names=["a", "b", "c", "d"])
    return tmp_path / "t.h5"


REQUEST = TrainOptions(bits=8, nbits=4, epochs=1, encoder="linear")


def test_a_file_trains_to_the_bytes_of_its_arrays(one, rows_file, tmp_path):
    out = tmp_path / "m.safetensors"
    said = train_file(rows_file, out, REQUEST, keys={})
    assert said.startswith(f"{out}: scq, 8 bits (2 x 4), rows of d=16 to z of d=4, codewords used ")
    model = scqfaiss.train(*one, **_linear(), class_names=["a", "b", "c", "d"])
    assert out.read_bytes() == model.to_bytes()
    assert f"SHA-256 {model.origin[:12]}\nmAP to expect, by " in said
    streamed = tmp_path / "s.safetensors"
    train_file(rows_file, streamed, REQUEST, keys={}, memory=0)
    assert Model.load(streamed).config["settings"] == model.config["settings"]


def test_codebook_rows_come_from_a_file_whose_labels_are_not_needed(one, rows_file, tmp_path):
    with open(tmp_path / "b.h5", "w+b") as f:
        write_rows(f, one[0][:150] + 1)
    out = tmp_path / "m.safetensors"
    train_file(rows_file, out, REQUEST, codebook_rows=tmp_path / "b.h5", keys={})
    model = scqfaiss.train(*one, **_linear(), class_names=["a", "b", "c", "d"], codebook_rows=one[0][:150] + 1)
    assert out.read_bytes() == model.to_bytes()


def test_nothing_is_written_over_an_input_or_before_the_end(rows_file, tmp_path):
    with pytest.raises(ConfigError, match=r"models end in .safetensors$"):
        train_file(rows_file, rows_file, REQUEST, keys={})
    os.link(rows_file, tmp_path / "same.safetensors")  # another name of the input
    with pytest.raises(ConfigError, match=r"t.h5 is an input of this command; choose another output$"):
        train_file(rows_file, tmp_path / "same.safetensors", REQUEST, keys={})
    (tmp_path / "same.safetensors").unlink()
    with pytest.raises(WriteError, match=r"does not exist"):
        train_file(rows_file, tmp_path / "none" / "m.safetensors", REQUEST, keys={})
    bad = TrainOptions(bits=8, nbits=4, settings={"features.lr": "fast"})
    with pytest.raises(ConfigError, match=r"^features.lr is 'fast'"):
        train_file(rows_file, tmp_path / "m.safetensors", bad, keys={})
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5"]


def test_a_dry_run_says_what_would_be_done_and_reads_nothing(rows_file, monkeypatch):
    monkeypatch.setattr("scqfaiss.data.source.Source.read", lambda *a: pytest.fail("rows were read"))
    lines = dry_run(
        rows_file,
        rows_file.with_name("m.safetensors"),
        TrainOptions(bits=8, nbits=4, epochs=2, batch_size=100, settings={"quantizer": "arsq"}),
        keys={},
    ).splitlines()
    assert lines[0] == "rows: 400 of d=16 (25.6 kB as float32)"
    assert lines[1] == "classes: 4"
    assert lines[2] == "codes: 2 x 4 bits, 1 bytes a vector, z of d=4"
    assert lines[4:6] == ["stage features: 2 epochs, 8 steps", "stage codebooks: 2 epochs, 32 steps"]
    assert any(line.startswith("target ivfpq: 9.0 MB a million rows, CPU yes, GPU yes") for line in lines)
    assert any(line.startswith("target pq: ") for line in lines)


def test_a_method_that_gives_other_sizes_than_its_codebooks_is_caught():
    from scqfaiss.encoders.chain import Chain

    codebooks = Codebooks("product", np.zeros((2, 16, 2), np.float32))
    with pytest.raises(CheckpointError, match=r"^the encoder gives d=5, the codebooks need d=4$"):
        Model(Chain(5), codebooks, {"rule": "l2"})


def test_methods_say_their_needs_by_their_class():
    assert [sorted(method_class(m).needs) for m in ("scq", "label", "pq", "opq")] == [["labels"], ["labels"], [], []]
    assert method_class("label").shape(10, False, 4, 8) == (1, 4)
    assert method_class("label").shape(10, True, 4, 8) == (10, 1)
    assert method_class("label").shape(2, False, 4, 8) == (1, 1)
    labels = Labels(np.arange(2), 2)
    assert labels.C == 2
