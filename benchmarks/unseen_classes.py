"""The second honesty row: train without two of the classes, query with those two, rank the whole database. Prints JSON.

python benchmarks/unseen_classes.py FOLDER BITS SEED [METHOD]

FOLDER holds train.h5, query.h5 and database.h5. `map` is that of queries of the unseen classes, `seen_map` of the others;
`cosine_map` ranks the unseen ones by the rows themselves. Seed s leaves out classes 2s and 2s + 1 (mod C).
"""

import json
import sys
from pathlib import Path

import numpy as np

import scqfaiss
from scqfaiss.data import open_rows
from scqfaiss.evaluation.galleries import evaluate
from scqfaiss.evaluation.ranking import measure_vectors, same_classes


def main(folder: str, bits: str, seed: str, method: str = "scq") -> None:
    parts = {}
    for name in ("train", "query", "database"):
        with open_rows(Path(folder) / f"{name}.h5") as source:
            assert source.labels is not None and not source.labels.multilabel
            parts[name] = source.read(0, len(source)), source.labels, source.ids
    (xt, yt, _), (xq, yq, _), (xb, yb, ids) = parts.values()
    yt, yb = same_classes(yt, yb, "train.h5", "database.h5")
    yq, yb = same_classes(yq, yb, "query.h5", "database.h5")
    left_out = [(2 * int(seed) + i) % yt.C for i in (0, 1)]
    kept = ~np.isin(yt.y, left_out)
    renumbered = np.cumsum(~np.isin(np.arange(yt.C), left_out)) - 1
    model = scqfaiss.train(xt[kept], renumbered[yt.y[kept]], method=method, bits=int(bits), seed=int(seed))
    scqfaiss.export(model, xb, ids=ids, path="unseen.faissindex")
    gallery = scqfaiss.open("unseen.faissindex", model=model)
    out = {}
    for key, rows in (("map", np.isin(yq.y, left_out)), ("seen_map", ~np.isin(yq.y, left_out))):
        out[key] = evaluate(gallery, xq[rows], yq.take(rows), ids, yb)["map"]
    rows = np.isin(yq.y, left_out)
    mean = xb.mean(0)
    unit = [(x - mean) / np.linalg.norm(x - mean, axis=1, keepdims=True) for x in (xq[rows], xb)]
    out["cosine_map"] = measure_vectors(unit[0], yq.take(rows), unit[1], yb)["map"]
    print(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
