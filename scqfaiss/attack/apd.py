"""APD, the adversarial peak destruction of PQ-AG: the codewords of the clean query shall not be chosen any more.

Feng, Chen, Dai, Xia, "Adversarial attack on deep product quantization network for image retrieval", AAAI 2020, arXiv 2002.11374.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .soft_codes import CleanQueries


def apd(vectors: Tensor, clean: CleanQueries) -> Tensor:
    """J = - sum_m log p_m(b_m | q'), b the code of the clean query; vectors (b, d) of q' -> (b,)."""
    parts = clean.log_p(vectors)
    chosen = [p.gather(1, b[:, None]).squeeze(1) for p, b in zip(parts, clean.code.T)]
    return -torch.stack(chosen).sum(0)
