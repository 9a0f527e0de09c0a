"""PNG files whose texts or colour profile are larger than Pillow takes: the same image without them.

Pillow refuses such files as a whole, so that no small file unpacks to gigabytes. Their pixels are sound, and of all notes
only those that say how the image is turned are looked at here.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_BYTES = 16 << 20  # most that the notes which are kept may take, unpacked
ORIENTATION_KEYS = (
    b"XML:com.adobe.xmp",
    b"Raw profile type exif",
    b"Raw profile type APP1",
)  # in which an orientation may stand


class TooLong(Exception):
    """A note that has to be read unpacks to more than TEXT_BYTES."""


def without_large_texts(f: BinaryIO, each: int, together: int) -> BinaryIO | None:
    """The PNG file `f` without its texts, but for those of ORIENTATION_KEYS, which come unpacked; as large in memory as the file.

    each, together: bytes that Pillow takes of one packed note, and of all. None where these are not exceeded, where it is no
    PNG file, and where it is damaged: then its texts are not what is wrong. Raises TooLong.
    """
    f.seek(0)
    if f.read(8) != SIGNATURE:
        return None
    kept, unpacked_bytes, orientation_bytes, exceeded = [SIGNATURE], 0, 0, False
    while head := f.read(8):
        if len(head) < 8:
            return None
        length, kind = struct.unpack(">I4s", head)
        data, crc = f.read(length), f.read(4)
        if len(data) < length or len(crc) < 4:
            return None
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept += [head, data, crc]
            continue
        if crc != struct.pack(">I", zlib.crc32(kind + data)):
            return None
        keyword, before, packed = _parts(kind, data)
        unpacked = len(packed) if before is None else _unpacked(packed, each + 1)
        unpacked_bytes += unpacked
        exceeded |= before is not None and unpacked > each
        exceeded |= unpacked_bytes > together
        if kind != b"iCCP" and keyword in ORIENTATION_KEYS:
            plain = _chunk(kind, data, before, packed)
            orientation_bytes += len(plain)
            if orientation_bytes > TEXT_BYTES:
                raise TooLong
            kept.append(plain)
    return io.BytesIO(b"".join(kept)) if exceeded else None


def _parts(kind: bytes, data: bytes) -> tuple[bytes, bytes | None, bytes]:
    """(keyword, what stands before packed text or None where it is not packed, the text) of a note."""
    keyword, _, rest = data.partition(b"\0")
    if kind == b"tEXt":
        return keyword, None, rest
    if kind != b"iTXt":
        return keyword, b"", rest[1:]
    fields = rest[2:].split(b"\0", 2)
    if len(fields) < 3:
        return keyword, None, rest
    return keyword, b"\0".join(fields[:2]) + b"\0" if rest[0] else None, fields[2]


def _unpacked(packed: bytes, most: int) -> int:
    """Bytes of packed text, counted up to `most`."""
    try:
        return len(zlib.decompressobj().decompress(packed, most))
    except zlib.error:  # which Pillow passes over
        return 0


def _chunk(kind: bytes, data: bytes, before: bytes | None, packed: bytes) -> bytes:
    """A note with its text unpacked. Raises TooLong."""
    if before is not None:
        keyword = data.partition(b"\0")[0]
        try:
            text = zlib.decompressobj().decompress(packed, TEXT_BYTES + 1)
        except zlib.error:
            return b""
        if len(text) > TEXT_BYTES:
            raise TooLong
        kind, start = (b"tEXt", b"\0") if kind == b"zTXt" else (b"iTXt", b"\0\0\0" + before)
        data = keyword + start + text
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
