"""What FAISS alone reaches on pairs, with codes of the keys as they are. Prints JSON.

    python benchmarks/pairs_faiss.py TRAIN.h5 TEST.h5 BITS

The gallery holds the keys of both files, the queries are those of TEST, the score is the inner product. `float` ranks by the
keys themselves; `pq`, `opq`, `rq` and `ivfpq` by codes of BITS bits, codebooks of 8 bits each. Their codebooks learn from the
keys of TRAIN, as a method that needs pairs has to (`pq_recall_at_10`), or from the whole gallery, as they may, needing no queries
(`pq_gallery_recall_at_10`). ivfpq: 64 lists, residuals coded, all lists visited. rq only up to 64 bits: beyond, its training
takes minutes.
"""

import json
import sys

import faiss
import h5py
import numpy as np


def main(train: str, test: str, bits: str) -> None:
    with h5py.File(train) as a, h5py.File(test) as b:
        xt, xb, xq = (np.asarray(x[:], np.float32) for x in (a["keys"], b["keys"], b["queries"]))
    gallery, right = np.concatenate([xt, xb]), np.arange(len(xt), len(xt) + len(xb))

    def recall(index: faiss.Index) -> float:
        index.add(gallery)
        return float((index.search(xq, 10)[1] == right[:, None]).any(1).mean())

    d, M = xb.shape[1], int(bits) // 8
    found = {"float_recall_at_10": recall(faiss.IndexFlatIP(d))}
    factory = {"pq": f"PQ{M}x8np", "opq": f"OPQ{M},PQ{M}x8np", "ivfpq": f"IVF64,PQ{M}x8np", "rq": f"RQ{M}x8"}
    if M > 8:
        del factory["rq"]
    for where, x in (("", xt), ("gallery_", gallery)):
        for name, text in factory.items():
            index = faiss.index_factory(d, text, faiss.METRIC_INNER_PRODUCT)
            if name == "ivfpq":
                index.nprobe = 64
            index.train(x)
            found[f"{name}_{where}recall_at_10"] = recall(index)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
