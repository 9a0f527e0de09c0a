"""`scqfaiss demo`: the whole way on handwritten digits that ship inside the package, and one table.

Images: UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998, CC BY 4.0); see tools/make_digits.py.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Labels
from ..data import Source, open_rows
from ..data.writing import write_hits, write_rows
from ..errors import IndexFileError, ScqWarning, WriteError, printable
from ..evaluation.galleries import evaluate
from ..evaluation.ranking import Relevance, measure, measure_vectors
from ..files import atomic_write
from ..galleries.exporting import export_file
from ..galleries.gallery import open_gallery
from ..model import Model
from ..options import TrainOptions
from ..progress import Meter
from ..training.interface import train_file

PARTS = ("train", "query", "database")
TIMED_QUERIES = 200
IVF_LISTS = 8
Row = dict[str, Any]


def run(folder: Path, say: Callable[[str], Any], progress: Meter) -> list[Row]:
    """Run the demo into `folder`; returns the rows of its table. Raises WriteError where the folder cannot be made."""
    started = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{printable(folder)}: cannot make this folder ({error.strerror})") from error
    with atomic_write(folder / "results.json") as output:  # the last file, and what a signal goes by
        rows = rows_of_table(folder, say, progress)
        say(table(rows))
        seconds = time.monotonic() - started
        text = json.dumps({"rows": rows, "seconds": round(seconds, 1), "faiss": faiss.__version__}, indent=1)
        output.write(lambda f: f.write(text.encode() + b"\n"))
    say(
        f"\n{seconds:.0f} seconds. In {printable(folder)}: {', '.join(sorted(p.name for p in folder.iterdir() if p.is_file()))}"
    )
    say("\nNext, type:")
    say(f"  scqfaiss info {printable(folder)}/gallery.faissindex")
    say(
        f"  scqfaiss search {printable(folder)}/gallery.faissindex {printable(folder)}/query.h5 "
        f"--model {printable(folder)}/model.safetensors"
    )
    say(f"  scqfaiss train {printable(folder)}/train.h5 -o mine.safetensors --bits 24")
    return rows


def rows_of_table(folder: Path, say: Callable[[str], Any], progress: Meter) -> list[Row]:
    """Everything but the table: rows, models, galleries, hits."""
    parts = write_parts(folder)
    train, query, database = (parts[name] for name in PARTS)
    say(f"handwritten digits: {len(train[0])} to train, {len(query[0])} queries, {len(database[0])} in the database\n")
    rows: list[Row] = []
    for method, bits in (("scq", 8), ("scq", 16), ("label", 8), ("pq", 8), ("pq", 16), ("opq", 8), ("opq", 16)):
        keep = (method, bits) == ("scq", 16)
        model_path = folder / ("model.safetensors" if keep else "other.safetensors")
        gallery_path = folder / ("gallery.faissindex" if keep else "other.faissindex")
        with warnings.catch_warnings():  # unused labels, few rows: true, but no news in a demo
            warnings.simplefilter("ignore", ScqWarning)
            request = TrainOptions(method=method, bits=bits)
            train_file(folder / "train.h5", model_path, request, keys={}, progress=progress)
            export_file(model_path, folder / "database.h5", gallery_path, keys={}, progress=progress)
        rows.append(measured(method, model_path, gallery_path, parts))
    for bits in (8, 16):
        rows.append(ivfpq_row(bits, train[0], query, database))
    rows += float_rows(Model.load(folder / "model.safetensors"), query, database)
    for leftover in ("other.safetensors", "other.faissindex"):
        (folder / leftover).unlink()
    search_with_faiss_alone(folder, query[0])
    progress.close()
    return rows


def write_parts(folder: Path) -> dict[str, tuple[Floats, Labels, NDArray[np.int64]]]:
    """The digits inside the package -> train.h5, query.h5, database.h5 in the folder, and their arrays."""
    out = {}
    with resources.as_file(resources.files("scqfaiss.demo") / "digits.h5") as path:
        for name in PARTS:
            keys = [f"{name}/{key}" for key in ("features", "labels", "ids")]
            with open_rows(path, features_key=keys[0], labels_key=keys[1], ids_key=keys[2]) as source:
                out[name] = _arrays(source)
    for name, (x, labels, ids) in out.items():
        with atomic_write(folder / f"{name}.h5") as output:
            output.write(lambda f: write_rows(f, x.astype(np.float16), labels.y, ids))  # noqa: B023
    return out


def _arrays(source: Source) -> tuple[Floats, Labels, NDArray[np.int64]]:
    assert source.labels is not None
    return source.read(0, len(source)), source.labels, source.ids


def measured(method: str, model_path: Path, gallery_path: Path, parts: dict[str, Any]) -> Row:
    """The table row of one exported gallery."""
    (xq, yq, _), (_, yb, ids) = parts["query"], parts["database"]
    gallery = open_gallery(gallery_path, model=model_path)
    found = evaluate(gallery, xq, yq, ids, yb)
    return {
        "what": {"label": "label code"}.get(method, method),
        "bits": found["bits"],
        "map": found["map"],
        "precision_at_10": found["precision_at_k"]["10"],
        "bytes_per_vector": -(-found["bits"] // 8),
        "ms_per_query": milliseconds(lambda q: gallery.search(q, 10), xq),
    }


def milliseconds(search: Callable[[Floats], Any], xq: Floats) -> float:
    """Median time of a search for one query, encoding included, on one thread."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    times = []
    try:
        for q in xq[:TIMED_QUERIES]:
            start = time.perf_counter()
            search(q[None])
            times.append(time.perf_counter() - start)
    finally:
        faiss.omp_set_num_threads(threads)
    return float(np.median(times) * 1e3)


