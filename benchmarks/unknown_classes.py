"""Queries of classes that no training saw, beside those that it did: codes with and without a content part. Prints JSON.

    python benchmarks/unknown_classes.py FOLDER BITS CONTENT_BITS DRAW [LISTS]

FOLDER holds train.h5, query.h5 and database.h5. A fifth of the classes is left out of the training, others for every DRAW. The
figures are those of scqfaiss.comparison.unknown, as auto_unseen and so on. `auc`: of the gate, for queries of seen against unseen
classes. `plain_auto` is `auto` of 300 queries as the rows come
out of `faiss.read_index(file).search(model.embed(x))`, and `plain_of` of the same ones by our own ranking.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss_of_z import TRAINING_ROWS

import scqfaiss
from scqfaiss.arrays import Floats, Labels
from scqfaiss.comparison import unknown
from scqfaiss.comparison.ranking import Task
from scqfaiss.comparison.rows import coding_of
from scqfaiss.data import open_rows
from scqfaiss.evaluation.ranking import same_classes

PLAIN = 300  # queries that plain FAISS ranks


def main(folder: str, bits: str, content_bits: str, draw: str, lists: str = "1") -> None:
    parts = {}
    for name in ("train", "query", "database"):
        with open_rows(Path(folder) / f"{name}.h5") as source:
            assert source.labels is not None and not source.labels.multilabel
            parts[name] = source.read(0, len(source)), source.labels
    (xt, yt), (xq, yq), (xb, yb) = parts.values()
    yt, yb = same_classes(yt, yb, "train.h5", "database.h5")
    yq, yb = same_classes(yq, yb, "query.h5", "database.h5")
    out = unknown.drawn(np.arange(yt.C), int(draw))
    kept, unseen = ~np.isin(yt.y, out), np.isin(yq.y, out)
    setting = unknown.Setting("scq", int(bits), int(content_bits), int(lists), int(draw))
    model = unknown.trained(xt[kept], yt.y[kept], xb, setting)
    assert model.content is not None
    found: dict[str, Any] = {"gate": dict(model.content.gate.facts) if model.content.gate else None}
    measured = unknown.figures(model, Task(xq, xb, yq, yb, len(xb), len(xb)), unseen, int(draw), TRAINING_ROWS)
    for name, of in measured["maps"].items():
        found |= {f"{name}_{part}": value for part, value in of.items()}
    if measured["auc"] is not None:
        found["auc"] = measured["auc"]
    codes = model.encode(xb)
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
    ours = unknown.map_of(coding_of(model.codebooks, codes, queries, model.vectors(xb)), yq.take(rows), yb)
    return {"plain_auto": float(((precision * relevant).sum(1) / relevant.sum(1)).mean()), "plain_of": ours}


if __name__ == "__main__":
    main(*sys.argv[1:])
