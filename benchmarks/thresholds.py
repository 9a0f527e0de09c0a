"""What calibrated galleries promise, held against queries that nobody has seen. Prints JSON.

    python benchmarks/thresholds.py split TRAIN.h5 SEED                 # writes fit.h5 and held.h5, a fifth of each class
    python benchmarks/thresholds.py check MODEL QUERY.h5 DATABASE.h5 [cut SEED]
    python benchmarks/thresholds.py chance MODEL DATABASE.h5 CALIBRATED QUERIES [cut]

check exports DATABASE, with `cut` after half of the classes were cut to a tenth of their rows, and prints `recall_50`, ...,
`precision_99`, what was seen where so much was asked for without a margin (confidence 0.5); `off`, the largest difference;
`broken`, how many of the nine promises at confidence 0.9 were missed by more than 0.002, `refused`, how many of them the
calibration did not make; `ece` of the first 100 hits; `faiss_differs`, the largest difference, as a share, between the hits of
scqfaiss and those of plain FAISS's range_search at the same threshold.

chance tells how exact any calibration can be: ROUNDS times it draws CALIBRATED rows of DATABASE to calibrate with, QUERIES others
to ask, and lets these find the rest, so that nothing but the draw is between the rows that promise and those that keep it. Prints
the mean and the standard deviation over the rounds of what was seen, `off`, the median of the largest difference, `within`, the
share of rounds where that is at most 0.02, the mean `ece`, and `kept`, the share of promises at confidence 0.9 that were kept.
With `cut`, half of the classes are cut to a tenth.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import faiss
import numpy as np

import scqfaiss
from scqfaiss.calibration.measuring import measure
from scqfaiss.data import open_rows
from scqfaiss.data.writing import write_rows
from scqfaiss.evaluation.galleries import evaluate
from scqfaiss.evaluation.promises import check as promised
from scqfaiss.evaluation.ranking import Relevance
from scqfaiss.files import atomic_write
from scqfaiss.model import Model
from scqfaiss.targets.pretransform import unwrap_index

FOLDS = 5
QUERIES = 200  # that plain FAISS is asked with
ROUNDS = 20
GALLERY = 10_000  # rows that a round finds at most


def split(path: str, seed: str) -> None:
    """One row in FOLDS of each class, drawn by the seed, into held.h5, all others into fit.h5."""
    rng = np.random.default_rng(int(seed))
    with open_rows(path) as source:
        assert source.labels
        x, y, ids = source.read(0, len(source)), source.labels.y, source.ids
    order = rng.permutation(len(x))
    key = y if y.ndim == 1 else y @ (1 << np.arange(y.shape[1]))  # sets of labels
    held = np.zeros(len(x), bool)
    for c in np.unique(key):
        rows = order[key[order] == c]
        held[rows[: -(-len(rows) // FOLDS)]] = True
    for name, rows in (("fit.h5", ~held), ("held.h5", held)):
        with atomic_write(name) as output:
            output.write(lambda f, rows=rows: write_rows(f, x[rows], y[rows], ids[rows]))


def check(model_path: str, query_path: str, database_path: str, cut: str = "", seed: str = "0") -> None:
    model = Model.load(model_path)
    with open_rows(query_path) as query, open_rows(database_path) as database:
        xq, xb, ids = query.read(0, len(query)), database.read(0, len(database)), database.ids
        assert query.labels and database.labels
        labels, rows = database.labels, np.arange(len(xb))
    if cut:
        rng = np.random.default_rng(int(seed))
        few = rng.permutation(labels.C)[: labels.C // 2]
        rows = np.flatnonzero(~np.isin(labels.y, few) | (rng.random(len(xb)) < 0.1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.faissindex"
        scqfaiss.export(model, xb[rows], ids=ids[rows], path=path)
        gallery, index = scqfaiss.open(path, model=model), faiss.read_index(str(path))
        means, sure = (
            evaluate(gallery, xq, query.labels, ids[rows], labels.take(rows), at=10, promises=c)["promises"]
            for c in (0.5, 0.9)
        )
        out = {"ece": means["ece"], "faiss_differs": differs(gallery, index, xq[:QUERIES])}
    seen = {(name, float(k)): v for name in ("recall", "precision") for k, v in means[name].items() if v is not None}
    out |= {f"{name}_{100 * asked:g}": v for (name, asked), v in seen.items()}
    out["off"] = max(abs(v - asked) for (_, asked), v in seen.items())
    promised = [(float(k), v) for name in ("recall", "precision") for k, v in sure[name].items()]
    out["refused"] = sum(v is None for _, v in promised)
    out["broken"] = sum(v is not None and v < asked - 0.002 for asked, v in promised)
    out |= {
        f"sure_{name}_{100 * float(k):g}": v for name in ("recall", "precision") for k, v in sure[name].items() if v
    }
    print(json.dumps(out))


def differs(gallery: scqfaiss.Gallery, index: faiss.Index, xq: np.ndarray) -> float:
    """The largest difference of the number of hits, as a share, at a few thresholds."""
    core = unwrap_index(index)
    if hasattr(core, "nlist"):
        core.nprobe = core.nlist
    z, found = gallery.embed(xq), []
    for asked in (0.5, 0.9):
        t = gallery.threshold(recall=asked, confidence=0.5)
        ours, theirs = len(gallery.range_search(z, t, encoded=True)[2]), len(index.range_search(z, t)[2])
        found.append(abs(ours - theirs) / max(ours, 1))
    return max(found)


def chance(model_path: str, database_path: str, calibrated: str, queries: str, cut: str = "") -> None:
    model = Model.load(model_path)
    with open_rows(database_path) as database:
        x, labels = database.read(0, len(database)), database.labels
        assert labels
    xq, vectors = model.of_semantic(model.chain(x, database_path), x)
    coded = model.codebooks.decode(model.assign(vectors))
    rounds, kept, rng = [], [], np.random.default_rng(0)
    for _ in range(ROUNDS):
        drawn, asked, rest = np.split(rng.permutation(len(x)), np.cumsum([int(calibrated), int(queries)]))
        rest = rest[:GALLERY]
        if cut:
            few = rng.permutation(labels.C)[: labels.C // 2]
            rest = rest[~np.isin(labels.y[rest], few) | (rng.random(len(rest)) < 0.1)]
        calibration = measure(xq[drawn], coded[drawn], labels.take(drawn), model.codebooks.metric)
        relevance = Relevance(labels.take(rest), np.arange(len(rest)), len(rest))
        share = float(np.mean([relevance.per_word(y).mean() for y in labels.y[asked]]))
        for confidence in (0.5, 0.9):
            scores = (np.asarray(coded[rest] @ q) for q in xq[asked])
            found = promised(scores, labels.take(asked), relevance, calibration, share, confidence)
            if confidence == 0.5:
                rounds.append(found)
            else:
                kept += [
                    v >= float(wish) - 0.002 for name in ("recall", "precision") for wish, v in found[name].items() if v
                ]
    seen = {
        (name, float(asked)): np.array([found[name][asked] for found in rounds], float)  # NaN where it was not promised
        for name in ("recall", "precision")
        for asked in rounds[0][name]
    }
    out: dict[str, float] = {}
    for (name, wish), v in seen.items():
        out |= {f"{name}_{100 * wish:g}": np.nanmean(v), f"{name}_{100 * wish:g}_sd": np.nanstd(v)}
    off = np.nanmax([np.abs(v - wish) for (_, wish), v in seen.items()], axis=0)
    out |= {"off": np.median(off), "within": np.mean(off <= 0.02), "ece": np.mean([found["ece"] for found in rounds])}
    out["kept"] = np.mean(kept)
    print(json.dumps({name: float(v) for name, v in out.items()}))


if __name__ == "__main__":
    warnings.simplefilter("ignore", scqfaiss.errors.ScqWarning)
    {"split": split, "check": check, "chance": chance}[sys.argv[1]](*sys.argv[2:])
