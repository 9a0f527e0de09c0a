"""What a function makes of items of another modality than rows of features, a batch at a time.

n item   b item of a batch
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .. import distributed
from ..arrays import Ints
from ..contract import RowStream

BATCH = 256  # images held at a time: 39 MB of 224 x 224 pixels


@torch.no_grad()
def map_items(rows: RowStream, numbers: Ints, make: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """make(x (b, ...) items) -> (b, ...) of the items `numbers`, a batch at a time -> (n, ...), and their numbers (n,).

    In the order of `numbers`, which ascend; on the CPU. Several processes make a share each and hand it around; then the few
    items that do not divide evenly among them may be missing.
    """
    parts, numbers_of_parts = [], []
    for batch in rows.batches(BATCH, Generator().manual_seed(0), numbers):
        x, index = batch
        part = make(x).cpu()
        if isinstance(batch, distributed.LocalBatch):
            part, index = (torch.cat(distributed.all_gather(t.contiguous())) for t in (part, index.cpu()))
        parts.append(part)
        numbers_of_parts.append(index.cpu())
    index = torch.cat(numbers_of_parts)
    order = index.argsort()
    return torch.cat(parts)[order], index[order]
