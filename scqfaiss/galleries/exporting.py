"""Export: codebooks, codes and ids into one plain FAISS file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import files, footer
from ..codebooks import Codes
from ..contract import Progress, silent
from ..data import ArraySource, Source
from ..data.joined import open_several
from ..data.kinds import files_of
from ..errors import ConfigError, DataError, IndexFileError, format_bytes, printable
from ..features.source import DEFAULT_INFERENCE, InferenceOptions, as_rows
from ..files import AtomicFile, PathLike, atomic_write
from ..model import Model, check_width, encode_source
from ..targets import gpu, make_options
from ..targets import target as find_target
from ..targets.base import Target
from ..targets.ids import lowest_and_repeated
from ..targets.options import chosen
from ..targets.pretransform import wrap_index
from .positions import beside, ids_path, prepare, sha256_of
from .reading import read_gallery
from .shards.manifest import is_sharded

SUFFIX = ".faissindex"
NO_OPTIONS: Mapping[str, Any] = {}
ENCODER = {"none": "no encoder needed", "folded": "encoder inside", "model": "queries need the model"}
DEFAULT = {"product": "ivfpq", "additive": "lift"}


def build(
    model: Model,
    codes: Codes,
    ids: NDArray[np.int64],
    target: str | None = None,
    options: Mapping[str, Any] = NO_OPTIONS,
) -> tuple[Any, dict[str, Any]]:
    """-> (faiss.Index with the encoder folded in where it can be, index metadata). Raises ConfigError, DataError."""
    container, chosen_options = check_target(model, target, options, len(codes))
    codebooks = model.codebooks
    index = container.build(
        codebooks, codebooks.check_codes(codes), np.ascontiguousarray(ids, np.int64), chosen_options
    )
    # What comes out of a network's encoder is z: no gallery of it takes what lies between the two. With content codes, a query
    # goes through two chains, and is weighted when it is asked.
    folds = model.chain.foldable and not model.modality.needs_encoder and model.content is None
    without = not model.chain.layers and model.content is None
    if folds:
        index = wrap_index(index, model.d_in, model.chain.layers)
    metadata = {
        "target": container.INFO.name,
        "options": chosen(chosen_options),
        "rule": model.config["rule"],
        "method": model.config["method"],
        "kind": codebooks.kind,
        "M": codebooks.M,
        "K": codebooks.K,
        "nbits": codebooks.nbits,
        "bits": codebooks.bits,
        "d": codebooks.d,
        "d_in": model.d_in,
        "metric": codebooks.metric,
        "n": len(codes),
        "encoder": "none" if without else "folded" if folds else "model",
        "model_sha256": model.origin,
        "class_names": model.config.get("class_names"),
    }
    if codebooks.lists is not None:
        metadata |= {"lists": codebooks.L, "list_beam": model.config.get("list_beam", 1)}
    if model.content is not None:
        metadata["content_bits"] = model.content.bits  # the last ones of every code
    if "classes" in model.config:
        metadata["classes"] = model.config["classes"]
    if model.modality.needs_encoder:
        metadata["pictures"] = True  # they can be searched for, with the model
    if "prefix" in model.config:
        metadata["model_bits"] = model.config["prefix"]["bits"]  # of which the codes hold the first
    return index, metadata | calibration_of(model, codes) | facts(container, index)


def calibration_of(model: Model, codes: Codes) -> dict[str, Any]:
    """What the metadata of a gallery says of its scores: the calibration of its model, and the share of relevant rows."""
    if model.calibrations is None or model.calibration is None:
        return {}
    distinct, counts = np.unique(codes, axis=0, return_counts=True)
    share = model.calibrations.share(model.codebooks.decode(distinct), counts, model.codebooks.bits)
    return {"calibration": model.calibration.pack(), "relevant_share": share}


def facts(container: Target, index: Any) -> dict[str, Any]:
    """What a metadata says of the container as it was built."""
    return {"faiss": faiss.__version__, "repeated_ids": lowest_and_repeated(index)[1], **container.facts(index)}


def check_target(model: Model, name: str | None, values: Mapping[str, Any], n: int) -> tuple[Target, Any]:
    """The target of that name, or the default for the model's kind of codebooks, and its options from values by name.

    Raises ConfigError saying why this model's codes do not fit into it, or which option it does not take for n rows.
    """
    shape = model.codebooks.shape
    container = find_target(DEFAULT[shape.kind] if name is None else name)
    info = container.INFO
    reason = container.supports(shape)
    if reason is not None:
        raise ConfigError(f"target {info.name} cannot serve these codes: {reason}")
    options = make_options(info.name, {key: _plain(value) for key, value in values.items()})
    container.check(options, n, shape.L)
    return container, options


def write(output: AtomicFile, index: Any, metadata: Mapping[str, Any], nbytes: int = 0) -> None:
    """Write index and metadata into a AtomicFile, read back and compared before it takes its place."""

    def stream(put: Callable[[bytes], None]) -> None:
        faiss.write_index(index, faiss.PyCallbackIOWriter(put))

    def fill(f: BinaryIO) -> None:
        footer.write_sealed(f, stream, dict(metadata))

    def check(temporary: Path) -> None:
        stored = read_gallery(temporary)
        if stored.index.ntotal != index.ntotal:
            raise IndexFileError(f"{output.name}: read back {stored.index.ntotal:,} rows, wrote {index.ntotal:,}")

    output.write(fill, check, nbytes)


def encode_for(
    model: Model,
    source: Source,
    output: AtomicFile,
    target: str | None,
    options: Mapping[str, Any],
    progress: Progress,
    own_ids: AtomicFile | None = None,
    threads: int = 0,
) -> tuple[Any, dict[str, Any], int]:
    """(index, metadata, expected bytes) for the rows of a source; the checks that need no rows come first.

    own_ids: the file for the ids of the source, which is prepared, where the index gets positions instead.
    """
    if len(source) == 0:
        raise DataError(f"{source.name} holds 0 rows, a gallery needs at least 1")
    container, _ = check_target(model, target, options, len(source))
    check_width(model, source)
    source.merge_copies()
    nbytes = container.nbytes(model.codebooks.shape, len(source))
    output.check_space(nbytes)
    ids = source.ids if own_ids is None else np.arange(len(source))
    index, metadata = build(model, encode_source(model, source, progress, threads), ids, target, options)
    metadata["skipped_rows"] = source.dropped
    if own_ids is not None:
        prepare(own_ids, source.ids)
        metadata["ids_sha256"] = sha256_of(source.ids)
    return index, metadata, nbytes


def export(
    model: Model | PathLike,
    xb: Any,
    *,
    path: PathLike,
    ids: Any = None,
    target: str | None = None,
    bits: int | None = None,
    positions: bool = False,
    shards: int | None = None,
    rows_per_shard: int | None = None,
    progress: Progress = silent,
    **options: Any,
) -> None:
    """Encode xb (n, d_in) and write a gallery. ids (n,) int64, default 0..n-1, or those of a table.

    positions: the gallery gets 0..n-1 whatever the ids, for programs that take ids for row numbers; `ids` go beside it, into
    NAME.ids.npy: ids[I] are the rows' own.

    path: a .faissindex file, or a folder .shards of several, as many as `shards` says or of rows_per_shard rows each.

    target: a name of targets.REGISTRY, default ivfpq, or lift for additive codebooks. bits: only so many of every code, for
    models whose codes are nested (see Model.prefix); the gallery goes with the whole model all the same. options: those of
    the target, by name (see targets.options); None leaves one to the target.

    Raises DataError on bad rows or ids, ConfigError on parts that do not fit, WriteError when nothing could be written;
    a file that stood at `path` is then as it was.
    """
    if not isinstance(model, Model):
        model = Model.load(model)
    model = cut(model, bits)
    source = ArraySource(xb, ids=ids, name="xb", read_labels=False)
    if is_sharded(path):
        from .shards.exporting import export_source

        check_one_file(path, positions)
        export_source(model, source, path, shards, rows_per_shard, target, options, progress=progress)
        return
    check_no_shards(path, shards, rows_per_shard)
    with (
        atomic_write(path, suffix=SUFFIX, what="exported") as output,
        beside(path, positions, []) as own_ids,
    ):
        write(output, *encode_for(model, source, output, target, options, progress, own_ids))
        if own_ids is not None:
            own_ids.place()


def length(model: Model) -> str:
    """'16 bits', or '16 bits (of 32)' of a prefix."""
    whole = model.config.get("prefix")
    return f"{model.codebooks.bits} bits" + (f" (of {whole['bits']})" if whole else "")


def cut(model: Model, bits: int | None) -> Model:
    return model if bits is None else model.prefix(_plain(bits))


def _plain(value: Any) -> Any:
    """A NumPy integer as Python's own; anything else is left for the target to refuse."""
    return int(value) if isinstance(value, np.integer) else value


