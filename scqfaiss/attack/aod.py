"""AOD, the adversarial overall destruction of PQ-AG: the distribution over all codewords shall become another one.

Feng, Chen, Dai, Xia, "Adversarial attack on deep product quantization network for image retrieval", AAAI 2020, arXiv 2002.11374.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .soft_codes import CleanQueries


def aod(vectors: Tensor, clean: CleanQueries) -> Tensor:
    """J = sum_m KL(p_m(. | q) || p_m(. | q')), q the clean query; vectors (b, d) of q' -> (b,).

    Its gradient is zero at q' = q: attacks start beside the query.
    """
    parts = [(p.exp() * (p - changed)).sum(1) for p, changed in zip(clean.log_p_clean, clean.log_p(vectors))]
    return torch.stack(parts).sum(0)
