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


def roundings(chain, inputs=1):
    """The `terms` of what a chain of layers (encoders.chain) makes of its rows: those of all its layers, added up.

    A softmax or a sigmoid turns what its logits are off by, which is relative to their size, into as much of a probability.
    inputs: `terms` of the rows themselves.
    """
    total, size = inputs, 1.0
    for op, arrays in chain.layers:
        if "A" in arrays:
            total += arrays["A"].shape[-1] + 1
            size = max(1.0, float(np.linalg.norm(arrays["A"], axis=-1).max()))
        else:
            total = total * size if op in ("softmax", "sigmoid") else total
            total += 8  # a few elementary operations, each within 2 eps, or a sum over members or classes
            size = 1.0
    return total + chain.d_out


def assert_as_good(codes, wanted, codebooks, z, rule="l2", terms=0, beam=1, list_beam=1):
    """Codes (n, M) are `wanted`, or differ where two codewords serve z equally well to the accuracy of float32.

    Codes (n, 1 + M) with lists: where two lists do, or, if several lists are tried, where the sums do.

    Additive codes are greedy, one codebook after the other: what follows a tie may differ; with a beam above 1 the sums are
    compared. terms: roundings in z, where it was computed in two ways.
    """
    assert codes.shape == np.shape(wanted)
    left, alive = np.asarray(z, np.float64), np.ones(len(codes), bool)
    dsub = width = codebooks.centroids.shape[2]
    longest = np.linalg.norm(codebooks.centroids, axis=2).max(initial=0)
    if codebooks.lists is not None:
        width = codebooks.d
        longest = codebooks.M * longest + np.linalg.norm(codebooks.lists, axis=1).max()

    def check(part, chosen, other, what):
        if rule == "l2":
            gap = np.square(part - chosen).sum(1) - np.square(part - other).sum(1)
        else:
            gap = ((other - chosen) * part).sum(1)
        size = np.square(np.linalg.norm(part, axis=1) + longest)
        allowed = (2 * width + 8 + 2 * terms) * np.finfo(np.float32).eps * size
        bad = alive & (np.abs(gap) > allowed)
        assert not bad.any(), (
            f"{what}, rows {np.flatnonzero(bad)[:5]}: {gap[bad][:5]} apart, allowed {allowed[bad][:5]}"
        )

    if beam > 1 or list_beam > 1:
        check(left, codebooks.decode(codes), codebooks.decode(wanted), "sums")
        return
    if codebooks.lists is not None:
        (chosen, codes), (other, wanted) = codebooks.split(codes), codebooks.split(wanted)
        check(left, codebooks.lists[chosen], codebooks.lists[other], "lists")
        alive &= chosen == other
        left = left - codebooks.lists[other]
    for m, codebook in enumerate(codebooks.centroids.astype(np.float64)):
        part = left[:, m * dsub : (m + 1) * dsub] if codebooks.kind == "product" else left
        check(part, codebook[codes[:, m]], codebook[wanted[:, m]], f"codebook {m}")
        if codebooks.kind == "additive":
            alive &= codes[:, m] == wanted[:, m]
            left = left - codebook[wanted[:, m]]


def assert_encodes_as(model, x, wanted):
    """The model gives rows x the codes `wanted`, up to ties."""
    codes, columns = model.encode(x), model.semantic.columns
    beams = {name: model.config.get(name, 1) for name in ("beam", "list_beam")}
    z, terms = model.chain(np.asarray(x, np.float32)), roundings(model.chain)
    assert codes.shape == np.shape(wanted) and codes.shape[1] == model.codebooks.columns
    assert_as_good(codes[:, :columns], wanted[:, :columns], model.semantic, z, model.config["rule"], terms, **beams)
    if model.content is None:
        return
    b, left, alive = model.content.codebooks, model.content.chain(np.asarray(x, np.float32)), np.ones(len(codes), bool)
    if b.lists is not None:  # what is left of v in another list has other codewords
        alive, left = codes[:, 0] == wanted[:, 0], left - b.lists[wanted[:, 0].astype(int)]
    terms = roundings(model.content.chain) + 1
    of_v = codes[alive, columns:], wanted[alive, columns:]
    assert_as_good(*of_v, b.residual, left[alive], "l2", terms, beam=model.content.beam)
