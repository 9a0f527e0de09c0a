"""The life of a gallery after its export: rows come and go, galleries are joined.

Every change unpacks the codes, changes them, and builds the container anew, so that the outcome is that of an export of the
rows that are left, in every container; the file is replaced as a whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, as_id_set, transposed
from ..codebooks import Codebooks, Codes
from ..contract import Progress, silent
from ..data import ArraySource, Source, open_rows
from ..data.idlist import read_ids
from ..encoders.chain import Chain
from ..errors import ConfigError, DataError, IndexFileError, format_bytes, printable
from ..features.source import DEFAULT_INFERENCE, InferenceOptions, as_rows
from ..files import AtomicFile, PathLike, atomic_write
from ..model import Model, encode_source
from ..targets.pretransform import chain, kind_of, layers, prepend
from .exporting import SUFFIX, facts, write
from .extending import extends, taken_over
from .positions import forget
from .reading import Stored, options_of, read_gallery
from .searching import lacks_network
from .shards.manifest import gallery_files, is_sharded

FIRST_IDS = 5  # named in messages
MAX_ID = (1 << 63) - 1


class Content:
    """An open file taken apart: codebooks and codes as they are stored, or as they were where an encoder must know."""

    def __init__(self, path: PathLike, as_stored: bool = True) -> None:
        self.name = printable(path)
        self.stored: Stored = read_gallery(path)
        if self.stored.metadata is None:
            raise IndexFileError(f"{self.name}: no checksum: written by another program, or cut off; export it again")
        assert self.stored.target is not None
        self.metadata: Mapping[str, Any] = self.stored.metadata
        if not all(isinstance(self.metadata.get(key), str) for key in ("model_sha256", "method")):
            raise IndexFileError(f"{self.name}: the metadata does not say which model its codes came from")
        self._unpack(None if as_stored else self.stored.shape)

    def take_over(self, model: Model) -> None:
        """Be a gallery of `model`, which extends the file's own."""
        self.stored = taken_over(model, self.stored, self.name)
        assert self.stored.metadata is not None
        self.metadata = self.stored.metadata
        self._unpack(self.stored.shape)

    def _unpack(self, shape: Any) -> None:
        assert self.stored.target is not None
        self.codebooks, self.codes, self.ids = self.stored.target.unpack(self.stored.index, shape)

    @property
    def target(self) -> Any:
        return self.stored.target


def append(gallery: PathLike, xb: Any, *, ids: Any = None, model: Model | PathLike | None = None) -> int:
    """Encode xb (n, d_in) with the gallery's model and add the codes -> vectors the gallery now holds.

    ids (n,) int64; without them rows are numbered on from the largest id there is. model: needed where the encoder does
    not stand inside the file; a model that extends the gallery's own takes it over, its codes as they are. Raises DataError on
    bad rows and on ids that are taken, ConfigError on another model, WriteError
    when nothing could be written; the file is then as it was. Of a folder of shards, the last one is filled and others begun.
    """
    if is_sharded(gallery):
        from .shards.editing import append_source

        return append_source(gallery, ArraySource(xb, ids=ids, name="xb"), model)[1]
    with atomic_write(gallery, suffix=SUFFIX, what="changed") as output:
        source = ArraySource(xb, ids=ids, name="xb", read_labels=False)
        return rewrite(output, *_joined(output, gallery, source, model, silent)[:4])


def append_file(
    gallery: PathLike,
    rows: PathLike,
    *,
    model: PathLike | None = None,
    keys: Mapping[str, Any],
    inference_options: InferenceOptions = DEFAULT_INFERENCE,
    progress: Progress = silent,
) -> str:
    """Append a file of rows, or images; returns what to tell the user. inference_options: how the model looks at images."""
    if is_sharded(gallery):
        from .shards.editing import append_rows

        return append_rows(gallery, rows, model, keys, inference_options, progress)
    with atomic_write(
        gallery, inputs=[p for p in (rows, model) if p is not None], suffix=SUFFIX, what="changed"
    ) as output:
        with open_rows(rows, **{**keys, "labels_key": None}, role="keys") as source:
            content, codebooks, codes, ids, new = _joined(output, gallery, source, model, progress, inference_options)
        # Closing says whether the rows were changed while they were read: only then is anything written.
        n = rewrite(output, content, codebooks, codes, ids)
        return (
            f"{output.name}: {len(new):,} vectors added (ids {new.min()} to {new.max()}), {n:,} in all, "
            f"{format_bytes(output.path.stat().st_size)}"
        )


