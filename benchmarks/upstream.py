"""Training throughput, one thread: our steps against the released recipe's arithmetic written plainly. Prints JSON.

    python benchmarks/upstream.py [--rounds 15] [--batches 64,512] [--out FOLDER]

The plain side follows what the paper's released code computes, written anew: distances in double precision, a loop over
codebooks, a loop over the rows of the batch in the feature loss. Both sides run loss, backward and Adam (codebook step), or
loss and backward to the features (feature loss), on the same numbers in one process, in turn. Ours is what a training runs:
`ARSQ.loss` with the optimizer of `SCQ.arsq_stage`, and `reference_cfa.loss_of_one_label`, the feature loss of `recipe=reference`
for one label a row. Both sides must compute the same loss first.

The printed `ratio` is that of the medians over the rounds. --out writes FOLDER/results.json, a document of kind 'training' (see
scqfaiss/comparison/results.py): there `ratio` is the median of the ratios within single rounds, `ratio_low` and
`ratio_high` are their quartiles. `bare` is the eight matrix products of a dense codebook step in float32 over all K
codewords: distances, two reconstructions, and their gradients with respect to weights and codewords.
"""

import json
import time
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scqfaiss.comparison.measuring import run_facts, typed
from scqfaiss.comparison.options import whole_numbers
from scqfaiss.comparison.results import FILE, Results
from scqfaiss.files import atomic_write, make_folder
from scqfaiss.methods.arsq import ARSQ, allocate_codewords
from scqfaiss.methods.centers import simplex
from scqfaiss.methods.reference_cfa import loss_of_one_label

D, M, K, C = 360, 4, 256, 10


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, k) float64."""
    a, b = a.double(), b.double()
    return a.pow(2).sum(1, keepdim=True) - 2 * a @ b.T + b.pow(2).sum(1)


def plain_codebook_loss(z: Tensor, y: Tensor, words: Tensor, owner: Tensor, soft: float, hard: float) -> Tensor:
    """L_ARSQ of z (b, D), labels y (b,), words (M, K, D / M): codebook by codebook, all codewords, others masked away."""
    own = owner[None] == y[:, None]  # b k
    same = (owner[:, None] == owner[None]) & ~torch.eye(K, dtype=torch.bool)
    total = z.new_zeros(())
    for m, part in enumerate(z.chunk(M, dim=1)):
        dist = squared_distances(part, words[m])  # b k
        far = dist.masked_fill(~own, 0).max(1, keepdim=True).values.clamp_min(1e-12)
        for weight, rate in ((0.1, soft), (1.0, hard)):
            share = torch.softmax((-rate * dist / far).masked_fill(~own, -torch.inf), dim=1).float()
            total = total + weight * F.mse_loss(share @ words[m], part)
        between = squared_distances(words[m], words[m])  # k k
        nearest = between.masked_fill(~same, torch.inf).min(1).values
        total = total - 0.1 / M * torch.tanh(torch.stack([nearest[owner == c].min() for c in range(C)]).mean()).float()
    return total


def plain_feature_loss(z: Tensor, logits: Tensor, centers: Tensor, multi_hot: Tensor) -> Tensor:
    """L_CFA row by row: the targets of a row's classes summed, cosine, pull and cross-entropy."""
    total = z.new_zeros(())
    for row in range(len(z)):
        t = torch.zeros(D)
        for c in multi_hot[row].nonzero().flatten():
            t = t + centers[c]
        t = t / t.norm()
        align = -F.cosine_similarity(z[row], t, dim=0)
        pull = 0.01 * (z[row] - 360 * t).norm()
        p = torch.softmax(logits[row], dim=0)
        total = total + align + pull - 0.1 * torch.log((p * multi_hot[row]).sum())
    return total / len(z)