def check_one_file(path: PathLike, positions: bool) -> None:
    """Raise ConfigError where positions are asked for, and several files are named: each would count its own rows."""
    if positions:
        raise ConfigError(f"{printable(path)}: positions are those of one file, whose name ends in {SUFFIX}")


def check_no_shards(path: PathLike, shards: int | None, rows_per_shard: int | None) -> None:
    """Raise ConfigError where several files are asked for, and one is named."""
    if shards is not None or rows_per_shard is not None:
        raise ConfigError(f"{printable(path)}: several files go into a folder, whose name ends in .shards")


def export_file(
    model_path: PathLike,
    rows: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    target: str | None = None,
    bits: int | None = None,
    positions: bool = False,
    shards: int | None = None,
    rows_per_shard: int | None = None,
    keys: Mapping[str, Any],
    inference_options: InferenceOptions = DEFAULT_INFERENCE,
    progress: Progress = silent,
    **options: Any,
) -> str:
    """Export a file of rows or several, or images; returns what to tell the user. keys: arguments of open_rows.
    inference_options: how the model looks at images. options: those of the target, by name.
    """
    paths = files_of(_several(rows))
    if is_sharded(out):
        from .shards.exporting import export_files

        check_one_file(out, positions)
        how = shards, rows_per_shard, target, options
        return export_files(model_path, paths, out, bits, keys, inference_options, progress, *how)
    check_no_shards(out, shards, rows_per_shard)
    inputs: list[PathLike] = [model_path, *paths]
    with (
        atomic_write(out, inputs=inputs, suffix=SUFFIX, what="exported") as output,
        beside(out, positions, inputs) as own_ids,
    ):
        model = cut(Model.load(model_path), bits)
        with open_several(paths, **{**keys, "labels_key": None}, role="keys") as source:
            encodable = as_rows(source, model, inference_options, printable(model_path))
            index, metadata, nbytes = encode_for(model, encodable, output, target, options, progress, own_ids)
        # Closing says whether the rows were changed while they were read: only then is anything written.
        write(output, index, metadata, nbytes)
        if own_ids is not None:
            own_ids.place()
        return (
            f"{output.name}: {metadata['n']:,} vectors, {length(model)} each, target {metadata['target']}, "
            f"{format_bytes(output.path.stat().st_size)}, {ENCODER[metadata['encoder']]}"
            + (f"; ids are positions, the rows' own are in {own_ids.name}" if own_ids is not None else "")
        )


