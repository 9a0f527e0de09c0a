"""Lloyd's k-means of all codebooks at once."""

import itertools

import numpy as np
import pytest
import torch

from scqfaiss.methods.kmeans import draw_rows, lloyd


def error(z, w, allowed, pattern):
    dist = (z[:, :, None] - w[:, None]).square().sum(3)  # m n k
    return dist.masked_fill(~allowed[pattern], torch.inf).min(2).values.sum().item()


def seeds(row_class):
    """Every row starts codewords of one class."""
    return torch.arange(len(row_class)), row_class


def private(n=120, K=16, C=4, M=2, dsub=3):
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(n) % C
    z = torch.randn(M, n, dsub, generator=generator)
    owner = torch.arange(K) * C // K
    return z, y, torch.arange(C)[:, None] == owner, owner, y


def public(n=120, K=16, M=2, dsub=3):
    z = torch.randn(M, n, dsub, generator=torch.Generator().manual_seed(5))
    none = torch.zeros(n, dtype=torch.int64)
    return z, none, torch.ones(1, K, dtype=torch.bool), none[:1].expand(K), none


@pytest.mark.parametrize("case", [private, public])
def test_the_error_never_rises(case):
    z, pattern, allowed, owner, row_class = case()
    errors = []
    for iterations in range(1, 13):
        w = lloyd(z, pattern, allowed, owner, seeds(row_class), torch.Generator().manual_seed(1), iterations)
        errors.append(error(z, w, allowed, pattern))
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.95 * errors[0]


def test_the_last_step_puts_codewords_at_the_mean_of_their_rows():
    z, pattern, allowed, owner, row_class = private()
    w = lloyd(z, pattern, allowed, owner, seeds(row_class), torch.Generator().manual_seed(1), 60)  # has come to rest
    dist = (z[:, :, None] - w[:, None]).square().sum(3).masked_fill(~allowed[pattern], torch.inf)
    code = dist.argmin(2)
    for m in range(2):
        for k in range(16):
            rows = z[m, code[m] == k]
            assert len(rows) > 0
            np.testing.assert_allclose(w[m, k], rows.mean(0), atol=1e-5)


def test_codewords_stay_with_the_rows_of_their_class():
    z, y, allowed, owner, row_class = private()
    z = z + 100 * y[None, :, None]  # classes far apart: a codeword of another class would be seen at once
    w = lloyd(z, y, allowed, owner, seeds(row_class), torch.Generator().manual_seed(1))
    assert (w.div(100).round() == owner[None, :, None]).all()


def test_a_row_of_two_classes_uses_the_codewords_of_both():
    z = torch.tensor([[[0.0], [10.0], [20.0], [9.0], [1.0]]])
    allowed = torch.tensor([[1, 0], [0, 1], [1, 1]]).bool()  # class 0, class 1, both
    pattern, row_class = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 0, 1, 0, 1])
    w = lloyd(z, pattern, allowed, torch.tensor([0, 1]), seeds(row_class), torch.Generator().manual_seed(0))
    # The row at 9 goes to the first codeword, (0 + 10 + 9 + 1) / 4 = 5; that at 20 may not.
    np.testing.assert_allclose(w[0, :, 0], [5, 20], atol=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_rows_than_codewords_give_copies_beside_the_rows(n):
    z, pattern, allowed, owner, row_class = public(n=n, K=8)
    w = lloyd(z, pattern, allowed, owner, seeds(row_class), torch.Generator().manual_seed(0))
    away = torch.cdist(w, z).min(2).values
    assert w.shape == (2, 8, 3)
    assert away.max() < 1e-2
    assert (torch.cdist(z, w).min(2).values < 1e-2).all()  # every row has its codeword


def test_equal_seeds_give_equal_codebooks():
    a, b, c = (lloyd(*private()[:4], seeds(private()[4]), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_rows_are_drawn_from_the_class_asked_for_and_each_once_while_there_are_any():
    row_class = torch.tensor([0, 1, 1, 2, 1])
    key = torch.tensor([0.1, 0.2, 0.9, 0.3, 0.5])
    assert draw_rows(row_class, key, torch.tensor([1, 1, 2, 1, 1, 0])).tolist() == [2, 4, 3, 1, 2, 0]


def test_a_row_may_seed_codewords_of_each_of_its_classes():
    """The only row of two classes: with one class a row, one of them would have nothing to start from."""
    z = torch.tensor([[[0.0], [5.0], [6.0]]])
    allowed = torch.tensor([[True, True, False], [False, False, True]])
    row, carried = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 2])
    owner = torch.tensor([0, 1, 2])
    w = lloyd(z, torch.tensor([0, 1, 1]), allowed, owner, (row, carried), torch.Generator().manual_seed(0))
    assert w[0, :2].abs().max() < 0.01
    assert w[0, 2].item() == pytest.approx(5.5)
