"""Queries of no class at all: how well a model tells them from those of its classes. Prints JSON.

    python benchmarks/no_class.py FOLDER BITS CONTENT_BITS SEED

FOLDER holds train.h5, query.h5, database.h5 and outside.h5, rows of no class. The rows of the database teach codebooks and gate
without their labels. `auc`: area under the curve of the gate's probability, `false_alarms`: share of the queries of no class that
are taken for known ones where 95 % of the known ones are; `top_` the same by the largest posterior, <z, class center>.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import scqfaiss
from scqfaiss.data import open_rows
from scqfaiss.training.gate import area_under_curve

RECALL = 0.95


def main(folder: str, bits: str, content_bits: str, seed: str) -> None:
    parts = {}
    for name in ("train", "query", "database", "outside"):
        with open_rows(Path(folder) / f"{name}.h5") as source:
            parts[name] = source.read(0, len(source)), source.labels
    (xt, yt), (xq, _), (xb, _), (xo, _) = parts.values()
    assert yt is not None
    model = scqfaiss.train(xt, yt.y, bits=int(bits), content_bits=int(content_bits), seed=int(seed), codebook_rows=xb)
    assert model.content is not None and model.content.gate is not None
    x, known = np.concatenate([xq, xo]), np.arange(len(xq) + len(xo)) < len(xq)
    top = (model.chain(x).astype(np.float64) @ model.content.gate.classes_z.T.astype(np.float64)).max(1)
    found = dict(model.content.gate.facts)
    for name, scores in (("", model.known(x).astype(np.float64)), ("top_", top)):
        threshold = np.quantile(scores[known], 1 - RECALL)
        found |= {f"{name}auc": area_under_curve(scores, known)}
        found |= {f"{name}false_alarms": float((scores[~known] >= threshold).mean())}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
