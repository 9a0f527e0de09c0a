"""Power laws fitted to times and memory of growing galleries, what they assume, and how they are told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .measuring import LEAST
from .options import K_NEAREST, GrowthOptions

WANTED = 0.95  # recall that lists are visited for
FAR = 10**9  # rows that the fits are drawn out to
FITTED = ("ms", "single_ms", "build_seconds", "memory")


def short(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def fit(rows: Any, values: Any) -> dict[str, float]:
    """values = factor * rows ** exponent, by least squares of the logarithms; "error": the exponent's standard error.

    rows, values: of 2 sizes or more; of 2 there is no error.
    """
    x, y = np.log(np.asarray(rows, float)), np.log(np.asarray(values, float))
    spread = float(np.square(x - x.mean()).sum())
    exponent = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    factor = float(np.exp(y.mean() - exponent * x.mean()))
    found = {"exponent": round(exponent, 4), "factor": factor}
    if len(x) > 2:
        left = y - y.mean() - exponent * (x - x.mean())
        found["error"] = round(math.sqrt(float(np.square(left).sum()) / (len(x) - 2) / spread), 4)
    return found


def fits_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """{target: {what: fit}} of the targets that were measured at 2 sizes or more."""
    out = {}
    for name in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == name]
        if len({row["rows"] for row in mine}) > 1:
            out[name] = {what: fit([row["rows"] for row in mine], [row[what] for row in mine]) for what in FITTED}
    return out


def extrapolated(fits: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the fits say of FAR rows; memory in proportion to the largest gallery.

    Memory has a fixed part, which bends a power law over small galleries below what the codes and ids alone take.
    """
    out = {}
    for name, table in fits.items():
        out[name] = {what: short(f["factor"] * FAR ** f["exponent"]) for what, f in table.items()}
        largest = max((row for row in rows if row["target"] == name), key=lambda row: row["rows"])
        out[name]["memory"] = round(largest["memory"] * FAR / largest["rows"])
    return {"rows": FAR, "targets": out}


def how(options: GrowthOptions, d: int) -> str:
    """How the codes came about, for whoever reads the results."""
    noise, members, M = f"{options.noise:g}", options.members, options.bits // 8
    return (
        f"Rows were drawn with replacement from the database, with Gaussian noise of {noise} times the standard deviation of "
        "each feature, so that codes do not repeat as rows do: duplicates would flatter buckets. They were encoded once, by a "
        f"model of method scq ({members} classifier{'s' if members > 1 else ''}, z of {d} dimensions). Product codebooks of "
        f"{M} x 8 bits are that model's own; those of {2 * M} x 4 bits (fastscan) and the additive ones of "
        f"{2 * M} x 4 bits (lift, residual) are of method scq with encoder identity, trained on z of the database. Each size "
        "is the first so many of the same rows. faiss-ivfpq: as FAISS's factory makes it for inner products, lists of spherical "
        "k-means; faiss-ivfpq-l2: lists of plain k-means, as those of ivfpq-lists. Lists of all three: 4 times the root of the "
        f"rows, rounded down to a power of two; nprobe: the least power of two with {WANTED:g} of the exact first {K_NEAREST} by "
        f"the codes' own scores. One thread; medians of {LEAST} calls or more, within {options.budget:g} s each. build_seconds: "
        "of the package's targets from codes to an index, of the two of FAISS training and coding of z. memory: what a fresh "
        "process allocates for the opened file."
    )


ASSUMPTIONS = [
    "Nothing was run at a billion rows: these figures are power laws fitted to the galleries measured, drawn out far beyond the "
    "largest of them.",
    "Exhaustive searches (ivfpq, pq, lift, residual, fastscan) read every code, so their time is linear in the rows; an "
    "exponent below 1 is the fixed cost of a query at the smaller sizes, and makes their extrapolation too small.",
    "nlist goes on growing with the root of the rows, and the nprobe that is needed as it did here. nlist and nprobe are powers "
    "of two, so times move in steps, and an exponent over two decades depends on where the steps fall.",
    "Lists are found by comparing the query with every centroid. With 100,000 centroids and more a graph over them (IVF_HNSW) is "
    "usual: faster, and more memory than is counted here.",
    "Small galleries fit into the processor's cache and large ones do not: fits over both blend the two, and at a billion rows "
    "nearly every list that is visited comes from memory.",
    "The rows are all of the same few classes. Codes of b bits have at most 2^b distinct values, and fewer where classes gather: "
    "the more rows, the more of them share a code, and buckets, which keeps equal codes side by side, then gains; against that, "
    "an exact search must visit every list whose bound the 10th score does not exclude, and with more classes, or rows unlike "
    "these, there are more of them.",
    "Building is fitted on galleries that fit into memory several times over. For a billion rows k-means would learn from a "
    "sample, and rows would be added in parts; ids alone take 8 GB.",
    "memory at a billion rows is not the fit but the largest gallery's, in proportion: the fixed part of small ones bends the "
    "fit below what codes and ids alone take. It leaves out what a search needs beside the index: tables of a query, and the "
    "results.",
]


def table(rows: list[dict[str, Any]], fits: dict[str, Any]) -> Iterator[str]:
    """Lines for the reader: every row, then every fit."""
    yield (
        f"{'target':<24} {'rows':>12} {'ms':>9} {'one query':>9} {'build s':>8} {'memory MB':>10} {'disk MB':>8} "
        f"{'recall':>7} {'distinct':>11} {'nlist':>7} {'nprobe':>6}"
    )
    for r in rows:
        distinct = f"{r['distinct']:,}" if "distinct" in r else ""
        yield (
            f"{r['target']:<24} {r['rows']:>12,} {r['ms']:>9.4g} {r['single_ms']:>9.4g} {r['build_seconds']:>8.3g} "
            f"{r['memory'] / 1e6:>10.1f} {r['disk'] / 1e6:>8.1f} {r['recall']:>7.4f} {distinct:>11} "
            f"{r.get('nlist', ''):>7} {r.get('nprobe', ''):>6}"
        )
    if fits:
        yield "growth with rows, as a power of them (standard error):"
    for name, found in fits.items():
        parts = [
            f"{what} {f['exponent']:.2f}" + (f" ({f['error']:.2f})" if "error" in f else "")
            for what, f in found.items()
        ]
        yield f"{name:<24} " + "   ".join(parts)


def figures(rows: list[dict[str, Any]], fits: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the JSON line: of each target the exponents, and time and recall at its largest size."""
    out: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: row["rows"]):  # the largest is last and stays
        name = row["target"].replace("-", "_")
        out |= {
            f"{name}_{what}": row[what] for what in ("rows", "ms", "single_ms", "recall", "build_seconds", "memory")
        }
    for target_name, found in fits.items():
        name = target_name.replace("-", "_")
        keys = {"ms": "", "single_ms": "_single", "build_seconds": "_build", "memory": "_memory"}
        out |= {f"{name}{keys[what]}_exponent": f["exponent"] for what, f in found.items()}
        if "error" in found["ms"]:
            out[f"{name}_exponent_error"] = found["ms"]["error"]
    largest = [row for row in rows if row["rows"] == max(row["rows"] for row in rows)]
    whole = next((row["ms"] for row in largest if row["target"] == "pq"), None)
    for row in largest if whole is not None else ():  # how many times faster than looking at every code
        out[f"{row['target'].replace('-', '_')}_to_pq"] = short(whole / row["ms"])
    return out
