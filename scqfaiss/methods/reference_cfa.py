"""CFA as its authors' code trains it (cfa=reference): a tanh layer pulled to 360 times the center of a row's class.

Song, Zhang, Zhu, Zhao, Wang, Shen. IEEE Trans. Image Processing 32:6485-6499, 2023; written anew, nothing copied.

b row   c class (C)   d dimension of z
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def loss(z: Tensor, logits: Tensor, t: Tensor, has_target: Tensor, multi_hot: Tensor) -> dict[str, Tensor]:
    """The feature loss of the authors' code: -cos(z, t) + 0.01 ||z - 360 t|| + 0.1 CE, means over the batch.

    z, t (b, d); logits, hot (b, C). The second term is a norm, not a square. Rows without a target direction leave the
    alignment terms. CE with many labels: -log of the probability mass on the row's classes.
    """
    n = has_target.sum().clamp_min(1)
    cos = (F.cosine_similarity(z, t) * has_target).sum() / n
    pull = ((z - 360 * t).norm(dim=1) * has_target).sum() / n
    ce = -logits.log_softmax(1).masked_fill(multi_hot == 0, -torch.inf).logsumexp(1).mean()
    return {"align": -cos, "pull": 0.01 * pull, "ce": 0.1 * ce}


def loss_of_one_label(z: Tensor, logits: Tensor, centers: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The same loss for one label a row: the target is a center itself, of norm 1."""
    align_and_pull, ce = _LossOfOneLabel.apply(z, centers.index_select(0, y), logits, y)  # type: ignore[no-untyped-call]
    return {"align and pull": align_and_pull, "ce": ce}


class _LossOfOneLabel(torch.autograd.Function):
    """Means over the batch of -cos(z, t) + 0.01 ||z - 360 t||, for z, t (b, d) with ||t|| = 1, and of 0.1 CE.

    The first follows from <z, t> and ||z||^2, and so does its gradient, a z + b t: a third of the operations that autograd
    would run, and at small batches a step costs what its number of operations costs.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        dot, square = torch.linalg.vecdot(z, t), torch.linalg.vecdot(z, z)
        shrink = square.clamp_min(1e-16).rsqrt_()  # 1 / ||z||
        distance = square.add_(129600).sub_(dot, alpha=720).clamp_min_(1e-12).sqrt_()  # ||z - 360 t||
        cos = dot.mul_(shrink)
        log_p = logits.log_softmax(1)
        ctx.save_for_backward(z, t, cos, shrink, distance, log_p, y)
        return distance.mul(0.01).sub_(cos).mean(), F.nll_loss(log_p, y).mul_(0.1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        z, t, cos, shrink, distance, log_p, y = ctx.saved_tensors
        share = grads[0] / len(z)
        align, pull = shrink * share, share / distance * 0.01
        of_z = (align * cos).mul_(shrink).add_(pull)  # d cos / dz = t / ||z|| - cos z / ||z||^2
        of_t = align.add_(pull, alpha=360).neg_()
        of_logits = log_p.exp().scatter_add_(1, y[:, None], log_p.new_full((len(z), 1), -1.0))
        of_logits *= grads[1] * (0.1 / len(z))
        return (z * of_z[:, None]).addcmul_(t, of_t[:, None]), None, of_logits, None


def optimizer(features: Any, steps_per_epoch: int) -> tuple[Any, Any]:
    """SGD of the authors' code: Nesterov 0.9, 2e-3, new layers x 40, biases x 2, decay 1e-5 on weights, x 0.9 per 10 epochs."""
    trained = {id(p) for p in features.encoder.parameters()} if features.encoder.modality.needs_encoder else set()

    def rate(p: Tensor) -> float:
        return 2e-3 * (1 if id(p) in trained else 40) * (2 if p.ndim == 1 else 1)

    groups = [
        {"params": [p], "lr": rate(p), "weight_decay": 0.0 if p.ndim == 1 else 1e-5}
        for p in features.parameters()
        if p.requires_grad
    ]
    sgd = torch.optim.SGD(groups, lr=2e-3, momentum=0.9, nesterov=True)
    return sgd, torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 0.9 ** (step // max(1, 10 * steps_per_epoch)))
