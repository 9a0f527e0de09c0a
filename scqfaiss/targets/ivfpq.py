"""IndexIVFPQ. One list whose centroid is the origin is the default .faissindex form; more lists on request.

A zero centroid makes every residual the vector itself, so codebooks learned elsewhere are exact. Chosen over IndexPQ,
which has no id selectors, no ids of its own and no GPU class. With more lists the centroids only route: codes stay codes of
whole vectors (by_residual False), so scores are exact and what is approximate is which lists are visited. Lists that are part of
the code are stored as such (see code_lists.py).
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from .. import faiss_calls
from ..codebooks import Codebooks, Codes, Shape
from ..errors import ConfigError
from .base import (
    METRIC,
    Ids,
    Target,
    TargetInfo,
    kind_reason,
    product_codebooks,
    product_shape,
    table_bytes,
)
from .code_lists import (
    build_listed,
    has_code_lists,
    list_disagreement,
    listed_bytes,
    listed_shape,
    metric_disagreement,
    table_reason,
    unpack_listed,
)
from .lists import decoded, ivfpq, kmeans, rows_of
from .options import ListOptions
from .pretransform import kind_of, unwrap_index
from .reshape import merged, merged_shape, split

DEFAULTS = ListOptions()
TRAIN_ROWS = 64  # rows a list that k-means looks at
NPROBE_SHARE = 16  # of the lists are visited unless the file or the search says otherwise


def one_list(codebooks: Codebooks, codes: Codes, ids: Ids, nlist: int = 1) -> Any:
    """An IndexIVFPQ whose lists all have the origin for a centroid and are all visited.

    More than one such list gives the same answers: rows are dealt in turn, and a GPU scans the lists side by side.
    """
    coarse = faiss.IndexFlat(codebooks.d, METRIC[codebooks.metric])
    faiss_calls.add(coarse, np.zeros((nlist, codebooks.d), np.float32))
    # by_residual: what the GPU class demands
    return ivfpq(codebooks, coarse, np.arange(len(codes)) % nlist, codes, ids, by_residual=True)


def is_flat_ivfpq(index: Any) -> bool:
    """Whether an index, behind its encoder, is an IndexIVFPQ whose lists are found by their centroids."""
    index = unwrap_index(index)
    return isinstance(index, faiss.IndexIVFPQ) and isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlat)


def residual_centroids(index: Any) -> str | None:
    """Where the codes of one list are said to be of residuals, as one_list says, but its centroid is not 0: what it is."""
    if has_code_lists(index):
        return list_disagreement(index)
    index = unwrap_index(index)
    norm = 0.0
    if index.by_residual:
        norm = float(np.abs(faiss_calls.stored_rows(index.quantizer)).max())
    if norm:
        return f"the codes are those of residuals, and the centroids reach {norm:g}, not 0"
    return metric_disagreement(index)


class IVFPQ(Target):
    INFO = TargetInfo("ivfpq", "IndexIVFPQ", ("product",), filter=True, range=True, exact=True, lists=True)

    def supports(self, shape: Shape) -> str | None:
        return kind_reason(self.INFO, shape) or table_reason(shape)

    def check(self, options: ListOptions, n: int, lists: int = 1) -> None:
        super().check(options, n, lists)
        if lists > 1:
            return
        if options.nlist > n:
            raise ConfigError(f"nlist is {options.nlist:,}, needs at most the {n:,} rows")
        if options.nprobe > max(options.nlist, 1):
            raise ConfigError(f"nprobe is {options.nprobe:,}, needs at most the {max(options.nlist, 1):,} lists")

    def build(
        self, codebooks: Codebooks, codes: Codes, ids: Ids, options: ListOptions = DEFAULTS, like: Any = None
    ) -> Any:
        """-> faiss.IndexIVFPQ holding n vectors under their ids."""
        if like is None or codebooks.lists is not None:
            self.check(options, len(codes), codebooks.L)
        if codebooks.lists is not None:
            return build_listed(codebooks, codes, ids, options.nprobe)
        nlist = options.nlist if like is None else unwrap_index(like).nlist
        if nlist <= 1:
            return one_list(*merged(codebooks, codes), ids)
        if like is not None:
            centroids = faiss_calls.stored_rows(unwrap_index(like).quantizer)
        else:
            sampled = np.linspace(0, len(codes), min(len(codes), TRAIN_ROWS * nlist), endpoint=False).astype(int)
            centroids = kmeans(codebooks.decode(codes[sampled]), nlist)
        lists = np.empty(len(codes), np.int64)
        for i, x in decoded(codebooks, codes):
            lists[i : i + len(x)] = faiss_calls.nearest(x, centroids)
        coarse = faiss.IndexFlat(codebooks.d, METRIC[codebooks.metric])
        faiss_calls.add(coarse, centroids)
        stored_codebooks, codes = merged(codebooks, codes)
        index = ivfpq(stored_codebooks, coarse, lists, codes, ids, by_residual=False)
        index.nprobe = min(options.nprobe, nlist) or -(-nlist // NPROBE_SHARE)
        return index

    def holds(self, index: Any) -> bool:
        return is_flat_ivfpq(index) and kind_of(index) == "product"

    def disagreement(self, index: Any) -> str | None:
        return residual_centroids(index)

    def shape_of(self, index: Any) -> Shape:
        return listed_shape(index) if has_code_lists(index) else product_shape(unwrap_index(index))

    def unpack(self, index: Any, shape: Shape | None = None, only: Ids | None = None) -> tuple[Codebooks, Codes, Ids]:
        """Raises ConfigError for one list of residuals, which we never write."""
        if has_code_lists(index):
            return unpack_listed(index, shape, only)
        index = unwrap_index(index)
        if index.by_residual and faiss_calls.stored_rows(index.quantizer).any():
            raise ConfigError("the codes stand for residuals of coarse centroids, not for vectors")
        _, codes, ids = rows_of(index, only)
        return *split(product_codebooks(index), codes, shape), ids

    def nbytes(self, shape: Shape, n: int) -> int:
        if shape.L > 1:
            return listed_bytes(shape, n)
        return n * (shape.code_size + 8) + table_bytes(merged_shape(shape)) + 4 * shape.d + 1000
