"""The forecast of a training held against what came of it, and codes against FAISS's PQ of the rows in as many bits, with
labels as people have them: few, wrong, unequal. Prints JSON.

    python benchmarks/floor.py TRAIN.h5 QUERY.h5 DATABASE.h5 SEED [KINDS, such as few,wrong] [OPTION=VALUE of train ...]

For every kind of labels and 16, 32 and 48 bits: `forecasts`, how many trainings with right labels, equally many a class, told
what mAP to expect, `within`, how many of these came to one inside the interval; `cases`, all of them, `below`, how many rank
worse than PQ of the rows by more than 0.005, and `least`, by how much the worst of all ranks better. Each case goes to standard
error. The rows of the database are given without their labels, for self-training where labels are few or unequal and for the
codebooks everywhere; PQ learns from them, too.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import faiss
import numpy as np

import scqfaiss
from scqfaiss.calibration.forecast import Forecast
from scqfaiss.data import open_rows
from scqfaiss.evaluation.galleries import evaluate
from scqfaiss.methods.folds import rank_in_class

BITS = (16, 32, 48)
LEAST = 50  # labels in all
NOISE = 0.005  # of mAP, between trainings of two seeds


def spoilt(y: np.ndarray, kind: str, value: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rows that stay, their labels)."""
    order = rng.permutation(len(y))
    rank = np.empty(len(y), int)
    rank[order] = rank_in_class(y[order])
    C = int(y.max()) + 1
    if kind == "wrong":
        wrong = rng.random(len(y)) < value
        return np.arange(len(y)), np.where(wrong, (y + rng.integers(1, C, len(y))) % C, y)
    most = np.full(C, value)
    if kind == "unequal":  # evenly in the logarithm, from all rows of a class to 1 / value of them
        most = np.bincount(y).max() * value ** (-rng.permutation(C) / (C - 1))
    rows = np.flatnonzero(rank < np.maximum(np.round(most), 1)[y])
    return rows, y[rows]


def pq_map(xb: np.ndarray, yb: np.ndarray, xq: np.ndarray, yq: np.ndarray, bits: int) -> float:
    """mAP of FAISS's PQ of centered rows of length 1."""
    mean = xb.mean(0)
    b, q = (np.ascontiguousarray(x - mean, np.float32) for x in (xb, xq))
    for x in (b, q):
        faiss.normalize_L2(x)
    M = bits // 8
    padded = ((0, 0), (0, -b.shape[1] % M))
    b, q = np.pad(b, padded), np.pad(q, padded)
    pq = faiss.ProductQuantizer(b.shape[1], M, 8)
    pq.train(b)
    coded, total = pq.decode(pq.compute_codes(b)), 0.0
    for z, c in zip(q, yq):
        relevant = (yb == c)[np.argsort(-(coded @ z), kind="stable")]
        total += (np.cumsum(relevant) / np.arange(1, len(relevant) + 1))[relevant].mean()
    return total / len(q)


def main(train: str, query: str, database: str, seed: str, asked: str = "few,wrong,unequal", *more: str) -> None:
    loaded = []
    for path in (train, query, database):
        with open_rows(path) as source:
            assert source.labels
            loaded.append((source.read(0, len(source)), source.labels.y))
    (x, y), (xq, yq), (xb, yb) = loaded
    per = int(np.bincount(y).min())
    C = int(y.max()) + 1
    values: dict[str, list[float]] = {"wrong": [0, 0.1, 0.2, 0.4], "unequal": [10, 100]}
    values["few"] = [n for n in (1, 2, 5, 10, 20, 100) if LEAST / C <= n <= per / 2]
    kinds = [(kind, value) for kind in asked.split(",") for value in values[kind]]
    floor = {bits: pq_map(xb, yb, xq, yq, bits) for bits in BITS}
    found: list[tuple[float, bool | None]] = []
    for kind, value in kinds:
        rows, labels = spoilt(y, kind, value, np.random.default_rng([int(seed), 15]))
        for bits in BITS:
            case: dict[str, object] = {"kind": kind, "value": value, "bits": bits, "pq": round(floor[bits], 4)}
            unlabelled = None if kind == "wrong" else xb
            settings = dict(option.split("=", 1) for option in more)
            model = scqfaiss.train(
                x[rows], labels, bits=bits, seed=int(seed), codebook_rows=xb, unlabelled=unlabelled, **settings
            )
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "g.faissindex"
                scqfaiss.export(model, xb, ids=np.arange(len(xb)), path=path)
                gallery = scqfaiss.open(path, model=model)
                case["map"] = evaluate(gallery, xq, yq, np.arange(len(xb)), yb)["map"]
            told, within = model.config["training"]["forecast"], None
            # Wrong labels are not what mAP is measured by, and unequal ones not as frequent as in the database.
            if told is not None and (kind == "few" or value == 0):
                expected = Forecast.unpack(told).lengths[bits]
                within = expected.low <= case["map"] <= expected.high
                case |= {"low": expected.low, "high": expected.high, "within": within}
            found.append((case["map"] - floor[bits], within))
            print(json.dumps(case), file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "cases": len(found),
                "below": int(sum(margin < -NOISE for margin, _ in found)),
                "least": float(min(margin for margin, _ in found)),
                "forecasts": sum(within is not None for _, within in found),
                "within": sum(bool(within) for _, within in found),
            }
        )
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore", scqfaiss.errors.ScqWarning)
    main(*sys.argv[1:])
