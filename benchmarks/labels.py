"""Wrong labels: files of rows with some of them, and what a check makes of these. Prints JSON.

    python benchmarks/labels.py spoil TRAIN.h5 SHARE uniform|confused SEED OUT.h5
    python benchmarks/labels.py judge OUT.h5 LIST.csv

spoil replaces a share of the labels: `uniform` by any other class, `confused` of every second class by the next one. OUT.h5
keeps the right labels as `right_labels`. judge reads the list that `scqfaiss check OUT.h5 -o LIST.csv` has written: `found`, the
share of wrong labels that it calls suspicious, `named`, the share of right ones, `precision`, the share of wrong ones among those
that it calls so, and `seems`, the share of those found whose right class it tells.
"""

from __future__ import annotations

import json
import sys

import h5py
import numpy as np

from scqfaiss.data import open_rows
from scqfaiss.data.left_out import read_left_out


def spoil(path: str, share: str, kind: str, seed: str, out: str) -> None:
    with open_rows(path) as source:
        x, ids, labels = source.read(0, len(source)), source.ids, source.labels
    assert labels is not None
    random = np.random.default_rng([int(seed), 14])
    right, C = labels.y, labels.C
    wrong = random.random(len(right)) < float(share)
    if kind == "confused":
        wrong &= right % 2 == 0
    steps = random.integers(1, C, len(right)) if kind == "uniform" else 1
    y = np.where(wrong, (right + steps) % C, right)
    with h5py.File(out, "w") as f:
        for name, value in (("features", x), ("labels", y), ("ids", ids), ("right_labels", right)):
            f[name] = value
    print(json.dumps({"wrong": float(wrong.mean())}))


def judge(path: str, listed: str) -> None:
    with h5py.File(path) as f:
        y, right, ids = f["labels"][:], f["right_labels"][:], f["ids"][:]
    place = {int(id): row for row, id in enumerate(ids)}
    suspicious = {place[e.id]: int(e.seems) for e in read_left_out(listed) if e.reason == "suspicious labels"}
    named = np.isin(np.arange(len(y)), list(suspicious))
    wrong = y != right
    told = [seems == right[row] for row, seems in suspicious.items() if wrong[row]]
    found = {"named": named[~wrong].mean()}
    if wrong.any():
        found |= {"found": named[wrong].mean(), "precision": wrong[named].mean(), "seems": np.mean(told)}
    print(json.dumps({name: float(value) for name, value in found.items()}))


if __name__ == "__main__":
    {"spoil": spoil, "judge": judge}[sys.argv[1]](*sys.argv[2:])
