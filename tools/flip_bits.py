"""Flip single bits of a gallery at random: scqfaiss must refuse every one of them.

    python tools/flip_bits.py GALLERY [--flips 2000] [--seed 0]

Works on a copy. Each flip goes through what `scqfaiss verify` runs and through scqfaiss.open. Exit code 1 if any is taken.
"""

import argparse
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

import scqfaiss
from scqfaiss.errors import ResourceError, ScqError
from scqfaiss.galleries.inspection import verify_file


def outcome(look, path: Path) -> str:
    """'refused' where look(path) raises one of our errors with exit code 3 or 5, else what happened instead."""
    try:
        look(path)
    except ScqError as error:
        return "refused" if error.exit_code in (3, ResourceError.exit_code) else f"exit code {error.exit_code}"
    except Exception as error:
        return f"uncaught {type(error).__name__}"
    return "ACCEPTED"


def flip_bits(gallery: Path, flips: int, seed: int = 0) -> dict[str, Counter]:
    """{'verify': ..., 'open': ...}, each a count of outcomes over `flips` different single-bit flips of the file."""
    found = {"verify": Counter(), "open": Counter()}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy = Path(folder) / "flipped.faissindex"
        shutil.copyfile(gallery, copy)
        verify_file(copy)  # raises where the file is not sound to begin with
        bits = 8 * copy.stat().st_size
        with open(copy, "r+b", buffering=0) as f:
            for bit in np.random.default_rng(seed).choice(bits, min(flips, bits), replace=False):
                at, mask = int(bit) // 8, 1 << int(bit) % 8
                f.seek(at)
                byte = f.read(1)[0]
                f.seek(at)
                f.write(bytes([byte ^ mask]))
                for name, look in (("verify", verify_file), ("open", scqfaiss.open)):
                    found[name][outcome(look, copy)] += 1
                f.seek(at)
                f.write(bytes([byte]))
        verify_file(copy)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gallery", type=Path)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found = flip_bits(asked.gallery, asked.flips, asked.seed)
    print(f"{asked.gallery}: {asked.gallery.stat().st_size:,} bytes")
    for name, counts in found.items():
        print(f"{name:8}{', '.join(f'{n:,} {what}' for what, n in sorted(counts.items()))}")
    return int(any(set(counts) - {"refused"} for counts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
