"""Evaluation from the distinct codes of a gallery: by labels tie-aware mAP@R, precision and recall, by pairs recall of a
query's own key and its mean reciprocal rank.

Short codes tie massively (8 bits give at most 256 distinct scores) and file order must not decide, so every measure is the
expectation over a random order within ties: McSherry and Najork, "Computing information retrieval performance measures
efficiently in the presence of tied scores", ECIR 2008. The cost follows the distinct codes, not the database.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Labels, as_features, as_ids, as_labels, transposed
from ..codebooks import Codebooks, Codes
from ..contract import Progress, silent
from ..data import Source, open_rows
from ..data.classes import align, check_classes, together
from ..errors import ConfigError, DataError, IndexFileError, warn
from ..exponents import balanced, exponents
from ..features.source import USUAL, FeatureSource, Seeing
from ..files import PathLike
from ..galleries.gallery import Gallery, open_gallery
from ..galleries.searching import as_queries, require_model

AT_K = (1, 10, 100)
SCORE_BYTES = 64 << 20  # scores of a block of queries
CACHE_BYTES = 256 << 20  # relevant rows per word, kept for the label sets of queries
SELF_CHECK_QUERIES = 100


# ------------------------------------------------------------------------------------------------------------- measures
def tie_blocks(scores: NDArray[Any], rows: Ints, relevant: Ints) -> tuple[Ints, Ints]:
    """scores, rows, relevant (u,) per distinct code -> (rows, relevant) per distinct score, best (largest) first."""
    order = np.argsort(-scores)  # in whatever order ties stand: they are summed
    s = scores[order]
    first = np.flatnonzero(np.r_[True, s[1:] != s[:-1]]) if len(s) else np.zeros(0, np.int64)
    if not len(s):
        return first, first
    return np.add.reduceat(rows[order], first), np.add.reduceat(relevant[order], first)


def _cut(rows: Ints, relevant: Ints, at: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rows before each block, rows of each block that stand within rank `at`, relevant rows expected among those."""
    before = np.cumsum(rows) - rows
    inside = np.clip(at - before, 0, rows).astype(np.float64)
    return before.astype(np.float64), inside, inside * relevant / np.maximum(rows, 1)


def average_precision(rows: Any, relevant: Any, at: int | None = None, *, divide_by: str = "found") -> float:
    """AP of one query whose equal scores form blocks, averaged over every order inside a block.

    rows, relevant: (u,) int64, per distinct score, best first: rows with that score, and how many are relevant.
    at: count only ranks 1..at; the sum is then divided by the relevant rows (expected) within them, as SCQ and HashNet
    do, or with divide_by='all' by min(at, all relevant rows).
    Returns a fraction in [0, 1]; 0.0 when nothing is relevant.
    Raises DataError naming the first block with relevant > rows.

    Source: McSherry and Najork, ECIR 2008. Without ties this is the plain definition, divided by all relevant rows.

    >>> average_precision([1, 1], [0, 1])       # the relevant row comes second
    0.5
    >>> average_precision([2], [1])             # both tie: first or second, equally likely
    0.75
    """
    rows, relevant = np.asarray(rows, np.int64), np.asarray(relevant, np.int64)
    if (relevant > rows).any() or (relevant < 0).any():
        block = int(np.argmax((relevant > rows) | (relevant < 0)))
        raise DataError(f"block {block} has {relevant[block]} relevant rows of {rows[block]}")
    total = int(rows.sum())
    at = total if at is None else min(at, total)
    hits = relevant > 0  # blocks without relevant rows add nothing to the sum
    before, inside, expected = _cut(rows, relevant, at)
    found_before = (np.cumsum(relevant) - relevant).astype(np.float64)
    divisor = float(expected.sum()) if divide_by == "found" else float(min(at, int(relevant.sum())))
    if divisor == 0:
        return 0.0
    n, r = rows[hits].astype(np.float64), relevant[hits].astype(np.float64)
    N, R, j = before[hits], found_before[hits], inside[hits]
    # sum_{i=1..j} (r/n) (R + 1 + (i-1)(r-1)/(n-1)) / (N+i), with sum 1/(N+i) = H(N+j) - H(N) and
    # sum (i-1)/(N+i) = j - (N+1) (H(N+j) - H(N)).
    H = _harmonic(total)
    h = H[(N + j).astype(np.int64)] - H[N.astype(np.int64)]
    slope = np.divide(r - 1, n - 1, out=np.zeros_like(n), where=n > 1)
    return float((r / n * ((R + 1) * h + slope * (j - (N + 1) * h))).sum() / divisor)


