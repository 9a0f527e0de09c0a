"""One encoded image -> (3, size, size) uint8 in RGB, by Pillow.

Upright as its EXIF orientation says. Grey and palette become RGB, CMYK by the plain formula; transparent pixels are laid over
white; of 16 bits the upper 8 stay; of an animation the first image; colour profiles are ignored. Pixels of 32 bits (integers,
floats) have no agreed range and are refused.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import format_bytes
from .png_text import TEXT_BYTES, TooLong, without_large_texts

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFile import ImageFile

T = TypeVar("T")

FITS = ("crop", "squash", "pad")
MAX_SIDE = 1 << 20  # pixels: each line costs memory of its own, however short it is
MAX_PIXELS = 178_956_970  # what Pillow itself takes for an attack, unless its settings were changed: 0.5 GB of RGB
LARGE_PIXELS = 1 << 24  # from here on images are decoded one at a time: 4 bytes a pixel, several times over
SMALL_PIXELS = 1 << 12  # thumbnails up to this are PNG: JPEG would blur what few pixels they have
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no others: Pillow would start programs for some
MAGIC = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|GIF8[79]a|II[*+]\0|MM\0[*+]", re.DOTALL)
# What undoes each EXIF orientation (CIPA DC-008, tag 274); Pillow counts angles against the clock.
TRANSPOSES = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

_large = threading.Lock()


class Fault(NamedTuple):
    """Why an image cannot be used. kind: 'empty', 'no image', 'damaged', 'too large' or 'unreadable'."""

    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.why}"


class Refused(Exception):
    """A Fault on its way up. Not to be kept: its traceback holds the pixels that there were."""

    def __init__(self, kind: str, why: str) -> None:
        self.fault = Fault(kind, why)
        super().__init__(str(self.fault))


def decode(f: BinaryIO, side: int, fit: str = "crop", most_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """One encoded image -> (3, side, side) uint8, RGB, as the head of this file says.

    fit: 'crop' scales the short side to `side` and cuts the middle out, 'squash' scales both sides, 'pad' scales the long
    side and adds black bars. Bicubic, antialiased. A JPEG is decoded at a half, a quarter or an eighth of its size where that
    is still twice what is needed: what comes out differs by 1 to 3 of 255 levels on average.
    Raises Refused; more than `most_pixels`, or MAX_SIDE on a side, are refused by the header, before memory is taken for them.
    """
    return _decoded(
        f,
        lambda w, h: _whole(w, h, 2 * side, fit),
        lambda image: np.asarray(_fitted(image, side, fit)).transpose(2, 0, 1),
        most_pixels,
    )


def thumbnail(f: BinaryIO, side: int, most_pixels: int = MAX_PIXELS) -> tuple[bytes, str]:
    """One encoded image, whole and no larger than `side` either way -> (an encoded image, its media type).

    Small ones keep their size and their pixels, as PNG; others become JPEG. Raises Refused; more than `most_pixels` are refused
    by the header.
    """

    def encoded(image: Image.Image) -> tuple[bytes, str]:
        scale = min(1.0, side / max(image.size))
        if scale < 1:
            from PIL.Image import Resampling

            w, h = (max(1, round(length * scale)) for length in image.size)
            image = image.resize((w, h), Resampling.BICUBIC)
        small, out = image.width * image.height <= SMALL_PIXELS, io.BytesIO()
        image.save(out, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
        return out.getvalue(), "image/png" if small else "image/jpeg"

    return _decoded(f, lambda w, h: _whole(w, h, 2 * side, "pad"), encoded, most_pixels)


def prove(f: BinaryIO) -> None:
    """Decode an image for nothing but to know that it can be, as fast as that goes. Raises Refused."""
    _decoded(f, lambda w, h: (1, 1), lambda image: None)


def _whole(w: int, h: int, side: int, fit: str) -> tuple[int, int]:
    """What an image (w, h) as a whole has to be scaled to: exactly this for 'pad', no less than this for the others."""
    if fit != "pad":
        return side, side
    return max(1, round(w * side / max(w, h))), max(1, round(h * side / max(w, h)))


def _decoded(
    f: BinaryIO,
    needed: Callable[[int, int], tuple[int, int]],
    make: Callable[[Image.Image], T],
    most_pixels: int = MAX_PIXELS,
) -> T:
    """make(image), the image being upright, RGB, and no smaller than needed(width, height) where it was not before."""
    try:
        return _decoded_as_it_is(f, needed, make, most_pixels)
    except Refused as refused:
        if refused.fault.kind != "damaged":
            raise
        from PIL import PngImagePlugin

        try:
            plain = without_large_texts(f, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
        except OSError as error:
            raise Refused("unreadable", os.strerror(error.errno or 0)) from error
        except TooLong:
            raise Refused("too large", f"its texts unpack to more than {format_bytes(TEXT_BYTES)}") from None
        if plain is None:
            raise
        return _decoded_as_it_is(plain, needed, make, most_pixels)


def _decoded_as_it_is(
    f: BinaryIO, needed: Callable[[int, int], tuple[int, int]], make: Callable[[Image.Image], T], most_pixels: int
) -> T:
    from PIL import Image

    with quiet(), _damage(f):
        image = Image.open(f, formats=FORMATS)
        if max(image.size) > MAX_SIDE:
            raise Refused("too large", f"a side has {max(image.size):,} pixels, at most {MAX_SIDE:,} are read")
        if image.width * image.height > most_pixels:
            raise _too_many_pixels(most_pixels)
        if not (image.width and image.height):
            raise Refused("damaged", "it has no pixels")
        image.draft(None, needed(*image.size))  # something for JPEG alone
    if image.width * image.height <= LARGE_PIXELS:
        return _load(f, image, make)
    # The C library keeps what a thread has used for that thread: 4 of them would hold 4 such images, even in turns.
    with _large, ThreadPoolExecutor(1) as alone:
        return alone.submit(_load, f, image, make).result()


def _load(f: BinaryIO, image: ImageFile, make: Callable[[Image.Image], T]) -> T:
    with quiet(), _damage(f):
        image.load()
        return make(_upright(_rgb(image), _orientation(image)))


@contextmanager
def _damage(f: BinaryIO) -> Iterator[None]:
    """OptimizerStep what Pillow raises on bad bytes, which is whatever its code happens to meet, into Refused."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except (Refused, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(2 * (Image.MAX_IMAGE_PIXELS or 0)) from error
    except UnidentifiedImageError as error:  # also where the header is of a format that we know, and broken
        f.seek(0)
        if MAGIC.match(f.read(16)):
            raise Refused("damaged", "its header is broken or cut off") from error
        raise Refused("no image", "it is neither JPEG, PNG, WebP, GIF, BMP nor TIFF") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's own, not Pillow's
            raise Refused("unreadable", os.strerror(error.errno)) from error
        raise Refused("damaged", "its pixels are broken or cut off") from error


