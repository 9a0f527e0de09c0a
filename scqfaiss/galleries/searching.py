"""Searches with whole sources of queries, and with files of them: what a gallery takes, block by block, and what is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, transposed
from ..calibration.tables import CONFIDENCE
from ..content import parse_known
from ..contract import Progress, silent
from ..data import Source, open_rows
from ..data.idlist import read_ids
from ..errors import ConfigError, printable
from ..features.source import DEFAULT_INFERENCE, FeatureSource, InferenceOptions, as_rows
from ..files import AtomicFile, PathLike, atomic_write
from ..items.opening import open_items
from ..items.store import Items
from ..modality import ROWS
from .base import AnyGallery
from .opening import open_any

DEFAULT_K = 10
SHOWN = 10  # hits a query in the text of a search


def require_model(gallery: AnyGallery) -> None:
    """Raise ConfigError where queries need a model and none was given: before any query is read."""
    if gallery.needs_model and gallery.model is None:
        made_by = str((gallery.metadata or {}).get("model_sha256"))[:12]
        raise ConfigError(f"{gallery.name}: queries need the model its codes came from ({made_by}); give --model")


def as_queries(gallery: AnyGallery, queries: Source, inference_options: InferenceOptions = DEFAULT_INFERENCE) -> Source:
    """What a gallery is searched with: rows as they are, images as rows of its model's features.

    Raises ConfigError where the model is not there, even if the file holds its encoder for rows; and as features.as_rows.
    """
    if queries.modality == ROWS:
        return queries
    if gallery.model is None:
        raise ConfigError(lacks_network(queries, gallery.metadata or {}, gallery.name, gallery.d))
    return as_rows(queries, gallery.model, inference_options)


def lacks_network(source: Source, metadata: Mapping[str, Any], name: str, d: int) -> str:
    """Why a gallery by itself takes no images, and what to do."""
    if metadata.get("pictures"):
        made_by = str(metadata.get("model_sha256"))[:12]
        return f"{source.name} holds {source.modality.noun}, which only the model of {name} can see ({made_by}); give --model"
    if metadata.get("encoder") == "model":
        made_by = str(metadata.get("model_sha256"))[:12]
        return f"{name}: queries need the model its codes came from ({made_by}); give --model"
    return f"{source.name} holds {source.modality.noun}, {name} takes rows of d={d}: {source.modality.make_features}"


def check_queries(gallery: AnyGallery, queries: Source) -> None:
    """Raise ConfigError where the rows of a source cannot be searched for: before any of them is read."""
    require_model(gallery)
    if queries.d != gallery.d:
        how = transposed(len(queries), queries.d, gallery.d)
        raise ConfigError(f"{queries.name}: queries have d={queries.d}, {gallery.name} needs d={gallery.d}{how}")


def search_source(
    gallery: AnyGallery,
    queries: Source,
    k: int,
    progress: Progress = silent,
    told: NDArray[np.float32] | None = None,
    **options: Any,
) -> tuple[NDArray[np.float32], Ints]:
    """Search with all rows of a source, in blocks -> D (nq, k), I (nq, k). options: as Gallery.search takes them, `known` for all
    queries alike. told (nq,): filled with Gallery.known of each query.
    """
    check_queries(gallery, queries)
    k = gallery.clip(k)
    D, I = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for i, x in queries.blocks():
        if told is not None:
            told[i : i + len(x)] = gallery.known(x, queries.name, check_finite=False)
        D[i : i + len(x)], I[i : i + len(x)] = gallery.search(x, k, name=queries.name, check_finite=False, **options)
        progress("search", i + len(x), len(queries), "")
    return D, I


def range_search_source(
    gallery: AnyGallery,
    queries: Source,
    threshold: float,
    progress: Progress = silent,
    told: NDArray[np.float32] | None = None,
    **options: Any,
) -> tuple[Ints, NDArray[np.float32], Ints]:
    """The same for all hits beyond a threshold -> lims (nq + 1,), D, I."""
    check_queries(gallery, queries)
    counts, D, I = [np.zeros(1, np.int64)], [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    for i, x in queries.blocks():
        if told is not None:
            told[i : i + len(x)] = gallery.known(x, queries.name, check_finite=False)
        lims, scores, ids = gallery.range_search(x, threshold, name=queries.name, check_finite=False, **options)
        counts.append(np.diff(lims))
        D.append(scores)
        I.append(ids)
        progress("search", i + len(x), len(queries), "")
    return np.cumsum(np.concatenate(counts)), np.concatenate(D), np.concatenate(I)


def search_file(
    path: PathLike,
    queries: PathLike,
    *,
    k: int | None = None,
    threshold: float | None = None,
    precision: float | None = None,
    recall: float | None = None,
    min_probability: float | None = None,
    confidence: float | None = None,
    out: PathLike | None = None,
    model: PathLike | None = None,
    device: str = "cpu",
    mmap: bool = False,
    known: str | None = None,
    filter_ids: str | None = None,
    deny_ids: str | None = None,
    nprobe: int | None = None,
    items: PathLike | None = None,
    keys: Mapping[str, Any],
    inference_options: InferenceOptions = DEFAULT_INFERENCE,
    progress: Progress = silent,
    opener: Callable[..., AnyGallery] = open_any,
) -> str:
    """Search with a file of queries; hits go to the HDF5 file `out`, the first few into the returned text. opener: opens it.

    Queries may be images; the text names them by their files. k: hits per query, DEFAULT_K where nothing else is given:
    `threshold` asks for all hits beyond it; precision, recall and min_probability for all beyond the one that promises them with
    `confidence`, see Gallery.threshold. known: 'auto', or a number as text, see Gallery.search. `out` also gets what a gate says,
    and probabilities where the gallery is calibrated. filter_ids, deny_ids: "1,2,3" or a file of ids. items: see
    items.opening.open_items; titles and labels stand beside the hits. Raises ConfigError for k together with a threshold.
    """
    promised = _promised(threshold, confidence, precision=precision, recall=recall, probability=min_probability)
    _check_by_threshold(threshold is not None or bool(promised), k, nprobe)
    k, sure = DEFAULT_K if k is None else k, CONFIDENCE if confidence is None else confidence
    lists, asked = {"allow": filter_ids, "deny": deny_ids}, None if known is None else parse_known(known)

    def run(output: AtomicFile | None = None) -> tuple[Any, ...]:
        options: dict[str, Any] = {option: read_ids(ids) for option, ids in lists.items() if ids is not None}
        opened = None if items is None else open_items(items, path, progress)
        with open_rows(queries, **{**keys, "labels_key": None}, role="queries") as source:
            gallery = opener(path, model=model, device=device, mmap=mmap)
            beyond = gallery.threshold(**promised, confidence=sure) if promised else threshold
            source = as_queries(gallery, source, inference_options)
            names = [printable(name) for name in source.names] if isinstance(source, FeatureSource) else source.ids
            of_each = {} if beyond is not None else {"k": k, "nprobe": nprobe}
            found = _hits(gallery, source, output, beyond, progress, known=asked, **of_each, **options)
            return found[0], source.ids, names, beyond, opened, *found[1:]

    if out is None:
        hits, query_ids, names, beyond, opened, *_ = run()
    else:
        given = [p for p in (path, queries, model, items, *_files_of(lists)) if p is not None]
        with atomic_write(out, inputs=given) as output:
            hits, query_ids, names, beyond, opened, told, chances = run(output)
            texts = None if opened is None else described(opened, hits[-1])
            _write(output, beyond is not None, hits, query_ids, told, chances, texts)
    asked_for = "".join(f" beyond {beyond:.6g}, which promises {name} {value:g}" for name, value in promised.items())
    written = "" if out is None else f", written to {printable(out)}"
    return _said(hits, query_ids) + asked_for + written + _first(hits, names, opened)


def _write(output: AtomicFile, ranged: bool, hits: tuple[Any, ...], *more: Any) -> None:
    from ..data.writing import write_hits, write_ranges

    write: Callable[..., None] = write_ranges if ranged else write_hits
    output.write(lambda f: write(f, *hits, *more), nbytes=16 * hits[-1].size)


def _files_of(lists: Mapping[str, str | None]) -> list[str]:
    """Of ids as the command line takes them, those that are files."""
    return [ids for ids in lists.values() if ids is not None and os.path.exists(ids)]


def _promised(threshold: float | None, confidence: float | None, **promises: float | None) -> dict[str, float]:
    """The promise that is asked for, or none. Raises ConfigError for two of them, or a confidence without one."""
    promised = {name: value for name, value in promises.items() if value is not None}
    if len(promised) + (threshold is not None) > 1:
        raise ConfigError(
            "--threshold, --precision, --recall and --min-probability each ask for other hits; give one of them"
        )
    if confidence is not None and not {"precision", "recall"} & set(promised):
        raise ConfigError("--confidence is of a promise; give it with --precision or --recall")
    return promised


def _check_by_threshold(by_threshold: bool, k: int | None, nprobe: int | None) -> None:
    if by_threshold and k is not None:
        raise ConfigError("a search by threshold gives every hit beyond it; leave -k out")
    if by_threshold and nprobe is not None:
        raise ConfigError("a search by threshold looks into every list; leave --nprobe out")


def _hits(
    gallery: AnyGallery,
    queries: Source,
    output: AtomicFile | None,
    beyond: float | None,
    progress: Progress,
    **options: Any,
) -> tuple[tuple[Any, ...], NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """(hits, what the gate says of each query, the probability of each hit): the last two for a file, where they can be told."""
    if output is not None and beyond is None:
        output.check_space(12 * len(queries) * min(options["k"], gallery.ntotal))
    told = np.zeros(len(queries), np.float32) if gallery.has_gate and output is not None else None
    if beyond is not None:
        found: Any = range_search_source(gallery, queries, beyond, progress, told, **options)
    else:
        found = search_source(gallery, queries, options.pop("k"), progress, told, **options)
    if output is None or not gallery.has_calibration:
        return found, told, None
    return found, told, np.where(found[-1] < 0, np.float32(0), gallery.probability(found[-2]))


def _said(hits: tuple[Any, ...], query_ids: Ints) -> str:
    if len(hits) == 3:
        return f"{len(query_ids):,} queries, {len(hits[2]):,} hits"
    missing = (hits[1] < 0).sum(1)
    text = f"{len(query_ids):,} queries, {hits[1].shape[1]} hits each"
    return text + (f" but for {int((missing > 0).sum()):,} with fewer" if missing.any() else "")


def described(items: Items, ids: Ints) -> dict[str, NDArray[np.bytes_]]:
    """Titles and labels of ids of any shape, in that shape as UTF-8; empty where there is none."""
    distinct, place = np.unique(ids, return_inverse=True)
    found = items.get(distinct)
    texts = {
        name: np.array([((item or {}).get(key) or "").encode() for item in found], np.bytes_)
        for name, key in (("titles", "title"), ("labels", "label"))
    }
    return {name: text[place.reshape(ids.shape)] for name, text in texts.items()}


def _first(hits: tuple[Any, ...], names: Sequence[Any] | Ints, items: Items | None) -> str:
    """The hits of the first queries, a line each; with items, a line for each hit."""
    lines = [""]
    for q, name in enumerate(names[:5]):
        hits_of_query = q if len(hits) == 2 else slice(*hits[0][q : q + 2])
        D, I = (a[hits_of_query][:SHOWN] for a in hits[-2:])
        if items is None:
            lines.append(f"query {name}  " + "  ".join(f"{i}:{s:.4f}" for i, s in zip(I, D) if i >= 0))
            continue
        lines.append(f"query {name}")
        for i, s, item in zip(I, D, items.get(I)):
            if i >= 0:
                said = [printable(item[key]) for key in ("title", "label") if item[key]] if item else []
                lines.append(f"  {i:>10}  {s:.4f}  " + ("  |  ".join(said) if said else "-"))
    return "\n".join(lines)
