"""Kill the making of a file of features at random moments and resume it: it must come out as without a kill, bit for bit.

    python tools/kill_features.py [--kills 5] [--images 400] [--part 16] [--seed 0] [-- PICTURES --encoder squeezenet ...]

Starts a real `python -m scqfaiss features PICTURES ... --part P`, kills it (SIGKILL) after a random part of the time an
undisturbed run takes, and starts it again with --resume, until it was killed as often as asked; then lets it end. Without
images of your own it draws some, for a network of random weights. Prints JSON. Exit code 1 unless the two files are equal
and nothing else is left.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from kill_export import start
from kill_train import kill_and_resume

OWN = ["pictures", "--encoder", "squeezenet", "--set", "size=64"]


def draw(folder: Path, count: int, seed: int) -> None:
    """`count` images of noise in two classes."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for i in range(count):
        path = folder / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), np.uint8)).save(path)


def kill_features(folder: Path, kills: int, images: int, part: int, seed: int, arguments: list[str]) -> dict[str, int]:
    """What came of it: kills that hit, how many of them left finished parts, whether the files are equal, what was left."""
    rng = np.random.default_rng(seed)
    if not arguments:
        draw(folder, images, seed)
        arguments = OWN
    arguments = [*arguments, "--part", str(part)]
    begin = time.monotonic()
    if code := start(folder, "features", *arguments, "-o", "whole.h5").wait():
        raise SystemExit(f"an undisturbed run ended with {code}")
    took = time.monotonic() - begin
    command = ("features", *arguments, "-o", "killed.h5", "--resume")
    hit, resumed = kill_and_resume(folder, command, "killed.h5", "killed.h5.parts/part-*", kills, took, rng)
    whole, killed = (folder / f"{name}.h5" for name in ("whole", "killed"))
    litter = {p.name for p in folder.iterdir()} - {"pictures", whole.name, killed.name}
    equal = whole.read_bytes() == killed.read_bytes()
    return {"kills": hit, "from_parts": resumed, "equal": int(equal), "litter": len(litter)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--part", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("arguments", nargs="*", help="what follows `scqfaiss features`, behind --")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_features(Path(folder), asked.kills, asked.images, asked.part, asked.seed, asked.arguments)
    print(json.dumps(found))
    return int(not found["equal"] or found["litter"] > 0 or found["kills"] != asked.kills)


if __name__ == "__main__":
    sys.exit(main())
