"""MeCoQ: its loss against a slow twin, the memory of codes, the start, several processes, and what it refuses."""

import dataclasses
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from close import assert_as_good, assert_close
from images import Drawn
from processes import in_two

import scqfaiss
from scqfaiss import distributed
from scqfaiss.contract import Subset, Task, configure
from scqfaiss.contract import settings as settings_of
from scqfaiss.data import ArraySource
from scqfaiss.encoders.backbone import Backbone
from scqfaiss.encoders.backbone import Settings as BackboneSettings
from scqfaiss.encoders.chain import Chain
from scqfaiss.encoders.identity import Identity
from scqfaiss.encoders.identity import Settings as IdentitySettings
from scqfaiss.encoders.linear import Linear
from scqfaiss.encoders.linear import Settings as LinearSettings
from scqfaiss.errors import ConfigError
from scqfaiss.methods import contrast, mecoq, neighbours, tensors
from scqfaiss.methods.contrast import CodeMemory
from scqfaiss.methods.mecoq import MeCoQ, Settings
from scqfaiss.methods.neighbours import NearestNeighbours
from scqfaiss.modality import IMAGES
from scqfaiss.training.checkpoints import Checkpoints
from scqfaiss.training.engine import Engine
from scqfaiss.training.rows import ImageRows, SourceRows, statistics

PRECISIONS = pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
STILL = {"neighbours": 0, "mixup": 0.0, "noise": 0.0}  # views that are the row itself


