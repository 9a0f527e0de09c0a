"""Queries of classes that no training saw, beside those that it did: codes with and without a content part. Prints JSON.

    python benchmarks/unknown_classes.py FOLDER BITS CONTENT_BITS LEFT_OUT DRAW [LISTS]

FOLDER holds train.h5, query.h5 and database.h5. LEFT_OUT classes are left out of the training: DRAW d takes classes LEFT_OUT d to
LEFT_OUT (d + 1) - 1 of ten classes, and others at random. The rows of the database teach codebooks, without their labels, and all
of them are searched. Each figure is the mAP of queries of left-out classes (`unseen`), of the others (`seen`), and of `all`:
`semantic` of the same codes without their content part, `auto` where the gate sets the weight of every query, `told` where the
caller does, `rows` of the cosine of the rows, `pq` and `opq` of FAISS's codes of the rows in as many bits as both parts
of ours. `auc`: of the gate, for queries of seen against unseen classes. `plain_auto` is `auto` of 300 queries as the rows come
out of `faiss.read_index(file).search(model.embed(x))`, and `plain_of` of the same ones by our own ranking.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss_of_z import TRAINING_ROWS, map_of

import scqfaiss
from scqfaiss.arrays import Floats, Labels
from scqfaiss.comparison.faiss_codes import build, read_coding
from scqfaiss.comparison.rows import coding_of
from scqfaiss.data import open_rows
from scqfaiss.evaluation.ranking import measure_vectors, same_classes
from scqfaiss.training.gate import area_under_curve

PLAIN = 300  # queries that plain FAISS ranks


def drawn(C: int, count: int, draw: int) -> Any:
    if C == 10:
        return (count * draw + np.arange(count)) % C
    return np.random.default_rng(draw).choice(C, count, replace=False)


def main(folder: str, bits: str, content_bits: str, left_out: str, draw: str, lists: str = "1") -> None:
    parts = {}
    for name in ("train", "query", "database"):
        with open_rows(Path(folder) / f"{name}.h5") as source:
            assert source.labels is not None and not source.labels.multilabel
            parts[name] = source.read(0, len(source)), source.labels
    (xt, yt), (xq, yq), (xb, yb) = parts.values()
    yt, yb = same_classes(yt, yb, "train.h5", "database.h5")
    yq, yb = same_classes(yq, yb, "query.h5", "database.h5")
    out = drawn(yt.C, int(left_out), int(draw))
    kept, unseen = ~np.isin(yt.y, out), np.isin(yq.y, out)
    model = scqfaiss.train(
        xt[kept],
        yt.y[kept],
        bits=int(bits),
        content_bits=int(content_bits),
        lists=lists,
        seed=int(draw),
        codebook_rows=xb,
    )
    assert model.content is not None
    vectors = model.vectors(xb)
    codes = model.assign(vectors)
    found: dict[str, Any] = {"gate": dict(model.content.gate.facts) if model.content.gate else None}

    def put(name: str, map_of_rows: Any) -> None:
        of_unseen, of_seen = map_of_rows(unseen), map_of_rows(~unseen)
        share = float(unseen.mean())
        found.update({f"{name}_unseen": of_unseen, f"{name}_seen": of_seen})
        found[f"{name}_all"] = share * of_unseen + (1 - share) * of_seen

    def coded(queries: Floats) -> Any:
        return lambda rows: map_of(coding_of(model.codebooks, codes, queries[rows], vectors), yq.take(rows), yb)

    semantic = codes[:, : model.semantic.columns]
    zq, zb = model.chain(xq), model.chain(xb)
    put("semantic", lambda rows: map_of(coding_of(model.semantic, semantic, zq[rows], zb), yq.take(rows), yb))
    put("auto", coded(model.embed(xq)))
    put("told", coded(model.embed(xq, known=np.where(unseen, 0.0, 1.0))))
    if model.has_gate:
        found["auc"] = area_under_curve(model.known(xq).astype(np.float64), ~unseen)
    mean = xb.mean(0)
    uq, ub = ((x - mean) / np.linalg.norm(x - mean, axis=1, keepdims=True) for x in (xq, xb))
    put("rows", lambda rows: measure_vectors(uq[rows], yq.take(rows), ub, yb)["map"])
    whole = int(bits) + int(content_bits)
    for method in ("pq", "opq"):
        index = build(method, ub, whole, 1, int(draw), TRAINING_ROWS).index
        put(
            method,
            lambda rows, m=method, i=index: map_of(read_coding(m, i, whole, uq[rows], ub), yq.take(rows), yb),
        )
    found |= plain(model, codes, xq, xb, yq, yb)
    print(json.dumps(found))


def plain(model: Any, codes: Any, xq: Floats, xb: Floats, yq: Labels, yb: Labels) -> dict[str, float]:
    """The same figure where the file is read and searched by FAISS alone."""
    scqfaiss.export(model, xb, path="unknown.faissindex")
    index = faiss.read_index("unknown.faissindex")
    if hasattr(index, "nprobe"):
        index.nprobe = index.nlist
    rows = np.random.default_rng(0).choice(len(xq), min(PLAIN, len(xq)), replace=False)
    queries = model.embed(xq[rows])
    _, I = index.search(queries, index.ntotal)
    relevant = yb.y[I] == yq.y[rows, None]
    precision = np.cumsum(relevant, 1) / np.arange(1, relevant.shape[1] + 1)
    ours = map_of(coding_of(model.codebooks, codes, queries, model.vectors(xb)), yq.take(rows), yb)
    return {"plain_auto": float(((precision * relevant).sum(1) / relevant.sum(1)).mean()), "plain_of": ours}


if __name__ == "__main__":
    main(*sys.argv[1:])
