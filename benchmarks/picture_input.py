"""Pictures decoded a second: found, opened, decoded, turned upright, scaled and cut; and what a training waits for. Prints JSON.

    python benchmarks/picture_input.py [PHOTOS] [--size 224] [--fit crop] [--workers 0] [--rounds 5] [--steps 20]

Without PHOTOS, 500 JPEGs of 640 x 480 are made first. Medians of the rounds; files are in the system's cache from the second
round on. `per_core` and `augmented_per_core`, which adds a random view of each picture, count seconds of processor time, so that
other work on the machine does not show in them. `waiting_share`: of the seconds of so many training steps of SqueezeNet, 64
pictures each, decoded anew for every step, those in which no batch was ready.
"""

import itertools
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from scqfaiss.contract import configure
from scqfaiss.data import open_rows
from scqfaiss.data.decoding import FITS
from scqfaiss.encoders import augment, backbone, factory
from scqfaiss.training.engine import Waited
from scqfaiss.training.rows import PictureRows

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
@click.option("--steps", default=20, show_default=True, help="Training steps; 0 for none.")
def main(photos: Path | None, **options: Any) -> None:
    """Pictures a second, by the clock and by processor time; and how long opening takes, without and with proof."""
    with ExitStack() as stack:
        if photos is None:
            photos = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            make(photos)
        steps = options.pop("steps")
        found = measured(photos, **options)
        if steps:
            found |= waiting(photos, options["size"], options["fit"], options["workers"], steps)
        print(json.dumps(found))


def waiting(photos: Path, size: int, fit: str, workers: int, steps: int) -> dict[str, Any]:
    """Share of the time of training steps in which the next pictures were not there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = factory.network("squeezenet", {})
    encoder = backbone.Backbone(configure(backbone.Settings, {"size": size}), network, "squeezenet", {}).to(device)
    encoder.precision = torch.bfloat16
    optimizer = torch.optim.SGD(encoder.parameters(), 1e-6)
    encoder.train()
    waited, generator = Waited(), torch.Generator().manual_seed(0)
    with open_rows(photos, workers=workers) as source:
        source.shaped(size, fit)
        rows = PictureRows(source, encoder.width, device, memory=0)
        epochs = itertools.chain.from_iterable(rows.batches(64, generator) for _ in itertools.count())
        begun = time.perf_counter()
        for x, _ in waited.of(itertools.islice(epochs, steps)):
            encoder(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    return {
        "device": device,
        "trained_per_s": round(64 * steps / seconds, 1),
        "waiting_share": round(waited.seconds / seconds, 4),
    }


def measured(photos: Path, size: int, fit: str, workers: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"open": [], "prove": [], "wall": [], "core": [], "views": [], "digest": []}
    strengths, fill, generator = augment.PRESETS["auto"], torch.zeros(3), torch.Generator().manual_seed(0)
    for _ in range(rounds):
        start = time.perf_counter()
        with open_rows(photos, workers=workers) as source:
            found["open"].append(time.perf_counter() - start)
            source.shaped(size, fit)
            clock, core = time.perf_counter(), time.process_time()
            for _ in source.blocks():
                pass
            found["wall"].append(time.perf_counter() - clock)
            found["core"].append(time.process_time() - core)
            x, views = torch.from_numpy(source.read(0, min(64, len(source)))), time.process_time()
            augment.views(x.float() / 255, augment.table(len(x), generator), strengths, fill)
            found["views"].append((time.process_time() - views) / len(x))
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
        "augmented_per_core": round(1 / (seconds["core"] / n + seconds["views"]), 1),
        "proven_per_s": round(n / seconds["prove"], 1),
        "digest_per_s": round(n / seconds["digest"], 1),
        "open_s": round(seconds["open"], 4),
    }


if __name__ == "__main__":
    main()