def rows(n=60, d=7, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def build(x=None, M=2, nbits=3, encoder="linear", begin=True, validation=None, dtype=torch.float32, **settings):
    """A MeCoQ on x (n, i), begun; the encoder without dropout."""
    source = SourceRows(ArraySource(rows() if x is None else x), "cpu")
    stats = statistics(source)
    made = Identity(IdentitySettings(), stats) if encoder == "identity" else Linear(LinearSettings(0.0), stats)
    held = None if validation is None else Subset(SourceRows(ArraySource(validation), "cpu"))
    batch = settings.pop("batch_size", None)
    config = configure(Settings, {"d": 4 * M, "queue": 10, "bank": 1000, **settings})
    task = Task(
        rows=source,
        labels=None,
        M=M,
        nbits=nbits,
        encoder=made,
        encoder_name=encoder,
        validation=held,
        batch_size=batch,
    )
    method = MeCoQ(config, task)
    if begin:
        method.begin()
    return method.to(dtype)


def assert_length_1(w):
    """Codewords (M, K, dsub) were divided by their length."""
    assert_close(w.double().norm(dim=2), np.ones(w.shape[:2]), terms=w.shape[2] + 4)


# ---------------------------------------------------------------------------------------------------------- slow twins
def unit(v):
    return v / max(np.sqrt((v * v).sum()), tensors.EPSILON)


def slow_codes(f, w, alpha):
    """(p (M, K), u (d,)) of one row f (d,), by loops over codebooks and codewords."""
    M, K, dsub = w.shape
    p, x = np.zeros((M, K)), []
    for m in range(M):
        part = unit(f[m * dsub : (m + 1) * dsub])
        e = np.array([math.exp(alpha * float(part @ w[m, k])) for k in range(K)])
        p[m] = e / e.sum()
        x.append(sum(p[m, k] * w[m, k] for k in range(K)))
    return p, unit(np.concatenate(x))


def slow_contrast(us, rows_of_us, memory, memory_rows, T, prior):
    """The mean over 2B views us (rows 0..B-1 and their second views behind them) of -log P / (P + G)."""
    n, losses = len(us), []
    for i in range(n):
        j = (i + n // 2) % n
        P = math.exp(us[i] @ us[j] / T)
        others = [us[c] for c in range(n) if c not in (i, j)]
        others += [v for v, row in zip(memory, memory_rows) if row != rows_of_us[i]]
        N, S = len(others), sum(math.exp(us[i] @ v / T) for v in others)
        G = max((S - prior * N * P) / (1 - prior), N * math.exp(-1 / T))
        losses.append(-math.log(P / (P + G)))
    return sum(losses) / n


def slow_omega(w):
    M, K, _ = w.shape
    return sum(w[m, k] @ w[m, j] for m, k, j in itertools.product(range(M), range(K), range(K))) / (M * K * K)


def slow_loss(method, x1, x2, index, memory=(), memory_rows=()):
    c = method.config
    w, A, a = (t.detach().double().numpy() for t in (method.codewords, method.A, method.a))
    scale, shift = (t.double().numpy() for t in (method.encoder.scale, method.encoder.shift))
    f = [A @ (scale * x + shift) + a for x in np.concatenate([x1, x2]).astype(np.float64)]
    ps, us = zip(*(slow_codes(v, w, c.alpha) for v in f))
    remembered = [unit(np.concatenate([p[m] @ w[m] for m in range(len(w))])) for p in memory]
    H = np.mean([-(p[m] * np.log(p[m])).sum() for p in ps for m in range(len(w))])
    return {
        "contrast": slow_contrast(us, [*index, *index], remembered, memory_rows, c.temperature, c.prior),
        "entropy": c.entropy * H,
        "omega": c.gamma * slow_omega(w),
    }


def two_views(b=6, d=7, seed=3):
    x = rows(b, d, seed)
    return x, (x + 0.3 * rows(b, d, seed + 1)).astype(np.float32)


@PRECISIONS
@pytest.mark.parametrize("T, prior", [(0.05, 0.0), (0.3, 0.3), (1.0, 0.1), (1.0, 0.9)])
@pytest.mark.parametrize("alpha", [1.0, 10.0])
@pytest.mark.parametrize("filled", [0, 5, 10])
def test_the_loss_equals_its_slow_twin(dtype, rtol, T, prior, alpha, filled):
    method = build(dtype=dtype, temperature=T, prior=prior, alpha=alpha)
    x1, x2 = two_views()
    index = torch.tensor([4, 9, 2, 30, 31, 32])
    generator = torch.Generator().manual_seed(1)
    memory = torch.rand(filled, 2, 8, generator=generator).to(dtype)
    memory /= memory.sum(2, keepdim=True)
    owners = torch.tensor([2, 50, 9, 9, 51, 52, 53, 30, 54, 55])[:filled]  # some are views of rows of the batch
    method.memory.push(memory, owners)
    method.on_epoch(method.config.queue_from)
    got = method.loss_of_views(torch.tensor(x1, dtype=dtype), torch.tensor(x2, dtype=dtype), index)
    want = slow_loss(method, x1, x2, index.tolist(), memory.double().numpy(), owners.tolist())
    assert list(got) == list(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name].item(), value, rtol=rtol, atol=rtol, err_msg=name)


def test_before_its_epoch_the_memory_fills_and_the_loss_does_without_it():
    method = build(queue_from=2)
    x1, x2 = map(torch.tensor, two_views())
    index = torch.arange(6)
    method.on_epoch(1)
    first = method.loss_of_views(x1, x2, index)["contrast"].item()
    with torch.no_grad():
        method.after_step()
    assert int(method.memory.filled) == 10  # of 12
    assert method.loss_of_views(x1, x2, index + 20)["contrast"].item() == pytest.approx(first, rel=1e-6)
    method.on_epoch(2)
    assert method.loss_of_views(x1, x2, index + 20)["contrast"].item() > first + 0.1


@pytest.mark.parametrize("T", [0.02, 0.5])
def test_prior_0_without_memory_is_nt_xent(T):
    """Chen, Kornblith, Norouzi, Hinton, ICML 2020, eq. 1, as cross entropy over all other views."""
    u = tensors.unit(torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    partner = torch.arange(8).roll(4)
    counted = ~torch.eye(8, dtype=torch.bool)
    counted[torch.arange(8), partner] = False
    got = contrast.contrast(u @ u.T, partner, counted, T, 0.0)
    logits = (u @ u.T / T).masked_fill(torch.eye(8, dtype=torch.bool), -torch.inf)
    # Debiasing without a prior leaves a floor, which lies at the smallest sum that there can be.
    np.testing.assert_allclose(got, torch.nn.functional.cross_entropy(logits, partner, reduction="none"), rtol=1e-10)


@pytest.mark.parametrize("T", [0.02, 0.4, 5.0])
@pytest.mark.parametrize("prior", [0.0, 0.1, 0.8])
@pytest.mark.parametrize("N", [1, 30])
def test_where_all_views_are_alike_the_loss_is_log_1_plus_N(T, prior, N):
    cosines = torch.ones(3, N + 2)
    counted = torch.ones(3, N + 2, dtype=torch.bool)
    counted[:, :2] = False
    got = contrast.contrast(cosines, torch.ones(3, dtype=torch.int64), counted, T, prior)
    np.testing.assert_allclose(got, math.log(1 + N), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own, other", [(-1.0, 1.0), (1.0, -1.0), (0.0, 0.0)])
def test_the_smallest_temperature_overflows_nowhere(dtype, own, other):
    cosines = torch.tensor([[own, other, other]], dtype=dtype, requires_grad=True)
    counted = torch.tensor([[False, True, True]])
    loss = contrast.contrast(cosines, torch.tensor([0]), counted, 0.02, 0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(cosines.grad).all()
    if own < other:
        # log((e^100 - 0.2 e^-0...) / 0.9 * 2): the exponents alone
        assert loss.item() == pytest.approx(100 + math.log(2 / 0.9), rel=1e-5)


def test_a_row_without_negatives_costs_nothing_and_pulls_nowhere():
    cosines = torch.tensor([[1.0, 0.3]], requires_grad=True)
    loss = contrast.contrast(cosines, torch.tensor([1]), torch.zeros(1, 2, dtype=torch.bool), 0.5, 0.1)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert cosines.grad.abs().max() < 1e-6


def test_the_floor_holds_where_debiasing_would_take_more_than_there_is():
    cosines = torch.tensor([[0.9, -0.5, -0.6]], dtype=torch.float64)
    counted = torch.tensor([[False, True, True]])
    T, prior = 0.3, 0.5
    got = contrast.contrast(cosines, torch.tensor([0]), counted, T, prior).item()
    P, floor = math.exp(0.9 / T), 2 * math.exp(-1 / T)
    assert (math.exp(-0.5 / T) + math.exp(-0.6 / T) - prior * 2 * P) / (1 - prior) < floor
    assert got == pytest.approx(-math.log(P / (P + floor)), rel=1e-12)


def test_hard_soft_codes_decode_to_the_codeword_itself():
    method = build(alpha=1e5)
    x = method.parts(torch.tensor(rows(9)))
    p = contrast.soft_codes(x, method.codewords, method.config.alpha).exp()
    codes = method.codebooks().assign(x.flatten(1).detach().numpy(), "ip")
    decoded = method.codebooks().decode(codes)
    got = contrast.decoded(p, method.codewords).detach().numpy()
    np.testing.assert_allclose(got, decoded / np.linalg.norm(decoded, axis=1, keepdims=True), atol=1e-5)


def test_both_forms_of_omega_agree_and_it_is_0_for_centered_codebooks():
    w = torch.randn(3, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert contrast.omega(w).item() == pytest.approx(slow_omega(w.numpy()), rel=1e-12)
    assert contrast.omega(w - w.mean(1, keepdim=True)).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("filled", [0, 7])
def test_gradients_are_those_of_finite_differences(filled):
    method = build(dtype=torch.float64, temperature=0.5, prior=0.2)
    x1, x2 = (torch.tensor(x, dtype=torch.float64) for x in two_views(4))
    memory = torch.rand(filled, 2, 8, generator=torch.Generator().manual_seed(0)).double().softmax(2)
    method.memory.push(memory, torch.arange(100, 100 + filled))
    method.on_epoch(9)
    start = [p.detach().clone() for p in (method.A, method.a)]

    def loss(A, a):
        method.A, method.a = torch.nn.Parameter(A), torch.nn.Parameter(a)
        return torch.func.functional_call(Caller(method), {"m.A": A, "m.a": a}, (x1, x2, torch.arange(4)))

    assert torch.autograd.gradcheck(loss, [p.requires_grad_() for p in start])


class Caller(torch.nn.Module):
    """The sum of a method's terms as a module's call."""

    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, *batch):
        return sum(self.m.loss_of_views(*batch).values())


def test_gradients_of_codewords_are_those_of_finite_differences():
    """Without a memory: what it holds is decoded without gradient."""
    method = build(dtype=torch.float64)
    batch = [torch.tensor(x, dtype=torch.float64) for x in two_views(4)] + [torch.arange(4)]

    def loss(w):
        return torch.func.functional_call(Caller(method), {"m.codewords": w}, tuple(batch))

    assert torch.autograd.gradcheck(loss, method.codewords.detach().clone().requires_grad_())


# ------------------------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize("size", [0, 1, 5, 8, 12, 13])
@pytest.mark.parametrize("lengths", [[4, 4, 4], [3, 5, 1, 7], [20, 2], [6, 6, 30, 1]])
def test_the_memory_holds_the_latest(size, lengths):
    memory, pushed = CodeMemory(size, 2, 4), []
    for length in lengths:
        new = torch.arange(len(pushed), len(pushed) + length)
        memory.push(new[:, None, None].expand(-1, 2, 4).float(), new)
        pushed += new.tolist()
        codes, owners = memory.held()
        assert sorted(owners.tolist()) == pushed[-size:] * bool(size)
        np.testing.assert_array_equal(codes[:, 1, 3].long(), owners)
    assert not size or int(memory.pointer) == len(pushed) % size


def test_all_that_training_changes_is_saved():
    method = build()
    for t in map(torch.tensor, [rows(6)]):
        method.loss_of_views(t, t, torch.arange(6))
        with torch.no_grad():
            method.after_step()
    state = {k: v.clone() for k, v in method.state_dict().items()}
    again = build()
    again.load_state_dict(state)
    assert again.memory.held()[0].shape == (10, 2, 8)
    for a, b in zip(method.memory.held(), again.memory.held()):
        np.testing.assert_array_equal(a, b)
    assert {"A", "a", "codewords", "memory.codes", "memory.rows", "memory.filled", "memory.pointer"} <= set(state)


# -------------------------------------------------------------------------------------------------------------- steps
@pytest.mark.parametrize("train_codewords", [True, False])
def test_codewords_have_length_1_after_a_step_that_moved_them(train_codewords):
    method = build(train_codewords=train_codewords, **{"training.lr": 0.1})
    assert_length_1(method.codewords.detach())
    before = method.codewords.detach().clone()
    (turn,) = method.stages()[0].optimizer_steps
    optimizer, _ = turn.make_optimizer(10)
    sum(turn.loss(torch.tensor(rows(6)), torch.arange(6)).values()).backward()
    assert method.A.grad.abs().max() > 0
    if train_codewords:
        assert (method.codewords.grad.flatten(1).abs().amax(1) > 0).all()
    optimizer.step()
    with torch.no_grad():
        method.after_step()
    assert_length_1(method.codewords.detach())
    assert torch.equal(method.codewords, before) != train_codewords


def test_dead_codewords_move_onto_rows_and_are_counted():
    method = build(revive_below=0.5)
    with torch.no_grad():
        method.codewords[0, 1:] = -method.codewords[0, :1]  # ties: of equal codewords the first codes the rows
    before = method.codewords.detach().clone()
    facts = method.after_epoch(0)
    assert facts["codewords_used"][0] <= 2
    assert facts["revived"] >= 6
    assert_length_1(method.codewords.detach())
    assert method.after_epoch(1)["codewords_used"][0] > 5
    for kept in ({"revive_below": 0.1}, {"revive_below": 1.0, "train_codewords": False}):
        method = build(**kept)
        with torch.no_grad():
            method.codewords.copy_(before)
        assert method.after_epoch(0) == {"codewords_used": facts["codewords_used"], "revived": 0}
        assert torch.equal(method.codewords, before)


# -------------------------------------------------------------------------------------------------------------- start
def test_principal_directions_are_those_of_the_covariance():
    x = torch.tensor(rows(50, 6)) * torch.tensor([3.0, 1, 5, 2, 0, 0.5])
    mean, axes = tensors.principal(x, 3)
    np.testing.assert_allclose(mean, x.numpy().mean(0), atol=1e-5)
    wanted = np.linalg.svd(x.numpy() - x.numpy().mean(0))[2][:3]
    np.testing.assert_allclose(np.abs((axes.numpy() * wanted).sum(1)), 1, atol=1e-5)
    assert tensors.principal(x, 10)[1].shape == (5, 6)  # one column is constant
    assert tensors.principal(torch.ones(4, 3), 2)[1].shape == (0, 3)


@pytest.mark.parametrize("sign", [1, 0])
def test_near_rows_are_the_most_similar_ones_without_the_row_itself(sign):
    x = np.abs(rows(40, 5)) if sign else rows(40, 5)
    root = np.sqrt(x) if sign else x
    centered = (root - root.mean(0)) / np.linalg.norm(root - root.mean(0), axis=1, keepdims=True)
    like = centered @ centered.T
    np.fill_diagonal(like, -9)
    got = NearestNeighbours(torch.tensor(x)).search(torch.tensor(x), 4, torch.arange(40))
    assert_close(np.take_along_axis(like, got.numpy(), 1), -np.sort(-like, 1)[:, :4], terms=40 + 3 * 5)  # up to ties


def test_near_rows_of_a_bank_that_is_a_part_of_the_rows():
    method = build(rows(60), bank=20, neighbours=3)
    numbers = method.task.rows.sample(20, 0)[1]
    assert method.bank.shape == (20, 7) and method.near.shape == (60, 3)
    assert int(method.near.max()) < 20
    own = {int(r): i for i, r in enumerate(numbers)}
    assert all(own[r] not in method.near[r].tolist() for r in own)
    np.testing.assert_array_equal(neighbours.places_in(torch.tensor([0, 5, 9]), torch.tensor([0, 3, 9])), [0, -1, 2])


def test_the_projection_keeps_inner_products_of_the_principal_directions():
    x = torch.tensor(rows(60, 7))
    for d in (4, 8):  # fewer and more than the rows have directions
        method = build(x.numpy(), encoder="identity", d=d)
        f = method(x).detach().numpy()
        mean, axes = tensors.principal(x, d)
        part = ((x - mean) @ axes.T).numpy()
        gram, wanted = f @ f.T, part @ part.T
        # Products over 7 and over d, and the turn that follows the principal directions.
        assert_close(gram / np.trace(gram), wanted / np.trace(wanted), terms=60 + 4 * 7)
        assert (f**2).mean() == pytest.approx(1, rel=1e-4)
        np.testing.assert_allclose(f.mean(0), 0, atol=1e-5)


def test_codewords_start_from_the_rows_given_for_them():
    method = build(begin=False, encoder="identity")
    other = rows(8, 7, 9)
    method.task = dataclasses.replace(method.task, codebook_rows=SourceRows(ArraySource(other), "cpu"))
    method.begin()
    parts = method.parts(torch.tensor(other)).detach()  # as many rows as codewords: each is one
    like = torch.einsum("bme,mke->bmk", parts, method.codewords.detach())
    np.testing.assert_allclose(like.amax(2), 1, atol=1e-3)


def test_begin_does_the_same_again():
    method = build()
    first = [t.detach().clone() for t in (method.A, method.a, method.codewords, method.near, method.bank)]
    torch.manual_seed(99)
    method.begin()
    for a, b in zip(first, (method.A, method.a, method.codewords, method.near, method.bank)):
        np.testing.assert_array_equal(a, b.detach())


# -------------------------------------------------------------------------------------------------------------- views
def test_views_lie_between_a_row_and_its_neighbours():
    method = build(**STILL | {"neighbours": 2, "near_mix": 0.5})
    x, index = torch.tensor(rows(60)), torch.arange(60)
    view = method.views.draw(x, method.near[index])
    shares = []
    for i in range(60):
        steps = method.bank[method.near[i].long()] - x[i]
        lam = ((view[i] - x[i]) * steps).sum(1) / steps.square().sum(1)
        off = (view[i] - x[i] - lam[:, None] * steps).norm(dim=1)
        assert off.min() < 1e-5
        shares.append(lam[off.argmin()].item())
    assert min(shares) >= 0 and max(shares) <= 0.5 and max(shares) > 0.3


def test_noise_dropout_and_mixup_do_what_they_say():
    x = rows(2000, 3) * np.array([1, 10, 0], np.float32) + np.array([0, 5, 2], np.float32)
    xt, none = torch.tensor(x), torch.zeros(2000, 0, dtype=torch.int32)
    torch.manual_seed(0)
    noise = (build(x, **STILL | {"noise": 0.2}).views.draw(xt, none) - xt).std(0)
    np.testing.assert_allclose(noise, [0.2, 2, 0], rtol=0.05)
    dropped = build(x, **STILL | {"feature_dropout": 0.25, "bank": 2000}).views.draw(xt, none)
    gone = dropped[:, :2] != xt[:, :2]
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_allclose(dropped[:, 1][gone[:, 1]], x[:, 1].mean(), rtol=1e-4)
    mixed = build(x, **STILL | {"mixup": 0.4}).views.draw(xt, none)
    ratio = mixed[:, 1].var() / xt[:, 1].var()  # E (1 - l)^2 + l^2, l uniform up to 0.4
    assert ratio.item() == pytest.approx(1 - 0.4 + 2 * 0.4**2 / 3, abs=0.05)
    assert torch.equal(build(x, **STILL).views.draw(xt, none), xt)


@pytest.mark.parametrize("on", [False, True])
def test_the_encoders_own_dropout_is_a_setting(on):
    method = build(encoder_dropout=on, **STILL)
    method.encoder.drop.p = 0.5
    method.train()
    x = torch.tensor(rows(6))
    first, second = (method.loss(x, torch.arange(6))["contrast"].item() for _ in range(2))
    assert (first != second) == on


def test_validation_is_the_same_every_time_and_leaves_the_random_state_alone():
    x1 = rows(20, 7, 5)
    method = build(validation=x1, temperature=0.5, prior=0.2, **STILL)
    (stage,) = method.stages()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    got = stage.validate()
    assert torch.equal(torch.get_rng_state(), before)
    assert got == pytest.approx(slow_loss(method, x1, x1, range(20))["contrast"], rel=1e-5)
    noisy = build(validation=x1, neighbours=3)
    assert noisy.stages()[0].validate() == noisy.stages()[0].validate()
    assert build().stages()[0].validate is None


# ------------------------------------------------------------------------------------------------------------ encoding
@pytest.mark.parametrize("encoder", ["identity", "linear"])
@pytest.mark.parametrize("M", [1, 2, 3])
def test_with_query_norm_intra_every_sub_vector_has_length_1(encoder, M):
    x = rows(30)
    plain = Chain(7).then(*build(x, M=M, encoder=encoder).layers())
    intra = Chain(7).then(*build(x, M=M, encoder=encoder, query_norm="intra").layers())
    assert plain.foldable and plain.layers[0][0] == "linear" and len(plain.layers) == 1
    f = plain(x).reshape(30, M, -1)
    length = np.linalg.norm(f, axis=2, keepdims=True)
    # A short sub-vector is off as much as the whole row is.
    scale = np.linalg.norm(f, axis=2).max() / length.min()
    assert_close(intra(x), (f / length).reshape(30, -1), terms=8 + 8, scale=scale)
    assert np.isfinite(intra(np.zeros((2, 7), np.float32))).all()


def test_the_largest_inner_product_is_the_nearest_codeword_and_a_zero_sub_vector_gets_code_0():
    method = build()
    codebooks, f = method.codebooks(), method(torch.tensor(rows(50))).detach().numpy()
    assert_as_good(codebooks.assign(f, "l2"), codebooks.assign(f, "ip"), codebooks, f)
    assert_as_good(codebooks.assign(3 * f, "ip"), codebooks.assign(f, "ip"), codebooks, f, "ip")
    f[:, :4] = 0
    assert (codebooks.assign(f, "ip")[:, 0] == 0).all()


def test_a_zero_row_has_a_finite_loss_and_gradient():
    method = build(encoder="identity")
    with torch.no_grad():
        method.a.zero_()
    x = torch.tensor(rows(5))
    x[2] = 0
    sum(method.loss_of_views(x, x, torch.arange(5)).values()).backward()
    for p in (method.A, method.a, method.codewords):
        assert torch.isfinite(p.grad).all()


@pytest.mark.slow
# ------------------------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize("encoder", ["identity", "linear", "mlp"])
def test_training_lowers_the_loss_and_needs_no_labels(encoder, one):
    settings = {"method": "mecoq", "bits": 8, "nbits": 4, "encoder": encoder, "batch_size": 50, "queue": 0}
    if encoder == "mlp":
        settings |= {"hidden": 32}
    first, last = (scqfaiss.train(one[0], epochs=e, **settings).config["training"]["loss"] for e in (1, 8))
    assert sum(last["contrast"].values()) < sum(first["contrast"].values()) - 0.02


@pytest.mark.parametrize("queue, batch", [(0, 16), (1, 16), (7, 16), (10, 5), (500, 64)])
def test_any_queue_goes_with_any_batch(queue, batch):
    model = scqfaiss.train(
        rows(50),
        method="mecoq",
        bits=4,
        nbits=2,
        encoder="linear",
        epochs=5,
        queue=queue,
        queue_from=1,
        batch_size=batch,
    )
    assert np.isfinite(model.codebooks.centroids).all()
    assert_length_1(torch.from_numpy(model.codebooks.centroids))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_very_few_rows_train(n):
    with pytest.warns(match=f"{n} rows can use at most {n} of 16 codewords"):
        model = scqfaiss.train(rows(n), method="mecoq", bits=8, nbits=4, encoder="linear", epochs=3, batch_size=2)
    assert np.isfinite(model.codebooks.centroids).all() and np.isfinite(model.embed(rows(4))).all()


def test_rows_that_are_all_alike_train_to_finite_numbers():
    for start in ("kmeans", "random"):
        x = np.ones((20, 6), np.float32)
        method = build(x, start=start, encoder="identity")
        terms = method.loss(torch.tensor(x[:8]), torch.arange(8))
        sum(terms.values()).backward()
        assert torch.isfinite(method.A.grad).all()
        assert_length_1(method.codewords.detach())


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"temperature": 0.01}, "^temperature is 0.01, needs 0.02 to 100$"),
        ({"prior": 1.0}, "^prior is 1.0, needs 0 to 0.99$"),
        ({"prior": -0.1}, "^prior is -0.1, needs 0 to 0.99$"),
        ({"d": 30}, "^d=30 is not divisible by M=4 codebooks; need M of 3 or 5$"),
        ({"d": 4}, "^d=4 in M=4 codebooks leaves 1 dimension a codebook, .* need d of 8 or more$"),
        ({"batch_size": 1}, "^batch-size is 1, mecoq tells the rows of a batch apart; need at least 2$"),
    ],
)
def test_what_cannot_work_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        scqfaiss.train(rows(), method="mecoq", bits=16, nbits=4, **settings)


