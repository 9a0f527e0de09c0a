"""Evaluation of an open gallery from its distinct codes: by labels mAP@R, precision and recall, by ids recall of a query's own
key and its mean reciprocal rank.

The cost follows the distinct codes, not the database; how ties count stands in ties.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Labels, as_features, as_ids, as_labels
from ..codebooks import Codebooks, Codes
from ..contract import Progress, silent
from ..errors import ConfigError, DataError, IndexFileError, warn
from ..exponents import balanced, exponents
from ..galleries.base import AnyGallery
from ..options import as_whole
from .measures import BY_IDS, Ranking, load, mean_over
from .promises import check
from .ranking import Relevance, Words, measure, same_classes, scores_in_blocks

SELF_CHECK_QUERIES = 100


def evaluate(
    gallery: AnyGallery,
    xq: Any,
    queries: Any,
    ids: Any,
    database: Any,
    *,
    at: int | None = None,
    known: Any = None,
    promises: float | None = None,
    name: str = "queries",
    database_name: str = "the database",
    progress: Progress = silent,
    check_finite: bool = True,
) -> dict[str, Any]:
    """Rank the whole gallery for each query by its codes, and hold the ranking against the labels.

    xq (nq, d) query rows; queries: their labels, (nq,) class numbers or (nq, C) of 0 and 1; ids (n,) and database: ids and
    labels of the gallery's rows, in any order (in the gallery's own where ids repeat); a row without a label is relevant to no
    query, and a query without one is left out. promises: a confidence, at which what a
    calibrated gallery promises is held against the labels too. known, check_finite: as for Gallery.search.
    Returns {"map", "at", "precision_at_k", "recall_at_k", "bits", "distinct_codes", ...}.
    Raises ConfigError where ids or classes do not fit the gallery, DataError on arrays that are bad by themselves,
    IndexFileError where FAISS's own scores are not those of the codes.
    """
    codebooks, codes, held = gallery.unpack()
    n = len(held)
    xq = as_features(xq, name, finite=check_finite)
    at = _check_work(gallery, xq, n, at, name)
    ids = as_ids(ids, None, "ids", allow_duplicates=True)
    queries, database = _labels(queries, len(xq), name), _labels(database, len(ids), "database")
    if len(none := queries.without_label()):
        warn(f"{name}: left out {len(none):,} of {len(xq):,} queries without a label")
        kept = np.delete(np.arange(len(xq)), none)
        xq, queries = xq[kept], queries.take(kept)
        _check_work(gallery, xq, n, at, name)
    queries, database = same_classes(queries, database, name, database_name)
    labels = database.take(_places(held, ids, gallery.name, database_name))
    ranked = _Ranked.of(gallery, codebooks, codes, xq, name, known)
    relevance = Relevance(labels, ranked.words.inverse, len(ranked.words.codes))
    found = measure(ranked.scores(), queries, relevance, at, progress)
    if promises is not None:
        scores = scores_in_blocks(ranked.z, ranked.decoded, ranked.metric)
        found["promises"] = check(scores, queries, relevance, *gallery.promises, promises)
    return found | {"at": at, "database": n, **ranked.facts()}


def evaluate_pairs(
    gallery: AnyGallery,
    xq: Any,
    ids: Any,
    *,
    at: int | None = None,
    known: Any = None,
    name: str = "queries",
    progress: Progress = silent,
    check_finite: bool = True,
) -> dict[str, Any]:
    """Rank the whole gallery for each query by its codes, and look for the vector that belongs to the query.

    xq (nq, d) query rows; ids (nq,): the id that each query's own vector has in the gallery; queries may share one. Where a
    gallery holds an id more than once, the best of its vectors counts. known, check_finite: as for Gallery.search.
    Returns {"recall_at_k", "mrr", "at", "bits", "distinct_codes", ...}: the share of queries whose vector is among the first
    k, and the mean of 1 / its rank (0 beyond rank `at`), both expected over a random order within ties.
    Raises ConfigError where the gallery lacks ids (a query that cannot be answered says nothing of the codes), DataError on
    arrays that are bad by themselves, IndexFileError where FAISS's own scores are not those of the codes.
    """
    codebooks, codes, held = gallery.unpack()
    n = len(held)
    xq = as_features(xq, name, finite=check_finite)
    ids = as_ids(ids, len(xq), f"{name}: ids", allow_duplicates=True)
    at = _check_work(gallery, xq, n, at, name)
    check_held(ids, held, name, gallery.name)
    ranked = _Ranked.of(gallery, codebooks, codes, xq, name, known)
    rankings = _to_the_first_hit(ranked, held, ids, at)
    means, _ = mean_over(rankings, load(BY_IDS), len(xq), progress)
    return means | {"at": at, "database": n, **ranked.facts()}


def _to_the_first_hit(ranked: _Ranked, held: Ints, ids: Ints, at: int) -> Iterator[Ranking]:
    """For each query the rows before the best of its own, and those that tie with it: no more is asked, so nothing is sorted."""
    order = np.argsort(held, kind="stable")
    low, high = (np.searchsorted(held[order], ids, side) for side in ("left", "right"))
    rows = np.bincount(ranked.words.inverse, minlength=len(ranked.words.codes))
    for q, scores in enumerate(ranked.scores()):
        own = scores[ranked.words.inverse[order[low[q] : high[q]]]]
        best = own.max()
        blocks = [rows[scores > best].sum(), rows[scores == best].sum()]
        yield Ranking(np.array(blocks), np.array([0, (own == best).sum()]), len(held), at)


def check_held(ids: Ints, held: Ints, name: str, gallery: str, advice: str = "or evaluate other queries") -> None:
    """Raise ConfigError unless a gallery that holds `held` has every one of `ids`."""
    missing = ~np.isin(ids, held)
    if missing.any():
        first = ", ".join(map(str, np.unique(ids[missing])[:5]))
        raise ConfigError(
            f"{gallery} lacks the ids of {int(missing.sum()):,} of {len(ids):,} rows of {name} (first {first}); "
            f"append their keys, {advice}"
        )


@dataclass(frozen=True)
class _Ranked:
    """The distinct codes of a gallery, and queries ready to be scored against them."""

    z: Floats  # queries as the codes meet them
    words: Words
    decoded: Floats
    metric: str
    bits: int
    lists: int
    agreement: float

    @staticmethod
    def of(gallery: AnyGallery, codebooks: Codebooks, codes: Codes, xq: Floats, name: str, known: Any) -> _Ranked:
        """Raises IndexFileError where FAISS's own scores are not those of the codes."""
        words = Words.of(codes)
        z = gallery.embed(xq, name, known=known, check_finite=False)
        decoded = codebooks.decode(words.codes)
        zs = gallery.encoded(z)
        agreement = _agreement(gallery, z, zs, decoded, words, codebooks.metric)
        own = agreement if gallery.exact else 1.0
        if gallery.every_list is not None:
            own = _agreement(gallery, z, zs, decoded, words, codebooks.metric, gallery.every_list)
        if own < 1:
            raise IndexFileError(f"{gallery.name}: {1 - own:.0%} of FAISS's scores are not those of its own codes")
        return _Ranked(zs, words, decoded, codebooks.metric, codebooks.bits, codebooks.L, agreement)

    def scores(self) -> Iterable[NDArray[np.float32]]:
        z = balanced(self.z) if self.metric == "ip" else self.z  # the ranking alone is asked for
        return scores_in_blocks(z, self.decoded, self.metric)

    def facts(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            **({} if self.lists == 1 else {"lists": self.lists}),
            "distinct_codes": len(self.words.codes),
            "queries": len(self.z),
            "search_agreement": self.agreement,
        }


