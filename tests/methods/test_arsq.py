"""ARSQ against loops written from the definition, in every layout of its batches and at both ends of its schedule."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from close import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from scqfaiss.codebooks import Codebooks
from scqfaiss.methods.arsq import ARSQ, allocate_codewords, blocks_of, table
from scqfaiss.methods.scq import SCQ

DTYPES = [(torch.float64, 1e-10), (torch.float32, 2e-5)]
# Start and end of the released schedule, and what ours starts from.
RATES = [(1.0, 1.0), (0.01, 30.0), (1.0, 1e5)]


def slow_errors(z, pattern, centroids, owned, soft, hard):
    """(soft, hard) rebuild errors: loops over rows and codebooks, each row among its own codewords alone."""
    M, K, dsub = centroids.shape
    out = []
    for rate in (soft, hard):
        total = 0.0
        for row, p in zip(z, pattern):
            own = [k for k in range(K) if owned[p][k]]
            for m in range(M):
                part = row[m * dsub : (m + 1) * dsub]
                dist = np.array([((part - centroids[m, k]) ** 2).sum() for k in own])
                logits = -rate * dist / max(dist.max(), 1e-12)
                w = np.exp(logits - logits.max())
                total += ((part - w / w.sum() @ centroids[m, own]) ** 2).mean() / len(z)
        out.append(total)
    return out


def slow_regulation(centroids, groups):
    smallest = []
    for codebook in centroids:
        for group in groups:
            own = [k for k in range(len(group)) if group[k]]
            if len(own) >= 2:
                smallest.append(min(((codebook[i] - codebook[j]) ** 2).sum() for i in own for j in own if i != j))
    return -np.tanh(np.mean(smallest)) if smallest else 0.0


def plain_errors(z, pattern, w, owned, soft, hard, detach=False):
    """The same with torch, every row against all codewords: for gradients."""
    M, _, dsub = w.shape
    x = z.view(len(z), M, 1, dsub)
    dist = (x - w).square().sum(3)
    own = owned[pattern][:, None]
    far = dist.masked_fill(~own, 0).amax(2, keepdim=True).clamp_min(1e-12)
    delta = dist / (far.detach() if detach else far)
    out = []
    for rate in (soft, hard):
        a = (-rate * delta).masked_fill(~own, -torch.inf).softmax(2)
        out.append((torch.einsum("bmk,mke->bme", a, w) - x[:, :, 0]).square().mean((0, 2)).sum())
    return out


def layout_grouped(dtype):
    """4 classes alone: a block of rows for each, padded to the longest, against its own 4 codewords of 16."""
    y = torch.tensor([0, 3, 0, 1, 1, 3, 2, 0, 0, 2, 1, 3])
    owned = torch.arange(4)[:, None] == allocate_codewords(16, torch.ones(4))
    return y, owned, owned


def layout_flat(dtype):
    """Label sets of several classes, most of the rows in one of them: every row against all codewords, masked."""
    sets = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    y = torch.tensor([1] * 9 + [0, 2, 3])
    owner = allocate_codewords(16, torch.ones(4))
    return y, sets[:, owner], torch.arange(4)[:, None] == owner


def layout_mixed(dtype):
    """Label sets of several classes in blocks: rows and own sets of unequal numbers, padded."""
    sets = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]).bool()
    y = torch.tensor([0, 0, 1, 2, 0, 1, 2, 0, 1, 0, 2, 1])
    owner = allocate_codewords(16, torch.ones(6))
    return y, sets[:, owner], torch.arange(6)[:, None] == owner


def layout_public(dtype):
    every = torch.ones(1, 16, dtype=torch.bool)
    return torch.zeros(12, dtype=torch.int64), every, every


LAYOUTS = {"grouped": layout_grouped, "mixed": layout_mixed, "flat": layout_flat, "public": layout_public}


def made(layout, dtype, M=3, dsub=2, omega=0.1, rho=0.1, **more):
    torch.manual_seed(11)
    pattern, owned, groups = LAYOUTS[layout](dtype)
    start = torch.randn(M, 16, dsub, dtype=torch.float64).to(dtype)
    arsq = ARSQ(start, owned, groups, omega, rho, **more)
    z = torch.randn(len(pattern), M * dsub, dtype=torch.float64).to(dtype)
    return arsq, z, pattern, owned, groups


@pytest.mark.parametrize(
    "layout, blocks, masked", [("grouped", 4, 1), ("mixed", 3, 1), ("flat", 1, 12), ("public", 1, 1)]
)
def test_batches_take_the_layout_they_are_meant_to(layout, blocks, masked):
    _, _, pattern, owned, _ = made(layout, torch.float64)
    output, own, valid, present = blocks_of(pattern, owned, *table(owned))
    assert (len(own), valid.shape[1], present is None) == (blocks, masked, layout in ("flat", "public"))
    assert own.shape[1] == {"grouped": 4, "mixed": 5, "flat": 16, "public": 16}[layout]
    # Every row stands in one place that counts, beside the codewords it may use and no others.
    output = output.view(blocks, -1)
    counts = torch.ones_like(output, dtype=torch.bool) if present is None else present
    assert sorted(output[counts].tolist()) == list(range(12))
    for g, r in counts.nonzero().tolist():
        row = output[g, r]
        usable = own[g][valid[g, r if masked > 1 else 0]]
        assert sorted(usable.tolist()) == owned[pattern[row]].nonzero().flatten().tolist()


@pytest.mark.parametrize("dtype, rtol", DTYPES)
@pytest.mark.parametrize("soft, hard", RATES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rebuild_error_equals_slow_twin(layout, soft, hard, dtype, rtol):
    arsq, z, pattern, owned, groups = made(layout, dtype)
    arsq.soft, arsq.hard = soft, hard
    w = arsq.centroids.detach().double().numpy()
    want = slow_errors(z.double().numpy(), pattern.tolist(), w, owned.tolist(), soft, hard)
    found = [e.item() for e in arsq.rebuild_error(z, pattern)]
    np.testing.assert_allclose(found, want, rtol=rtol)
    terms = {name: t.item() for name, t in arsq.loss(z, pattern).items()}
    R = slow_regulation(w, groups.tolist())
    np.testing.assert_allclose(terms["soft"], 0.1 * want[0], rtol=rtol)
    np.testing.assert_allclose(terms["hard"], want[1], rtol=rtol)
    np.testing.assert_allclose(terms["regulation"], 0.1 * R, rtol=rtol)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("soft, hard", [(1.0, 1.0), (0.01, 30.0), (1.0, 300.0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_equals_that_of_a_plain_masked_implementation(layout, soft, hard, detach):
    arsq, z, pattern, owned, _ = made(layout, torch.float64, detach_divisor=detach)
    arsq.soft, arsq.hard = soft, hard
    plain = plain_errors(z, pattern, arsq.centroids, owned, soft, hard, detach)
    for found, want in zip(arsq.rebuild_error(z, pattern), plain):
        (a,) = torch.autograd.grad(found, arsq.centroids, retain_graph=True)
        (b,) = torch.autograd.grad(want, arsq.centroids, retain_graph=True)
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)
        assert b.abs().max() > 1e-3


def test_the_divisor_changes_the_gradient_but_not_the_value():
    found = []
    for detach in (False, True):
        arsq, z, pattern, _, _ = made("grouped", torch.float64, detach_divisor=detach)
        soft, _ = arsq.rebuild_error(z, pattern)
        found.append((soft.item(), torch.autograd.grad(soft, arsq.centroids)[0]))
    assert found[0][0] == found[1][0]
    assert (found[0][1] - found[1][1]).abs().max() > 1e-3


@pytest.mark.parametrize("layout", ["grouped", "mixed", "flat"])
def test_codewords_of_absent_classes_get_no_gradient(layout):
    arsq, z, pattern, owned, _ = made(layout, torch.float64)
    arsq.soft, arsq.hard = 0.5, 20.0
    some = pattern <= 1
    soft, hard = arsq.rebuild_error(z[some], pattern[some])
    (gradient,) = torch.autograd.grad(soft + hard, arsq.centroids)
    used = owned[pattern[some]].any(0)
    assert 0 < used.sum() < 16
    assert (gradient[:, ~used] == 0).all()
    assert (gradient[:, used].abs().sum((0, 2)) > 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_at_the_ends_the_rebuild_is_the_nearest_own_codeword_and_their_mean(layout):
    arsq, z, pattern, owned, _ = made(layout, torch.float64)
    arsq.soft, arsq.hard = 1e-12, 1e9
    soft, hard = arsq.rebuild_error(z, pattern)
    w, near, mean = arsq.centroids.detach().numpy(), 0.0, 0.0
    for row, p in zip(z.numpy(), pattern):
        own = owned[p].numpy()
        for m in range(3):
            part = row[2 * m : 2 * m + 2]
            near += ((part - w[m, own]) ** 2).sum(1).min() / 2 / len(z)
            mean += ((part - w[m, own].mean(0)) ** 2).mean() / len(z)
    np.testing.assert_allclose(hard.item(), near, rtol=1e-10)
    np.testing.assert_allclose(soft.item(), mean, rtol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_on_all_their_codewords_have_finite_gradients(layout, dtype):
    arsq, z, pattern, _, _ = made(layout, dtype)
    arsq.hard = 1e7
    with torch.no_grad():
        arsq.centroids[:] = 0.5
    terms = arsq.loss(torch.full_like(z, 0.5), pattern)
    sum(terms.values()).backward()
    assert max(abs(t.item()) for t in terms.values()) < 1e-12
    assert torch.isfinite(arsq.centroids.grad).all()


@pytest.mark.parametrize("dtype, rtol", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_regulation_equals_slow_twin(layout, dtype, rtol):
    arsq, _, _, _, groups = made(layout, dtype, M=2, dsub=3)
    with torch.no_grad():
        arsq.centroids *= 0.4  # tanh far from 1, where nothing could differ
    want = slow_regulation(arsq.centroids.detach().double().numpy(), groups.tolist())
    np.testing.assert_allclose(arsq.regulation().item(), want, rtol=rtol)
    assert -0.9 < want < -1e-3


def test_classes_with_one_codeword_do_not_count_in_the_regulation():
    groups = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]]).bool()
    start = 0.3 * torch.randn(2, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    arsq = ARSQ(start, groups, groups, 0.1, 0.1)
    np.testing.assert_allclose(arsq.regulation().item(), slow_regulation(start.numpy(), groups.tolist()), rtol=1e-10)
    alone = ARSQ(start, groups, torch.eye(8, dtype=torch.bool), 0.1, 0.1)
    assert alone.regulation().item() == 0


def test_coincident_codewords_have_a_finite_regulation():
    groups = torch.ones(1, 4, dtype=torch.bool)
    arsq = ARSQ(torch.ones(2, 4, 3), groups, groups, 0.1, 0.1)
    arsq.regulation().backward()
    assert arsq.regulation().item() == 0
    assert torch.isfinite(arsq.centroids.grad).all()


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.integers(1, 64), st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_codewords_are_dealt_evenly_to_the_classes_present(K, counts):
    present = [c for c, n in enumerate(counts) if n]
    if not present or K < len(present):
        return
    owner = allocate_codewords(K, torch.tensor(counts))
    shares = np.bincount(owner, minlength=len(counts))
    assert owner.shape == (K,)
    assert sorted(set(owner.tolist())) == present
    assert shares[present].max() - shares[present].min() <= 1


def test_a_table_lists_own_codewords_first():
    owned = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0]]).bool()
    codewords, valid = table(owned)
    assert codewords.tolist()[0] == [1, 3]
    assert codewords.tolist()[1][0] == 0
    assert valid.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_refit_is_lloyd_steps_over_the_whole_codebook(steps):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((90, 6)).astype(np.float32)
    w = rng.standard_normal((3, 16, 2)).astype(np.float32)
    w[1, 5] = 50  # no row is near it: it stays
    quantizer = SimpleNamespace(centroids=torch.from_numpy(w.copy()))
    config = SimpleNamespace(refit=steps, quantizer="arsq")
    SCQ.refit(SimpleNamespace(quantizer=quantizer, z=torch.from_numpy(z), config=config))
    want = w.astype(np.float64)
    for _ in range(steps):
        codes = Codebooks("product", want.astype(np.float32)).assign(z, "l2")
        # No row lies between two codewords: there is one right answer.
        distances = np.square(z.reshape(90, 3, 1, 2) - want.astype(np.float64)).sum(3)
        nearest = np.sort(distances, axis=2)
        assert (nearest[:, :, 1] - nearest[:, :, 0]).min() > 1e-4
        for m in range(3):
            for k in range(16):
                rows = z[codes[:, m] == k, 2 * m : 2 * m + 2]
                if len(rows):
                    want[m, k] = rows.mean(0, dtype=np.float64)
    assert_close(quantizer.centroids, want, 90, np.abs(z).max() + 50 * (want == 50))  # means of up to 90 rows
    assert quantizer.centroids[1, 5].tolist() == [50, 50]
    assert (np.abs(want - w).max() > 0.1) == (steps > 0)