_harmonic_numbers = np.zeros(1)


def _harmonic(n: int) -> NDArray[np.float64]:
    """H(0..n), kept between calls."""
    global _harmonic_numbers
    table = _harmonic_numbers
    if len(table) <= n:
        table = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])
        _harmonic_numbers = table
    return table


def precision_at(rows: Ints, relevant: Ints, k: int) -> float:
    """Expected share of relevant rows among the first k (of all rows where there are fewer than k)."""
    _, inside, expected = _cut(rows, relevant, k)
    return float(expected.sum() / max(inside.sum(), 1))


def recall_at(rows: Ints, relevant: Ints, k: int) -> float:
    """Expected share of all relevant rows that stand among the first k; 0.0 when nothing is relevant."""
    total = int(relevant.sum())
    return float(_cut(rows, relevant, k)[2].sum() / total) if total else 0.0


@dataclass(frozen=True)
class Words:
    """The distinct code words of a database: rows of `codes` (u, M), and which word each row has, (n,)."""

    codes: Codes
    inverse: Ints

    @staticmethod
    def of(codes: Codes) -> Words:
        n, M = codes.shape
        nbytes = M * codes.dtype.itemsize
        if 0 < nbytes <= 8:  # one integer a row sorts several times faster than rows do
            key = np.zeros((n, 8), np.uint8)
            key[:, :nbytes] = np.ascontiguousarray(codes).view(np.uint8).reshape(n, nbytes)
            _, first, inverse = np.unique(key.view(np.uint64)[:, 0], return_index=True, return_inverse=True)
        else:
            _, first, inverse = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        return Words(codes[first], inverse.ravel())


class Relevance:
    """Which database rows share a label with a query, as counts per code word.

    Rows are grouped by label set first: there are few distinct ones, whatever the number of rows.
    """

    def __init__(self, database: Labels, inverse: Ints, u: int) -> None:
        self.u = u
        self.sets: NDArray[np.uint8] | None = None  # None: one label a row, a set is a class
        n_sets, row_set = database.C, database.y
        if database.many:
            self.classes = np.flatnonzero(database.counts())  # those without rows are relevant to no query
            self.sets, row_set = np.unique(database.y[:, self.classes], axis=0, return_inverse=True)
            n_sets = len(self.sets)
        pairs, self.count = np.unique(inverse * n_sets + row_set.ravel(), return_counts=True)
        self.word, self.set = pairs // n_sets, pairs % n_sets
        self.rows = np.bincount(inverse, minlength=u)
        self._cache: dict[bytes, Ints] = {}

    def per_word(self, y: Any) -> Ints:
        """y: the class of a query, or its labels (C,) of 0 and 1 -> (u,) relevant rows of each word."""
        key = y.tobytes()
        if key not in self._cache:
            if 8 * self.u * (len(self._cache) + 1) > CACHE_BYTES:
                self._cache.clear()
            if self.sets is None:
                shares = self.set == y
            else:
                shares = (self.sets @ y[self.classes].astype(np.int64) > 0)[self.set]
            self._cache[key] = np.bincount(self.word[shares], self.count[shares], self.u).astype(np.int64)
        return self._cache[key]