def _check_work(gallery: AnyGallery, xq: Floats, n: int, at: int | None, name: str) -> int:
    """How many ranks count, of n. Raises DataError or ConfigError where there is nothing to evaluate."""
    if len(xq) == 0:
        raise DataError(f"{name} holds 0 rows, an evaluation needs at least 1")
    ranks = n if at is None else as_whole("R", at)
    if at is not None and ranks < 1:
        raise ConfigError(f"R is {ranks}, needs 1 or more")
    if n == 0:
        raise ConfigError(f"{gallery.name} holds no vectors")
    return min(ranks, n)


def _labels(y: Any, n: int, name: str) -> Labels:
    if isinstance(y, Labels):
        if len(y) != n:
            raise DataError(f"{name}: {len(y):,} labels for {n:,} rows")
        return y
    return as_labels(y, n, f"{name}: labels")


def _places(held: Ints, ids: Ints, name: str, database: str) -> Ints:
    """For each id that a gallery holds, its place in `ids`. Raises ConfigError where that has no answer, or two."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    place = np.searchsorted(ordered, held)
    there = (place < len(ids)) & (ordered[np.minimum(place, len(ids) - 1)] == held) if len(ids) else held < 0
    if not there.all():
        raise ConfigError(f"{name} holds {len(held):,} ids, {database} has {int(there.sum()):,} of them")
    if (ordered[1:] == ordered[:-1]).any():
        if not np.array_equal(held, ids):
            raise ConfigError(f"ids repeat in {database}, and its rows do not stand in the order of {name}")
        return np.arange(len(held))
    return np.asarray(order[place])


def _agreement(
    gallery: AnyGallery, z: Floats, zs: Floats, decoded: Floats, words: Words, metric: str, nprobe: int | None = None
) -> float:
    """Share of FAISS's own top-10 scores, over the first queries, that equal those of the full ranking within 1e-5."""
    odd = exponents(zs)
    if odd is not None:  # their scores, as numbers, may lie beyond float32
        z, zs = z[odd == 0], zs[odd == 0]
    k, nq = min(10, gallery.ntotal), min(len(z), SELF_CHECK_QUERIES)
    if nq == 0:
        return 1.0
    D, _ = gallery.search(z[:nq], k, encoded=True, nprobe=nprobe, check_finite=False)
    rows = np.bincount(words.inverse, minlength=len(decoded))
    right = 0
    for d, s in zip(-D if metric == "l2" else D, scores_in_blocks(zs[:nq], decoded, metric)):
        best = np.argsort(-s)[:k]  # every word holds a row, so k words always hold the first k rows
        want = np.repeat(s[best], rows[best])[:k]
        right += int((np.abs(d - want) <= 1e-5 * np.abs(s).max()).sum())
    return right / (nq * k)
