"""Codeword use and revival: counts against loops, where codewords move, what stays, and what the optimiser forgets."""

import numpy as np
import pytest
import torch

import scqfaiss
from scqfaiss.arrays import Labels
from scqfaiss.codebooks import Codebooks
from scqfaiss.contract import Subset, Task
from scqfaiss.data import ArraySource
from scqfaiss.encoders import encoder_class
from scqfaiss.methods import arsq
from scqfaiss.methods.arsq import nearest
from scqfaiss.methods.dead_codewords import (
    draw_rows,
    gumbel_keys,
    reset_dead_codewords,
    reset_optimizer_state,
    revive,
    use,
)
from scqfaiss.methods.scq import SCQ, Settings, classes_of
from scqfaiss.training.rows import SourceRows, statistics


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def codebooks(n=300, M=3, K=16, dsub=2, idle=5, seed=0):
    """Rows, codebooks of which codewords `idle` and more are far from all rows, and the codes."""
    generator = seeded(seed)
    z = torch.randn(n, M * dsub, generator=generator)
    w = torch.randn(M, K, dsub, generator=generator)
    w[:, idle:] += 100
    return z, w, nearest(z, w)


def test_use_equals_a_loop():
    _, _, codes = codebooks()
    want = np.zeros((3, 16), int)
    for code in codes.tolist():
        for m, k in enumerate(code):
            want[m, k] += 1
    found = use(codes, 16)
    assert found.tolist() == want.tolist()
    assert use(codes[:0], 16).sum() == 0


@pytest.mark.parametrize("shape", [(1, 4, 2), (3, 16, 2), (2, 256, 1)])
@pytest.mark.parametrize("n", [0, 1, 7, 500])
def test_the_nearest_codeword_is_what_codebooks_assign(n, shape, monkeypatch):
    M, _, dsub = shape
    z, w = torch.randn(n, M * dsub, generator=seeded()), torch.randn(shape, generator=seeded(1))
    want = Codebooks("product", w.numpy()).assign(z.numpy(), "l2")
    np.testing.assert_array_equal(nearest(z, w), want)
    monkeypatch.setattr(arsq, "CHUNK_ELEMENTS", 1000)
    np.testing.assert_array_equal(nearest(z, w), want)


def test_keys_draw_rows_as_often_as_their_weight_says():
    weight = torch.tensor([1.0, 2.0, 4.0, 0.0, 1.0])
    drawn = torch.stack([gumbel_keys(weight, seeded(s)).argmax() for s in range(4000)])
    share = torch.bincount(drawn, minlength=5) / 4000
    np.testing.assert_allclose(share, weight / 8, atol=0.025)  # three times the spread at 4,000 draws
    assert all(gumbel_keys(weight, seeded(s)).argmin() == 3 for s in range(100))


def test_dead_codewords_move_to_rows_and_the_others_stay():
    z, w, codes = codebooks()
    before = w.clone()
    found, moved = revive(w, codes, z, seeded(1))
    dead = use(codes, 16) == 0
    assert moved == int(dead.sum()) >= 33
    assert torch.equal(w, before)  # the argument is not touched
    assert torch.equal(found[~dead], w[~dead])
    parts = z.unflatten(1, (3, -1))
    for m in range(3):
        away = (found[m, dead[m], None] - parts[None, :, m]).square().sum(2).min(1).values
        assert away.max() == 0  # each on a row
        assert len(torch.unique(found[m], dim=0)) == 16  # and on one of its own
    after = nearest(z, found)
    assert (use(after, 16) > 0)[dead].all()
    errors = [Codebooks("product", v.numpy()).decode(c.numpy()) - z.numpy() for v, c in ((w, codes), (found, after))]
    assert np.square(errors[1]).sum() < np.square(errors[0]).sum()


def test_rows_far_off_are_taken_first():
    z = torch.zeros(200, 2)
    z[17] = 100
    z[:, 0] += 1e-3 * torch.arange(200)
    w = torch.tensor([[[0.0, 0.0], [900.0, 900.0]]])
    found, moved = revive(w, torch.zeros(200, 1, dtype=torch.int64), z, seeded())
    assert moved == 1
    np.testing.assert_allclose(found[0, 1], z[17])


