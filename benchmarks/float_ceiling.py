"""mAP of a model's features before coding: `float_map`; of the rows themselves by cosine: `cosine_map`. Prints JSON.

python benchmarks/float_ceiling.py MODEL.safetensors QUERY.h5 DATABASE.h5
"""

import json
import sys

import numpy as np

from scqfaiss.data import open_rows
from scqfaiss.evaluation import measure_vectors
from scqfaiss.model import Model


def main(model_path: str, query_path: str, database_path: str) -> None:
    model = Model.load(model_path)
    with open_rows(query_path) as query, open_rows(database_path) as database:
        xq, xb = query.read(0, len(query)), database.read(0, len(database))
        assert query.labels and database.labels
        found = measure_vectors(model.embed(xq), query.labels, model.embed(xb), database.labels)
        units = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (xq, xb)]
        plain = measure_vectors(units[0], query.labels, units[1], database.labels)
    print(json.dumps({"float_map": found["map"], "cosine_map": plain["map"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
