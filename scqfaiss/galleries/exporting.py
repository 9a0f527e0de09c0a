"""Export: codebooks, codes and ids into one plain FAISS file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import files
from ..codebooks import Codes
from ..contract import Progress, silent
from ..data import ArraySource, Source, open_rows
from ..errors import ConfigError, DataError, IndexFileError, shown, size
from ..features.source import USUAL, Seeing, as_rows
from ..files import PathLike, Slot, reserve
from ..model import Model, check_width, encode_source
from ..targets import REGISTRY as TARGETS
from ..targets import gpu
from ..targets import target as find_target
from ..targets.base import DEFAULTS, Options, Target
from ..targets.head import wrap
from ..targets.ids import lowest_and_repeated
from .reading import read_gallery

SUFFIX = ".faissindex"
DEFAULT = {"product": "ivfpq", "additive": "lift"}


def build(
    model: Model, codes: Codes, ids: NDArray[np.int64], target: str | None = None, options: Options = DEFAULTS
) -> tuple[Any, dict[str, Any]]:
    """-> (faiss.Index with the encoder folded in where it can be, index card). Raises ConfigError, DataError."""
    container = check_target(model, target, options, len(codes))
    books = model.codebooks
    index = container.build(books, books.check_codes(codes), np.ascontiguousarray(ids, np.int64), options)
    # What comes out of a network's encoder is z: no gallery of it takes what lies between the two.
    folds = model.chain.foldable and not model.modality.needs_encoder
    if folds:
        index = wrap(index, model.d_in, model.chain.layers)
    card = {
        "target": container.INFO.name,
        "options": {name: value for name, value in vars(options).items() if value},
        "rule": model.config["rule"],
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
        "encoder": "none" if not model.chain.layers else "folded" if folds else "model",
        "model_sha256": model.origin,
        "class_names": model.config.get("class_names"),
    }
    if "classes" in model.config:
        card["classes"] = model.config["classes"]
    if model.modality.needs_encoder:
        card["pictures"] = True  # they can be searched for, with the model
    if "prefix" in model.config:
        card["model_bits"] = model.config["prefix"]["bits"]  # of which the codes hold the first
    return index, card | facts(container, index)


def facts(container: Target, index: Any) -> dict[str, Any]:
    """What a card says of the container as it was built."""
    return {"faiss": faiss.__version__, "repeated_ids": lowest_and_repeated(index)[1], **container.facts(index)}


def check_target(model: Model, name: str | None, options: Options, n: int) -> Target:
    """The target of that name, or the default for the model's kind of codebooks.

    Raises ConfigError saying why this model's codes do not fit into it, or which option it does not take for n rows.
    """
    shape = model.codebooks.shape
    container = find_target(DEFAULT[shape.kind] if name is None else name)
    info = container.INFO
    reason = container.supports(shape)
    if reason is not None:
        raise ConfigError(f"target {info.name} cannot serve these codes: {reason}")
    for option in (name for name, value in vars(options).items() if value and name not in info.options):
        takes = " and ".join(name for name in TARGETS if option in find_target(name).INFO.options)
        raise ConfigError(f"target {info.name} takes no {option}, {takes} can")
    container.check(options, n)
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
    model: Model, source: Source, slot: Slot, target: str | None, options: Options, progress: Progress
) -> tuple[Any, dict[str, Any], int]:
    """(index, card, expected bytes) for the rows of a source; the checks that need no rows come first."""
    if len(source) == 0:
        raise DataError(f"{source.name} holds 0 rows, a gallery needs at least 1")
    container = check_target(model, target, options, len(source))
    check_width(model, source)
    source.merge_copies()
    nbytes = container.nbytes(model.codebooks.shape, len(source))
    slot.check_space(nbytes)
    index, card = build(model, encode_source(model, source, progress), source.ids, target, options)
    return index, card | {"skipped_rows": source.dropped}, nbytes


def export(
    model: Model | PathLike,
    xb: Any,
    *,
    path: PathLike,
    ids: Any = None,
    target: str | None = None,
    bits: int | None = None,
    nlist: int = 0,
    nprobe: int = 0,
    refine: int = 0,
    progress: Progress = silent,
) -> None:
    """Encode xb (n, d_in) and write a gallery. ids (n,) int64, default 0..n-1.

    target: a name of targets.REGISTRY, default ivfpq, or lift for additive codebooks. bits: only so many of every code, for
    models whose codes are nested (see Model.prefix); the gallery goes with the whole model all the same. nlist, nprobe,
    refine: see targets.base.Options.

    Raises DataError on bad rows or ids, ConfigError on parts that do not fit, WriteError when nothing could be written;
    a file that stood at `path` is then as it was.
    """
    if not isinstance(model, Model):
        model = Model.load(model)
    model = _cut(model, bits)
    with reserve(path, suffix=SUFFIX, what="exported") as slot:
        options = Options(*(_plain(value) for value in (nlist, nprobe, refine)))
        write(slot, *encode_for(model, ArraySource(xb, ids=ids, name="xb"), slot, target, options, progress))


def _length(model: Model) -> str:
    """'16 bits', or '16 bits (of 32)' of a prefix."""
    whole = model.config.get("prefix")
    return f"{model.codebooks.bits} bits" + (f" (of {whole['bits']})" if whole else "")


def _cut(model: Model, bits: int | None) -> Model:
    return model if bits is None else model.prefix(_plain(bits))


def _plain(value: Any) -> Any:
    """A NumPy integer as Python's own; anything else is left for the target to refuse."""
    return int(value) if isinstance(value, np.integer) else value


