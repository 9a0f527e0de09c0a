"""Write a folder of golden files: galleries of every target and their models, and the answers they must give for ever.

    python tools/make_golden.py tests/golden/targets
    python tools/make_golden.py tests/golden/lists
    python tools/make_golden.py tests/golden/content

The folder's name says which galleries: those of codes of whole vectors, of codes with lists, or with a content part. For a new
file format, or a target that is new, another name gets galleries of its own; files that are there are never written again. Made
from random numbers with a fixed seed, so that they take a few kilobytes and belong to no one.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.content import Content, Gate
from scqfaiss.encoders.chain import Chain
from scqfaiss.files import atomic_write
from scqfaiss.model import Model

N, D, C, K_BEST = 120, 16, 4, 10
LISTS = 5
# folder -> name of the gallery -> model, target, options of the export
GALLERIES: dict[str, dict[str, tuple[str, str, dict[str, int]]]] = {
    "targets": {
        "ivfpq": ("product", "ivfpq", {}),
        "ivfpq_lists": ("product", "ivfpq", {"nlist": 4, "nprobe": 4}),
        "ivfpq_folded": ("folded", "ivfpq", {}),
        "pq": ("product", "pq", {}),
        "fastscan": ("product", "fastscan", {}),
        "fastscan_alone": ("product", "fastscan", {"refine": -1}),
        "buckets_words": ("product", "buckets", {}),
        "buckets_boxes": ("product", "buckets", {"nlist": 8}),
        "buckets_additive": ("additive", "buckets", {}),
        "fastscan_additive": ("additive", "fastscan", {}),
        "lift": ("additive", "lift", {}),
        "residual": ("additive", "residual", {}),
    },
    "lists": {
        "ivfpq": ("product", "ivfpq", {}),
        "ivfpq_alone": ("alone", "ivfpq", {"nprobe": LISTS}),
        "buckets": ("product", "buckets", {"nprobe": LISTS}),
        "lift": ("additive", "lift", {"nprobe": LISTS}),
    },
    "content": {
        "ivfpq": ("product", "ivfpq", {}),
        "fastscan": ("product", "fastscan", {}),
        "buckets": ("product", "buckets", {}),
        "ivfpq_listed": ("listed", "ivfpq", {"nprobe": LISTS}),
        "lift_alone": ("alone", "lift", {"nprobe": LISTS}),
    },
}


def main(folder: Path) -> None:
    rng = np.random.default_rng(20)
    y = np.arange(N) % C
    x = (2 * rng.standard_normal((C, D))[y] + rng.standard_normal((N, D))).astype(np.float32)
    xq = x[:8] + np.float32(0.25)
    ids = rng.permutation(N) * 5 + 2**40
    warnings.simplefilter("ignore", scqfaiss.ScqWarning)
    models = train(folder.name, x, y)
    folder.mkdir(parents=True, exist_ok=True)
    answers: dict[str, Any] = {"queries": xq, "rows": x, "row_ids": ids}
    for name, model in models.items():
        model.save(folder / f"{name}.safetensors")
        loaded = Model.load(folder / f"{name}.safetensors")
        answers[f"{name}/z"] = loaded.embed(xq)
        if loaded.has_gate:
            answers[f"{name}/known"] = loaded.known(xq)
    for name, (model_name, target, options) in GALLERIES[folder.name].items():
        path, model = folder / f"{name}.faissindex", models[model_name]
        scqfaiss.export(model, x, ids=ids, path=path, target=target, **options)
        gallery = scqfaiss.open(path, model=model)
        scores, found = gallery.search(xq, K_BEST)
        _, codes, held = gallery.unpack()
        answers |= {f"{name}/scores": scores, f"{name}/ids": found, f"{name}/codes": codes, f"{name}/held": held}
    with atomic_write(folder / "expected.h5") as output:
        output.write(lambda f: write(f, answers))
    print(f"{sum(p.stat().st_size for p in folder.iterdir()):,} bytes")


def train(folder: str, x: Any, y: Any) -> dict[str, Model]:
    """The models of a folder, by the names of their files."""
    additive: dict[str, Any] = {"codebooks.kind": "additive"}
    small: dict[str, Any] = {"nbits": 4, "epochs": 20}
    if folder == "lists":
        listed: dict[str, Any] = {"hidden": 8, "members": 1, "lists": LISTS, **small}
        return {
            "product": scqfaiss.train(x, y, bits=8, **listed),
            "additive": scqfaiss.train(x, y, bits=8, **additive, **listed),
            "alone": scqfaiss.train(x, y, bits=0, **listed),
        }
    if folder == "content":
        other: dict[str, Any] = {"hidden": 8, "members": 1, **small}
        return {
            "product": with_content(scqfaiss.train(x, y, bits=8, **other), x, y),
            "listed": with_content(scqfaiss.train(x, y, bits=8, lists=LISTS, **other), x, y),
            "alone": with_content(scqfaiss.train(x, y, bits=0, lists=LISTS, **other), x, y),
        }
    small["bits"] = 16
    return {
        "product": scqfaiss.train(x, y, hidden=8, members=2, class_names=["a", "b", "c", "d"], **small),
        "additive": scqfaiss.train(x, y, hidden=8, members=1, **additive, **small),
        "folded": scqfaiss.train(x, y, encoder="linear", cfa="cosine", d=8, **small),
    }


def with_content(model: Model, x: Any, y: Any) -> Model:
    """The same model with 12 bits of content codes: directions of the rows x, and codewords that are rows."""
    rng = np.random.default_rng(21)
    M, d = 3, 6
    A = rng.standard_normal((d, D)).astype(np.float32)
    chain = Chain(D, [("center", {"mean": x.mean(0)}), ("linear", {"A": A}), ("normalize", {})])
    z, v, lists = model.embed(x), chain(x), None
    kind, left = model.codebooks.kind if model.codebooks.M else "additive", v
    if model.codebooks.lists is not None:
        numbers = model.encode(x)[:, 0].astype(int)
        lists = np.stack([v[numbers == i].mean(0) if (numbers == i).any() else 0 * v[0] for i in range(LISTS)])
        left = v - lists[numbers]
    words = left[rng.choice(N, (M, 16), replace=False)]
    if kind == "product":
        words = np.stack([words[m, :, 2 * m : 2 * m + 2] for m in range(M)])
    classes = [np.stack([a[y == c].mean(0) for c in range(C)]) for a in (z, v)]
    coefficients = np.array([2, 1, -1, 0.5, -1.5], np.float32)
    facts = {"auc": 0.9, "loss": 0.01, "gain": 0.1, "on": True}
    tops, shares = rng.standard_normal((2, 4)).astype(np.float32)
    gate = Gate(*classes, v[:4], 0.25, tops, shares, coefficients, facts, caution=0.5)
    content = Content(chain, Codebooks(kind, words, "ip", lists), (0.25, 2.0), gate, 4 if kind == "additive" else 1)
    return Model(model.chain, model.codebooks, model.config, content=content)


def write(f: BinaryIO, answers: dict[str, np.ndarray]) -> None:
    with h5py.File(f, "w", libver=("v110", "v110")) as hdf5:
        for name, value in answers.items():
            hdf5.create_dataset(name, data=value, chunks=value.shape, compression="gzip", fletcher32=True)


if __name__ == "__main__":
    if Path(sys.argv[1]).name not in GALLERIES:
        sys.exit(f"{sys.argv[1]}: golden folders are {', '.join(GALLERIES)}")
    if any(Path(sys.argv[1]).glob("*.faissindex")):
        sys.exit(f"{sys.argv[1]} holds golden files already: a new format gets a new folder")
    main(Path(sys.argv[1]))