def test_private_codewords_move_to_rows_of_their_class():
    n, K = 200, 16
    y = torch.arange(n) % 4
    z = torch.randn(n, 4, generator=seeded()) + 1000 * y[:, None]
    owner = torch.arange(K) // 4
    w = torch.full((2, K, 2), 1e6)
    w[:, ::4] = 1000.0 * owner[::4, None]  # one codeword of each class is alive
    found, moved = revive(w, nearest(z, w), z, seeded(), owner, (torch.arange(n), y))
    assert moved == 24
    assert torch.equal((found / 1000).round()[:, :, 0], owner.expand(2, K).float())


def test_a_row_of_two_classes_serves_either():
    z = torch.tensor([[1.0], [7.0]])
    y = torch.tensor([[True, True], [True, False]])
    owner = torch.tensor([0, 0, 1])
    w = torch.tensor([[[5.0], [99.0], [99.0]]])
    seen = set()
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        found, moved = revive(w, torch.zeros(2, 1, dtype=torch.int64), z, generator, owner, classes_of(y))
        assert found[0, 0, 0] == 5
        seen.add((moved, *found[0, 1:, 0].tolist()))
    assert seen == {(2, 7, 1), (1, 1, 99)}  # the only row of class 1 goes to it, or to a codeword of class 0


def test_codewords_of_a_class_without_rows_stay():
    owner = torch.tensor([0, 0, 3])
    w = torch.tensor([[[0.0], [50.0], [60.0]]])
    z = torch.tensor([[1.0], [2.0]])
    seeds = (torch.arange(2), torch.zeros(2, dtype=torch.int64))
    found, moved = revive(w, torch.zeros(2, 1, dtype=torch.int64), z, seeded(), owner, seeds)
    assert (moved, found[0, 2, 0].item()) == (1, 60)
    assert found[0, 1, 0].item() in (1, 2)


def test_repeated_rows_that_are_exact_already_move_nothing():
    z, w = torch.full((50, 4), 2.0), torch.full((2, 8, 2), 9.0)
    w[:, 0] = 2
    found, moved = revive(w, nearest(z, w), z, seeded())
    assert moved == 0
    assert torch.equal(found, w)


def test_repeated_rows_that_are_not_exact_move_what_there_are_rows_for():
    z, w = torch.full((3, 4), 2.0), torch.arange(16.0).view(2, 4, 2) + 100
    found, moved = revive(w, nearest(z, w), z, seeded())
    assert moved == 6  # three rows, three dead codewords a codebook
    assert (nearest(z, found) != 0).all()
    again, moved = revive(found, nearest(z, found), z, seeded())
    assert moved == 0
    assert torch.equal(again, found)
    few, moved = revive(w, nearest(z[:1], w), z[:1], seeded())
    assert moved == 2
    assert (use(nearest(z[:1], few), 4) > 0).sum() == 2
    none, moved = revive(w, nearest(z[:0], w), z[:0], seeded())
    assert (moved, torch.equal(none, w)) == (0, True)


