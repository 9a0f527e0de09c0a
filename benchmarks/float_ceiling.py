"""mAP of vectors that are not coded. Prints JSON.

python benchmarks/float_ceiling.py MODEL.safetensors QUERY.h5 DATABASE.h5     # `float_map`, the model's features
python benchmarks/float_ceiling.py cosine QUERY.h5 DATABASE.h5                # `cosine_map`, the rows themselves, centered
"""

import json
import sys

import numpy as np

from scqfaiss.data import open_rows
from scqfaiss.evaluation.ranking import measure_vectors
from scqfaiss.model import Model


def main(model_path: str, query_path: str, database_path: str) -> None:
    with open_rows(query_path) as query, open_rows(database_path) as database:
        xq, xb = query.read(0, len(query)), database.read(0, len(database))
        assert query.labels and database.labels
        if model_path == "cosine":
            key = "cosine_map"
            mean = xb.mean(0)  # as the baselines do, which gains them 0.02
            zq, zb = ((x - mean) / np.maximum(np.linalg.norm(x - mean, axis=1, keepdims=True), 1e-30) for x in (xq, xb))
        else:
            key, model = "float_map", Model.load(model_path)
            zq, zb = model.embed(xq), model.vectors(xb)
        print(json.dumps({key: measure_vectors(zq, query.labels, zb, database.labels)["map"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