def timed(sides: dict[str, Callable[[], object]], rounds: int, repeats: dict[str, int]) -> dict[str, list[float]]:
    """Seconds of one call of each side, round by round; the sides take turns, so that a slow spell of the machine meets all."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                side()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def codebook_step(batch: int, rounds: int) -> dict[str, list[float]]:
    owner = allocate_codewords(K, torch.ones(C))
    owned = owner == torch.arange(C)[:, None]
    z, y = torch.randn(batch, D), torch.randint(C, (batch,))
    ours = ARSQ(torch.randn(M, K, D // M), owned, owned, 0.1, 0.1)
    ours.soft, ours.hard = 0.5, 10.0
    fast = torch.optim.Adam(ours.parameters(), 1e-3, weight_decay=1e-5, amsgrad=True, fused=True)
    words = ours.centroids.detach().clone().requires_grad_()
    slow = torch.optim.Adam([words], 1e-3, weight_decay=1e-5, amsgrad=True)

    terms = ours.loss(z, y)
    both = (
        float(sum(t.detach() for t in terms.values())),
        float(plain_codebook_loss(z, y, words, owner, 0.5, 10.0).detach()),
    )
    assert np.isclose(*both, rtol=1e-3), f"the two sides compute different losses: {both}"

    def our_step() -> None:
        fast.zero_grad()
        reduce(add, ours.loss(z, y).values()).backward()
        fast.step()

    def plain_step() -> None:
        slow.zero_grad()
        plain_codebook_loss(z, y, words, owner, 0.5, 10.0).backward()
        slow.step()

    x, w = torch.randn(M, batch, D // M), torch.randn(M, K, D // M)
    weights = torch.randn(M, batch, K)

    def bare() -> None:
        torch.bmm(x, w.transpose(1, 2))  # distances
        torch.bmm(weights.transpose(1, 2), x)
        for _ in range(2):  # soft and hard
            torch.bmm(weights, w)
            torch.bmm(x, w.transpose(1, 2))
            torch.bmm(weights.transpose(1, 2), x)

    sides = {"ours": our_step, "plain": plain_step, "bare": bare}
    return timed(sides, rounds, {"ours": 5, "plain": 1, "bare": 5})


def feature_step(batch: int, rounds: int) -> dict[str, list[float]]:
    centers = torch.from_numpy(simplex(C, D).astype(np.float32))
    z, logits = torch.tanh(torch.randn(batch, D)).requires_grad_(), torch.randn(batch, C, requires_grad=True)
    y = torch.randint(C, (batch,))
    multi_hot = F.one_hot(y, C).float()
    both = (
        float(sum(t.detach() for t in loss_of_one_label(z, logits, centers, y).values())),
        float(plain_feature_loss(z, logits, centers, multi_hot).detach()),
    )
    assert np.isclose(*both, rtol=1e-4), f"the two sides compute different losses: {both}"

    def our_step() -> None:
        z.grad = logits.grad = None
        reduce(add, loss_of_one_label(z, logits, centers, y).values()).backward()

    def plain_step() -> None:
        z.grad = logits.grad = None
        plain_feature_loss(z, logits, centers, multi_hot).backward()

    return timed({"ours": our_step, "plain": plain_step}, rounds, {"ours": 20, "plain": 1})


STEPS = {"codebook": codebook_step, "feature": feature_step}


def figures(what: str, batch: int, seconds: dict[str, list[float]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each round -> (what is printed, a row of results)."""
    middle = {side: median(t) for side, t in seconds.items()}
    printed: dict[str, float] = {f"{what}_{batch}_{side}_rows_per_s": round(batch / t) for side, t in middle.items()}
    printed[f"{what}_{batch}_ratio"] = round(middle["plain"] / middle["ours"], 2)
    if "bare" in middle:
        printed[f"{what}_{batch}_ours_to_bare"] = round(middle["ours"] / middle["bare"], 2)
    # Within a round both sides met the same machine: what slowed one of them slowed the other.
    low, ratio, high = np.percentile(np.divide(seconds["plain"], seconds["ours"]), (25, 50, 75))
    row = {
        "key": f"{what}-{batch}",
        "what": what,
        "batch": batch,
        "pairs": len(seconds["ours"]),
        "ratio": round(float(ratio), 3),
        "ratio_low": round(float(low), 3),
        "ratio_high": round(float(high), 3),
        "ours_rows_per_s": round(batch / middle["ours"]),
        "plain_rows_per_s": round(batch / middle["plain"]),
    }
    return printed, row


def sizes(context: Any, parameter: Any, text: str) -> tuple[int, ...]:
    """'64,512' -> (64, 512). Raises click.BadParameter."""
    try:
        return whole_numbers(text)
    except ValueError as error:
        raise click.BadParameter(f"'{text}' {error}") from None


@click.command()
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(1), help="OptimizerStep of each side.")
@click.option("--batches", default="64,512", show_default=True, callback=sizes, help="Rows of a step.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for results.json.")
def main(rounds: int, batches: tuple[int, ...], seed: int, out: Path | None) -> None:
    """Ratios of throughput of a codebook step and of the feature loss."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    printed: dict[str, float] = {}
    rows = []
    try:
        for batch in batches:
            for what, step in STEPS.items():
                found, row = figures(what, batch, step(batch, rounds))
                printed |= found
                rows.append(row)
    finally:
        torch.set_num_threads(threads)
    if out is not None:
        command = typed("python benchmarks/upstream.py")
        make_folder(out)
        with atomic_write(out / FILE) as output:
            results = Results(output, "training", "training", command, {"seed": seed, "shape": [D, M, K, C]})
            for row in rows:
                results.add(row | {"run": run_facts(command, seed, {})})
    print(json.dumps(printed))


if __name__ == "__main__":
    main()
