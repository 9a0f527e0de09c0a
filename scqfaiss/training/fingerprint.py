"""Everything that decides what a training comes to, so that a checkpoint of another one is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .. import __version__, distributed
from ..contract import Subset, Task, flat
from ..errors import printable
from ..files import open_regular
from .planning import Plan
from .rows import ImageRows


def run_fingerprint(plan: Plan, task: Task) -> dict[str, Any]:
    """Everything that decides what a training comes to, as plain values: a checkpoint of another one is refused."""
    options = plan.options
    named = ("method", "encoder", "seed", "epochs", "batch_size", "precision", "clip_norm", "accumulate")
    out: dict[str, Any] = {name: getattr(options, name) for name in named}
    out |= {
        "bits": plan.M * plan.nbits,
        "nbits": plan.nbits,
        "lists": plan.lists,
        "content bits": options.content_bits,
        "device": torch.device(plan.device).type,
    }
    out |= {"scqfaiss": __version__, "torch": torch.__version__, "processes": distributed.world_size()}
    if task.labels is not None:
        out |= {"classes": task.labels.C, "class names": list(task.labels.class_names or ())}
    out |= {"training rows": fingerprint(Subset(task.rows, task.labels, task.ids))}
    if task.codebook_rows is not None:
        out["codebook rows"] = fingerprint(Subset(task.codebook_rows))
    if task.unlabelled is not None:
        out["unlabelled rows"] = fingerprint(Subset(task.unlabelled))
    if task.validation is not None:
        out |= {"patience": options.patience, "validation rows": fingerprint(task.validation)}
    values = flat(plan.config) | (flat(plan.encoder_config) if plan.encoder else {})
    out |= {f"setting {name}": value for name, value in values.items()}
    out |= {f"argument {name}": value for name, value in options.encoder_args.items()}
    for name in [*setting_files(values), *(f for f in (options.weights, options.start) if f is not None)]:
        with open_regular(name) as f:
            out[f"contents of {printable(name)}"] = hashlib.sha256(f.read()).hexdigest()
    return out


def fingerprint(part: Subset) -> str:
    """SHA-256 (hex) of rows, labels and ids."""
    sha = hashlib.sha256(f"{len(part.rows)} {part.rows.d}".encode())
    if isinstance(part.rows, ImageRows):
        sha.update(part.rows.digest().encode())
    else:
        for _, x in part.rows.blocks():
            sha.update(np.ascontiguousarray(x).data)
    for a in (part.labels.y if part.labels else None, part.ids):
        sha.update(b"none" if a is None else f"{a.dtype} {a.shape}".encode() + a.tobytes())
    if part.labels and part.labels.numbers is not None:
        sha.update(part.labels.numbers.tobytes())
    return sha.hexdigest()


def setting_files(values: Mapping[str, Any]) -> list[str]:
    """The files that settings name."""
    return [v for v in values.values() if isinstance(v, str) and v.endswith(".npy")]
