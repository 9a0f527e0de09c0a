"""`scqfaiss demo --serve`: the digits as a gallery with items and images, for the page of `scqfaiss serve`."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats
from ..contract import Progress
from ..errors import ScqWarning, printable
from ..files import atomic_write, make_folder
from ..galleries.exporting import export_file
from ..options import TrainOptions
from ..progress import Meter
from ..training.calibrating import calibrate_file
from ..training.interface import train_file
from .digits import write_parts

NAME = "digits"  # of the gallery
BITS, CONTENT_BITS = 16, 16
SIDE = 96  # pixels of an image
LEVELS = 16  # of a pixel: 0 to 16
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Served(NamedTuple):
    """What the page is served with."""

    gallery: Path
    model: Path
    items: Path
    images: Path


def serve_digits(folder: Path, say: Callable[[str], Any], progress: Meter, port: int | None = None) -> None:
    """Prepare the digits, and serve them on this machine alone until a signal comes. Raises as prepare and serving.run.serve."""
    from ..serving.run import serve  # first: whatever lacks is told before anything is trained

    served = prepare(folder, say, progress)
    progress.close()
    gallery, model, items, images = map(printable, served)
    say("To serve them again, with options of your own:")
    say(f"  scqfaiss serve {NAME}={gallery} --model {model} --items {items} --images {images}\n")
    options = {"model": (str(served.model),), "items": (str(served.items),), "images": str(served.images), "port": port}
    serve((f"{NAME}={served.gallery}",), say, **options)


def prepare(folder: Path, say: Callable[[str], Any], progress: Progress) -> Served:
    """Train, calibrate and export the digits into `folder`, with items and images, unless an earlier run did.

    Raises WriteError where the folder cannot be made or written.
    """
    make_folder(folder)
    make_folder(folder / "images")
    served = Served(
        folder / f"{NAME}.faissindex", folder / f"{NAME}.safetensors", folder / "items.csv", folder / "images"
    )
    if all(path.exists() for path in served):
        say(f"{printable(folder)} holds the digits already; remove it to train them again")
        return served
    with atomic_write(served.items) as output:  # the last file, and what a signal goes by
        parts = write_parts(folder)
        pixels, labels, ids = parts["database"]
        say(f"handwritten digits: {len(parts['train'][0])} to train, {len(ids)} in the gallery\n")
        with warnings.catch_warnings():  # few rows: true, but no news in a demo
            warnings.simplefilter("ignore", ScqWarning)
            request = TrainOptions(method="scq", bits=BITS, content_bits=CONTENT_BITS, forecast="off")
            rows = folder / "database.h5"
            train_file(folder / "train.h5", served.model, request, keys={}, progress=progress, codebook_rows=rows)
            calibrate_file(served.model, folder / "query.h5", keys={}, progress=progress)
            export_file(served.model, rows, served.gallery, keys={}, progress=progress)
        for i, (row, id) in enumerate(zip(pixels, ids)):
            content = png(row)
            with atomic_write(served.images / f"{id}.png") as image:
                image.durable = False
                image.write(lambda f: f.write(content))  # noqa: B023
            progress("images", i + 1, len(ids), "")
        output.write(lambda f: f.write(items_csv(labels.y, ids).encode()))
    return served


def items_csv(labels: NDArray[Any], ids: NDArray[np.int64]) -> str:
    """labels (n,), ids (n,) -> a file of items."""
    lines = ["id,title,label,image"]
    lines += [f"{i},Handwritten {WORDS[int(y)]},{int(y)},{i}.png" for y, i in zip(labels, ids)]
    return "\n".join(lines) + "\n"


def png(pixels: Floats) -> bytes:
    """The 64 pixels of a digit, 0 to LEVELS -> an image of SIDE x SIDE, dark on white, with a margin; linear in between."""
    ink = np.pad(np.clip(pixels / LEVELS, 0, 1).reshape(8, 8), 2)
    weights = np.maximum(1 - np.abs(np.linspace(0.5, 10.5, SIDE)[:, None] - np.arange(12)), 0)
    grey = np.round(255 * (1 - weights @ ink @ weights.T)).astype(np.uint8)
    lines = b"".join(b"\0" + line.tobytes() for line in grey)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)  # width, height, 8 bits of grey
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
