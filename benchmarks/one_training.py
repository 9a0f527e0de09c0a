"""One dpq training for four lengths against four scq trainings, whole processes in turn. Prints JSON.

    python benchmarks/one_training.py TRAIN.h5 SEED

`dpq_seconds`: one training of 32 bits; `scq_seconds`: trainings of 8, 16, 24 and 32 bits, summed; `times_faster`.
"""

import json
import subprocess
import sys
import tempfile
import time


def seconds(*arguments: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        command = [sys.executable, "-m", "scqfaiss", "train", *arguments, "-o", f"{folder}/m.safetensors"]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begin


def main(train: str, seed: str) -> None:
    scq = dpq = 0.0
    for bits in (8, 16, 24, 32):
        scq += seconds(train, "--seed", seed, "--bits", str(bits))
        if bits == 16:  # between them, so that a slow spell of the machine meets both
            dpq = seconds(train, "--seed", seed, "--method", "dpq", "--bits", "32")
    print(json.dumps({"dpq_seconds": dpq, "scq_seconds": scq, "times_faster": scq / dpq}))


if __name__ == "__main__":
    main(*sys.argv[1:])