def test_one_row_is_refused_and_equal_views_are_warned_of():
    with pytest.raises(ConfigError, match=r"^1 rows cannot train mecoq, which tells rows apart; need at least 2$"):
        scqfaiss.train(rows(1), method="mecoq", bits=4, nbits=4)
    with pytest.raises(ConfigError, match=r"^1 rows cannot validate mecoq, which tells rows apart; need at least 2$"):
        scqfaiss.train(rows(), method="mecoq", bits=4, nbits=4, validation=rows(1))
    assert math.isfinite(build(validation=rows(2)).validate())
    with pytest.warns(match=r"^no noise in the views: both of a row are the row itself, but for encoder_dropout$"):
        scqfaiss.train(rows(), method="mecoq", bits=4, nbits=2, encoder="linear", epochs=1, **STILL)


# --------------------------------------------------------------------------------------------------- several processes
def one_step(method, x1, x2, index, steps=2):
    """Losses of `steps` steps with the gradients of the last; the memory in use."""
    method.on_epoch(9)
    for _ in range(steps):
        for p in method.parameters():
            p.grad = None
        terms = method.loss_of_views(x1, x2, index)
        sum(terms.values()).backward()
        with torch.no_grad():
            method.after_step()
    distributed.average_gradients(method.parameters())
    terms = distributed.average(torch.stack([t.detach() for t in terms.values()]))
    return terms, [p.grad for p in (method.A, method.a, method.codewords)], method.memory.held()


