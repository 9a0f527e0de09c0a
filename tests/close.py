"""Equal as far as arithmetic can promise it: on any processor, in any order of the sums.

A sum of n terms is off by at most n eps / 2 of the sum of their sizes, in whatever order and by whatever instructions it is
taken (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2), so two such sums differ by n eps of it.
Errors of rounding mostly cancel: of very long sums, 4 sqrt(n) stands for n.
"""

import math

import numpy as np


def long_sum(n):
    """The `terms` of a sum of so many that their rounding averages out."""
    return 4 * math.sqrt(n)


def assert_close(got, want, terms, scale=None, dtype=np.float32, err_msg=""):
    """|got - want| <= terms * eps(dtype) * scale, elementwise.

    terms: how many roundings, one after the other, went into a number: a dot product of d has d, a chain of them their sum.
    scale: the size of what was added up, a number or an array; the largest |want| if None, which is right unless terms cancel.
    """
    want = np.asarray(want)
    scale = np.abs(want).max(initial=0) if scale is None else scale
    allowed = terms * np.finfo(dtype).eps * np.broadcast_to(scale, want.shape)
    off = np.abs(np.asarray(got, np.float64) - want)
    assert np.shape(got) == want.shape, (np.shape(got), want.shape, err_msg)
    assert (off <= allowed).all(), f"off by {off.max():.3g}, allowed {np.max(allowed):.3g} {err_msg}"


def assert_as_good(codes, wanted, books, z, rule="l2", terms=None):
    """Codes (n, M) are `wanted`, or differ where two codewords are as good as one another to the accuracy of float32.

    Additive codes are greedy, one book after the other: what follows a tie may differ. terms: as in assert_close; by default
    those of a distance, 2 d + 8.
    """
    left, alive, at = np.asarray(z, np.float64), np.ones(len(z), bool), 0
    assert codes.shape == np.shape(wanted)
    for m, book in enumerate(np.asarray(books.centroids, np.float64)):
        part = left[:, at : at + book.shape[1]] if books.kind == "product" else left
        at += book.shape[1] if books.kind == "product" else 0
        chosen, other = book[codes[:, m]], book[wanted[:, m]]
        if rule == "l2":
            gap = np.square(part - chosen).sum(1) - np.square(part - other).sum(1)
        else:
            gap = ((other - chosen) * part).sum(1)
        size = np.square(np.linalg.norm(part, axis=1) + np.linalg.norm(book, axis=1).max())
        allowed = (terms or 2 * book.shape[1] + 8) * np.finfo(np.float32).eps * size
        bad = alive & (np.abs(gap) > allowed)
        assert not bad.any(), (
            f"book {m}, rows {np.flatnonzero(bad)[:5]}: {gap[bad][:5]} apart, allowed {allowed[bad][:5]}"
        )
        if books.kind == "additive":
            alive &= codes[:, m] == wanted[:, m]
            left = left - other
