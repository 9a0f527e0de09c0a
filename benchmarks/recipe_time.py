"""Seconds to a trained model: the released recipe's 15 + 50 epochs in its plain arithmetic. Prints JSON.

    python benchmarks/recipe_time.py TRAIN.h5 [--epochs 15 50]

The same encoder (one member, 1,024 units), batch 64, feature loss row by row, codebook step codebook by codebook in double
precision (see upstream.py), 4 codebooks of 256 codewords on 360 dimensions, all cores. Beside it `scqfaiss.train` at its defaults
on the same rows, 32 bits, in the same process, libraries loaded before either starts.
"""

import json
import time

import click
import numpy as np
import torch
from upstream import C, D, K, M, plain_codebook_loss, plain_feature_loss

import scqfaiss
from scqfaiss.data import open_rows
from scqfaiss.methods.arsq import allocate_codewords
from scqfaiss.methods.centers import simplex


@click.command()
@click.argument("train")
@click.option("--epochs", nargs=2, default=(15, 50), show_default=True)
def main(train: str, epochs: tuple[int, int]) -> None:
    """Time the plain recipe on TRAIN."""
    torch.manual_seed(0)
    with open_rows(train) as source:
        assert source.labels is not None
        x, y = torch.from_numpy(source.read(0, len(source))), torch.from_numpy(source.labels.y)
    scqfaiss.train(x.numpy(), y.numpy(), bits=32, epochs=1)  # loads what torch loads late
    start = time.perf_counter()
    centers = torch.from_numpy(simplex(C, D).astype(np.float32))
    trunk = torch.nn.Sequential(
        torch.nn.Dropout(0.2), torch.nn.Linear(x.shape[1], 1024), torch.nn.ReLU(), torch.nn.Dropout(0.5)
    )
    project, classify = torch.nn.Linear(1024, D), torch.nn.Linear(1024, C)
    parts = torch.nn.ModuleList([trunk, project, classify])
    optimizer: torch.optim.Optimizer = torch.optim.SGD(parts.parameters(), 0.08, momentum=0.9, nesterov=True)
    multi_hot = torch.nn.functional.one_hot(y, C).float()
    for _ in range(epochs[0]):
        for i in torch.randperm(len(x)).split(64):
            g = trunk(x[i])
            optimizer.zero_grad()
            plain_feature_loss(torch.tanh(project(g)), classify(g), centers, multi_hot[i]).backward()
            optimizer.step()
    features = time.perf_counter() - start
    parts.eval()
    with torch.no_grad():
        z = torch.tanh(project(trunk(x)))
    words = (1e-4 * torch.randn(M, K, D // M)).requires_grad_()
    owner = allocate_codewords(K, torch.ones(C))
    optimizer = torch.optim.Adam([words], 0.02, weight_decay=1e-5, amsgrad=True)
    soft, hard = 1.0, 1.0
    for epoch in range(epochs[1]):
        if epoch and epoch % 5 == 0:
            soft, hard = max(0.5 * soft, 0.01), min(1.5 * hard, 30)
        for i in torch.randperm(len(z)).split(64):
            optimizer.zero_grad()
            plain_codebook_loss(z[i], y[i], words, owner, soft, hard).backward()
            optimizer.step()
    total = time.perf_counter() - start
    start = time.perf_counter()
    scqfaiss.train(x.numpy(), y.numpy(), bits=32)
    ours = time.perf_counter() - start
    print(
        json.dumps(
            {
                "plain_seconds": round(total, 1),
                "plain_feature_seconds": round(features, 1),
                "ours_seconds": round(ours, 2),
                "recipe_ratio": round(total / ours, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
