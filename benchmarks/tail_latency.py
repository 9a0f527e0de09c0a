"""How long the slowest of many shards lets a search wait: a simulation from measured times of single shards. Prints JSON.

    python benchmarks/tail_latency.py TIMES.json [--shards 8] [--replicas 1] [--stragglers 0.01] [--slow 10] [--hedge 1.0]

TIMES.json is what `benchmarks/shards.py tail` writes: {"of_shards": [[seconds, ...], ...], "merge": seconds, "searches": [...],
"one_core": [...]}. A search of S shards that run side by side takes the longest of S draws, and the merge; one after another,
their sum. A draw is a factor of the query (a hard query is hard in every shard) times one of the draw, both taken from the
measured times by an analysis of variance. A straggler is a draw that takes `slow` times as long, with probability `stragglers`.
With two replicas or more another draw starts after `hedge` times the p95 of a shard, and the first that ends counts. Both forms,
with as many shards as were measured, are held against the measured searches. Knows nothing of scqfaiss.
"""

import json
from pathlib import Path

import click
import numpy as np

DRAWS = 200_000


def searches(
    times: np.ndarray,
    shards: int,
    replicas: int,
    hedge: float,
    stragglers: float,
    slow: float,
    merge: float,
    rng: np.random.Generator,
    together=np.maximum,
) -> np.ndarray:
    """times (S, n): of S shards in n searches -> (DRAWS,) seconds of searches. together: np.add where one core does it all."""
    of_query, off = effects(times)
    query, longest = rng.choice(of_query, DRAWS), np.zeros(DRAWS)
    for _ in range(shards):
        best = np.full(DRAWS, np.inf)
        for r in range(replicas):
            drawn = query * rng.choice(off, DRAWS)
            drawn = np.where(rng.random(DRAWS) < stragglers, slow * drawn, drawn)
            best = np.minimum(best, r * hedge + drawn)
        longest = together(longest, best)
    return longest + merge


def effects(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """times (S, n) -> factors of the n queries and of the S n draws, whose products are spread as the times are.

    Analysis of variance of the logarithms: of the spread of the queries' means, what single draws explain is taken out.
    """
    logs = np.log(times)
    mean = logs.mean(0)
    of_draws = logs.var(0, ddof=1).mean() if len(times) > 1 else 0.0
    of_queries = max(0.0, mean.var(ddof=1) - of_draws / len(times))
    shrunk = np.sqrt(of_queries / mean.var(ddof=1)) if mean.var() > 0 else 0.0
    rest = (logs - mean) * np.sqrt(len(times) / max(1, len(times) - 1))
    return np.exp(mean.mean() + shrunk * (mean - mean.mean())), np.exp(rest).ravel()


def percentiles(seconds: np.ndarray) -> dict[str, float]:
    return {f"p{p}_ms": round(1000 * float(np.percentile(seconds, p)), 3) for p in (50, 95, 99, 99.9)}


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--shards", multiple=True, type=int, default=(8,), show_default=True)
@click.option("--replicas", multiple=True, type=int, default=(1,), show_default=True)
@click.option(
    "--hedge",
    default=1.0,
    show_default=True,
    help="A second replica is asked after so many p95 of a shard.",
)
@click.option("--stragglers", multiple=True, type=float, default=(0.0,), show_default=True)
@click.option("--slow", default=10.0, show_default=True)
def main(
    file: Path,
    shards: tuple[int, ...],
    replicas: tuple[int, ...],
    hedge: float,
    stragglers: tuple[float, ...],
    slow: float,
) -> None:
    """Percentiles of simulated searches for each combination."""
    measured = json.loads(file.read_text())
    times, rng = np.array(measured["of_shards"]), np.random.default_rng(0)
    wait = hedge * float(np.percentile(times, 95))
    rows = [
        {"shards": S, "replicas": R, "stragglers": share}
        | percentiles(searches(times, S, R, wait, share, slow, measured["merge"], rng))
        for S in shards
        for R in replicas
        for share in stragglers
    ]
    out: dict[str, object] = {"simulated": rows, "of_a_shard": percentiles(times)}
    S = len(times)
    for name, together in (("searches", np.maximum), ("one_core", np.add)):
        true = np.array(measured[name])
        made = searches(times, S, 1, wait, 0.0, slow, measured["merge"], rng, together)
        off = {f"p{p}": round(float(np.percentile(made, p) / np.percentile(true, p) - 1), 3) for p in (50, 95, 99)}
        out[name] = {"measured": percentiles(true), "simulated_off_by": off}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
