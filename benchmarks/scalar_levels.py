"""Iterations to the best scalar quantizer, plain and accelerated. Prints JSON.

    python benchmarks/scalar_levels.py [--levels 16,64,256] [--samples 50000] [--seed 0]

For each number of levels K, under names such as `normal_64_ratio`: N(0, 1), from 0.8 times the optimum to
where no level moves by more than 1e-8: `plain` Lloyd iterations, `accelerated` ones, their `ratio`, and both distortions. Then
samples of N(0, 1): the distortion after 25 and 100 iterations from their quantiles, plain and accelerated, and that at rest
from the start which `scalar_levels` chooses, with its iterations.
"""

import json
import time

import click
import numpy as np

from scqfaiss.methods.fixed_point import MEMORY, normal_levels, scalar_levels


def normal(K: int) -> dict[str, float]:
    start = 0.8 * normal_levels(K).levels
    out: dict[str, float] = {}
    for name, memory in (("plain", 0), ("accelerated", MEMORY)):
        begin = time.perf_counter()
        grid = normal_levels(K, start=start, memory=memory)
        out |= {name: grid.iterations, f"{name}_distortion": grid.distortion}
        out[f"{name}_seconds"] = round(time.perf_counter() - begin, 3)
    return out | {"ratio": round(out["plain"] / out["accelerated"], 1)}


def sampled(x: np.ndarray, K: int) -> dict[str, float]:
    quantiles = np.quantile(x, (np.arange(K) + 0.5) / K)
    out: dict[str, float] = {}
    for name, memory in (("plain", 0), ("accelerated", MEMORY)):
        for limit in (25, 100):
            out[f"{name}_{limit}"] = scalar_levels(x, K, start=quantiles, memory=memory, limit=limit).distortion
    begin = time.perf_counter()
    grid = scalar_levels(x, K)
    seconds = round(time.perf_counter() - begin, 3)
    return out | {"at_rest": grid.distortion, "iterations": grid.iterations, "seconds": seconds}


@click.command()
@click.option("--levels", default="16,64,256", show_default=True, help="Numbers of levels, with commas between them.")
@click.option("--samples", default=50_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(levels: str, samples: int, seed: int) -> None:
    """Count iterations."""
    x = np.random.default_rng(seed).standard_normal(samples)
    numbers = [int(K) for K in levels.split(",")]
    found = {f"normal_{K}": normal(K) for K in numbers} | {f"samples_{K}": sampled(x, K) for K in numbers}
    print(json.dumps({f"{what}_{name}": value for what, facts in found.items() for name, value in facts.items()}))


if __name__ == "__main__":
    main()
