"""Interrupt commands at random moments: 130 and the old file, or 0 and the new one, never anything else.

    python tools/interrupt.py [--what train|export|append] [--signals 100] [--rows 20000] [--seed 0]

Each round starts a real `python -m scqfaiss train` (or export, append) over a sound file, sends it SIGINT or SIGTERM in turn, and
looks at the exit code and at what is left. Moments are random within the time an undisturbed run takes; of `train` every other
one lies in the first three seconds; of `export` and `append` every other one up to 30 milliseconds after the temporary file
appeared. Nothing can be done about a signal before Python runs the program's first line: those are counted apart, as "too
early", with the code they end with. Prints JSON. Exit code 1 if any other round ends with a code other than 0 and 130, with a
file that does not go with its code, or with a temporary or lock file left.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from kill_export import COMMANDS, GALLERY, prepare, temporaries

from scqfaiss.data.writing import write_rows

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MODEL = "trained.safetensors"
TRAIN = ("train", "rows.h5", "-o", MODEL, "--bits", "16", "--epochs", "3", "--checkpoint-every", "20")
FIRST_SECONDS = 3.0
LONGEST = 120.0  # seconds of a round


def foreground() -> None:
    """A shell's background jobs ignore SIGINT, and hand that on."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def begin(folder: Path, *arguments: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "scqfaiss", *arguments], cwd=folder, preexec_fn=foreground, **pipes)


def undisturbed(folder: Path, *arguments: str) -> float:
    """Seconds that a run takes."""
    started = time.monotonic()
    process = begin(folder, *arguments)
    _, err = process.communicate(timeout=LONGEST)
    if process.returncode:
        raise SystemExit(f"an undisturbed {arguments[0]} ended with {process.returncode}: {err}")
    return time.monotonic() - started


def catches(process: subprocess.Popen) -> bool:
    """Whether the process has a handler of SIGTERM by now: Python itself brings none. True where that cannot be told."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return True
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def first_line(folder: Path, *arguments: str) -> float:
    """Seconds from the start of a process to the handlers of its signals."""
    started, process = time.monotonic(), begin(folder, *arguments)
    while process.poll() is None and not catches(process):
        time.sleep(0.0002)
    took = time.monotonic() - started
    process.kill()
    process.communicate()
    return took


def litter(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if ".tmp-" in p.name or p.name.endswith(".lock")]


def send(process: subprocess.Popen, folder: Path, delay: float, after_temporary: bool, number: int) -> str | None:
    """Send the signal when its moment has come -> 'too early', 'ended before', or None."""
    while after_temporary and process.poll() is None and not temporaries(folder):
        time.sleep(0.0005)
    moment, caught = time.monotonic() + delay, False
    while (left := moment - time.monotonic()) > 0 and process.poll() is None:
        caught = caught or catches(process)
        time.sleep(min(left, 0.05 if caught else 0.001))
    if process.poll() is not None:
        return "ended before"
    caught = caught or catches(process)
    process.send_signal(number)
    return None if caught else "too early"


def interrupt(folder: Path, what: str, count: int, rows: int, seed: int = 0) -> dict:
    """What came of `count` signals: how often each (code, file) was met, and every line of stderr of the wrong ones."""
    rng, found, wrong = np.random.default_rng(seed), Counter(), []
    out = folder / (MODEL if what == "train" else GALLERY)
    prepare(folder, rows)
    if what == "train":
        command, old = TRAIN, b"a model of before"
        y = rng.integers(0, 10, 500)
        with open(folder / "rows.h5", "x+b") as f:
            write_rows(f, (rng.standard_normal((10, 16))[y] + rng.standard_normal((500, 16))).astype(np.float32), y)
    else:
        command = COMMANDS[what]
        undisturbed(folder, "export", "model.safetensors", "old.h5", "-o", GALLERY)
        old = out.read_bytes()
    took = undisturbed(folder, *command)
    files = {out.read_bytes(): "new", old: "old"}
    window = [first_line(folder, *command) for _ in range(5)]
    for name in litter(folder):
        (folder / name).unlink()
    for i in range(count):
        out.write_bytes(old)
        number = SIGNALS[i // 2 % 2]
        edge = i % 2 == 0  # where most of the harm could be done
        after = edge and what != "train"
        within = 0.03 if after else min(FIRST_SECONDS, took) if edge else took
        process, delay = begin(folder, *command), rng.uniform(0, within)
        note = send(process, folder, delay, after, number)
        _, err = process.communicate(timeout=LONGEST)
        code, state = process.returncode, files.get(out.read_bytes(), "damaged") if out.exists() else "gone"
        left = litter(folder)
        found[f"{note or signal.Signals(number).name}: {code}, {state} file{', litter' if left else ''}"] += 1
        if note != "too early" and (left or (code, state) not in ((0, "new"), (130, "old"))):
            wrong.append({"signal": number, "after": round(delay, 3), "code": code, "file": state, "left": left})
            wrong[-1]["stderr"] = err.splitlines()[-3:]
        for name in left:
            (folder / name).unlink()
        for trace in folder.glob("*.checkpoints/*"):
            trace.unlink()
    return {
        "what": what,
        "seconds of a run": round(took, 2),
        "seconds to the first line": [round(s, 3) for s in sorted(window)],
        "found": dict(sorted(found.items())),
        "wrong": wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("train", *COMMANDS), default="train")
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = interrupt(Path(folder), asked.what, asked.signals, asked.rows, asked.seed)
    print(json.dumps(found, indent=1))
    return int(bool(found["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
