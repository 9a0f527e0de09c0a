"""manifest.json of a folder of shards: which files make the gallery, and what they have in common.

It is written last and replaced as a whole: what it does not name is no part of the gallery. A shard that changes gets another
name, so that whatever happens between the two writes, the manifest names whole files that belong together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ... import files, footer
from ...errors import ConfigError, IndexFileError, WriteError, printable
from ...files import AtomicFile, PathLike
from ...metadata import check_card, told

SUFFIX = ".shards"
MANIFEST = "manifest.json"
FORMAT = 1
MAX_BYTES = 64 << 20  # of a manifest: some 300,000 shards
MAX_ID = (1 << 63) - 1
_NAME = re.compile(r"shard-(\d{5,9})(?:-(\d{1,9}))?\.faissindex")
_SHA256 = re.compile("[0-9a-f]{64}")

# What the metadata of all shards say alike: the model, its codes, and how they are stored.
COMMON = (
    *("model_sha256", "method", "rule", "kind", "M", "K", "nbits", "bits", "d", "d_in", "metric", "encoder", "target"),
    *(
        "options",
        "lists",
        "list_beam",
        "content_bits",
        "class_names",
        "classes",
        "pictures",
        "calibration",
        "model_bits",
    ),
)


@dataclass(frozen=True)
class Shard:
    """One file. ids: the smallest and the largest; sha256: the checksum that stands in its footer."""

    name: str
    rows: int
    ids: tuple[int, int]
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """metadata: what is common to all shards. rows_per_shard: how many a shard takes before an append begins another."""

    metadata: Mapping[str, Any]
    rows_per_shard: int
    shards: tuple[Shard, ...]

    @property
    def n(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of what it says, and by the checksums in it of all shards."""
        return hashlib.sha256(_text(self._values())).hexdigest()

    def to_bytes(self) -> bytes:
        return _text({**self._values(), "sha256": self.checksum}, indent=1) + b"\n"

    def _values(self) -> dict[str, Any]:
        shards = [{**asdict(shard), "ids": list(shard.ids)} for shard in self.shards]
        return {
            "format": FORMAT,
            "metadata": dict(self.metadata),
            "rows_per_shard": self.rows_per_shard,
            "shards": shards,
        }

    @staticmethod
    def of(cards: Sequence[Mapping[str, Any]], shards: Sequence[Shard], rows_per_shard: int) -> Manifest:
        """The manifest of shards, in this order, from the metadata of each.

        relevant_share is the mean over the rows, and skipped_rows are counted together.
        """
        first, n = cards[0], sum(shard.rows for shard in shards)
        metadata = {key: first[key] for key in COMMON if key in first} | {"n": n}
        if all("relevant_share" in card for card in cards):
            metadata["relevant_share"] = sum(c["relevant_share"] * s.rows for c, s in zip(cards, shards)) / n
        if skipped := sum(card.get("skipped_rows", 0) for card in cards):
            metadata["skipped_rows"] = skipped
        return Manifest(metadata, rows_per_shard, tuple(shards))


def _text(values: Mapping[str, Any], indent: int | None = None) -> bytes:
    text = json.dumps(values, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "surrogatepass")


def is_sharded(path: PathLike) -> bool:
    """Whether the name is that of a folder of shards."""
    return Path(path).suffix == SUFFIX


def gallery_files(path: PathLike) -> list[PathLike]:
    """The files of a gallery: those that its manifest names, or the one file itself.

    Raises IndexFileError naming a shard that is missing, or another than the manifest says; nothing else of it is checked.
    """
    if not is_sharded(path):
        return [path]
    found: list[PathLike] = []
    for shard in read_manifest(path).shards:
        file = Path(path) / shard.name
        if not file.exists():
            raise missing(file)
        with files.open_regular(file) as f:
            if not footer.has_footer(f) or footer.digest(f).hex() != shard.sha256:
                raise IndexFileError(f"{printable(file)}: is damaged, or another file than the manifest says")
        found.append(file)
    return found


def missing(file: Path) -> IndexFileError:
    return IndexFileError(f"{printable(file)}: is missing, the manifest lists it; export again or restore a copy")


def shard_name(number: int, generation: int = 0) -> str:
    return f"shard-{number:05}" + (f"-{generation}" if generation else "") + ".faissindex"