def joint_batch():
    x1, x2 = map(torch.tensor, two_views(8))
    return x1, x2, torch.tensor([3, 1, 8, 40, 41, 5, 6, 2])


def share_of_two(rank, file):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    got = one_step(build(), *distributed.shard(joint_batch()))
    torch.save(got, f"{file}.{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo by file")
def test_two_processes_do_what_one_does_with_all_rows(tmp_path):
    want = one_step(build(), *joint_batch())
    in_two(share_of_two, str(tmp_path / "meet"))
    for rank in range(2):
        terms, grads, (codes, owners) = torch.load(tmp_path / f"meet.{rank}.pt")
        np.testing.assert_allclose(terms, want[0], rtol=1e-5)
        for got, wanted in zip(grads, want[1]):
            np.testing.assert_allclose(got, wanted, atol=1e-5 * wanted.abs().max().item())
        np.testing.assert_array_equal(owners, want[2][1])
        np.testing.assert_allclose(codes, want[2][0], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ images
def drawn(n=60, seed=0):
    """x (n, 3, 8, 8) uint8: coarse patterns, of which neighbouring rows share one."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 230, (max(1, n // 4), 3, 2, 2)).repeat(4, 2).repeat(4, 3)
    return (coarse[np.arange(n) % len(coarse)] + rng.integers(-20, 20, (n, 3, 8, 8))).clip(0, 255).astype(np.uint8)


def patterns(n, seed=0):
    """x (n, 3, 8, 8) uint8, each a coarse pattern of its own."""
    coarse = np.random.default_rng(seed).integers(20, 230, (n, 3, 2, 2))
    return coarse.repeat(4, 2).repeat(4, 3).astype(np.uint8)


def build_on_images(x=None, validation=None, begin=True, network=None, batch_size=16, epochs=3, **settings):
    """A MeCoQ on images, begun; the network a small one of convolutions, always of the same weights."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.BatchNorm2d(6), torch.nn.ReLU())
    net.input_size = 8
    values = {"backbone_lr": 0.3, "dropout": 0.0, "channels_last": False, **(network or {})}
    encoder = Backbone(configure(BackboneSettings, values), net, "toy:net", {})

    def rows_of(x):
        return ImageRows(Drawn(x), encoder.width, "cpu", 1 << 20)

    task = Task(
        rows=rows_of(drawn() if x is None else x),
        labels=None,
        M=2,
        nbits=3,
        encoder=encoder,
        encoder_name="toy:net",
        validation=None if validation is None else Subset(rows_of(validation)),
        batch_size=batch_size,
        epochs=epochs,
    )
    method = MeCoQ(configure(Settings, {"d": 8, "queue": 24, "queue_from": 1, **settings}), task)
    if begin:
        method.begin()
    return method


def without_norm(x=None, **settings):
    """Batch norm is of a process's own share, and of few images a poor guess."""
    method = build_on_images(x, begin=False, **{"network": {"dropout": 0.2}, **settings})
    method.encoder.net[1] = torch.nn.Identity()
    method.begin()
    return method


def test_views_of_images_are_two_augmentations_through_the_network_in_training():
    method = build_on_images().train()
    x, index = torch.from_numpy(drawn()[:6]), torch.arange(6)
    means = method.encoder.net[1].running_mean.clone()
    method.encoder.draws.fill_(7)
    got = method.loss(x, index)
    assert method.encoder.training and not torch.equal(method.encoder.net[1].running_mean, means)
    assert int(method.encoder.draws) == 8  # one pass: batch norm sees both views together
    sum(got.values()).backward()
    assert method.encoder.net[0].weight.grad.abs().max() > 0
    # The same by hand: the network's own views, through the slow twin.
    method.encoder.draws.fill_(7)
    with torch.no_grad():
        method.encoder.net[1].running_mean.copy_(means)
    with torch.enable_grad():
        g = method.encoder(x.repeat_interleave(2, 0))[0].detach().double().numpy()
    w, A, a = (t.detach().double().numpy() for t in (method.codewords, method.A, method.a))
    ps, us = zip(*(slow_codes(A @ v + a, w, 10.0) for v in [*g[::2], *g[1::2]]))
    want = slow_contrast(us, [*range(6)] * 2, [], [], 1.0, 0.1)
    assert got["contrast"].item() == pytest.approx(want, rel=1e-4)
    H = np.mean([-(p[m] * np.log(p[m])).sum() for p in ps for m in range(2)])
    assert got["entropy"].item() == pytest.approx(0.05 * H, rel=1e-4)
    views = method.drawn(x)
    assert views.shape == (6, 2, 2, 4) and (views[:, 0] - views[:, 1]).abs().amax((1, 2)).min() > 1e-3
    still = build_on_images(network={"augment": "none", "dropout": 0.1}).train().drawn(x)
    assert (still[:, 0] - still[:, 1]).abs().max() > 1e-3  # by dropout


def test_the_start_is_that_of_features_of_images():
    x = drawn()
    method = build_on_images(x)
    g = torch.from_numpy(method.encoder.features(x))
    same = build(g.numpy(), encoder="identity", d=8)
    for name in ("A", "a", "codewords"):
        np.testing.assert_allclose(
            getattr(method, name).detach(), getattr(same, name).detach(), atol=1e-4, err_msg=name
        )
    before = [t.clone() for t in (method.A, method.codewords)]
    torch.manual_seed(5)
    method.begin()
    assert torch.equal(before[0], method.A) and torch.equal(before[1], method.codewords)
    assert build_on_images(x, bank=20).summary() == {"d": 8, "bank_rows": 20, "neighbours": 0}
    method.task = dataclasses.replace(
        method.task, codebook_rows=ImageRows(Drawn(drawn(8, 5)), method.encoder.width, "cpu", 1 << 20)
    )
    method.begin()
    with torch.no_grad():
        parts = method.parts(torch.from_numpy(drawn(8, 5)))  # as many images as codewords: each is one
    np.testing.assert_allclose(torch.einsum("bme,mke->bmk", parts, method.codewords).amax(2).detach(), 1, atol=1e-3)


def test_use_of_codewords_is_counted_on_images_encoded_anew(monkeypatch):
    method = build_on_images(revive_below=0.0)
    with torch.no_grad():
        parts = method.parts(torch.from_numpy(drawn()))
        codes = torch.einsum("bme,mke->bmk", parts, method.codewords).argmax(2)
    assert method.after_epoch(0)["codewords_used"] == [len(codes[:, m].unique()) for m in range(2)]
    monkeypatch.setattr(mecoq, "COUNTED_IMAGES", 25)  # every third of 60
    assert method.after_epoch(0)["codewords_used"] == [len(codes[::3, m].unique()) for m in range(2)]
    with torch.no_grad():
        method.codewords[0, 1:] = -method.codewords[0, :1]
    method.config = dataclasses.replace(method.config, revive_below=1.0)
    assert method.after_epoch(1)["revived"] >= 6


def test_validation_images_are_seen_in_the_same_views_and_teach_nothing():
    method = build_on_images(validation=drawn(20, 3))
    (stage,) = method.stages()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    torch.manual_seed(3)
    random = torch.get_rng_state()
    got = stage.validate()
    method.encoder.draws += 5
    assert stage.validate() == got
    method.encoder.draws -= 5
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
    plain = build_on_images(validation=drawn(20, 3), network={"augment": "none", "dropout": 0.01}, batch_size=20)
    plain.encoder.config = dataclasses.replace(plain.encoder.config, dropout=0.0)
    g = plain.encoder.features(drawn(20, 3)).astype(np.float64)
    w, A, a = (t.detach().double().numpy() for t in (plain.codewords, plain.A, plain.a))
    us = [slow_codes(A @ v + a, w, 10.0)[1] for v in g]
    assert plain.validate() == pytest.approx(slow_contrast(us * 2, [*range(20)] * 2, [], [], 1.0, 0.1), rel=1e-5)


class Cut(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.slow
def test_training_on_images_lowers_the_loss_of_others_too():
    settings = {"queue": 0, "prior": 0.0, "temperature": 0.3, "epochs": 8, "network": {}}
    method, lines = without_norm(patterns(200), validation=patterns(40, 1), **settings), []
    engine = Engine(method, 3)
    engine.log = type("Lines", (), {"start": lambda *_: None, "__call__": lambda _, facts: lines.append(facts)})()
    engine.run()
    assert lines[-1]["loss"]["contrast"] < lines[0]["loss"]["contrast"] - 0.1
    assert lines[-1]["validation"] < lines[0]["validation"] - 0.1
    assert min(lines[-1]["codewords_used"]) >= 6


@pytest.mark.slow
def test_training_on_images_resumes_to_the_same_bits(tmp_path):
    def train(cut=None, folder=None):
        steps = [0]

        def progress(what, done, total, detail):
            steps[0] += what == "contrast"
            if steps[0] == cut:
                raise Cut

        network = {"frozen_epochs": 1, "dropout": 0.1}
        method = build_on_images(begin=False, network=network, validation=drawn(20, 3))
        kept = None if folder is None else Checkpoints(folder, dict, 1)
        Engine(method, 3, progress=progress, checkpoints=kept).run(resume=folder is not None)
        return method

    whole = train()
    for cut in (3, 4, 2):  # in the first epoch, and in the two after it
        with pytest.raises(Cut):
            train(cut, tmp_path / "c")
    again = train(None, tmp_path / "c")
    for a, b in zip(whole.state_dict().values(), again.state_dict().values()):
        assert torch.equal(a, b)


def test_what_learns_of_a_image_method_has_its_rates():
    method = build_on_images(**{"training.lr": 0.01, "training.decay": 0.2, "training.codeword_lr": 0.5})
    optimizer, _ = method.stages()[0].optimizer_steps[0].make_optimizer(10)
    rates = {id(p): (g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates.keys() == {id(p) for p in method.parameters()}
    assert rates[id(method.A)] == (0.01, 0.2) and rates[id(method.codewords)] == (0.005, 0.0)
    assert rates[id(method.encoder.net[0].weight)] == (0.003, 0.05)
    assert build_on_images(batch_size=None).batch == 64 and build_on_images(batch_size=200).batch == 200


def test_what_makes_views_of_rows_is_ignored_for_images_and_equal_views_are_warned_of():
    config = configure(Settings, {"noise": 0.3, "neighbours": 2})
    with pytest.warns(match=r"^views of images are drawn by the network \(augment=...\): neighbours, noise ignored$"):
        MeCoQ.check(config, 7, 0, 2, 4, "pkg:net", IMAGES)
    with pytest.warns(match=r"^no augmentation and no dropout: both views of an image are the image itself$"):
        build_on_images(network={"augment": "none"})
    with pytest.raises(ConfigError, match=r"^1 rows cannot train mecoq, which tells rows apart; need at least 2$"):
        build_on_images(drawn(1))


def two_steps_on_images(method):
    method.train()
    method.on_epoch(1)
    for i in (0, 16):
        for p in method.parameters():
            p.grad = None
        x, index = distributed.shard((torch.from_numpy(drawn()[i : i + 16]), torch.arange(i, i + 16)))
        terms = method.loss(x, index)
        sum(terms.values()).backward()
        with torch.no_grad():
            method.after_step()
    distributed.average_gradients(method.parameters())
    terms = distributed.average(torch.stack([t.detach() for t in terms.values()]))
    return terms, [p.grad for p in (method.A, method.codewords, method.encoder.net[0].weight)], method.memory.held()


def images_of_two(rank, file):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.save(two_steps_on_images(without_norm()), f"{file}.{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo by file")
def test_two_processes_see_the_views_of_one_and_do_what_it_does(tmp_path):
    want = two_steps_on_images(without_norm())
    in_two(images_of_two, str(tmp_path / "meet"))
    for rank in range(2):
        terms, grads, (codes, owners) = torch.load(tmp_path / f"meet.{rank}.pt")
        np.testing.assert_allclose(terms, want[0], rtol=1e-4)
        for got, wanted in zip(grads, want[1]):
            np.testing.assert_allclose(got, wanted, atol=1e-4 * wanted.abs().max().item())
        np.testing.assert_array_equal(owners, want[2][1])
        np.testing.assert_allclose(codes, want[2][0], atol=1e-5)


def test_settings_are_plain_values():
    assert all(type(f.default) in (int, float, bool, str) for f in settings_of(Settings).values())