def _prepared(x: Floats, mean: Floats) -> Floats:
    x = x - mean
    faiss.normalize_L2(x)
    return x


def ivfpq_row(bits: int, xt: Floats, query: Any, database: Any) -> Row:
    """FAISS's own IVFPQ at equal bits, trained and filled by FAISS, half of its lists visited."""
    (xq, yq, _), (xb, yb, _) = query, database
    mean = xt.mean(0)
    index = faiss.index_factory(xt.shape[1], f"IVF{IVF_LISTS},PQ{bits // 8}np", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.train(_prepared(xt, mean))
    index.add(_prepared(xb, mean))
    index.nprobe = IVF_LISTS // 2
    D, I = index.search(_prepared(xq, mean), len(xb))
    scores = np.full((len(xq), len(xb)), -np.inf, np.float32)  # rows in lists not visited tie at the end
    for s, d, i in zip(scores, D, I):
        s[i[i >= 0]] = d[i >= 0]
    found = measure(scores, yq, Relevance(yb, np.arange(len(xb)), len(xb)))
    return {
        "what": f"IVF{IVF_LISTS},PQ{bits // 8}",
        "bits": bits,
        "map": found["map"],
        "precision_at_10": found["precision_at_k"]["10"],
        "bytes_per_vector": bits // 8,
        "ms_per_query": milliseconds(lambda q: index.search(_prepared(q, mean), 10), xq),
    }


def float_rows(model: Model, query: Any, database: Any) -> list[Row]:
    """The ceilings: the features themselves, uncoded, before and after training."""
    (xq, yq, _), (xb, yb, _) = query, database
    out = []
    encoders: dict[str, Callable[[Floats], Floats]] = {
        "scq, not coded": model.embed,
        "rows, cosine": lambda x: _prepared(x, np.zeros(1, np.float32)),
    }
    for what, encode in encoders.items():
        zb = encode(xb)
        index = faiss.IndexFlatIP(zb.shape[1])
        index.add(zb)
        found = measure_vectors(encode(xq), yq, zb, yb)
        out.append(
            {
                "what": what,
                "bits": 32 * zb.shape[1],
                "map": found["map"],
                "precision_at_10": found["precision_at_k"]["10"],
                "bytes_per_vector": 4 * zb.shape[1],
                "ms_per_query": milliseconds(lambda q: index.search(encode(q), 10), xq),  # noqa: B023
            }
        )
    return out


def search_with_faiss_alone(folder: Path, xq: Floats) -> None:
    """Load the gallery as any FAISS program would, search, and write hits.h5. Raises if the answers differ from ours."""
    model = Model.load(folder / "model.safetensors")
    plain = faiss.read_index(str(folder / "gallery.faissindex"))
    D, I = plain.search(model.embed(xq), 10)
    ours = open_gallery(folder / "gallery.faissindex", model=model).search(xq, 10)
    if not (np.array_equal(D, ours[0]) and np.array_equal(I, ours[1])):
        raise IndexFileError("gallery.faissindex: plain FAISS and scqfaiss answer differently")
    with atomic_write(folder / "hits.h5") as output:
        output.write(lambda f: write_hits(f, D, I, np.arange(len(xq))))


def table(rows: list[Row]) -> str:
    lines = [f"{'':16}{'bits':>6}{'mAP':>9}{'prec@10':>9}{'bytes':>8}{'ms/query':>10}"]
    for r in rows:
        lines.append(
            f"{r['what']:16}{r['bits']:>6}{r['map']:>9.4f}{r['precision_at_10']:>9.4f}"
            f"{r['bytes_per_vector']:>8}{r['ms_per_query']:>10.3f}"
        )
    return "\n".join(lines)
