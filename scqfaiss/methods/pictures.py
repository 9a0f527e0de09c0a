"""What methods need to know of pictures: that they come, and what the network makes of some of them.

n picture   b picture of a batch
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .. import distributed
from ..arrays import Ints
from ..contract import Rows

BATCH = 256  # pictures held at a time: 39 MB of 224 x 224 pixels


def are_encoded_by(encoder: str) -> bool:
    """Whether the encoder of this name takes pictures: a network stands as its factory, 'package.module:function'."""
    return ":" in encoder


@torch.no_grad()
def made_of(rows: Rows, numbers: Ints, make: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What make(x (b, 3, size, size) uint8) -> (b, ...) gives of the pictures `numbers`, a batch at a time -> (n, ...), and
    their numbers (n,).

    In the order of `numbers`, which rise; on the CPU. Several processes make a share each and hand it around; then the few
    pictures that do not go up evenly may be missing.
    """
    made, index = [], []
    for batch in rows.batches(BATCH, Generator().manual_seed(0), numbers):
        x, here = batch
        part = make(x).cpu()
        if isinstance(batch, distributed.Own):
            part, here = (torch.cat(distributed.from_all(t.contiguous())) for t in (part, here.cpu()))
        made.append(part)
        index.append(here.cpu())
    found = torch.cat(index)
    order = found.argsort()
    return torch.cat(made)[order], found[order]