def test_equal_seeds_draw_equal_rows():
    z, w, codes = codebooks()
    a, b, c = (revive(w, codes, z, seeded(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_renewal_reports_and_counting_alone_moves_nothing():
    z, w, codes = codebooks()
    used = (use(codes, 16) > 0).sum(1).tolist()
    parameter = torch.nn.Parameter(w.clone())
    assert reset_dead_codewords(parameter, codes, z, seeded(), only_count=True) == {
        "codewords_used": used,
        "revived": 0,
    }
    assert torch.equal(parameter, w)
    assert reset_dead_codewords(parameter, codes, z, seeded()) == {"codewords_used": used, "revived": 48 - sum(used)}
    assert torch.equal(parameter.detach(), revive(w, codes, z, seeded())[0])
    assert parameter.requires_grad


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_the_optimiser_forgets_the_old_places_alone(kind):
    z, w, codes = codebooks()
    parameter = torch.nn.Parameter(w.clone())
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {"amsgrad": True}
    optimizer = kind([parameter], 0.01, **more)
    reset_dead_codewords(
        parameter, codes, z, seeded(), optimizer=optimizer
    )  # before any step there is nothing to forget
    for seed in range(3):
        parameter.grad = torch.randn(w.shape, generator=seeded(seed))
        optimizer.step()
    with torch.no_grad():
        parameter.copy_(w)
    before = {name: value.clone() for name, value in optimizer.state[parameter].items()}
    reset_dead_codewords(parameter, codes, z, seeded(), optimizer=optimizer)
    alive = use(codes, 16) > 0
    for name, value in optimizer.state[parameter].items():
        if value.ndim == 0:  # the number of steps
            assert value == before[name]
            continue
        assert torch.equal(value[alive], before[name][alive])
        for m in range(3):
            want = before[name][m][alive[m]].mean(0) if name.endswith("_sq") else torch.zeros(2)
            np.testing.assert_allclose(value[m][~alive[m]], want.expand(int((~alive[m]).sum()), 2), rtol=1e-6)


def test_a_codebook_without_codewords_in_use_gives_finite_moments():
    parameter = torch.nn.Parameter(torch.ones(1, 4, 2))
    optimizer = torch.optim.Adam([parameter], 0.01)
    parameter.grad = torch.ones(1, 4, 2)
    optimizer.step()
    reset_optimizer_state(optimizer, parameter, torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool))
    assert all(torch.isfinite(value).all() for value in optimizer.state[parameter].values())


def test_rows_are_drawn_within_the_class():
    key = torch.tensor([0.1, 0.2, 0.9, 0.3, 0.5])
    assert draw_rows(torch.tensor([0, 1, 1, 2, 1]), key, torch.tensor([1, 2, 1])).tolist() == [2, 3, 4]


# ------------------------------------------------------------------------------------------------------------------ scq
def method(x, y, multilabel=False, validation=None, M=2, nbits=4, **config):
    """SCQ on rows that are their own features, its codebook stage begun."""
    labels = Labels(y, int(y.shape[1] if multilabel else y.max() + 1))
    rows = SourceRows(ArraySource(x), "cpu")
    part = None if validation is None else Subset(SourceRows(ArraySource(validation), "cpu"))
    task = Task(rows, labels, M, nbits, encoder=identity(x), encoder_name="identity", validation=part)
    scq = SCQ(Settings(similarity="identity", **config), task)
    stages = scq.stages()
    for stage in stages[1:]:
        stage.begin()
    return scq, stages[-1]


def identity(x):
    found = encoder_class("identity")
    return found(found.Config(), statistics(SourceRows(ArraySource(x), "cpu")), 1)


@pytest.mark.parametrize("private", ["class", "public"])
@pytest.mark.parametrize("labels", ["one", "many"])
def test_the_codebook_stage_revives_after_each_epoch(labels, private, one, multilabel):
    x, y = {"one": one, "many": multilabel}[labels]
    scq, stage = method(x, y, labels == "many", private=private)
    w = scq.quantizer.centroids
    with torch.no_grad():
        w[:, 3:6] = 1e3  # far from everything
    codes = nearest(scq.z, w)
    used = (use(codes, 16) > 0).sum(1).tolist()
    assert max(used) <= 13
    before = w.detach().clone()
    facts = stage.after_epoch(0)
    assert facts == {"codewords_used": used, "revived": 32 - sum(used)}
    changed = (w != before).any(2)
    assert torch.equal(changed, use(codes, 16) == 0)
    if private == "class":
        owner, (row, classes) = scq.private_to
        parts = scq.z.unflatten(1, (2, -1))
        for m, k in changed.nonzero().tolist():
            mine = row[classes == owner[k]]
            assert (parts[mine, m] == w[m, k]).all(1).any()
    assert stage.after_epoch(0)["revived"] == 0  # all are in use now
    with torch.no_grad():
        w.copy_(before)
    stage.after_epoch(0)
    again = w.detach().clone()
    with torch.no_grad():
        w.copy_(before)
    torch.randn(7)  # the state of torch's own generator plays no part
    stage.after_epoch(0)
    assert torch.equal(w, again)


def test_revival_can_be_left_out_and_is_in_the_released_recipe(one):
    scq, stage = method(*one, revive=False)
    with torch.no_grad():
        scq.quantizer.centroids[:, 3:6] = 1e3
    before = scq.quantizer.centroids.detach().clone()
    assert stage.after_epoch(0)["revived"] == 0
    assert torch.equal(scq.quantizer.centroids, before)
    assert SCQ.PRESETS["recipe"]["reference"]["revive"] is False


def test_moved_codewords_start_without_momentum(one):
    scq, stage = method(*one)
    (turn,) = stage.optimizer_steps
    optimizer, _ = turn.make_optimizer(10)
    sum(turn.loss(scq.z, scq.pattern).values()).backward()
    optimizer.step()
    w = scq.quantizer.centroids
    with torch.no_grad():
        w[:, 2] = 1e3
    stage.after_epoch(0)
    state = optimizer.state[w]
    assert (state["exp_avg"][:, 2] == 0).all()
    assert (state["exp_avg"][:, 3] != 0).any()
    assert (state["exp_avg_sq"][:, 2] > 0).any()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_validation_of_the_codebooks_is_the_rebuild_error_of_rows_set_aside(scale, one):
    x, y = one
    scq, stage = method(scale * x[:300], y[:300], validation=scale * x[300:])
    w = scq.codebooks().centroids.astype(np.float64)
    want = 0.0
    for row in scale * x[300:].astype(np.float64):
        for m in range(2):
            want += ((row[8 * m : 8 * m + 8] - w[m]) ** 2).sum(1).min() / 100
    np.testing.assert_allclose(stage.validate(), want, rtol=1e-4)
    assert method(x, y)[1].validate is None


@pytest.mark.filterwarnings("ignore:codebook . uses .* of 16 codewords")
@pytest.mark.parametrize("recipe", [{}, {"start": "normal", "hard": 1.0}, {"private": "public"}])
def test_repeated_rows_train(recipe):
    """Nothing to revive to: codebooks that use one codeword for each class, and no crash."""
    x = np.repeat(np.eye(8, dtype=np.float32)[:2], 30, 0)
    y = np.repeat([0, 1], 30)
    model = scqfaiss.train(x, y, bits=8, nbits=4, encoder="identity", **recipe)
    assert np.isfinite(model.codebooks.centroids).all()
    np.testing.assert_allclose(model.codebooks.decode(model.encode(x)), x, atol=0.05)
    assert max(model.config["training"]["codewords_used"]) <= 2


def test_codewords_that_start_in_one_place_are_all_used_in_the_end(one):
    """The start of the released recipe melts codewords together; with revival every one finds rows."""
    bare = {"bits": 8, "nbits": 4, "encoder": "identity", "epochs": 8, "start": "normal", "private": "public"}
    used = [
        scqfaiss.train(*one, **bare, revive=revive).config["training"]["codewords_used"] for revive in (False, True)
    ]
    assert min(used[1]) >= 15
    assert sum(used[1]) >= sum(used[0])


def test_equal_trainings_with_revival_give_equal_bytes(one):
    bare = {"bits": 8, "nbits": 4, "encoder": "identity", "epochs": 3, "start": "normal"}
    assert scqfaiss.train(*one, **bare).to_bytes() == scqfaiss.train(*one, **bare).to_bytes()


class Cut(Exception):
    """The end of a training, from outside."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* holds no checkpoint")
def test_a_training_cut_off_between_revivals_resumes_to_the_same_bytes(one, tmp_path):
    x, y = one
    revived = []
    bare = {"bits": 8, "nbits": 4, "encoder": "identity", "epochs": 4, "start": "normal", "batch_size": 80}
    bare["quantizer"] = "arsq"
    bare["validation"] = (x[300:], y[300:])

    def train(cut=None, folder=None):
        def progress(what, done, total, detail):
            if what == "codebooks" and done == cut:
                raise Cut

        kept = {"checkpoints": folder, "checkpoint_every": 1, "resume": True} if folder else {}
        return scqfaiss.train(x[:300], y[:300], **bare, **kept, progress=progress).to_bytes()

    original = SCQ.renew
    with pytest.MonkeyPatch.context() as patch:

        def counting(self, epoch):
            facts = original(self, epoch)
            revived.append(facts["revived"])
            return facts

        patch.setattr(SCQ, "renew", counting)
        whole = train()
    assert sum(n > 0 for n in revived) >= 2  # or this test would say nothing
    for cut in (2, 4, 5, 9):  # within epochs of 4 steps, and at their ends
        folder = tmp_path / str(cut)
        with pytest.raises(Cut):
            train(cut, folder)
        assert train(folder=folder) == whole


def test_a_row_of_several_classes_takes_in_one_codeword():
    """Six rows of two classes each, eight dead codewords: without care a row would be drawn once for each class."""
    z = torch.arange(6.0)[:, None] * 10 + 1
    w, owner = torch.zeros(1, 9, 1), torch.tensor([0] * 5 + [1] * 4)
    row, row_class = torch.arange(6).repeat(2), torch.tensor([0] * 6 + [1] * 6)
    codes = torch.zeros(6, 1, dtype=torch.int64)
    for seed in range(50):
        found, moved = revive(w, codes, z, torch.Generator().manual_seed(seed), owner, (row, row_class))
        places = found[0, 1:, 0][found[0, 1:, 0] != 0]
        assert len(places) == len(places.unique()) == moved > 3