def _joined(
    output: AtomicFile,
    path: PathLike,
    source: Source,
    model: Model | PathLike | None,
    progress: Progress,
    inference_options: InferenceOptions = DEFAULT_INFERENCE,
) -> tuple[Content, Codebooks, Codes, Ints, Ints]:
    """The content of the file, codebooks, codes and ids of old rows and new, and the ids of the new ones."""
    content = Content(path, as_stored=False)
    encoder, source, ids = new_rows(content, source, model, inference_options, content.name, [content.ids])
    codebooks = encoder.codebooks
    output.check_space(content.target.nbytes(codebooks.shape, len(content.ids) + len(ids)))
    codes = np.concatenate([content.codes, encode_source(encoder, source, progress)])
    return content, codebooks, codes, np.concatenate([content.ids, ids]), ids


def new_rows(
    content: Content,
    source: Source,
    model: Model | PathLike | None,
    inference_options: InferenceOptions,
    name: str,
    held: Sequence[Ints],
    highest: int | None = None,
) -> tuple[Model, Source, Ints]:
    """Rows to append, checked -> what encodes them, the rows, and their ids. held: ids of the gallery `name` that may be
    among theirs, in arrays; highest: the largest id there is, default that of `held`.
    """
    if source.modality.needs_encoder and model is None:
        raise ConfigError(lacks_network(source, content.metadata, name, int(content.stored.index.d)))
    encoder = _encoder(content, model)
    source = as_rows(source, encoder, inference_options)
    if source.d != encoder.d_in:
        how = transposed(len(source), source.d, encoder.d_in)
        raise ConfigError(f"{source.name}: rows have d={source.d}, {name} needs d={encoder.d_in}{how}")
    if len(source) == 0:
        raise DataError(f"{source.name} holds 0 rows, nothing to append")
    ids = source.ids
    if not source.has_ids:  # row numbers from 0 would only clash
        start = 1 + (max(int(some.max(initial=-1)) for some in held) if highest is None else highest)
        if start + len(source) > MAX_ID:
            raise DataError(f"{name} holds id {start - 1}, no {len(source):,} numbers follow it; give ids")
        ids = np.arange(start, start + len(source))
    taken = np.unique(np.concatenate([some[among(some, ids)] for some in held]))
    if len(taken):
        first = ", ".join(map(str, taken[:FIRST_IDS]))
        raise DataError(f"ids {first} are already in {name} ({len(taken):,} of {len(ids):,}); remove them first")
    source.merge_copies()
    return encoder, source, source.ids if source.has_ids else ids


def _encoder(content: Content, model: Model | PathLike | None) -> Model:
    """The model given, if it is the gallery's own or extends it, or the one that stands in the file."""
    if model is not None:
        loaded = model if isinstance(model, Model) else Model.load(model)
        if extends(loaded, content.metadata):
            content.take_over(loaded)
        if loaded.origin != content.metadata["model_sha256"]:
            made_by = str(content.metadata["model_sha256"])[:12]
            raise ConfigError(
                f"the model is {loaded.origin[:12]}, {content.name} was made by {made_by}; give that model"
            )
        bits = content.metadata["M"] * content.metadata["nbits"]
        if bits > loaded.codebooks.bits:
            raise ConfigError(
                f"{content.name} holds codes of {bits} bits, the model is cut to {loaded.codebooks.bits}; give the whole one"
            )
        return loaded.prefix(bits)
    if content.metadata["encoder"] == "model" or "rule" not in content.metadata or content.codebooks.kind != "product":
        # A merged additive codebook does not tell which part of a sum was whose, and encoding would ask.
        made_by = str(content.metadata["model_sha256"])[:12]
        raise ConfigError(f"{content.name}: new rows need the model its codes came from ({made_by}); give --model")
    encoder = Chain(content.metadata["d_in"]).then(*layers(content.stored.index))
    config = {"method": content.metadata["method"], "rule": content.metadata["rule"], "encoder": "folded"}
    config["list_beam"] = content.metadata.get("list_beam", 1)
    return Model(encoder, content.codebooks, config)


def remove(gallery: PathLike, ids: Any) -> tuple[int, int]:
    """Take rows out by their ids -> (how many were there, vectors the gallery now holds). Ids that are absent are counted.

    Raises DataError on bad ids and where no row would be left; the file is then as it was. Of a folder of shards, only those
    that hold such ids are written anew.
    """
    if is_sharded(gallery):
        from .shards.editing import remove_ids

        return remove_ids(gallery, as_id_set(ids))[::2]
    with atomic_write(gallery, suffix=SUFFIX, what="changed") as output:
        removed, _, n = _remove(output, gallery, as_id_set(ids))
        return removed, n


