"""The same codes in another form: 4-bit codebooks two by two as 8-bit codebooks, additive codebooks as
product codebooks, codebooks added. Lists stay what they are.

Scores do not change, and neither do the packed code bytes (but for added codebooks). Merged codebooks are scanned several times
faster by FAISS, and the GPU takes nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
from numpy.typing import NDArray

from ..codebooks import Codebooks, Codes, Shape


def merged_shape(shape: Shape) -> Shape:
    """What `merged` makes of codebooks of this shape; the shape itself where it leaves them alone."""
    if shape.nbits != 4 or shape.M % 2:
        return shape
    return replace(shape, M=shape.M // 2, nbits=8)


def merged(codebooks: Codebooks, codes: Codes) -> tuple[Codebooks, Codes]:
    """4-bit codebooks (2m, 2m + 1) as the 8-bit codebook m, whose codeword i + 16 j joins codewords i and j of the two."""
    C, shape = codebooks.centroids, merged_shape(codebooks.shape)
    if shape == codebooks.shape:
        return codebooks, codes
    low, high = C[0::2, None, :], C[1::2, :, None]  # m 1 i e, m j 1 e
    if codebooks.kind == "additive":
        pairs = low + high
    else:
        both = (shape.M, 16, 16, C.shape[2])
        pairs = np.concatenate([np.broadcast_to(low, both), np.broadcast_to(high, both)], axis=3)
    stored_codebooks = Codebooks(codebooks.kind, pairs.reshape(shape.M, 256, -1), codebooks.metric, codebooks.lists)
    lists, words = codebooks.split(codes)
    return stored_codebooks, stored_codebooks.joined(lists, words[:, 0::2] | words[:, 1::2] << 4)


def split(codebooks: Codebooks, codes: Codes, shape: Shape | None) -> tuple[Codebooks, Codes]:
    """The inverse of merged, where `shape` says that codebooks were merged.

    Product codebooks come back as they were. Additive ones come back with the same sums, to rounding: which part of a sum was
    whose is not in the merged codebook, and does not matter to any score.
    """
    if shape is None or codebooks.shape == shape or merged_shape(shape) != codebooks.shape:
        return codebooks, codes
    C = codebooks.centroids.reshape(codebooks.M, 16, 16, -1)  # m j i e
    low, high = C[:, 0], C[:, :, 0]
    if codebooks.kind == "additive":
        high = high - C[:, :1, 0]
    else:
        half = C.shape[3] // 2
        low, high = low[..., :half], high[..., half:]
    stored_codebooks = np.stack([low, high], axis=1).reshape(shape.M, 16, -1)
    lists, words = codebooks.split(codes)
    out = np.empty((len(codes), shape.M), codes.dtype)
    out[:, 0::2], out[:, 1::2] = words & 15, words >> 4
    pairs = Codebooks(codebooks.kind, stored_codebooks, codebooks.metric, codebooks.lists)
    return pairs, pairs.joined(lists, out)


def filled(codebooks: Codebooks, codes: Codes, nbits: int = 1) -> tuple[Codebooks, Codes]:
    """Codes of lists alone with one codebook of zeros beside the list, because FAISS has no codes of 0 bytes."""
    if codebooks.M:
        return codebooks, codes
    zeros = np.zeros((1, 1 << nbits, codebooks.d), np.float32)
    with_zeros = Codebooks("product", zeros, codebooks.metric, codebooks.lists)
    return with_zeros, with_zeros.joined(codes[:, 0], np.zeros((len(codes), 1), codes.dtype))


def as_product(codebooks: Codebooks) -> tuple[Codebooks, list[faiss.VectorTransform]]:
    """Product codebooks with the same inner products, and what must happen to the query first.

    <q, sum_m c_m> = <[q, ..., q], [c_1, ..., c_M]>: the additive table (M, K, d) is, byte for byte, the table of a product
    quantizer over M d dimensions, for queries repeated M times.
    """
    if codebooks.kind == "product":
        return codebooks, []
    tile = faiss.RemapDimensionsTransform(codebooks.d, codebooks.M * codebooks.d, False)
    faiss.copy_array_to_vector(np.tile(np.arange(codebooks.d), codebooks.M).astype(np.int32), tile.map)
    lists = None if codebooks.lists is None else _widened(codebooks.lists, codebooks.M * codebooks.d)
    return Codebooks("product", codebooks.centroids, codebooks.metric, lists), [tile]


def _widened(lists: NDArray[np.float32], d: int) -> NDArray[np.float32]:
    """Centroids with zeros behind them, (L, d): of a repeated query they meet the first part alone."""
    return np.pad(lists, ((0, 0), (0, d - lists.shape[1])))


def spread(codebooks: Codebooks, codes: Codes) -> tuple[Codebooks, Codes]:
    """Additive codebooks of wide scores as several codebooks that add up to them, three quarters as many codebooks again in all.

    Fast scan rounds all look-up tables of a query by one step, 1/255 of the widest. Residual codebooks are of very unequal
    width: the first, in 4 parts, lets the step be a quarter.
    """
    C = codebooks.centroids
    width = np.linalg.norm(C - C.mean(1, keepdims=True), axis=2).max(1)  # m
    parts = np.ones(codebooks.M, int)
    for _ in range(2 * round(0.875 * codebooks.M) - codebooks.M):  # to an even number: FAISS would fill up to one
        parts[np.argmax(width / parts)] += width.max() > 0
    shares = np.concatenate([_shares(int(r)) for r in parts]).astype(np.float32)
    table = np.repeat(C, parts, axis=0) * shares[:, None, None]
    return Codebooks("additive", table, codebooks.metric), np.repeat(codes, parts, axis=1)


def _shares(r: int) -> NDArray[np.float64]:
    """(r,) shares of the parts of a codebook, summing to 1. The first is a power of 2, so that the codebook can be had back to
    the bit; the others are unequal, so that their roundings differ.
    """
    first = 2.0 ** -np.ceil(np.log2(r))
    others = np.linspace(0.95, 1.05, r - 1) if r > 2 else np.ones(r - 1)
    shares: NDArray[np.float64] = np.r_[first, others * (1 - first) / max(r - 1, 1)]
    return shares


def parts_of(table: NDArray[np.float32]) -> NDArray[np.int64]:
    """table (M', K, d) -> the first part of each codebook that `spread` took apart: neighbours that differ by a factor."""
    flat = table.reshape(len(table), -1).astype(np.float64)
    before, here = flat[:-1], flat[1:]
    dot, size = (before * here).sum(1), np.square(here).sum(1)
    factor = dot / np.where(size > 0, size, 1)
    apart = np.abs(before - factor[:, None] * here).max(1, initial=0) > 1e-5 * np.abs(before).max(1, initial=0)
    return np.flatnonzero(np.r_[True, apart | (factor <= 0)])


def gathered(codebooks: Codebooks, codes: Codes) -> tuple[Codebooks, Codes]:
    """The inverse of spread."""
    C = codebooks.centroids
    first = parts_of(C)
    sums = np.add.reduceat(C, first, axis=0)
    sizes = (np.linalg.norm(a.reshape(len(first), -1), axis=1) for a in (sums, C[first]))
    whole, part = (np.maximum(a, np.finfo(np.float32).tiny) for a in sizes)
    table = C[first] * np.exp2(np.round(np.log2(whole / part)))[:, None, None].astype(np.float32)
    return Codebooks("additive", table, codebooks.metric), np.ascontiguousarray(codes[:, first])


def padded(codebooks: Codebooks, codes: Codes, M: int) -> tuple[Codebooks, Codes, list[faiss.VectorTransform]]:
    """Product codebooks with all-zero codebooks added up to M, and what gives their sub-spaces zeros in the query."""
    extra, (_, K, dsub) = M - codebooks.M, codebooks.centroids.shape
    if not extra:
        return codebooks, codes, []
    table = np.concatenate([codebooks.centroids, np.zeros((extra, K, dsub), np.float32)])
    zeros = faiss.RemapDimensionsTransform(codebooks.d, M * dsub, False)
    places = np.r_[np.arange(codebooks.d), np.full(extra * dsub, -1)].astype(np.int32)
    faiss.copy_array_to_vector(places, zeros.map)
    codes = np.hstack([codes, np.zeros((len(codes), extra), codes.dtype)])
    lists = None if codebooks.lists is None else _widened(codebooks.lists, M * dsub)
    return Codebooks("product", table, codebooks.metric, lists), codes, [zeros]
