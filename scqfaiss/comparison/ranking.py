"""Qualities of one coding of a database: every measure of a comparison's rows that follows from vectors, codes and labels.

A coding is floats, the words that their codes stand for, and which word each row has. Whatever container holds the codes, they
rank alike, so this is computed once for all containers; ties are averaged over every order (scqfaiss.evaluation.ties).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls
from ..arrays import Floats, Ints, Labels
from ..evaluation.measures import BY_LABELS, load, precision_at_levels
from ..evaluation.ranking import Relevance, Words, measure, scores_in_blocks
from ..evaluation.ties import AT_K, LEVELS, kth_score

SLACK = 1e-5  # of the largest score: what rounding may take from a hit that is as good as the k-th
BLOCK = 1 << 14  # rows held as floats at a time

METRICS = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}


@dataclass(frozen=True)
class Task:
    """What all codings of a comparison are asked. Rows of the database stand in an order that says nothing of their classes."""

    xq: Floats  # (nq, d) rows as they are
    xb: Floats  # (n, d)
    queries: Labels
    database: Labels
    at: int
    sweep_at: int

    @cached_property
    def cosine(self) -> tuple[Floats, Floats]:
        """(xq, xb) less the mean of the database, of length 1: what baselines code, and whose neighbours are `raw`."""
        mean = self.xb.mean(0, dtype=np.float64).astype(np.float32)
        parts = self.xq - mean, self.xb - mean
        for part in parts:
            faiss.normalize_L2(part)
        return parts

    @cached_property
    def neighbours(self) -> Ints:
        """(nq, 100) nearest rows by cosine."""
        return exact_neighbours(*self.cosine)

    @cached_property
    def relevant(self) -> NDArray[np.bool_]:
        """(nq, n) whether a row shares a label with a query."""
        if self.database.multilabel:
            return self.queries.y.astype(np.float32) @ self.database.y.astype(np.float32).T > 0
        return np.asarray(self.queries.y[:, None] == self.database.y[None])


def exact_neighbours(zq: Floats, zb: Floats, metric: str = "ip") -> Ints:
    """(nq, 100 or n) nearest rows of zb (n, d) for each of zq (nq, d)."""
    index = faiss.IndexFlat(zb.shape[1], METRICS[metric])
    faiss_calls.add(index, zb)
    return faiss_calls.search(index, zq, min(AT_K[-1], len(zb)))[1]


def shared(I: Ints, J: Ints) -> dict[str, float]:
    """Share of the first k of J (nq, 100) among the first k of I (nq, 100), for each k."""
    n = J.shape[1]
    return {
        str(k): float(np.mean([len(np.intersect1d(i[:k], j[:k])) / k for i, j in zip(I, J)])) for k in AT_K if k <= n
    }


@dataclass(frozen=True)
class Coding:
    """Database rows by their codes, and queries as these meet them.

    zq (nq, d) and zb (n, d): floats that were coded. decoded (u, d): distinct words; words.inverse (n,): the one of each row.
    codes (n, M), K: what use of codewords is told of.
    """

    zq: Floats
    zb: Floats
    words: Words
    decoded: Floats
    codes: NDArray[Any]
    K: int
    metric: str = "ip"

    @staticmethod
    def of_floats(zq: Floats, zb: Floats, metric: str = "ip") -> Coding:
        """Queries and rows that are not coded."""
        words = Words(np.zeros((len(zb), 1), np.uint8), np.arange(len(zb)))
        return Coding(zq, zb, words, zb, words.codes, 1, metric)

    def scores(self) -> Any:
        """One (u,) float32 for each query; large is near."""
        return scores_in_blocks(self.zq, self.decoded, self.metric)

    def scores_of(self, I: Ints) -> NDArray[np.float64]:
        """(nq, k) scores of rows found; -inf where none was (-1)."""
        x = self.decoded[self.words.inverse[np.maximum(I, 0)]].astype(np.float64)
        q = self.zq.astype(np.float64)
        found = np.einsum("qd,qkd->qk", q, x)
        if self.metric == "l2":
            found = 2 * found - np.einsum("qkd,qkd->qk", x, x) - np.einsum("qd,qd->q", q, q)[:, None]
        return np.where(I < 0, -np.inf, found)

    def error(self) -> float:
        """Mean squared distance of a row from its word."""
        total = 0.0
        for i in range(0, len(self.zb), BLOCK):
            part = self.zb[i : i + BLOCK] - self.decoded[self.words.inverse[i : i + BLOCK]]
            total += float(np.einsum("nd,nd->", part, part, dtype=np.float64))
        return total / len(self.zb)

    def usage(self) -> list[list[int]]:
        """(M, K) rows that use each codeword."""
        return [np.bincount(column, minlength=self.K).tolist() for column in self.codes.T]


def ranking(task: Task, coding: Coding, k: int = 10) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Ranking of the whole database by its codes -> (measures of a row, (nq,) k-th best score of each query).

    Measures: all of evaluation.measures.BY_LABELS and the curve `pr`.
    """
    relevance = Relevance(task.database, coding.words.inverse, len(coding.decoded))
    kth = np.empty(len(task.xq), np.float32)

    def scores() -> Iterator[NDArray[np.float32]]:
        for q, s in enumerate(coding.scores()):
            kth[q] = kth_score(s, relevance.rows, k)
            yield s

    measures = load(BY_LABELS) | {"pr": precision_at_levels}
    row = measure(scores(), task.queries, relevance, task.at, measures=measures)
    del row["queries_without_relevant"]
    row["label_recall_at_k"] = row.pop("recall_at_k")  # recall of a comparison's operating points is another
    row["pr"] = {"recall": LEVELS.round(4).tolist(), "precision": row["pr"].round(5).tolist()}
    row |= {"distinct_codes": len(coding.decoded), "mse": coding.error()}
    return row, kth


def hits_map(task: Task, I: Ints) -> float:
    """mAP of ranked lists I (nq, R), -1 for places left empty: the sum of precisions over min(R, all relevant rows).

    The other division, by the relevant rows found, would reward a search for looking at few lists.
    """
    relevant = np.take_along_axis(task.relevant, np.maximum(I, 0), 1) & (I >= 0)
    precision = np.cumsum(relevant, 1) / np.arange(1, I.shape[1] + 1)
    most = np.minimum(task.relevant.sum(1), I.shape[1])
    return float(np.mean((precision * relevant).sum(1) / np.maximum(most, 1)))


def hits_precision(task: Task, I: Ints, k: int = 10) -> float:
    """Share of relevant rows among k places of ranked lists."""
    relevant = np.take_along_axis(task.relevant, np.maximum(I[:, :k], 0), 1) & (I[:, :k] >= 0)
    return float(relevant.sum() / (len(I) * min(k, I.shape[1])))


def hits_recall(coding: Coding, I: Ints, kth: NDArray[np.float32], k: int = 10) -> float:
    """Share of the first k of the same codes that a search found: rows whose score is not below the k-th best, `kth` (nq,)."""
    scores = coding.scores_of(I[:, :k])
    slack = SLACK * np.abs(np.where(np.isfinite(scores), scores, 0)).max(initial=0)
    return float((scores >= kth[:, None] - slack).sum() / (len(I) * min(k, len(coding.words.inverse))))
