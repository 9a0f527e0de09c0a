"""Write tests/golden: galleries and models of this format, and the answers they must give for ever.

    python tools/make_golden.py tests/golden

Run it once for every new file format, into a folder of its own; files that are there are never written again. Made from
random numbers with a fixed seed, so that they take a few kilobytes and belong to no one.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import h5py
import numpy as np

import scqfaiss
from scqfaiss.files import reserve
from scqfaiss.model import Model

N, D, C, K_BEST = 120, 16, 4, 10


def main(folder: Path) -> None:
    rng = np.random.default_rng(20)
    y = np.arange(N) % C
    x = (2 * rng.standard_normal((C, D))[y] + rng.standard_normal((N, D))).astype(np.float32)
    xq = x[:8] + np.float32(0.25)
    ids = rng.permutation(N) * 5 + 2**40
    warnings.simplefilter("ignore", scqfaiss.ScqWarning)
    scq = scqfaiss.train(x, y, bits=16, nbits=4, hidden=8, members=2, epochs=20, class_names=["a", "b", "c", "d"])
    linear = scqfaiss.train(x, y, bits=16, nbits=4, encoder="linear", cfa="cosine", d=8, epochs=20)
    folder.mkdir(parents=True, exist_ok=True)
    scq.save(folder / "model.safetensors")
    linear.save(folder / "model_folded.safetensors")
    answers = {"queries": xq, "rows": x}
    for name, model, target in (("ivfpq", scq, "ivfpq"), ("pq", scq, "pq"), ("ivfpq_folded", linear, "ivfpq")):
        path = folder / f"{name}.faissindex"
        scqfaiss.export(model, x, ids=ids, path=path, target=target)
        gallery = scqfaiss.open(path, model=model)
        scores, found = gallery.search(xq, K_BEST)
        _, codes, held = gallery.unpack()
        answers |= {f"{name}/scores": scores, f"{name}/ids": found, f"{name}/codes": codes, f"{name}/held": held}
        answers |= {f"{name}/z": Model.load(folder / f"model{'_folded' * (model is linear)}.safetensors").embed(xq)}
    with reserve(folder / "expected.h5") as slot:
        slot.write(lambda f: write(f, answers))
    print(f"{sum(p.stat().st_size for p in folder.iterdir()):,} bytes")


def write(f: object, answers: dict[str, np.ndarray]) -> None:
    with h5py.File(f, "w", libver=("v110", "v110")) as hdf5:
        for name, value in answers.items():
            hdf5.create_dataset(name, data=value, chunks=value.shape, compression="gzip", fletcher32=True)


if __name__ == "__main__":
    if any(Path(sys.argv[1]).glob("*.faissindex")):
        sys.exit(f"{sys.argv[1]} holds golden files already: a new format gets a new folder")
    main(Path(sys.argv[1]))
