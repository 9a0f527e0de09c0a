"""Evaluation of files: a gallery, queries and perhaps its database, and the figures as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from ..arrays import Floats, transposed
from ..calibration.tables import CONFIDENCE
from ..content import parse_known
from ..contract import Progress, silent
from ..data import Source, keys_for, open_rows
from ..data.classes import align, check_classes
from ..errors import ConfigError, DataError, warn
from ..features.source import DEFAULT_INFERENCE, FeatureSource, InferenceOptions
from ..files import PathLike
from ..galleries.base import AnyGallery
from ..galleries.opening import open_any
from ..galleries.searching import as_queries, require_model
from .galleries import check_held, evaluate, evaluate_pairs
from .measures import BY_IDS, BY_LABELS
from .promises import lines as promise_lines


def evaluate_file(
    path: PathLike,
    queries_path: PathLike,
    database_path: PathLike | None = None,
    *,
    model: PathLike | None = None,
    at: int | None = None,
    known: str | None = None,
    promises: bool = False,
    confidence: float = CONFIDENCE,
    keys: Mapping[str, Any],
    inference_options: InferenceOptions = DEFAULT_INFERENCE,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Evaluate a gallery with labelled files of queries and of its database; or by the ids of the queries, each of which
    is that of the query's own vector, where there is no database or neither file has labels. Of a database without labels
    only the ids are looked at, and all must be held. known: 'auto', or a number from 0 to 1 as text, see Gallery.search.
    promises: what a calibrated gallery promises with `confidence` is held against the labels too. Queries may be images; seeing:
    how the model looks at them.
    """
    if at is not None and at < 1:
        raise ConfigError(f"R is {at}, needs 1 or more")
    asked = None if known is None else parse_known(known)
    with ExitStack() as stack:
        queries, database = _opened(stack, queries_path, database_path, keys)
        gallery = open_any(path, model=model)
        if database is not None:
            align(queries, database)
        queries = as_queries(gallery, queries, inference_options)
        require_model(gallery)
        if queries.d != gallery.d:
            how = transposed(len(queries), queries.d, gallery.d)
            raise ConfigError(f"{queries.name}: queries have d={queries.d}, {gallery.name} needs d={gallery.d}{how}")
        if database is None or all(s.labels is None and _identified(s) for s in (queries, database)):
            skip = bool(keys.get("skip_bad_rows"))
            return _evaluate_by_ids(gallery, queries, database, skip, at=at, known=asked, progress=progress)
        _check_labels(queries, database)
        assert queries.labels is not None and database.labels is not None
        overlap = int(np.isin(queries.ids, database.ids).sum()) if queries.has_ids and database.has_ids else 0
        if overlap:
            warn(f"{overlap:,} of {len(queries):,} queries are also in the database")
        xq = _read(queries, progress)
        found = evaluate(
            gallery,
            xq,
            queries.labels,
            database.ids,
            database.labels,
            at=at,
            known=asked,
            promises=confidence if promises else None,
            name=queries.name,
            database_name=database.name,
            progress=progress,
            check_finite=False,
        )
        return found | {"overlap": overlap}


def _opened(
    stack: ExitStack, queries: PathLike, database: PathLike | None, keys: Mapping[str, Any]
) -> tuple[Source, Source | None]:
    """Both files, which the stack closes, each with the labels of its own file where there is one."""
    opened = stack.enter_context(open_rows(queries, **keys_for(keys), role="queries"))
    if database is None:
        return opened, None
    of_database = keys_for(keys, "database")
    return opened, stack.enter_context(open_rows(database, **of_database, keep_unlabelled=True, role="keys"))


_BRING = ("bring labels with --database-labels FILE", "bring labels with --labels FILE")  # of the database, of queries


