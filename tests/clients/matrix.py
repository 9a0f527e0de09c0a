"""Golden galleries read by other versions of FAISS: `python tests/clients/matrix.py FOLDER` prints the table of docs/clients.md.

FOLDER holds the environments that tools/client_environments.py makes. The answers are compared with those of the FAISS
that is installed here, which tests/golden holds against the answers of the day on which the files were written.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]

# Run by the other Python: NumPy and FAISS alone.
READER = """
import json, sys
import faiss
import numpy as np

def read(path, flags, queries, D, I):
    index = faiss.read_index(path, *flags)
    found_D, found_I = index.search(queries, D.shape[1])
    assert index.ntotal == 120 and found_I.min() >= 0, path
    off = float(np.abs(found_D - D).max() / np.abs(D).max())
    clear = D > D[:, -1:] + 1e-4 * np.abs(D).max()  # rows that tie with the last one may be others
    same = all(set(i[c]) <= set(f) for i, c, f in zip(I, clear, found_I))
    return [off, same]

faiss.omp_set_num_threads(1)
out = {}
for golden in json.load(open(sys.argv[1] + "/golden.json")):
    name = golden["name"]
    arrays = [np.load(f"{sys.argv[1]}/{name}.{part}.npy") for part in ("queries", "D", "I")]
    out[name] = [read(golden["path"], flags, *arrays) for flags in ((), (faiss.IO_FLAG_MMAP,))]
print(json.dumps({"faiss": faiss.__version__, "numpy": np.__version__, "files": out}))
"""


def prepare(folder):
    """Queries and the installed FAISS's answers for every golden gallery, as .npy and golden.json in a folder -> the names."""
    import faiss
    from golden.test_golden_files import CONTENT, FIRST, LISTED, TARGETS

    goldens = []
    for golden in FIRST + TARGETS + LISTED + CONTENT:
        expected, name = golden.expected(), f"{golden.folder.name}-{golden.name}"
        queries = np.ascontiguousarray(expected["queries" if golden.folded else "z"], np.float32)
        D, I = faiss.read_index(str(golden.path)).search(queries, expected["ids"].shape[1])
        for part, array in (("queries", queries), ("D", D), ("I", I)):
            np.save(folder / f"{name}.{part}.npy", array)
        goldens.append({"name": name, "path": str(golden.path)})
    (folder / "golden.json").write_text(json.dumps(goldens))
    return [golden["name"] for golden in goldens]


def read_with(python, folder):
    """What another Python's FAISS finds in the prepared files: versions, and of each file [score difference, ids equal], whole
    and mapped.
    """
    done = subprocess.run(
        [python, "-W", "ignore", "-c", READER, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


HEADER = "| FAISS | NumPy | files that load, whole and mapped | ids equal | largest difference of a score |"


def main(environments):
    sys.path.insert(0, str(TESTS))
    with tempfile.TemporaryDirectory() as place:
        names = prepare(Path(place))
        print(HEADER, "|---|---|---|---|---|", sep="\n")
        for python in sorted(Path(environments).glob("faiss-[0-9]*/bin/python"), key=version):
            found = read_with(python, place)
            pairs = [pair for pairs in found["files"].values() for pair in pairs]
            same = sum(same for _, same in pairs)
            print(
                f"| {found['faiss']} | {found['numpy']} | {len(found['files'])} of {len(names)} | {same} of {len(pairs)} | "
                f"{max(off for off, _ in pairs):.1g} |"
            )


def version(python):
    return [int(number) for number in python.parts[-3].partition("-")[2].split(".")]


if __name__ == "__main__":
    main(sys.argv[1])
