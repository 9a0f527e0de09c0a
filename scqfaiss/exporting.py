"""Export: codebooks, codes and ids into one plain FAISS file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from . import files
from .codebooks import Codes
from .contract import Progress, silent
from .data import ArraySource, Source, open_rows
from .errors import ConfigError, DataError, IndexFileError, shown, size
from .files import PathLike, Slot, reserve
from .gallery import read_gallery
from .model import Model, encode_source
from .targets import target as target_module
from .targets.head import wrap

SUFFIX = ".faissindex"


def build(model: Model, codes: Codes, ids: NDArray[np.int64], target: str) -> tuple[Any, dict[str, Any]]:
    """-> (faiss.Index with the encoder folded in where it can be, index card). Raises ConfigError, DataError."""
    container = check_target(model, target)
    books = model.codebooks
    index = container.build(books, books.check_codes(codes), np.ascontiguousarray(ids, np.int64))
    if model.chain.foldable:
        index = wrap(index, model.d_in, model.chain.layers)
    card = {
        "target": target,
        "method": model.config["method"],
        "kind": books.kind,
        "M": books.M,
        "K": books.K,
        "nbits": books.nbits,
        "bits": books.bits,
        "d": books.d,
        "d_in": model.d_in,
        "metric": books.metric,
        "n": len(codes),
        "encoder": "none" if not model.chain.layers else "folded" if model.chain.foldable else "model",
        "model_sha256": model.sha256,
        "class_names": model.config.get("class_names"),
        "faiss": faiss.__version__,
    }
    return index, card


def check_target(model: Model, name: str) -> Any:
    """The target module, or ConfigError saying why this model's codes do not fit into it."""
    container = target_module(name)
    reason = container.supports(model.codebooks.shape, "cpu")
    if reason is not None:
        raise ConfigError(f"target {name} cannot serve these codes: {reason}")
    return container


def write(slot: Slot, index: Any, card: Mapping[str, Any], nbytes: int = 0) -> None:
    """Write index and card into a Slot, read back and compared before it takes its place."""

    def stream(put: Callable[[bytes], None]) -> None:
        faiss.write_index(index, faiss.PyCallbackIOWriter(put))

    def fill(f: BinaryIO) -> None:
        files.seal(f, stream, dict(card))

    def check(temporary: Path) -> None:
        found = read_gallery(temporary)
        if found.index.ntotal != index.ntotal:
            raise IndexFileError(f"{slot.name}: read back {found.index.ntotal:,} rows, wrote {index.ntotal:,}")

    slot.write(fill, check, nbytes)


def encode_for(
    model: Model, source: Source, slot: Slot, target: str, progress: Progress
) -> tuple[Any, dict[str, Any], int]:
    """(index, card, expected bytes) for the rows of a source; the checks that need no rows come first."""
    container = check_target(model, target)
    if len(source) == 0:
        raise DataError(f"{source.name} holds 0 rows, a gallery needs at least 1")
    if source.d != model.d_in:
        raise ConfigError(f"{source.name}: rows have d={source.d}, the model needs d={model.d_in}")
    nbytes = container.nbytes(model.codebooks.shape, len(source))
    slot.check_space(nbytes)
    index, card = build(model, encode_source(model, source, progress), source.ids, target)
    return index, card | {"skipped_rows": source.dropped}, nbytes


def export(
    model: Model | PathLike,
    xb: Any,
    *,
    path: PathLike,
    ids: Any = None,
    target: str = "ivfpq",
    progress: Progress = silent,
) -> None:
    """Encode xb (n, d_in) and write a gallery. ids (n,) int64, default 0..n-1.

    Raises DataError on bad rows or ids, ConfigError on parts that do not fit, WriteError when nothing could be written;
    a file that stood at `path` is then as it was.
    """
    if not isinstance(model, Model):
        model = Model.load(model)
    with reserve(path, suffix=SUFFIX, what="exported") as slot:
        write(slot, *encode_for(model, ArraySource(xb, ids=ids, name="xb"), slot, target, progress))


def export_file(
    model_path: PathLike,
    rows_path: PathLike,
    out: PathLike,
    *,
    target: str = "ivfpq",
    keys: Mapping[str, Any],
    progress: Progress = silent,
) -> str:
    """Export a file of rows; returns what to tell the user. keys: arguments of open_rows."""
    with reserve(out, inputs=[model_path, rows_path], suffix=SUFFIX, what="exported") as slot:
        model = Model.load(model_path)
        with open_rows(rows_path, **{**keys, "labels_key": None}) as source:
            index, card, nbytes = encode_for(model, source, slot, target, progress)
        # Closing says whether the rows were changed while they were read: only then is anything written.
        write(slot, index, card, nbytes)
        encoder = {"none": "no encoder needed", "folded": "encoder inside", "model": "queries need the model"}
        return (
            f"{slot.name}: {card['n']:,} vectors, {card['bits']} bits each, target {target}, "
            f"{size(slot.path.stat().st_size)}, {encoder[card['encoder']]}"
        )


def export_plan(
    model_path: PathLike, rows_path: PathLike, out: PathLike, *, target: str, keys: Mapping[str, Any]
) -> str:
    """What an export would write; reads no features."""
    files.check_target(out, inputs=[model_path, rows_path], suffix=SUFFIX)
    model = Model.load(model_path)
    container = check_target(model, target)
    with open_rows(rows_path, **{**keys, "labels_key": None}) as source:
        if source.d != model.d_in:
            raise ConfigError(f"{source.name}: rows have d={source.d}, {shown(model_path)} needs d={model.d_in}")
        n = len(source)
    gpu = container.supports(model.codebooks.shape, "cuda")
    return "\n".join(
        [
            f"rows: {n:,} of d={model.d_in}",
            f"file: about {size(container.nbytes(model.codebooks.shape, n))}",
            f"target {target}: CPU yes, GPU {'yes' if gpu is None else f'no ({gpu})'}",
        ]
    )
