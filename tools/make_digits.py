"""Make scqfaiss/demo/digits.h5 from scikit-learn's copy of the UCI handwritten digits.

    pip install scikit-learn && python tools/make_digits.py

1,797 images of 8 x 8 pixels, values 0 to 16. Split per class by a fixed seed: 60 rows to train, 20 to query, the rest is
the database. The same input gives the same bytes.
"""

import io
from pathlib import Path

import h5py
import numpy as np
from sklearn.datasets import load_digits

from scqfaiss.files import atomic_write

OUT = Path(__file__).parent.parent / "scqfaiss" / "demo" / "digits.h5"
SOURCE = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository (1998), "
    "doi 10.24432/C50P49, licence CC BY 4.0; the 1,797 test images as distributed with scikit-learn"
)
PER_CLASS = {"train": 60, "query": 20}


def main() -> None:
    digits = load_digits()
    rng = np.random.default_rng(0)
    parts: dict[str, list[np.ndarray]] = {"train": [], "query": [], "database": []}
    for c in range(10):
        rows = rng.permutation(np.flatnonzero(digits.target == c))
        first, second = PER_CLASS["train"], PER_CLASS["train"] + PER_CLASS["query"]
        for name, part in zip(parts, np.split(rows, [first, second])):
            parts[name].append(part)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v110", "v110")) as f:
        f.attrs["source"] = np.bytes_(SOURCE)
        for name, groups in parts.items():
            ids = np.sort(np.concatenate(groups))
            group = f.create_group(name)
            for key, values in (
                ("features", digits.data[ids].astype(np.float16)),
                ("labels", digits.target[ids].astype(np.uint8)),
                ("ids", ids.astype(np.int64)),
            ):
                group.create_dataset(
                    key,
                    data=values,
                    compression="gzip",
                    compression_opts=9,
                    shuffle=True,
                    fletcher32=True,
                    chunks=values.shape,
                    track_times=False,
                )
    data = buffer.getvalue()
    with atomic_write(OUT) as output:
        output.write(lambda f: f.write(data))
    print(f"{OUT.name}: {len(data):,} bytes, " + ", ".join(f"{sum(map(len, g))} {n}" for n, g in parts.items()))


if __name__ == "__main__":
    main()