def remove_file(gallery: PathLike, ids: str) -> str:
    """Remove by '1,2,3' or a file of ids; returns what to tell the user."""
    if is_sharded(gallery):
        from .shards.editing import remove_ids

        removed, absent, n = remove_ids(gallery, read_ids(ids))
    else:
        with atomic_write(gallery, inputs=[ids], suffix=SUFFIX, what="changed") as output:
            removed, absent, n = _remove(output, gallery, read_ids(ids))
    more = f", {absent:,} ids were not there" if absent else ""
    return f"{printable(gallery)}: {removed:,} vectors removed{more}, {n:,} left"


def _remove(output: AtomicFile, path: PathLike, ids: Ints) -> tuple[int, int, int]:
    content, ids = Content(path), np.unique(ids)
    gone = among(content.ids, ids)
    removed = int(gone.sum())
    if removed == len(content.ids):
        raise DataError(f"{content.name}: nothing would be left; delete the file instead")
    absent = len(ids) - len(np.unique(content.ids[gone]))
    if not removed:
        return 0, absent, len(content.ids)
    return removed, absent, rewrite(output, content, content.codebooks, content.codes[~gone], content.ids[~gone])


def merge(galleries: Sequence[PathLike], path: PathLike) -> int:
    """Join galleries, files and folders of shards, of one model and one target into one file -> vectors it holds.

    Raises DataError where an id stands in two, ConfigError where the parts do not belong together.
    """
    if isinstance(galleries, (str, os.PathLike)):
        raise ConfigError(f"galleries are {galleries!r}, needs a list of files")
    if len(galleries) < 2 and not any(map(is_sharded, galleries)):
        raise ConfigError("a merge needs at least 2 galleries")
    with atomic_write(path, inputs=galleries, suffix=SUFFIX, what="merged") as output:
        parts = [Content(file) for gallery in galleries for file in gallery_files(gallery)]
        first = parts[0]
        for part in parts[1:]:
            for key in ("model_sha256", "bits", "target", "encoder", "d_in"):
                if part.metadata.get(key) != first.metadata.get(key):
                    raise ConfigError(
                        f"{part.name} has {key} {str(part.metadata.get(key))[:12]}, "
                        f"{first.name} has {str(first.metadata.get(key))[:12]}"
                    )
        ids = np.concatenate([part.ids for part in parts])
        each = np.sort(np.concatenate([_distinct(part.ids) for part in parts]))
        twice = _distinct(each[1:][each[1:] == each[:-1]])
        if len(twice):
            named = ", ".join(map(str, twice[:FIRST_IDS]))
            raise DataError(f"ids {named} stand in more than one of the galleries ({len(twice):,} such ids)")
        if all("relevant_share" in part.metadata for part in parts):
            shares = [part.metadata["relevant_share"] for part in parts]
            share = float(np.average(shares, weights=[len(part.ids) for part in parts]))
            first.metadata = {**first.metadata, "relevant_share": share}
        return rewrite(output, first, first.codebooks, np.concatenate([part.codes for part in parts]), ids)


def merge_files(galleries: Sequence[PathLike], out: PathLike) -> str:
    n = merge(galleries, out)
    return f"{printable(out)}: {n:,} vectors from {len(galleries)} galleries"


def among(ids: Ints, others: Ints) -> NDArray[np.bool_]:
    """Which of many ids are among some others; NumPy's own set functions sort or hash the many."""
    others = np.append(np.sort(others), -1)  # no id is -1
    return np.asarray(others[np.searchsorted(others[:-1], ids)] == ids)


def _distinct(ids: Ints) -> Ints:
    ids = np.sort(ids)
    out: Ints = ids[np.append(True, ids[1:] != ids[:-1])[: len(ids)]]
    return out


def rewrite(output: AtomicFile, content: Content, codebooks: Codebooks, codes: Codes, ids: Ints) -> int:
    """Build the container anew from codes, behind the encoder that the file had, and write it."""
    index = content.target.build(
        codebooks, codes, ids, options_of(content.metadata, content.target), like=content.stored.index
    )
    old = chain(content.stored.index)
    if kind_of(content.stored.index) == "additive":
        old = old[:-1]  # build has made a new tile
    index = prepend(old, index)
    kept = {key: value for key, value in content.metadata.items() if key != "rows_sha256"}  # they are others now
    metadata = {**kept, "n": len(codes), **facts(content.target, index)}
    forget(metadata, output.name)
    write(output, index, metadata, content.target.nbytes(codebooks.shape, len(codes)))
    return len(codes)
