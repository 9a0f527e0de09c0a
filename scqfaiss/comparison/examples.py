"""What charts of single codes are drawn from: class means, a map of two dimensions, queries and their hits."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.manifold import TSNE  # type: ignore[import-untyped]

from ..arrays import Floats, Ints, Labels
from .measuring import threads
from .ranking import Coding, Task
from .selection import pair

SHOWN_QUERIES, SHOWN_HITS = 10, 10
THUMBNAIL = 96  # pixels a side, at most
PIXELATED = 24  # below this JPEG would blur what little there is


def examples_of(task: Task, coding: Coding, seed: int, rows: int) -> dict[str, Any]:
    """`centers`, `plane` (of so many rows) and `hits` of a row: what is shown of one length only."""
    return {
        "centers": class_cosines(coding.zb, task.database),
        "plane": plane(coding, task.database, seed, rows),
        "hits": first_hits(task, coding, seed),
    }


def class_cosines(z: Floats, labels: Labels) -> list[list[float]]:
    """(C, C) cosines of the mean vectors of the classes; a class without rows has 0 with all."""
    multi_hot = labels.multi_hot().astype(np.float64)
    means = multi_hot.T @ z
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-30)
    cosines: list[list[float]] = (means @ means.T).round(4).tolist()
    return cosines


def plane(coding: Coding, labels: Labels, seed: int, count: int) -> dict[str, Any]:
    """A map in two dimensions (t-SNE by cosine; van der Maaten and Hinton, JMLR 9, 2008) of `count` rows and
    up to a quarter as many of their words."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(coding.zb))[:count])
    words = np.unique(coding.words.inverse[rows])
    words = np.sort(rng.permutation(words)[: count // 4])
    both = np.concatenate([coding.zb[rows], coding.decoded[words]]).astype(np.float32)
    norms = np.linalg.norm(both, axis=1, keepdims=True)
    both /= np.maximum(norms, 1e-12)
    perplexity = min(30.0, (len(both) - 1) / 4)
    with threads(1):  # the same map again; and a thousand small steps gain nothing from two
        made = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(both)
    first = labels.multi_hot()[rows].argmax(1)  # of several labels the first
    made = made.astype(float).round(2)
    return {"features": made[: len(rows)].tolist(), "labels": first.tolist(), "codewords": made[len(rows) :].tolist()}


def first_hits(task: Task, coding: Coding, seed: int) -> list[list[int]]:
    """For each of the shown queries the first 10 rows by their codes, equal scores in the database's drawn order."""
    found = []
    wanted = set(shown_queries(task, seed))
    for q, scores in enumerate(coding.scores()):
        if q in wanted:
            found.append(np.argsort(-scores[coding.words.inverse], kind="stable")[:SHOWN_HITS].tolist())
    return found


def shown_queries(task: Task, seed: int) -> list[int]:
    """Rows of the queries that a report shows: of each class in turn, drawn by the seed; ascending."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(task.xq))
    multi_hot = task.queries.multi_hot()[order]
    turn = np.where(multi_hot.any(1), multi_hot.argmax(1), multi_hot.shape[1])
    place = np.zeros(len(order), np.int64)  # of a query among those of its class
    for label in np.unique(turn):
        place[turn == label] = np.arange((turn == label).sum())
    first = order[np.lexsort((turn, place))[:SHOWN_QUERIES]]
    return sorted(first.tolist())


def gallery(
    document: Any, task: Task, ids: dict[str, Ints], seed: int, folder: Path | None, shape: tuple[int, int] | None
) -> dict[str, Any]:
    """`gallery` and `images` of a document: queries, and hits of our best and of IVFPQ.

    ids: of "query" and "database" rows. folder: of image files named by these ids; shape: of rows that are grey images.
    """
    sides = [row for row in pair(document) if row is not None and row.get("hits")]
    images: dict[str, Any] = dict(document.get("pictures", {}))  # of a run before this, which may have had the folder
    named = [] if folder is None else [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stem.isdecimal()]
    files = {int(p.stem): p for p in named}

    def printable(kind: str, row: int) -> dict[str, Any]:
        query = kind == "query"
        labels, x = (task.queries, task.xq) if query else (task.database, task.xb)
        number = int(ids[kind][row])
        name = f"{kind}-{number}"
        if name not in images:
            made = thumbnail(files.get(number), None if shape is None else x[row].reshape(shape))
            if made is not None:
                images[name] = made
        own = np.flatnonzero(labels.y[row]).tolist() if labels.multilabel else [int(labels.y[row])]
        return {"id": number, "labels": own, "picture": name if name in images else None}

    queries = shown_queries(task, seed)
    found = [
        {
            "key": side["key"],
            "hits": [
                [printable("database", i) | {"right": bool(task.relevant[q, i])} for i in hits]
                for q, hits in zip(queries, side["hits"])
            ],
        }
        for side in sides
    ]
    return {"gallery": {"queries": [printable("query", q) for q in queries], "sides": found}, "pictures": images}


def thumbnail(file: Path | None, pixels: Any) -> dict[str, str] | None:
    """An image of at most THUMBNAIL pixels a side, of a file or of numbers (h, w); None where there is neither."""
    from PIL import Image

    if file is not None:
        with Image.open(file) as found:
            image = found.convert("RGB")
    elif pixels is not None:
        low, high = float(pixels.min()), float(pixels.max())
        image = Image.fromarray(np.uint8(255 * (pixels - low) / max(high - low, 1e-12)), "L")
    else:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    small = min(image.size) < PIXELATED
    out = io.BytesIO()
    image.save(out, "PNG" if small else "JPEG", **({} if small else {"quality": 80}))
    return {"type": "image/png" if small else "image/jpeg", "data": base64.b64encode(out.getvalue()).decode()}
