"""Every prefix of a model with nested codes, by its own gallery. Prints JSON.

    python benchmarks/prefixes.py MODEL.safetensors QUERY.h5 DATABASE.h5

Exports DATABASE at each length the model has, and evaluates each gallery: `map_8`, `map_16`, ...; `falls`, the largest loss of
mAP from one length to a longer one; `codes_equal`, 1 where the codes in every gallery are the first columns of the longest
one's, bit for bit; `score_difference`, the largest difference, as a share of the largest score, between the scores FAISS gives
from a prefix gallery and those of the first codebooks and columns of the longest; `float_map`, the features before coding.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.data import open_rows
from scqfaiss.evaluation.galleries import evaluate
from scqfaiss.evaluation.ranking import measure_vectors
from scqfaiss.model import Model

QUERIES = 100  # whose 100 best are compared


def main(model_path: str, query_path: str, database_path: str) -> None:
    warnings.simplefilter("ignore", scqfaiss.errors.ScqWarning)
    model = Model.load(model_path)
    codebooks = model.codebooks
    with (
        open_rows(query_path) as query,
        open_rows(database_path) as database,
        tempfile.TemporaryDirectory() as folder,
    ):
        xq, xb, ids = query.read(0, len(query)), database.read(0, len(database)), database.ids
        assert query.labels and database.labels
        float_map = measure_vectors(model.embed(xq), query.labels, model.embed(xb), database.labels)["map"]
        longest, maps, equal, difference = model.encode(xb), {}, True, 0.0
        zq = model.embed(xq[:QUERIES])
        place = {int(i): row for row, i in enumerate(ids)}
        for m in range(1, codebooks.M + 1):
            bits = m * codebooks.nbits
            path = Path(folder) / f"{bits}.faissindex"
            scqfaiss.export(model, xb, ids=ids, path=path, bits=bits)
            gallery = scqfaiss.open(path, model=model)
            _, codes, held = gallery.unpack()
            order = np.array([place[int(i)] for i in held])
            equal &= np.array_equal(codes, longest[order, :m])
            D, I = gallery.search(xq[:QUERIES], k=100)
            first = Codebooks("additive", codebooks.centroids[:m], codebooks.metric)
            scores = first.scores(zq, longest[:, :m])
            theirs = np.take_along_axis(scores, np.vectorize(place.__getitem__)(I), axis=1)
            difference = max(difference, float(np.abs(D - theirs).max() / np.abs(scores).max()))
            found = evaluate(gallery, xq, query.labels, ids, database.labels)
            maps[f"map_{bits}"] = found["map"]
    values = list(maps.values())
    falls = max([0.0, *(a - b for i, a in enumerate(values) for b in values[i:])])
    print(
        json.dumps(
            maps | {"falls": falls, "codes_equal": int(equal), "score_difference": difference, "float_map": float_map}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
