"""Index files in: footer, hash, limits, allow-list, card; nothing is searched before all of them agree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import faiss
import numpy as np

from .. import files
from ..codebooks import Shape
from ..errors import ConfigError, IndexFileError, shown
from ..files import PathLike
from ..metadata import check_card, told
from ..targets import REGISTRY as TARGETS
from ..targets import target as find_target
from ..targets.base import Target, product_books
from ..targets.ids import behind_ids, lowest_and_repeated
from ..targets.options import check as check_options
from ..targets.pretransform import unwrap_index
from ..targets.reshape import merged, split
from ..targets.validation import validate
from .index_reader import load_index

MERGED_ROUNDING = 1e-6  # of the largest number in the books: sums of two float32


@dataclass(frozen=True)
class Stored:
    """What a file held: the FAISS index, its card (None for a plain FAISS file), the target it belongs to (None where it
    is none of ours), and by what another file of the same name is told apart.
    """

    index: Any
    card: Mapping[str, Any] | None
    target: Target | None = None
    stamp: Any = None

    @staticmethod
    def of(index: Any, card: Mapping[str, Any] | None = None) -> Stored:
        """An index in memory, as a file with this card would hold it."""
        return Stored(index, card, target_of(index, (card or {}).get("target")))

    @property
    def shape(self) -> Shape | None:
        """The codes' shape as the card has it, which tells of books that stand merged."""
        return None if self.card is None else shape_of_card(self.card)


def shape_of_card(card: Mapping[str, Any]) -> Shape:
    return Shape(card["kind"], card["M"], card["nbits"], card["d"], card["metric"])


def options_of(card: Mapping[str, Any], target: Target) -> Any:
    """The options that a gallery was exported with. Raises IndexFileError for such as no export writes."""
    stored = card.get("options", {})
    try:
        options = TARGETS[target.INFO.name].Options(**stored)  # TypeError: no object, or of other names
        check_options(options)
    except (TypeError, ConfigError) as error:
        raise IndexFileError(f"the card says options={told(stored)}, which no export writes") from error
    return options


def stamp_of(f: BinaryIO) -> Any:
    """What tells the content of an open file: the hash that it carries, or None."""
    return files.digest(f) if files.has_footer(f) else None


def read_gallery(path: PathLike, *, verify: bool = True, mmap: bool = False) -> Stored:
    """Read and check a file: footer, hash (unless verify=False), allow-list, card against index.

    mmap: codes and ids stay in the file; it must not be changed in place while it is open (replacing it is safe).
    Raises ConfigError where it is missing, IndexFileError where it is damaged or not ours, ResourceError where it claims
    more memory than its size justifies.
    """
    name = shown(path)
    with files.open_regular(path) as f:  # one descriptor: a file swapped in meanwhile cannot mix
        card = stream = None
        if files.has_footer(f):
            card, stream = files.read_footer(f, name, hash_all=verify)
        index, used = load_index(f, name, stream, mmap)
        if stream is not None and used != stream:
            raise IndexFileError(f"{name}: the index ends after {used:,} bytes, the card says {stream:,}")
        if stream is None and used != os.fstat(f.fileno()).st_size:
            raise IndexFileError(
                f"{name}: bytes follow the index without a valid footer; export again or restore a copy"
            )
        stamp = stamp_of(f)
    try:
        validate(index, mmap)
    except IndexFileError as error:
        raise IndexFileError(f"{name}: {error}") from error
    target = target_of(index, (card or {}).get("target"))
    if card is not None:
        _compare(card, index, target, name)
        if verify:
            _compare_ids(card, index, name)
    elif target is not None and target.INFO.name in ("fastscan", "buckets") and target.disagreement(index):
        target = None  # their searches rely on how we build them: another's is left to FAISS
    return Stored(index, card, target, stamp)


def target_of(index: Any, told: Any = None) -> Target | None:
    """The registered target that could have built `index`: the one told, if it could, or the first."""
    fits = [name for name in TARGETS if find_target(name).holds(index)]
    if told in fits:
        return find_target(told)
    return find_target(fits[0]) if fits else None


def _compare(card: Mapping[str, Any], index: Any, target: Target | None, name: str) -> None:
    """Raise IndexFileError where card and index disagree, or parts of either."""
    check_card(card, name)
    if target is None:
        raise IndexFileError(
            f"{name}: the card says target={told(card.get('target'))}, the index is a {type(unwrap_index(index)).__name__}"
        )
    stored = target.shape_of(index)
    actual = {"target": target.INFO.name, "n": index.ntotal}
    if card.get("nbits") == 4 and card.get("M") == 2 * stored.M and stored.nbits == 8:
        stored = replace(stored, M=2 * stored.M, nbits=4)  # 4-bit books that stand in pairs: see targets/reshape.py
    actual |= {"kind": stored.kind, "d": stored.d, "M": stored.M, "nbits": stored.nbits, "K": stored.K}
    actual["metric"] = stored.metric
    if card["encoder"] != "model":
        actual["d_in"] = index.d
    try:
        options_of(card, target)
    except IndexFileError as error:
        raise IndexFileError(f"{name}: {error}") from error
    actual |= {key: value for key, value in target.facts(index).items() if key in card}  # the first files lack them
    for key, value in actual.items():
        if type(card.get(key)) is not type(value) or card.get(key) != value:
            raise IndexFileError(f"{name}: the card says {key}={told(card.get(key))}, the index has {value}")
    if "bits" in card and card["bits"] != card["M"] * card["nbits"]:
        raise IndexFileError(f"{name}: the card says bits={card['bits']}, and M={card['M']} of nbits={card['nbits']}")
    wrong = target.disagreement(index)
    if wrong is None and card["M"] != target.shape_of(index).M:
        wrong = _unmerged(target, index, shape_of_card(card))
    if wrong is not None:
        raise IndexFileError(f"{name}: {wrong}")


def _unmerged(target: Target, index: Any, shape: Shape) -> str | None:
    """What is wrong with 8-bit books that the card calls pairs of 4-bit books, or None."""
    core = unwrap_index(index) if isinstance(unwrap_index(index), faiss.IndexIVFPQ) else behind_ids(index)
    coarse = faiss.downcast_index(core.quantizer) if isinstance(core, faiss.IndexIVFPQ) else core
    books = product_books(coarse if isinstance(coarse, faiss.IndexPQ) else core, shape.kind)
    pairs, codes = split(books, np.zeros((0, books.M), np.uint8), shape)
    again = merged(pairs, codes)[0].centroids
    scale = float(np.abs(books.centroids).max())
    far = np.argwhere(np.abs(again - books.centroids) > MERGED_ROUNDING * scale)
    if not len(far):
        return None
    at = tuple(far[0])
    return f"codeword {at[1]} of book {at[0]} is {books.centroids[at]:g}, the two 4-bit codewords make {again[at]:g}"


def _compare_ids(card: Mapping[str, Any], index: Any, name: str) -> None:
    """Raise IndexFileError for ids below 0, FAISS's mark for no row, and where more rows repeat an id than the card says."""
    low, repeated = lowest_and_repeated(index)
    if low < 0:
        raise IndexFileError(f"{name}: the index holds id {low}, ids are 0 or larger")
    allowed = card.get("repeated_ids")  # older galleries do not count them
    if allowed is not None and repeated != allowed:
        raise IndexFileError(
            f"{name}: the card says {allowed:,} rows repeat an id, in the index {repeated:,} do; export again"
        )
