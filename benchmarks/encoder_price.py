"""What the encoder of a query costs and what it gains, beside FAISS's IVFPQ of the plain rows at equal bytes. Prints JSON.

    python benchmarks/encoder_price.py TRAIN.h5 QUERY.h5 DATABASE.h5 [--shapes 3x256,3x1024] [--seeds 0,1,2] [--bits 16]

For each shape, members x hidden units: `map` of the embedding, not coded, mean over the seeds; microseconds a query on one
thread of `Model.embed`, 1,000 queries at a time (`encode_us`) and one at a time (`encode_single_us`), and of `Gallery.search`
from the row to the 10 nearest codes (`query_us`, `query_single_us`), target ivfpq with as many lists as IVFPQ has. Both visit
the least nprobe that finds 0.95 of the first 10 of their own codes. Shapes and IVFPQ take turns; medians of the rounds.
"""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import faiss
import numpy as np

import scqfaiss
from scqfaiss.comparison.faiss_codes import build, lists_for
from scqfaiss.comparison.growth import least_nprobe, recall
from scqfaiss.comparison.measuring import threads
from scqfaiss.data import open_rows
from scqfaiss.evaluation.ranking import measure_vectors

BATCH, SINGLES = 1000, 200


def microseconds(call: Callable[[Any], Any], xq: Any) -> tuple[float, float]:
    """A query in a batch, and one alone: the median, as one call is short."""
    start = time.perf_counter()
    call(xq[:BATCH])
    batch = (time.perf_counter() - start) / len(xq[:BATCH])
    single = []
    for i in range(min(SINGLES, len(xq))):
        start = time.perf_counter()
        call(xq[i : i + 1])
        single.append(time.perf_counter() - start)
    return 1e6 * batch, 1e6 * median(single)


def enough_lists(search: Callable[..., Any], xq: Any, nlist: int) -> int:
    """The nprobe of search(x, nprobe) -> scores, ids."""
    best = search(xq, nlist)[0]
    return least_nprobe(lambda nprobe: recall(best, search(xq, nprobe)[0]), nlist)[0]


def ivfpq(xb: Any, bits: int, nlist: int) -> Callable[..., Any]:
    """Search of FAISS's IVFPQ of the rows."""
    index = build("ivfpq", xb, bits, nlist, 0, len(xb)).index
    ivf = faiss.extract_index_ivf(index)

    def search(x: Any, nprobe: int) -> Any:
        ivf.nprobe = nprobe
        return index.search(x, 10)

    return search


def gallery_of(model: Any, xb: Any, nlist: int, path: Path) -> Callable[..., Any]:
    """Search of a gallery of ours, encoder included."""
    scqfaiss.export(model, xb, path=path, target="ivfpq", nlist=nlist)
    gallery = scqfaiss.open(path, model=model)
    return lambda x, nprobe: gallery.search(x, 10, nprobe=nprobe)


@click.command()
@click.argument("train")
@click.argument("query")
@click.argument("database")
@click.option("--shapes", default="3x256,1x256,1x1024,2x512,3x512,3x1024", show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--bits", default=16, show_default=True)
@click.option("--rounds", default=9, show_default=True)
def main(train: str, query: str, database: str, shapes: str, seeds: str, bits: int, rounds: int) -> None:
    """The curve of mAP against time, and IVFPQ's time."""
    with open_rows(train) as t, open_rows(query) as q, open_rows(database) as b:
        x, xq, xb = (s.read(0, len(s)).astype(np.float32) for s in (t, q, b))
        y, yq, yb = t.labels, q.labels, b.labels
    assert y and yq and yb
    out: dict[str, Any] = {}
    calls: dict[str, dict[str, Any]] = {}
    searches: dict[str, Callable[..., Any]] = {}
    nlist = lists_for(len(xb))
    with tempfile.TemporaryDirectory() as folder, threads(1):
        for shape in shapes.split(","):
            members, hidden = map(int, shape.split("x"))
            maps = []
            for seed in map(int, seeds.split(",")):
                model = scqfaiss.train(x, y.y, bits=bits, seed=seed, members=members, hidden=hidden)
                maps.append(measure_vectors(model.embed(xq), yq, model.vectors(xb), yb)["map"])
            searches[shape] = gallery_of(model, xb, nlist, Path(folder) / f"{shape}.faissindex")
            calls[shape] = {"encode": model.embed}
            out[shape] = {"map": round(float(np.mean(maps)), 4), "maps": [round(m, 4) for m in maps]}
        searches["ivfpq"] = ivfpq(xb, bits, nlist)
        for name, search in searches.items():
            nprobe = enough_lists(search, xq, nlist)
            out.setdefault(name, {})["nprobe"] = nprobe
            calls.setdefault(name, {})["query"] = partial(search, nprobe=nprobe)
        taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(rounds):
            for name, of_name in calls.items():
                for what, call in of_name.items():
                    taken.setdefault((name, what), []).append(microseconds(call, xq))
    for (name, what), times in taken.items():
        batch, single = (round(median(column), 1) for column in zip(*times))
        out[name] |= {f"{what}_us": batch, f"{what}_single_us": single}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
