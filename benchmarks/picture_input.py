"""Pictures decoded a second: found, opened, decoded, turned upright, scaled and cut. Prints JSON.

    python benchmarks/picture_input.py [PHOTOS] [--size 224] [--fit crop] [--workers 0] [--rounds 5]

Without PHOTOS, 500 JPEGs of 640 x 480 are made first. Medians of the rounds; files are in the system's cache from the second
round on. `per_core` counts seconds of processor time, so that other work on the machine does not show in it.
"""

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from PIL import Image

from scqfaiss.data.images import FITS, ImageSource

MADE, WIDTH, HEIGHT = 500, 640, 480


def make(folder: Path) -> None:
    """Smooth colours under a little noise, which compress about as photographs do (100 kB each)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 40
    for k in range(MADE):
        a, b, c = rng.uniform(0.3, 3, 3)
        smooth = np.stack([np.sin(a * x + b * y), np.cos(b * x - y), np.sin(c * x * y / 8)], 2)
        pixels = 128 + 70 * smooth + rng.normal(0, 6, (HEIGHT, WIDTH, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{k:03}.jpg", quality=90)


@click.command()
@click.argument("photos", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--size", default=224, show_default=True)
@click.option("--fit", default="crop", show_default=True, type=click.Choice(FITS))
@click.option("--workers", default=0, help="Threads; 0 for one a core.")
@click.option("--rounds", default=5, show_default=True)
def main(photos: Path | None, **options: Any) -> None:
    """Pictures a second, by the clock and by processor time; and how long opening takes, without and with proof."""
    with ExitStack() as stack:
        if photos is None:
            photos = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            make(photos)
        print(json.dumps(measured(photos, **options)))


def measured(photos: Path, size: int, fit: str, workers: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"open": [], "prove": [], "wall": [], "core": [], "digest": []}
    for _ in range(rounds):
        start = time.perf_counter()
        with ImageSource(photos, workers=workers) as source:
            found["open"].append(time.perf_counter() - start)
            source.shaped(size, fit)
            clock, core = time.perf_counter(), time.process_time()
            for _ in source.blocks():
                pass
            found["wall"].append(time.perf_counter() - clock)
            found["core"].append(time.process_time() - core)
            for what, work in (("prove", source.prove), ("digest", source.digest)):
                start = time.perf_counter()
                work()
                found[what].append(time.perf_counter() - start)
            n, threads = len(source), source.workers
    seconds = {what: median(times) for what, times in found.items()}
    return {
        "pictures": n,
        "size": size,
        "fit": fit,
        "workers": threads,
        "per_s": round(n / seconds["wall"], 1),
        "per_core": round(n / seconds["core"], 1),
        "proven_per_s": round(n / seconds["prove"], 1),
        "digest_per_s": round(n / seconds["digest"], 1),
        "open_s": round(seconds["open"], 4),
    }


if __name__ == "__main__":
    main()