def measure(
    scores: Iterable[NDArray[np.float32]],
    queries: Labels,
    relevance: Relevance,
    at: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Means over the queries. scores: one (u,) float32 per query, large is near, in the order of `queries`.

    -> {"map", "precision_at_k", "recall_at_k", "queries_without_relevant"}; queries without any relevant row count as 0.
    """
    n = int(relevance.rows.sum())
    at_k = [k for k in AT_K if k <= n] or [n]
    sums, none = np.zeros(1 + 2 * len(at_k)), 0
    for q, s in enumerate(scores):
        rows, relevant = tie_blocks(s, relevance.rows, relevance.per_word(queries.y[q]))
        none += not relevant.any()
        sums += [
            average_precision(rows, relevant, at),
            *(precision_at(rows, relevant, k) for k in at_k),
            *(recall_at(rows, relevant, k) for k in at_k),
        ]
        if q % 64 == 63 or q + 1 == len(queries):
            progress("evaluate", q + 1, len(queries), "")
    means = (sums / max(len(queries), 1)).tolist()
    return {
        "map": means[0],
        "precision_at_k": dict(zip(map(str, at_k), means[1 : 1 + len(at_k)])),
        "recall_at_k": dict(zip(map(str, at_k), means[1 + len(at_k) :])),
        "queries_without_relevant": none,
    }


def scores_in_blocks(zq: NDArray[Any], x: NDArray[Any], metric: str = "ip") -> Iterable[NDArray[np.float32]]:
    """zq (nq, d), x (u, d) -> one (u,) float32 per query, large is near.

    In float64 first: equal vectors then round to equal float32 scores wherever they stand in the product.
    """
    x64 = x.astype(np.float64)
    squares = np.einsum("ud,ud->u", x64, x64) if metric == "l2" else 0.0
    step = max(1, min(256, SCORE_BYTES // (8 * max(len(x), 1))))
    for i in range(0, len(zq), step):
        q = zq[i : i + step].astype(np.float64)
        dot = q @ x64.T
        if metric == "l2":
            dot = 2 * dot - squares - np.einsum("qd,qd->q", q, q)[:, None]
        yield from dot.astype(np.float32)


def measure_vectors(
    zq: Floats, queries: Labels, zb: Floats, database: Labels, at: int | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """The same measures for plain vectors ranked by inner product: the ceiling that codes of them are held to."""
    queries, database = same_classes(queries, database, "queries")
    inverse = np.arange(len(zb))
    return measure(scores_in_blocks(balanced(zq), zb), queries, Relevance(database, inverse, len(zb)), at, progress)


def first_hit(before: int, rows: int, relevant: int, at: int) -> NDArray[np.float64]:
    """Where the first relevant row stands, over every order within the tie that the best of them is part of.

    before: rows of better scores; rows: rows of its score, itself included; relevant: how many of these are relevant, 1 or
    more; at: ranks that count. -> (1 + len(AT_K),): the expected reciprocal rank, 0 beyond `at`, and for each k of AT_K the
    probability that a relevant row is among the first k.

    >>> first_hit(1, 2, 1, 100).tolist()        # second or third, equally likely
    [0.41666666666666663, 0.0, 1.0, 1.0]
    """
    reach = max(0, min(at - before, rows))
    if relevant == 1:  # every place is as likely
        H = _harmonic(before + rows)
        reciprocal = float(H[before + reach] - H[before]) / rows
        found = [min(max(k - before, 0), rows) / rows for k in AT_K]
    else:
        j = np.arange(min(rows - relevant + 1, max(reach, AT_K[-1])))
        # The probability that the first hit stands behind the j-th place.
        late = np.concatenate([[1.0], np.cumprod((rows - relevant - j) / (rows - j))])
        place = slice(0, min(reach, len(j)))
        reciprocal = float((-np.diff(late)[place] / (before + 1 + j[place])).sum())
        found = [1 - late[min(max(k - before, 0), len(j))] for k in AT_K]
    return np.array([reciprocal, *found])


# -------------------------------------------------------------------------------------------------------------- gallery
def evaluate_pairs(
    gallery: Gallery,
    xq: Any,
    ids: Any,
    *,
    at: int | None = None,
    name: str = "queries",
    progress: Progress = silent,
    check_finite: bool = True,
) -> dict[str, Any]:
    """Rank the whole gallery for each query by its codes, and look for the vector that belongs to the query.

    xq (nq, d) query rows; ids (nq,): the id that each query's own vector has in the gallery; queries may share one. Where a
    gallery holds an id more than once, the best of its vectors counts. check_finite: as for Gallery.search.
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
    ranked = _Ranked.of(gallery, codebooks, codes, xq, name)
    order = np.argsort(held, kind="stable")
    low, high = (np.searchsorted(held[order], ids, side) for side in ("left", "right"))
    rows, sums = np.bincount(ranked.words.inverse, minlength=len(ranked.words.codes)), np.zeros(1 + len(AT_K))
    for q, scores in enumerate(ranked.scores()):
        own = ranked.words.inverse[order[low[q] : high[q]]]
        best = scores[own].max()
        ties = int(rows[scores == best].sum())
        sums += first_hit(int(rows[scores > best].sum()), ties, int((scores[own] == best).sum()), at)
        if q % 64 == 63 or q + 1 == len(xq):
            progress("evaluate", q + 1, len(xq), "")
    means = (sums / len(xq)).tolist()
    recall = {str(k): found for k, found in zip(AT_K, means[1:]) if k <= n}
    return {"mrr": means[0], "recall_at_k": recall, "at": at, "database": n, **ranked.facts()}


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
    agreement: float

    @staticmethod
    def of(gallery: Gallery, codebooks: Codebooks, codes: Codes, xq: Floats, name: str) -> _Ranked:
        """Raises IndexFileError where FAISS's own scores are not those of the codes."""
        words = Words.of(codes)
        z = gallery.embed(xq, name, check_finite=False)
        decoded = codebooks.decode(words.codes)
        from ..targets.pretransform import encoded

        zs = encoded(gallery.index, z)
        agreement = _agreement(gallery, z, zs, decoded, words, codebooks.metric)
        if agreement < 1 and gallery.exact:
            raise IndexFileError(
                f"{gallery.name}: {1 - agreement:.0%} of FAISS's scores are not those of its own codes"
            )
        return _Ranked(zs, words, decoded, codebooks.metric, codebooks.bits, agreement)

    def scores(self) -> Iterable[NDArray[np.float32]]:
        z = balanced(self.z) if self.metric == "ip" else self.z  # the ranking alone is asked for
        return scores_in_blocks(z, self.decoded, self.metric)

    def facts(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "distinct_codes": len(self.words.codes),
            "queries": len(self.z),
            "search_agreement": self.agreement,
        }


def _check_work(gallery: Gallery, xq: Floats, n: int, at: int | None, name: str) -> int:
    """How many ranks count, of n. Raises DataError or ConfigError where there is nothing to evaluate."""
    if len(xq) == 0:
        raise DataError(f"{name} holds 0 rows, an evaluation needs at least 1")
    try:
        ranks = n if at is None else operator.index(at)
    except TypeError:
        raise ConfigError(f"R is {at!r}, needs a whole number") from None
    if at is not None and ranks < 1:
        raise ConfigError(f"R is {ranks}, needs 1 or more")
    if n == 0:
        raise ConfigError(f"{gallery.name} holds no vectors")
    return min(ranks, n)


def evaluate(
    gallery: Gallery,
    xq: Any,
    queries: Any,
    ids: Any,
    database: Any,
    *,
    at: int | None = None,
    name: str = "queries",
    database_name: str = "the database",
    progress: Progress = silent,
    check_finite: bool = True,
) -> dict[str, Any]:
    """Rank the whole gallery for each query by its codes, and hold the ranking against the labels.

    xq (nq, d) query rows; queries: their labels, (nq,) class numbers or (nq, C) of 0 and 1; ids (n,) and database: ids and
    labels of the gallery's rows, in any order (in the gallery's own where ids repeat). check_finite: as for
    Gallery.search.
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
    queries, database = same_classes(queries, database, name, database_name)
    labels = database.take(_places(held, ids, gallery.name, database_name))
    ranked = _Ranked.of(gallery, codebooks, codes, xq, name)
    relevance = Relevance(labels, ranked.words.inverse, len(ranked.words.codes))
    found = measure(ranked.scores(), queries, relevance, at, progress)
    return found | {"at": at, "database": n, **ranked.facts()}


def _labels(y: Any, n: int, name: str) -> Labels:
    if isinstance(y, Labels):
        if len(y) != n:
            raise DataError(f"{name}: {len(y):,} labels for {n:,} rows")
        return y
    return as_labels(y, n, f"{name}: labels")


def same_classes(
    queries: Labels, database: Labels, name: str, database_name: str = "the database"
) -> tuple[Labels, Labels]:
    """Both with the same classes, matched as data.classes.together does.

    Raises ConfigError where they are of two kinds, matrices of two widths without names, or classes do not match.
    """
    if queries.many == database.many:
        queries, database = together(queries, database, name, database_name)
    if queries.many != database.many or (queries.many and queries.C != database.C):
        raise ConfigError(
            f"{name} has {'many labels' if queries.many else 'one label'} a row and {queries.C} classes, "
            f"the database has {'many labels' if database.many else 'one label'} a row and {database.C}"
        )
    C = max(queries.C, database.C)  # class numbers without names: the larger range holds both
    return Labels(queries.y, C, queries.class_names), Labels(database.y, C, database.class_names)


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


def _agreement(gallery: Gallery, z: Floats, zs: Floats, decoded: Floats, words: Words, metric: str) -> float:
    """Share of FAISS's own top-10 scores, over the first queries, that equal those of the full ranking within 1e-5."""
    odd = exponents(zs)
    if odd is not None:  # their scores, as numbers, may lie beyond float32
        z, zs = z[odd == 0], zs[odd == 0]
    k, nq = min(10, gallery.ntotal), min(len(z), SELF_CHECK_QUERIES)
    if nq == 0:
        return 1.0
    D, _ = gallery.search(z[:nq], k, encoded=True, check_finite=False)
    rows = np.bincount(words.inverse, minlength=len(decoded))
    right = 0
    for d, s in zip(-D if metric == "l2" else D, scores_in_blocks(zs[:nq], decoded, metric)):
        best = np.argsort(-s)[:k]  # every word holds a row, so k words always hold the first k rows
        want = np.repeat(s[best], rows[best])[:k]
        right += int((np.abs(d - want) <= 1e-5 * np.abs(s).max()).sum())
    return right / (nq * k)


def evaluate_file(
    path: PathLike,
    queries_path: PathLike,
    database_path: PathLike | None = None,
    *,
    model: PathLike | None = None,
    at: int | None = None,
    keys: Mapping[str, Any],
    seeing: Seeing = USUAL,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Evaluate a gallery with labelled files of queries and of its database; or by the ids of the queries, each of which
    is that of the query's own vector, where there is no database or neither file has labels. Of a database without labels
    only the ids are looked at, and all must be held. Queries may be pictures; seeing: how the model looks at them.
    """
    if at is not None and at < 1:
        raise ConfigError(f"R is {at}, needs 1 or more")
    with ExitStack() as stack:
        queries = stack.enter_context(open_rows(queries_path, **keys, role="queries"))
        database = None
        if database_path is not None:
            database = stack.enter_context(open_rows(database_path, **keys, role="keys"))
        gallery = open_gallery(path, model=model)
        if database is not None:
            align(queries, database)
        queries = as_queries(gallery, queries, seeing)
        require_model(gallery)
        if queries.d != gallery.d:
            how = transposed(len(queries), queries.d, gallery.d)
            raise ConfigError(f"{queries.name}: queries have d={queries.d}, {gallery.name} needs d={gallery.d}{how}")
        if database is None or all(s.labels is None and _identified(s) for s in (queries, database)):
            return _evaluate_by_ids(gallery, queries, database, at, bool(keys.get("skip_bad_rows")), progress)
        for source in (queries, database):
            if source.labels is None and not _identified(source):
                raise DataError(
                    f"{source.name} has no ids or labels, which an evaluation needs; name them with --ids-key or --labels-key"
                )
        for source in (queries, database):
            if source.labels is None:
                raise DataError(f"{source.name} has no labels, which an evaluation needs; name them with --labels-key")
        check_classes(queries, database)
        assert queries.labels is not None and database.labels is not None
        overlap = int(np.isin(queries.ids, database.ids).sum()) if queries.has_ids and database.has_ids else 0
        if overlap:
            warn(f"{overlap:,} of {len(queries):,} queries are also in the database")
        xq = _read(queries, progress)
        found = evaluate(
            gallery,
            xq,
            queries.labels,
            database.ids,
            database.labels,
            at=at,
            name=queries.name,
            database_name=database.name,
            progress=progress,
            check_finite=False,
        )
        return found | {"overlap": overlap}


def _read(source: Source, progress: Progress) -> Floats:
    """All rows of a source; of pictures, each of which costs a pass through a network, with progress."""
    if not isinstance(source, FeatureSource):
        return source.read(0, len(source))
    x = np.empty((len(source), source.d), np.float32)
    for i, block in source.blocks():
        x[i : i + len(block)] = block
        progress("encode", i + len(block), len(source), "")
    return x


def _identified(source: Source) -> bool:
    """Whether ids say which row belongs to which: in a file of pairs row numbers do, where there are no others."""
    return source.has_ids or source.is_pair_half


def _evaluate_by_ids(
    gallery: Gallery, queries: Source, database: Source | None, at: int | None, skip: bool, progress: Progress
) -> dict[str, Any]:
    """Evaluate by the ids of the queries. skip: of files whose bad rows were left out, so that keys may be lacking."""
    if not _identified(queries):
        raise DataError(
            f"{queries.name} has no ids, which say what vector of {gallery.name} belongs to a query; name them with "
            "--ids-key, or give DATABASE, both with labels"
        )
    if not queries.has_ids:
        warn(f"{queries.name} has no ids: a query belongs to the vector whose id is its row number")
    held = gallery.ids()
    if database is not None:
        check_held(database.ids, held, database.name, gallery.name)
    rows: Any = slice(None)
    there = np.isin(queries.ids, held)
    if skip and there.any() and not there.all():
        rows = there
        warn(f"{queries.name}: left out {(~there).sum():,} of {len(there):,} queries: {gallery.name} lacks their ids")
    ids = queries.ids[rows]
    advice = "or evaluate other queries" if queries.labels is None else "or give DATABASE to evaluate by labels"
    check_held(ids, held, queries.name, gallery.name, advice)
    if queries.labels is not None:
        warn(f"{queries.name}: without DATABASE only ids are looked at, not labels")
    xq = _read(queries, progress)[rows]
    return evaluate_pairs(gallery, xq, ids, at=at, name=queries.name, progress=progress, check_finite=False)


def report_text(found: Mapping[str, Any], as_json: bool) -> str:
    """Measures for a person, or one JSON object."""
    if as_json:
        return json.dumps(found, sort_keys=True)
    by_label = "map" in found
    measure, value = ("mAP", found["map"]) if by_label else ("MRR", found["mrr"])
    precision = "  ".join(f"@{k} {v:.4f}" for k, v in found.get("precision_at_k", {}).items())
    lines = [
        f"{measure}@{found['at']:,}  {value:.4f}   ({found['queries']:,} queries, {found['database']:,} vectors)",
        *([f"precision  {precision}"] if by_label else []),
        "recall     " + "  ".join(f"@{k} {v:.4f}" for k, v in found["recall_at_k"].items()),
        f"{found['bits']} bits, {found['distinct_codes']:,} distinct codes",
    ]
    if found["search_agreement"] < 1:
        lines.append(
            f"the figures rank every row by its code; a search with the file's own settings finds "
            f"{found['search_agreement']:.1%} of the first 10"
        )
    if found.get("queries_without_relevant"):
        lines.append(f"{found['queries_without_relevant']:,} queries share no label with any row and count as 0")
    return "\n".join(lines)
