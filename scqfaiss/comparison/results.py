"""Results of benchmarks: one JSON file each, what a report is drawn from.

    {"format": 1, "kind": "comparison" | "scale" | "training" | "attack", "name", "seed", "written", "command", "machine", "rows"}

`machine` is `machine()` below. Every row has a `key` of its own and `run`: the command, seed, versions, processors and data
hashes it was measured with. Whatever else a row lacks was not measured; `reason` says why a row could not be. `schema.py` names
and describes the fields of each kind. Neither reading nor writing looks at them, so that benchmarks need no library for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import signals
from ..data.kinds import pieces_of
from ..errors import ConfigError, DataError, printable, warn
from ..files import AtomicFile, PathLike, atomic_write, open_regular, parse_json

FORMAT = 1
KINDS = ("comparison", "scale", "training", "attack")
FILE = "results.json"
GOES_ON = "stopped; the same command goes on from what it has measured"
MAX_BYTES = 256 << 20  # of a file that is read: JSON takes several times as much in memory

Document = dict[str, Any]


def machine() -> dict[str, Any]:
    """What figures were measured with: processor, cores, memory in bytes, GPU or None, system, versions."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            cpu = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), cpu)
    except OSError:
        pass
    gpu = None
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        gpu = found.stdout.strip().splitlines()[0] if found.returncode == 0 and found.stdout.strip() else None
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions()},
    }


def versions() -> dict[str, str]:
    """Of what figures depend on, where it is installed."""
    found = {}
    for name, packages in {
        "scqfaiss": ("scqfaiss",),
        "torch": ("torch",),
        "faiss": ("faiss-cpu", "faiss-gpu"),
        "numpy": ("numpy",),
    }.items():
        for package in packages:
            try:
                found[name] = version(package)
                break
            except PackageNotFoundError:
                pass
    return found


def file_hash(path: PathLike) -> str:
    """SHA-256 of a file; of a folder, and of files that a pattern names, of the names and sizes of all of them."""
    sha = hashlib.sha256()
    if os.path.isdir(path):
        for file in sorted(p for p in Path(path).rglob("*") if p.is_file()):
            sha.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        return sha.hexdigest()
    if pieces := pieces_of(path):
        for name in pieces:
            sha.update(f"{os.path.basename(name)}\0{os.path.getsize(name)}\0".encode("utf-8", "surrogateescape"))
        return sha.hexdigest()
    with open_regular(path, DataError) as f:
        while block := f.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def read_results(path: PathLike) -> Document:
    """A file of results, or the one in a folder, as one object whose rows all have keys.

    Raises ConfigError where there is none or the format is newer, DataError where it is no results file.
    """
    name = printable(path)
    if os.path.isdir(path):
        path = Path(path) / FILE
        if not path.exists():
            raise ConfigError(f"{name} holds no {FILE}")
        name = printable(path)
    with open_regular(path, DataError) as f:
        text = f.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise DataError(f"{name}: larger than {MAX_BYTES >> 20} MB, no results file")
    found = parse_json(text)
    if found is None or found.get("kind") not in KINDS or type(found.get("format")) is not int:
        raise DataError(f"{name} is no results file: not a JSON object with a format and a kind, {', '.join(KINDS)}")
    if found["format"] != FORMAT:
        raise ConfigError(f"{name}: made by a newer scqfaiss: format {found['format']}, this version reads {FORMAT}")
    rows = found.setdefault("rows", [])
    if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("key"), str) for r in rows):
        raise DataError(f"{name}: rows are not a list of objects with a key each")
    return found


@contextmanager
def results_file(path: Path, **place: Any) -> Iterator[AtomicFile]:
    """The place of a results file, for Results; place: as in `files.atomic_write`. Until Results.finish a signal ends the
    command, and the same command goes on from what is there.
    """
    with atomic_write(path, **place) as output, signals.saying(lambda: GOES_ON):
        output.growing = True
        yield output


class Results:
    """A results file under work: what it holds already is kept, every row that is added is on disk before the next.

    output: of `results_file`, or `files.atomic_write` where nothing takes long. kind, name, facts: what makes two runs one,
    for `kind` and facts such as data hashes, seed and settings. fresh: what the file holds is not kept. Raises ConfigError
    where the file holds results of another kind or with other facts.
    """

    def __init__(
        self, output: AtomicFile, kind: str, name: str, command: str, facts: Mapping[str, Any], fresh: bool = False
    ) -> None:
        self.output = output
        self.document: Document = {"format": FORMAT, "kind": kind, "name": name, **facts, "rows": []}
        if output.path.exists() and not fresh:
            held = read_results(output.path)
            for key in ("kind", *facts):
                if held.get(key) != json.loads(json.dumps(self.document[key])):
                    raise ConfigError(
                        f"{output.name} holds results with another {key}; choose another --out, or remove that file"
                    )
            self.document = held
            here = machine()
            was = {key: here[key] for key in ("cpu", "cores", "gpu", "versions")}
            if held["rows"] and any(held.get("machine", {}).get(key) != value for key, value in was.items()):
                warn(f"{output.name} holds rows of another machine or other versions; times of its rows do not compare")
        self.document |= {"command": command, "machine": machine()}

    def __contains__(self, key: str) -> bool:
        return any(row["key"] == key for row in self.document["rows"])

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, or put it in the place of the one with its key; and save."""
        rows = self.document["rows"]
        place = next((i for i, held in enumerate(rows) if held["key"] == row["key"]), len(rows))
        rows[place : place + 1] = [dict(row)]
        self.save()

    def finish(self, **more: Any) -> None:
        """Save for the last time: what the command is for is done."""
        self.output.growing = False
        self.save(**more)

    def save(self, **more: Any) -> None:
        """Write everything, with more keys of the document. Raises ValueError on NaN, which is no JSON."""
        self.document |= more
        self.document["written"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        # A line for each row: what changed between two runs can be read.
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in self.document["rows"])
        head = {key: value for key, value in self.document.items() if key != "rows"}
        text = json.dumps(head, indent=1, allow_nan=False)[:-2] + f',\n "rows": [\n{rows}\n ]\n}}\n'
        self.output.write(lambda f: f.write(text.encode("utf-8")))
