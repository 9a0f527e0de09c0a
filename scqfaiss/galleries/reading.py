"""Index files in: footer, hash, limits, allow-list, metadata; nothing is searched before all of them agree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import faiss
import numpy as np

from .. import files, footer
from ..codebooks import Shape
from ..errors import ConfigError, IndexFileError, printable
from ..files import PathLike
from ..metadata import check_card, told
from ..targets import REGISTRY as TARGETS
from ..targets import target as find_target
from ..targets.base import Target, product_codebooks
from ..targets.ids import behind_ids, lowest_and_repeated
from ..targets.options import check as check_options
from ..targets.pretransform import unwrap_index
from ..targets.reshape import merged, split
from ..targets.validation import validate
from .index_reader import load_index

MERGED_ROUNDING = 1e-6  # of the largest number in the codebooks: sums of two float32


@dataclass(frozen=True)
class Stored:
    """What a file held: the FAISS index, its metadata (None for a plain FAISS file), the target it belongs to (None where it
    is none of ours), and by what another file of the same name is told apart.
    """

    index: Any
    metadata: Mapping[str, Any] | None
    target: Target | None = None
    stamp: Any = None

    @staticmethod
    def of(index: Any, metadata: Mapping[str, Any] | None = None) -> Stored:
        """An index in memory, as a file with this metadata would hold it."""
        return Stored(index, metadata, target_of(index, (metadata or {}).get("target")))

    @property
    def shape(self) -> Shape | None:
        """The codes' shape as the metadata has it, which tells of codebooks that stand merged."""
        return None if self.metadata is None else shape_of_card(self.metadata)


def shape_of_card(metadata: Mapping[str, Any]) -> Shape:
    s = metadata
    return Shape(s["kind"], s["M"], s["nbits"], s["d"], s["metric"], s.get("lists", 1))


def options_of(metadata: Mapping[str, Any], target: Target) -> Any:
    """The options that a gallery was exported with. Raises IndexFileError for such as no export writes."""
    stored = metadata.get("options", {})
    try:
        options = TARGETS[target.INFO.name].Options(**stored)  # TypeError: no object, or of other names
        check_options(options)
    except (TypeError, ConfigError) as error:
        raise IndexFileError(f"the metadata says options={told(stored)}, which no export writes") from error
    return options


def stamp_of(f: BinaryIO) -> Any:
    """What tells the content of an open file: the hash that it carries, or None."""
    return footer.digest(f) if footer.has_footer(f) else None


def read_gallery(path: PathLike, *, verify: bool = True, mmap: bool = False) -> Stored:
    """Read and check a file: footer, hash (unless verify=False), allow-list, metadata against index.

    mmap: codes and ids stay in the file; it must not be changed in place while it is open (replacing it is safe).
    Raises ConfigError where it is missing, IndexFileError where it is damaged or not ours, ResourceError where it claims
    more memory than its size justifies.
    """
    name = printable(path)
    with files.open_regular(path) as f:  # one descriptor: a file swapped in meanwhile cannot mix
        metadata = stream = None
        if footer.has_footer(f):
            metadata, stream = footer.read_footer(f, name, hash_all=verify)
        index, used = load_index(f, name, stream, mmap)
        if stream is not None and used != stream:
            raise IndexFileError(f"{name}: the index ends after {used:,} bytes, the metadata says {stream:,}")
        if stream is None and used != os.fstat(f.fileno()).st_size:
            raise IndexFileError(
                f"{name}: bytes follow the index without a valid footer; export again or restore a copy"
            )
        stamp = stamp_of(f)
    try:
        validate(index, mmap)
    except IndexFileError as error:
        raise IndexFileError(f"{name}: {error}") from error
    target = target_of(index, (metadata or {}).get("target"))
    if metadata is not None:
        _compare(metadata, index, target, name)
        if verify:
            _compare_ids(metadata, index, name)
    elif target is not None and target.INFO.name in ("fastscan", "buckets") and target.disagreement(index):
        target = None  # their searches rely on how we build them: another's is left to FAISS
    return Stored(index, metadata, target, stamp)


def target_of(index: Any, told: Any = None) -> Target | None:
    """The registered target that could have built `index`: the one told, if it could, or the first.

    Lists that are part of the codes are stored alike by two: without a word, they are searched as plain FAISS does.
    """
    fits = [name for name in TARGETS if find_target(name).holds(index)]
    if told in fits:
        return find_target(told)
    return find_target(min(fits, key=lambda name: name == "buckets")) if fits else None


