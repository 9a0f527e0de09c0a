"""What FAISS alone reaches on pairs: float search and IVFPQ over the keys as they are. Prints JSON.

    python benchmarks/pairs_faiss.py TRAIN.h5 TEST.h5 BITS SEED

The gallery holds the keys of both files, the queries are those of TEST; books and lists learn from the keys of TRAIN.
`float_recall_at_10` by inner product; `ivfpq_recall_at_10` with 64 lists, all of them visited, `ivfpq_8_recall_at_10` with 8:
inner product, residuals of the lists coded, BITS bits in books of 8. One thread, k-means from SEED.
"""

import json
import sys

import faiss
import h5py
import numpy as np


def main(train: str, test: str, bits: str, seed: str) -> None:
    faiss.omp_set_num_threads(1)
    with h5py.File(train) as a, h5py.File(test) as b:
        xt, xb, xq = (np.asarray(x[:], np.float32) for x in (a["keys"], b["keys"], b["queries"]))
    gallery, right = np.concatenate([xt, xb]), np.arange(len(xt), len(xt) + len(xb))

    def recall(index: faiss.Index) -> float:
        return float((index.search(xq, 10)[1] == right[:, None]).any(1).mean())

    flat = faiss.IndexFlatIP(xb.shape[1])
    flat.add(gallery)
    index = faiss.index_factory(xb.shape[1], f"IVF64,PQ{int(bits) // 8}x8np", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = index.pq.cp.seed = int(seed) + 1
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.train(xt)
    index.add(gallery)
    found = {"float_recall_at_10": recall(flat)}
    for key, index.nprobe in (("ivfpq_recall_at_10", 64), ("ivfpq_8_recall_at_10", 8)):
        found[key] = recall(index)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