def _too_many_pixels(most: int) -> Refused:
    return Refused("too large", f"it has more than {most:,} pixels")


def _orientation(image: ImageFile) -> int:
    """How the image has to be turned: 1 (not at all) to 8, as EXIF numbers it."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except MemoryError:
        raise
    except Exception:  # what is broken is the EXIF part, not the image
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    return image.transpose(Transpose[TRANSPOSES[orientation]]) if orientation in TRANSPOSES else image


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Pillow would clip at 255. The upper byte is also what it keeps of 16 bits in colour.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Refused("no image", "its pixels of 32 bits have no agreed range")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        image = Image.new("RGB", pixels.size, "white")
        image.paste(pixels, mask=pixels.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _fitted(image: Image.Image, side: int, fit: str) -> Image.Image:
    from PIL import Image

    bicubic, (w, h) = Image.Resampling.BICUBIC, image.size
    if fit == "squash":
        return image.resize((side, side), bicubic)
    if fit == "crop":
        # Scaling a box gives the pixels that scaling the whole and cutting would, its surroundings being looked at too.
        # From whole pixels on: an image that only has to be cut must not be blurred by half a pixel.
        short = min(w, h)
        x, y = (w - short) // 2, (h - short) // 2
        return image.resize((side, side), bicubic, box=(x, y, x + short, y + short))
    small = image.resize(_whole(w, h, side, fit), bicubic)
    out = Image.new("RGB", (side, side))
    out.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return out


# One filter for all threads. warnings.catch_warnings() would do for one thread, but for several it is none: the last to leave
# puts back what it found when it came.
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\b|PIL\."), 0)
_quiet_lock, _quiet_users = threading.Lock(), 0


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that Pillow warns of (odd EXIF parts, many pixels) reaches anybody: an image can be used, or is Refused."""
    global _quiet_users
    with _quiet_lock:
        _quiet_users += 1
        if _QUIET not in warnings.filters:
            warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if not _quiet_users:
                with suppress(ValueError):  # somebody else put other filters in place meanwhile
                    warnings.filters.remove(_QUIET)  # type: ignore[attr-defined]
