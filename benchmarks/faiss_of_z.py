"""FAISS's own codes of a model's embedding at as many bytes and lists as the model's. Prints JSON.

    python benchmarks/faiss_of_z.py MODEL.safetensors QUERY.h5 DATABASE.h5 [BITS [LISTS]]

BITS and LISTS: by default those of the model. FAISS is trained on the embedding of the database itself, as its users do, and all
lists are visited: IVFPQ, IVF RQ, OPQ and LSQ of residuals, with 1 list PQ, RQ, OPQ and LSQ of whole vectors; with 0 bits the
centroid of the list alone. `pq_map` is of whole vectors in any case. `lists` says how many lists the others have, `best_map`
which of them is the best, and `best_more` how much of a mAP our codes have above that.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from scqfaiss.arrays import Floats, Labels
from scqfaiss.comparison.faiss_codes import build, read_coding, takes
from scqfaiss.comparison.rows import coding_of
from scqfaiss.comparison.unknown import map_of
from scqfaiss.data import open_rows
from scqfaiss.evaluation.ranking import same_classes
from scqfaiss.model import Model

METHODS = ("ivf", "ivfpq", "ivfrq", "pq", "rq", "opq", "lsq")
TRAINING_ROWS = 256 * 64  # at least 64 for each codeword of 8 bits, as `scqfaiss compare` has it


def of_z(
    model: Model, zq: Floats, zb: Floats, query: Labels, database: Labels, bits: int, lists: int, seed: int
) -> dict[str, Any]:
    """mAP by method, of queries zq (nq, d) and rows zb (n, d)."""
    found: dict[str, Any] = {"bits": bits, "lists": lists}
    for method in METHODS:
        held = 1 if method == "pq" else lists
        if takes(method, bits, held):
            index = build(method, zb, bits, held, seed, TRAINING_ROWS).index
            found[f"{method}_map"] = map_of(read_coding(method, index, bits, zq, zb), query, database)
    rivals = [value for name, value in found.items() if name.endswith("_map") and (lists == 1 or name != "pq_map")]
    found["best_map"] = max(rivals)
    if (model.codebooks.bits, model.codebooks.L) == (bits, lists):
        ours = map_of(coding_of(model.codebooks, model.assign(zb), zq, zb), query, database)
        found |= {"ours_map": ours, "best_more": ours - found["best_map"]}
    return found


def main(model_path: str, query_path: str, database_path: str, *level: str) -> None:
    model = Model.load(model_path)
    own = model.codebooks.bits, model.codebooks.L
    bits, lists = (*map(int, level), *own[len(level) :])
    with open_rows(query_path) as query, open_rows(database_path) as database:
        assert query.labels and database.labels
        yq, yb = same_classes(query.labels, database.labels, query.name, database.name)
        zq, zb = model.embed(query.read(0, len(query))), model.vectors(database.read(0, len(database)))
    print(json.dumps(of_z(model, zq, zb, yq, yb, bits, lists, int(model.config.get("seed", 0)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