def numbers_of(name: str) -> tuple[int, int] | None:
    """(number, generation) of the name of a shard; None for other files."""
    found = _NAME.fullmatch(name)
    return None if found is None else (int(found[1]), int(found[2] or 0))


def newer_name(name: str, taken: Sequence[Shard]) -> str:
    """The name of a shard's next generation, which no shard of the gallery has."""
    number, generation = numbers_of(name) or (0, 0)
    used = {shard.name for shard in taken}
    while shard_name(number, generation) in used:
        generation += 1
    return shard_name(number, generation)


def read_manifest(folder: PathLike) -> Manifest:
    """Raises ConfigError where there is no such folder, IndexFileError where it holds no manifest or one that is damaged."""
    name = printable(folder)
    if not os.path.isdir(folder):
        raise ConfigError(
            f"{name}: no such folder" if not os.path.exists(folder) else f"{name}: is no folder of shards"
        )
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise IndexFileError(
            f"{name}: has no {MANIFEST}, which is written last: the export did not finish; export again"
        )
    with files.open_regular(path) as f:
        data = f.read(MAX_BYTES + 1)
    values = files.parse_json(data) if len(data) <= MAX_BYTES else None
    if values is None:
        raise IndexFileError(f"{printable(path)}: is not a JSON object; export again or restore a copy")
    if type(values.get("format")) is not int or values["format"] > FORMAT:
        raise IndexFileError(
            f"{printable(path)}: made by a newer scqfaiss: format {told(values.get('format'))}, this version reads {FORMAT}"
        )
    return _checked(values, path)


def _checked(values: Mapping[str, Any], path: Path) -> Manifest:
    name = printable(path)
    listed, metadata, per = values.get("shards"), values.get("metadata"), values.get("rows_per_shard")
    if not isinstance(listed, list) or not listed or not isinstance(metadata, dict) or not _count(per, 1):
        raise IndexFileError(f"{name}: needs metadata, rows_per_shard and a list of shards")
    shards = [_shard(entry, name) for entry in listed]
    names: dict[str, str] = {}
    for shard in shards:
        for key in (shard.name, shard.sha256):
            if key in names:
                also = "" if names[key] == shard.name else f", as {names[key]} too"
                raise IndexFileError(f"{name}: {shard.name} is listed twice{also}; export again or restore a copy")
        names |= {shard.name: shard.name, shard.sha256: shard.name}
    manifest = Manifest(metadata, int(per or 1), tuple(shards))
    try:
        checksum = manifest.checksum
    except (ValueError, RecursionError):
        checksum = ""
    if values.get("sha256") != checksum:
        raise IndexFileError(f"{name}: checksum mismatch; export again or restore a copy")
    check_card(metadata, name)
    if metadata["n"] != manifest.n:
        raise IndexFileError(f"{name}: the metadata says n={metadata['n']}, the shards hold {manifest.n}")
    return manifest


def _shard(entry: Any, name: str) -> Shard:
    if not isinstance(entry, dict):
        raise IndexFileError(f"{name}: a shard is {told(entry)}, needs an object")
    found, rows, ids, sha = (entry.get(key) for key in ("name", "rows", "ids", "sha256"))
    if not isinstance(found, str) or numbers_of(found) is None:  # never a path that leads elsewhere
        raise IndexFileError(f"{name}: a shard is called {told(found)}, needs a name such as {shard_name(3)}")
    ranged = isinstance(ids, list) and len(ids) == 2 and all(_count(i, 0) for i in ids) and ids[0] <= ids[1]
    if not _count(rows, 1) or not ranged or not isinstance(sha, str) or not _SHA256.fullmatch(sha):
        raise IndexFileError(f"{name}: {found} needs rows, the first and last of its ids, and a SHA-256 of 64 digits")
    low, high = ids  # type: ignore[misc]
    return Shard(found, int(rows), (low, high), sha)  # type: ignore[arg-type]


def _count(value: Any, low: int) -> bool:
    return type(value) is int and low <= value <= MAX_ID


def write_manifest(output: AtomicFile, manifest: Manifest) -> None:
    """Put it in place, read back first. Raises WriteError."""
    data = manifest.to_bytes()
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{output.name}: {len(manifest.shards):,} shards are too many for one manifest")

    def check(temporary: Path) -> None:
        with files.open_regular(temporary) as f:
            if f.read() != data:
                raise WriteError(f"{output.name}: read back other bytes than were written")

    output.write(lambda f: f.write(data), check, len(data))