def _check_labels(queries: Source, database: Source) -> None:
    """Raise DataError where either has no labels, ConfigError where their classes do not match."""
    for source in (queries, database):
        if source.labels is None and not _identified(source):
            raise DataError(
                f"{source.name} has no ids or labels, which an evaluation needs; name them with --ids-key or --labels-key, or "
                + _BRING[source is queries]
            )
    for source in (queries, database):
        if source.labels is None:
            raise DataError(
                f"{source.name} has no labels, which an evaluation needs; use --labels-key, or {_BRING[source is queries]}"
            )
    check_classes(queries, database)


def _read(source: Source, progress: Progress) -> Floats:
    """All rows of a source; of images, each of which costs a pass through a network, with progress."""
    if not isinstance(source, FeatureSource):
        return source.read(0, len(source))
    x = np.empty((len(source), source.d), np.float32)
    for i, block in source.blocks():
        x[i : i + len(block)] = block
        progress("encode", i + len(block), len(source), "")
    return x


def _identified(source: Source) -> bool:
    """Whether ids say which row belongs to which: in a file of pairs row numbers do, where there are no others."""
    return source.has_ids or source.is_pair_half


def _evaluate_by_ids(
    gallery: AnyGallery, queries: Source, database: Source | None, skip: bool, *, progress: Progress, **options: Any
) -> dict[str, Any]:
    """Evaluate by the ids of the queries. skip: of files whose bad rows were left out, so that keys may be lacking. options: as
    evaluate_pairs takes them.
    """
    if not _identified(queries):
        raise DataError(
            f"{queries.name} has no ids, which say what vector of {gallery.name} belongs to a query; name them with "
            "--ids-key, or give DATABASE, both with labels"
        )
    if not queries.has_ids:
        warn(f"{queries.name} has no ids: a query belongs to the vector whose id is its row number")
    held = gallery.ids()
    if database is not None:
        check_held(database.ids, held, database.name, gallery.name)
    rows: Any = slice(None)
    there = np.isin(queries.ids, held)
    if skip and there.any() and not there.all():
        rows = there
        warn(f"{queries.name}: left out {(~there).sum():,} of {len(there):,} queries: {gallery.name} lacks their ids")
    ids = queries.ids[rows]
    advice = "or evaluate other queries" if queries.labels is None else "or give DATABASE to evaluate by labels"
    check_held(ids, held, queries.name, gallery.name, advice)
    if queries.labels is not None:
        warn(f"{queries.name}: without DATABASE only ids are looked at, not labels")
    xq = _read(queries, progress)[rows]
    return evaluate_pairs(gallery, xq, ids, name=queries.name, progress=progress, check_finite=False, **options)


PRINTED = ("map", "mrr", "precision_at_k", "recall_at_k")  # in lines of their own form


def report_text(found: Mapping[str, Any], as_json: bool) -> str:
    """Measures for a person, or one JSON object."""
    if as_json:
        return json.dumps(found, sort_keys=True)
    by_label = "map" in found
    measure, value = ("mAP", found["map"]) if by_label else ("MRR", found["mrr"])
    precision = "  ".join(f"@{k} {v:.4f}" for k, v in found.get("precision_at_k", {}).items())
    lines = [
        f"{measure}@{found['at']:,}  {value:.4f}   ({found['queries']:,} queries, {found['database']:,} vectors)",
        *([f"precision  {precision}"] if by_label else []),
        "recall     " + "  ".join(f"@{k} {v:.4f}" for k, v in found["recall_at_k"].items()),
        *(f"{name}  {found[name]:.4f}" for name in (BY_LABELS if by_label else BY_IDS) if name not in PRINTED),
        f"{found['bits']} bits, {found['distinct_codes']:,} distinct codes",
    ]
    if "promises" in found:
        lines += promise_lines(found["promises"])
    if found["search_agreement"] < 1:
        lines.append(
            f"the figures rank every row by its code; a search with the file's own settings finds "
            f"{found['search_agreement']:.1%} of the first 10"
        )
    if found.get("queries_without_relevant"):
        lines.append(f"{found['queries_without_relevant']:,} queries share no label with any row and count as 0")
    return "\n".join(lines)