def _compare(metadata: Mapping[str, Any], index: Any, target: Target | None, name: str) -> None:
    """Raise IndexFileError where metadata and index disagree, or parts of either."""
    check_card(metadata, name)
    if target is None:
        raise IndexFileError(
            f"{name}: the metadata says target={told(metadata.get('target'))}, "
            f"the index is a {type(unwrap_index(index)).__name__}"
        )
    stored = target.shape_of(index)
    actual = {"target": target.INFO.name, "n": index.ntotal}
    if metadata.get("nbits") == 4 and metadata.get("M") == 2 * stored.M and stored.nbits == 8:
        stored = replace(stored, M=2 * stored.M, nbits=4)  # 4-bit codebooks that stand in pairs: see targets/reshape.py
    actual |= {"kind": stored.kind, "d": stored.d, "M": stored.M, "nbits": stored.nbits, "K": stored.K}
    actual["metric"] = stored.metric
    if "lists" in metadata or stored.L > 1:
        actual["lists"] = stored.L
    if metadata["encoder"] != "model":
        actual["d_in"] = index.d
    try:
        options_of(metadata, target)
    except IndexFileError as error:
        raise IndexFileError(f"{name}: {error}") from error
    actual |= {key: value for key, value in target.facts(index).items() if key in metadata}  # the first files lack them
    for key, value in actual.items():
        if type(metadata.get(key)) is not type(value) or metadata.get(key) != value:
            raise IndexFileError(f"{name}: the metadata says {key}={told(metadata.get(key))}, the index has {value}")
    if "bits" in metadata and metadata["bits"] != metadata["M"] * metadata["nbits"]:
        raise IndexFileError(
            f"{name}: the metadata says bits={metadata['bits']}, and M={metadata['M']} of nbits={metadata['nbits']}"
        )
    wrong = _lists_disagree(metadata) or _content_disagrees(metadata) or target.disagreement(index)
    if wrong is None and metadata["M"] != target.shape_of(index).M:
        wrong = _unmerged(target, index, replace(shape_of_card(metadata), L=1))
    if wrong is not None:
        raise IndexFileError(f"{name}: {wrong}")


def _lists_disagree(metadata: Mapping[str, Any]) -> str | None:
    """What the metadata says of lists and of encoding that no model with lists, or without, says; or None."""
    if "lists" not in metadata and "list_beam" in metadata:
        return f"the metadata says list_beam={metadata['list_beam']}, and the codes have no lists"
    if "lists" in metadata and metadata.get("rule", "l2") != "l2":
        return f"the metadata says rule={metadata['rule']}, and codes with lists are encoded by l2"
    return None


def _content_disagrees(metadata: Mapping[str, Any]) -> str | None:
    """What the metadata says of content codes that no model with them says; or None."""
    bits = metadata.get("content_bits")
    if bits is None:
        return None
    least = 0 if "lists" in metadata else metadata["nbits"]  # of the other part
    if bits % metadata["nbits"] or bits > metadata["M"] * metadata["nbits"] - least:
        return (
            f"the metadata says content_bits={bits}, and M={metadata['M']} of nbits={metadata['nbits']}: no model divides "
            "its codes like this"
        )
    if metadata["encoder"] != "model" or metadata["metric"] != "ip":
        return f"the metadata says encoder={metadata['encoder']}, metric={metadata['metric']}, content codes need model, ip"
    return None


def _unmerged(target: Target, index: Any, shape: Shape) -> str | None:
    """What is wrong with 8-bit codebooks that the metadata calls pairs of 4-bit codebooks, or None."""
    core = unwrap_index(index) if isinstance(unwrap_index(index), faiss.IndexIVFPQ) else behind_ids(index)
    coarse = faiss.downcast_index(core.quantizer) if isinstance(core, faiss.IndexIVFPQ) else core
    codebooks = product_codebooks(coarse if isinstance(coarse, faiss.IndexPQ) else core, shape.kind)
    pairs, codes = split(codebooks, np.zeros((0, codebooks.M), np.uint8), shape)
    again = merged(pairs, codes)[0].centroids
    scale = float(np.abs(codebooks.centroids).max())
    far = np.argwhere(np.abs(again - codebooks.centroids) > MERGED_ROUNDING * scale)
    if not len(far):
        return None
    at = tuple(far[0])
    return f"codeword {at[1]} of codebook {at[0]} is {codebooks.centroids[at]:g}, the two 4-bit codewords make {again[at]:g}"


def _compare_ids(metadata: Mapping[str, Any], index: Any, name: str) -> None:
    """Raise IndexFileError for ids below 0, FAISS's mark for no row, and where more rows repeat an id than the metadata says."""
    low, repeated = lowest_and_repeated(index)
    if low < 0:
        raise IndexFileError(f"{name}: the index holds id {low}, ids are 0 or larger")
    allowed = metadata.get("repeated_ids")  # older galleries do not count them
    if allowed is not None and repeated != allowed:
        raise IndexFileError(
            f"{name}: the metadata says {allowed:,} rows repeat an id, in the index {repeated:,} do; export again"
        )
