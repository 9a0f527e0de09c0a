"""Kill a training at random moments and resume it: the model must come out as if nothing had happened, bit for bit.

    python tools/kill_train.py [--kills 5] [--every 20] [--seed 0] [-- ROWS.h5 --method dpq ...]

Starts a real `python -m scqfaiss train ROWS ... --checkpoint-every E`, kills it (SIGKILL) after a random part of the time an
undisturbed run takes, and starts it again with --resume, until it was killed as often as asked; then lets it end. Without rows
of your own it trains scq on 2,000 random ones. Prints JSON. Exit code 1 unless the two model files are equal and nothing else
is left.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from kill_export import start

from scqfaiss.data.writing import write_rows


def kill_and_resume(
    folder: Path, command: tuple[str, ...], out: str, traces: str, kills: int, took: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Start a command that writes `out`, kill it within `took` seconds, and so on; at last let it end.

    -> kills that hit, and how many of them left some of `traces` (a pattern) to go on from.
    """
    hit = resumed = 0
    for _ in range(20 * kills):
        if hit == kills:
            break
        process, delay = start(folder, *command), rng.uniform(0, took)
        time.sleep(delay)
        if process.poll() is None:
            process.kill()
            process.wait()
            hit += 1
            resumed += any(folder.glob(traces))
        elif process.returncode:
            raise SystemExit(f"a resumed run ended with {process.returncode}")
        else:  # ended before the kill: the next round begins anew
            (folder / out).unlink()
    if code := start(folder, *command).wait():
        raise SystemExit(f"the last resumed run ended with {code}")
    return hit, resumed


def kill_training(folder: Path, kills: int, every: int, seed: int, arguments: list[str]) -> dict[str, int]:
    """What came of it: kills that hit, how many of them left a checkpoint, whether the models are equal, files left behind."""
    rng = np.random.default_rng(seed)
    if not arguments:
        y = rng.integers(0, 10, 2000)
        x = (rng.standard_normal((10, 64))[y] + rng.standard_normal((2000, 64))).astype(np.float32)
        with open(folder / "rows.h5", "x+b") as f:
            write_rows(f, x, y)
        arguments = ["rows.h5", "--bits", "16"]
    begin = time.monotonic()
    if code := start(folder, "train", *arguments, "-o", "whole.safetensors").wait():
        raise SystemExit(f"an undisturbed training ended with {code}")
    took = time.monotonic() - begin
    command = ("train", *arguments, "-o", "killed.safetensors", "--checkpoint-every", str(every), "--resume")
    hit, resumed = kill_and_resume(folder, command, "killed.safetensors", "killed.checkpoints/step-*", kills, took, rng)
    whole, killed = (folder / f"{name}.safetensors" for name in ("whole", "killed"))
    litter = {p.name for p in folder.iterdir()} - {"rows.h5", whole.name, killed.name}
    equal = whole.read_bytes() == killed.read_bytes()
    return {"kills": hit, "from_a_checkpoint": resumed, "equal": int(equal), "litter": len(litter)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("arguments", nargs="*", help="what follows `scqfaiss train`, behind --")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_training(Path(folder), asked.kills, asked.every, asked.seed, asked.arguments)
    print(json.dumps(found))
    return int(not found["equal"] or found["litter"] > 0 or found["kills"] != asked.kills)


if __name__ == "__main__":
    sys.exit(main())
