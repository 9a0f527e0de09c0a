"""Recall of fast scan on the codes of one 4-bit model, by scores. Prints JSON.

    python benchmarks/fastscan_recall.py MODEL.safetensors QUERY.h5 DATABASE.h5 [--k 10] [--refine -1 --refine 8 ...]

`recall` of the scan alone (refine -1), `recall_refine_N` with N candidates per hit scored again; `recall_default` as the
target is when nothing is asked for. A returned row counts where its exact score, from the decoded code in float64, is at
least the k-th best of all rows within 1e-6 of it: rows that tie with the k-th are as good as it. `worst_...` is the worst query.
`distinct_codes` of the rows says how much of that is ties.
"""

import json

import click
import numpy as np

from scqfaiss.data import open_rows
from scqfaiss.evaluation.ranking import scores_in_blocks
from scqfaiss.model import Model, encode_source
from scqfaiss.targets import target
from scqfaiss.targets.options import RefineOptions

SLACK = 1e-6  # relative


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("model_path")
@click.argument("query_path")
@click.argument("database_path")
@click.option("--k", default=10, show_default=True)
@click.option("--refine", "factors", multiple=True, type=int, default=(-1, 16, 64, 256), show_default=True)
def main(model_path: str, query_path: str, database_path: str, k: int, factors: tuple[int, ...]) -> None:
    """Recall@k of fast scan, for each number of candidates per hit."""
    model = Model.load(model_path)
    with open_rows(query_path, labels_key=None) as query, open_rows(database_path, labels_key=None) as database:
        z, codes = model.embed(query.read(0, len(query))), encode_source(model, database)
    scan = target("fastscan")
    found = {}
    for refine in dict.fromkeys((0, *factors)):
        index = scan.build(model.codebooks, codes, np.arange(len(codes)), RefineOptions(refine=refine))
        found[refine] = scan.search(index, z, k)[1]
    right = {refine: np.empty(len(z)) for refine in found}
    for q, scores in enumerate(scores_in_blocks(z, model.codebooks.decode(codes))):
        best = np.partition(scores, -k)[-k]
        for refine, rows in found.items():
            held = rows[q][rows[q] >= 0]
            right[refine][q] = (scores[held] >= best - SLACK * abs(best)).sum() / k
    out = {}
    for refine, shares in right.items():
        suffix = {0: "_default", -1: ""}.get(refine, f"_refine_{refine}")
        out[f"recall{suffix}"], out[f"worst{suffix}"] = float(shares.mean()), float(shares.min())
    print(json.dumps(out | {"distinct_codes": len(np.unique(codes, axis=0))}))


if __name__ == "__main__":
    main()