def export_file(
    model_path: PathLike,
    rows_path: PathLike,
    out: PathLike,
    *,
    target: str | None = None,
    bits: int | None = None,
    nlist: int = 0,
    nprobe: int = 0,
    refine: int = 0,
    keys: Mapping[str, Any],
    seeing: Seeing = USUAL,
    progress: Progress = silent,
) -> str:
    """Export a file of rows, or pictures; returns what to tell the user. keys: arguments of open_rows. seeing: how the
    model looks at pictures.
    """
    with reserve(out, inputs=[model_path, rows_path], suffix=SUFFIX, what="exported") as slot:
        model = _cut(Model.load(model_path), bits)
        with open_rows(rows_path, **{**keys, "labels_key": None}, role="keys") as source:
            options = Options(nlist, nprobe, refine)
            rows = as_rows(source, model, seeing, shown(model_path))
            index, card, nbytes = encode_for(model, rows, slot, target, options, progress)
        # Closing says whether the rows were changed while they were read: only then is anything written.
        write(slot, index, card, nbytes)
        encoder = {"none": "no encoder needed", "folded": "encoder inside", "model": "queries need the model"}
        return (
            f"{slot.name}: {card['n']:,} vectors, {_length(model)} each, target {card['target']}, "
            f"{size(slot.path.stat().st_size)}, {encoder[card['encoder']]}"
        )


def export_plan(
    model_path: PathLike,
    rows_path: PathLike,
    out: PathLike,
    *,
    target: str | None,
    bits: int | None = None,
    nlist: int = 0,
    nprobe: int = 0,
    refine: int = 0,
    keys: Mapping[str, Any],
    seeing: Seeing = USUAL,
) -> str:
    """What an export would write; reads no features and looks at no picture."""
    files.check_target(out, inputs=[model_path, rows_path], suffix=SUFFIX)
    model = _cut(Model.load(model_path), bits)
    with open_rows(rows_path, **{**keys, "labels_key": None}, role="keys") as source:
        if as_rows(source, model, seeing, shown(model_path)).d != model.d_in:
            raise ConfigError(f"{source.name}: rows have d={source.d}, {shown(model_path)} needs d={model.d_in}")
        what = source.modality.items + (
            ": {:,}, to features of d={}" if source.modality.needs_encoder else ": {:,} of d={}"
        )
        n = len(np.unique(source.ids)) if source.duplicate_ids else len(source)
    container = check_target(model, target, Options(nlist, nprobe, refine), n)
    on_gpu = gpu.reason(model.codebooks.shape)
    return "\n".join(
        [
            what.format(n, model.d_in),
            *([] if bits is None else [f"codes: {_length(model)}"]),
            f"file: about {size(container.nbytes(model.codebooks.shape, n))}",
            f"target {container.INFO.name}: CPU yes, GPU {'yes' if on_gpu is None else f'no ({on_gpu})'}",
        ]
    )
