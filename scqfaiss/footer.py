"""The footer of a gallery: metadata and a checksum behind the FAISS stream.

A gallery is

    FAISS stream | JSON metadata (UTF-8) | u64 stream bytes | u64 metadata bytes | SHA-256 of all before | magic 'SCQFAISS'

All FAISS readers ignore what follows their stream, so plain FAISS loads the file; scqfaiss verifies it. The hash shows
damage, not authorship: whoever can write the file can write the hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from .errors import ConfigError, IndexFileError, format_bytes
from .files import parse_json

FORMAT = 1
MAGIC = b"SCQFAISS"
TRAILER = struct.Struct("<QQ32s8s")  # stream bytes, metadata bytes, SHA-256, magic
MAX_METADATA = 1 << 20  # bytes; a metadata holds names and numbers, so more than that is not a metadata
_BLOCK = 1 << 20


def write_sealed(f: BinaryIO, fill: Callable[[Callable[[bytes], None]], None], metadata: dict[str, Any]) -> None:
    """Write stream, metadata and trailer into the open file f; fill(put) hands the stream over block by block."""
    sha, written = hashlib.sha256(), 0
    refused: list[BaseException] = []

    def put(block: bytes) -> None:
        nonlocal written
        try:
            f.write(block)
        except BaseException as error:  # FAISS's writer would turn it into an error of its own
            refused.append(error)
            raise
        sha.update(block)
        written += len(block)

    try:
        fill(put)
    except BaseException:
        if refused:
            raise refused[0] from None
        raise
    stream = written
    text = json.dumps({"format": FORMAT, **metadata}, sort_keys=True, allow_nan=False, ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
    if len(text) > MAX_METADATA:
        raise ConfigError(
            f"the index metadata takes {format_bytes(len(text))}, at most {format_bytes(MAX_METADATA)} fit"
        )
    put(text)
    put(struct.pack("<QQ", stream, len(text)))
    f.write(sha.digest() + MAGIC)


def has_footer(f: BinaryIO) -> bool:
    """True where the open file ends with our magic; says nothing about whether the footer is sound."""
    f.seek(0, os.SEEK_END)
    if f.tell() < TRAILER.size:
        return False
    f.seek(-len(MAGIC), os.SEEK_END)
    return f.read(len(MAGIC)) == MAGIC


def digest(f: BinaryIO) -> bytes:
    """The SHA-256 that the footer of an open file carries; not verified."""
    f.seek(-TRAILER.size, os.SEEK_END)
    return bytes(TRAILER.unpack(f.read(TRAILER.size))[2])


def read_footer(f: BinaryIO, name: str, *, hash_all: bool = True) -> tuple[dict[str, Any], int]:
    """Verify the footer of the open file f -> (metadata, bytes of the FAISS stream).

    hash_all=False leaves out the SHA-256 (about 0.6 seconds a GB): lengths and metadata are still checked.
    Raises IndexFileError when anything does not add up or the format is newer than this version reads.
    """
    damaged = IndexFileError(f"{name}: checksum mismatch; export again or restore a copy")
    total = os.fstat(f.fileno()).st_size
    if total < TRAILER.size:
        raise damaged
    f.seek(total - TRAILER.size)
    stream, metadata_bytes, digest, magic = TRAILER.unpack(f.read(TRAILER.size))
    if magic != MAGIC or metadata_bytes > MAX_METADATA or stream + metadata_bytes + TRAILER.size != total:
        raise damaged
    if hash_all:
        f.seek(0)
        sha, left = hashlib.sha256(), total - 40  # all before the digest
        buffer = memoryview(bytearray(_BLOCK))
        while left:
            got = f.readinto(buffer[: min(left, _BLOCK)])  # type: ignore[attr-defined]
            if not got:
                raise IndexFileError(f"{name}: shrank while it was read")
            sha.update(buffer[:got])
            left -= got
        if sha.digest() != digest:
            raise damaged
    f.seek(stream)
    metadata = parse_json(f.read(metadata_bytes))
    if metadata is None or type(metadata.get("format")) is not int:
        raise IndexFileError(f"{name}: the index metadata is not a JSON object with a format number")
    if metadata["format"] != FORMAT:
        raise IndexFileError(
            f"{name}: made by a newer scqfaiss: format {metadata['format']}, this version reads {FORMAT}"
        )
    return metadata, stream