def _several(rows: PathLike | Sequence[PathLike]) -> Sequence[PathLike]:
    return [rows] if isinstance(rows, (str, os.PathLike)) else rows


def export_plan(
    model_path: PathLike,
    rows: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    target: str | None,
    bits: int | None = None,
    positions: bool = False,
    shards: int | None = None,
    rows_per_shard: int | None = None,
    keys: Mapping[str, Any],
    inference_options: InferenceOptions = DEFAULT_INFERENCE,
    **options: Any,
) -> str:
    """What an export would write; reads no features and looks at no image."""
    paths = files_of(_several(rows))
    if is_sharded(out):
        check_one_file(out, positions)
    else:
        check_no_shards(out, shards, rows_per_shard)
        files.check_target(out, inputs=[model_path, *paths], suffix=SUFFIX)
    model = cut(Model.load(model_path), bits)
    with open_several(paths, **{**keys, "labels_key": None}, role="keys") as source:
        if as_rows(source, model, inference_options, printable(model_path)).d != model.d_in:
            raise ConfigError(f"{source.name}: rows have d={source.d}, {printable(model_path)} needs d={model.d_in}")
        what = source.modality.items + (
            ": {:,}, to features of d={}" if source.modality.needs_encoder else ": {:,} of d={}"
        )
        n = len(np.unique(source.ids)) if source.duplicate_ids else len(source)
    container, _ = check_target(model, target, options, n)
    on_gpu = gpu.unsupported_reason(model.codebooks.shape)
    how_many = "file"
    if is_sharded(out):
        from .shards.exporting import allotted

        how_many = f"{len(allotted(n, shards, rows_per_shard))} files"
    return "\n".join(
        [
            what.format(n, model.d_in),
            *([] if bits is None else [f"codes: {length(model)}"]),
            f"{how_many}: about {format_bytes(container.nbytes(model.codebooks.shape, n))}",
            f"target {container.INFO.name}: CPU yes, GPU {'yes' if on_gpu is None else f'no ({on_gpu})'}",
            *([f"ids: 0 to {n - 1:,}; the rows' own go into {printable(ids_path(out))}"] if positions else []),
        ]
    )
