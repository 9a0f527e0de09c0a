"""The head of CFA as layers of an encoder chain: written after a training, read back where another starts from it.

e member (E)   c class (C)   d dimension of f   w width of the encoder's output
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..contract import Layers
from ..errors import ConfigError
from .tensors import as_array

if TYPE_CHECKING:
    from .cfa import Features

COSINE, INNER = ["linear", "normalize", "linear"], ["linear"]  # the layers before the probabilities


def of(f: Features, upto: str) -> Layers:
    """What follows the encoder; upto='posterior' stops at p."""
    A, b = as_array(f.project.transpose(1, 2)), as_array(f.shift[:, 0])  # e d w, e d
    directions, logits = as_array(f.directions()), []
    if f.kind == "calibrated" and not f.cosine:  # both products in one
        wide = directions.astype(np.float64)
        A, b = (wide @ A).astype(np.float32), (b @ wide.T).astype(np.float32)  # e c w, e c
        if f.sigmoid:
            b += as_array(f.bias)
    elif f.kind == "calibrated":
        arrays = {"A": directions} | ({"b": as_array(f.bias)} if f.sigmoid else {})
        logits = [("normalize", {}), ("linear", arrays)]
    first: Layers = [("heads", {"A": A, "b": b}) if f.members > 1 else ("linear", {"A": A[0], "b": b[0]})]
    if f.kind == "reference":
        return [*first, ("tanh", {})]
    if f.kind == "cosine":
        return [*first, ("normalize", {})]
    layers = [*first, *logits, ("sigmoid" if f.sigmoid else "softmax", {})]
    if f.members > 1:
        layers.append(("average", {"weights": np.full(f.members, 1 / f.members, np.float32)}))
    return layers if upto == "posterior" else [*layers, ("linear", {"A": as_array(f.centers.T)})]


def adopt(f: Features, head: Layers) -> None:
    """Go on with the classifier of a trained model, whatever code was made for it: the posterior is all that z is made of.

    Whether its logits are cosines or inner products is the model's. Raises ConfigError where its layers do not begin with a
    classifier, or with one of other classes.
    """
    end = "sigmoid" if f.sigmoid else "softmax"
    ops = [op for op, _ in head][:4]
    f.cosine = ops == [*COSINE, end]
    if f.kind != "calibrated" or not (f.cosine or ops[:2] == [*INNER, end]):
        raise ConfigError(
            f"the model to start from has layers {', '.join(ops)}, cfa={f.kind} needs {', '.join([*COSINE, end])}, or "
            f"{', '.join([*INNER, end])}"
        )
    first, last = head[0][1], head[2 if f.cosine else 0][1]
    C, w = len(last["A"]), first["A"].shape[1]
    if (C, w) != (f.labels.C, f.encoder.width):
        raise ConfigError(
            f"the model to start from tells {C} classes apart by {w} features, here are {f.labels.C} and {f.encoder.width}"
        )
    f.project = nn.Parameter(torch.from_numpy(first["A"].T.copy())[None], requires_grad=False)
    f.shift = nn.Parameter(torch.from_numpy(first["b"].copy())[None, None], requires_grad=False)
    axes = torch.from_numpy(last["A"].copy()) if f.cosine else torch.eye(C)  # inner: its products are the logits
    f.axes, f.kappa = axes, float(axes.norm(dim=1).double().mean())
    if f.sigmoid:
        bias = last["b"].copy() if f.cosine else np.zeros(C, np.float32)
        f.bias = nn.Parameter(torch.from_numpy(bias), requires_grad=False)
