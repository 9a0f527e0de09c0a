"""mAP over the database rows that were not trained on: `new_map`. Prints JSON.

python benchmarks/new_rows.py MODEL.safetensors TRAIN.h5 QUERY.h5 DATABASE.h5
"""

import json
import sys

import numpy as np

import scqfaiss
from scqfaiss.data import open_rows
from scqfaiss.evaluation.galleries import evaluate


def main(model_path: str, train_path: str, query_path: str, database_path: str) -> None:
    model = scqfaiss.Model.load(model_path)
    with open_rows(train_path) as train, open_rows(query_path) as query, open_rows(database_path) as database:
        new = np.flatnonzero(~np.isin(database.ids, train.ids))
        xb, xq = database.read(0, len(database))[new], query.read(0, len(query))
        assert query.labels and database.labels
        scqfaiss.export(model, xb, ids=database.ids[new], path="new.faissindex")
        gallery = scqfaiss.open("new.faissindex", model=model)
        found = evaluate(gallery, xq, query.labels, database.ids[new], database.labels.take(new))
    print(json.dumps({"new_map": found["map"], "new_rows": len(new)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
