"""Qualities of one coding of a database: every measure of a comparison's rows that follows from vectors, codes and labels.

A coding is floats, the words that their codes stand for, and which word each row has. Whatever container holds the codes, they
rank alike, so this is computed once for all containers; ties are averaged over every order (scqfaiss.evaluation.files).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from scqfaiss.arrays import Floats, Ints, Labels
from scqfaiss.evaluation.files import (
    Relevance,
    Words,
    average_precision,
    first_hit,
    precision_at,
    recall_at,
    scores_in_blocks,
    tie_blocks,
)

AT_K = (1, 10, 100)
LEVELS = np.linspace(0, 1, 51)  # of recall, in precision-recall curves
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
    unseen: tuple[int, ...]  # classes left out of the trainings behind unseen_map
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
        if self.database.many:
            return self.queries.y.astype(np.float32) @ self.database.y.astype(np.float32).T > 0
        return np.asarray(self.queries.y[:, None] == self.database.y[None])

    @cached_property
    def unseen_queries(self) -> NDArray[np.bool_]:
        """(nq,) queries of the classes left out."""
        return carry(self.queries, self.unseen)

    def only_unseen(self, labels: Labels) -> Labels:
        """Labels by which unseen_map is told: of several, those of the classes left out alone."""
        if not labels.many:
            return labels
        kept = np.zeros(labels.C, np.uint8)
        kept[list(self.unseen)] = 1
        return Labels(labels.y * kept, labels.C)


def carry(labels: Labels, classes: tuple[int, ...]) -> NDArray[np.bool_]:
    """(n,) rows that carry one of these classes."""
    return np.asarray(labels.y[:, list(classes)].any(1) if labels.many else np.isin(labels.y, classes))


def exact_neighbours(zq: Floats, zb: Floats, metric: str = "ip") -> Ints:
    """(nq, 100 or n) nearest rows of zb (n, d) for each of zq (nq, d)."""
    return np.asarray(faiss.knn(zq, zb, min(AT_K[-1], len(zb)), metric=METRICS[metric])[1], np.int64)


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
    """Ranking of the whole database by its codes -> (measures of a row, (nq,) k-th best score of each query)."""
    n, words = len(task.xb), len(coding.decoded)
    relevance = Relevance(task.database, coding.words.inverse, words)
    strict = Relevance(task.only_unseen(task.database), coding.words.inverse, words) if task.unseen else None
    y, unseen_y = task.queries.y, task.only_unseen(task.queries).y
    at_k = [k for k in AT_K if k <= n] or [n]
    sums, curve = np.zeros(1 + 2 * len(at_k)), np.zeros(len(LEVELS))
    unseen: list[float] = []
    kth = np.empty(len(y), np.float32)
    for q, scores in enumerate(coding.scores()):
        rows, relevant = tie_blocks(scores, relevance.rows, relevance.per_word(y[q]))
        sums += [
            average_precision(rows, relevant, task.at),
            *(precision_at(rows, relevant, k) for k in at_k),
            *(recall_at(rows, relevant, k) for k in at_k),
        ]
        curve += precision_at_levels(rows, relevant)
        kth[q] = kth_score(scores, relevance.rows, k)
        if strict is not None and task.unseen_queries[q]:
            rows, relevant = tie_blocks(scores, strict.rows, strict.per_word(unseen_y[q]))
            unseen.append(average_precision(rows, relevant, task.at))
    means = (sums / len(y)).tolist()
    found = {
        "map": means[0],
        "precision_at_k": dict(zip(map(str, at_k), means[1 : 1 + len(at_k)])),
        "label_recall_at_k": dict(zip(map(str, at_k), means[1 + len(at_k) :])),
        "pr": {"recall": LEVELS.round(4).tolist(), "precision": (curve / len(y)).round(5).tolist()},
        "distinct_codes": words,
        "mse": coding.error(),
    }
    if unseen:
        found["unseen_map"] = float(np.mean(unseen))
    return found, kth


def unseen_map(task: Task, coding: Coding) -> float:
    """mAP of the queries whose classes were left out, over the whole database: for codes of a training of its own."""
    relevance = Relevance(task.only_unseen(task.database), coding.words.inverse, len(coding.decoded))
    y = task.only_unseen(task.queries).y
    found = [
        average_precision(*tie_blocks(scores, relevance.rows, relevance.per_word(y[q])), task.at)
        for q, scores in enumerate(coding.scores())
        if task.unseen_queries[q]
    ]
    return float(np.mean(found))


def kth_score(scores: NDArray[np.float32], rows: Ints, k: int) -> float:
    """The k-th best score of the rows, or the last where there are fewer; scores (u,) of words that `rows` (u,) rows have."""
    best = np.argpartition(-scores, min(k, len(scores)) - 1)[:k]  # every word has a row: k words hold the first k rows
    best = best[np.argsort(-scores[best])]
    place = int(np.searchsorted(np.cumsum(rows[best]), k))
    return float(scores[best[min(place, len(best) - 1)]])


def precision_at_levels(rows: Ints, relevant: Ints) -> NDArray[np.float64]:
    """Precision where the recall reaches each of LEVELS, the first relevant row at the least; zeros where nothing is relevant.

    rows, relevant: (u,) per distinct score, best first. The first level is the expectation over every order within ties; from
    there on relevant rows are taken to stand evenly within their tie.
    """
    N, R = np.concatenate([[0.0], np.cumsum(rows)]), np.concatenate([[0.0], np.cumsum(relevant)])
    if not R[-1]:
        return np.zeros(len(LEVELS))
    # One relevant row at the least: recall 0 has no precision of its own. Rounding must not ask for the row behind a whole one.
    wanted = np.maximum(1.0, (LEVELS * R[-1]).round(6))
    keep = np.concatenate(
        [[True], relevant > 0]
    )  # a block without relevant rows ends where the next begins to give any
    starts = np.concatenate([[0.0], N[:-1][keep[1:]]])
    ends, found = N[keep], R[keep]
    block = np.searchsorted(found, wanted, side="left")
    before, inside = found[block - 1], (wanted - found[block - 1]) / (found[block] - found[block - 1])
    places = starts[block] + inside * (ends[block] - starts[block])
    precision = np.asarray((before + inside * (found[block] - before)) / places)
    first = int(np.argmax(relevant > 0))
    precision[wanted == 1] = first_hit(int(N[first]), int(rows[first]), int(relevant[first]), int(N[-1]))[0]
    return precision


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
