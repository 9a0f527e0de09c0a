"""Batch normalisation over the batch that several processes share, as if one process had it whole.

Ioffe, Szegedy, "Batch normalization", ICML 2015, algorithm 1. torch's SyncBatchNorm does the same, on GPUs alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import distributed


class JointNorm(_BatchNorm):
    """x (b, c, ...) -> normalised by mean and variance of the joint batch in training; b is the same in all processes.

    Parameters, buffers and evaluation are those of nn.BatchNorm1d to 3d.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the module that stood here before has its own opinion; all dimensions work

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        dims = [i for i in range(x.ndim) if i != 1]
        shape = [-1 if i == 1 else 1 for i in range(x.ndim)]
        with torch.autocast(x.device.type, enabled=False):
            y = x.float()
            # Every process has as many rows: the mean of means is the mean. Two exchanges, for a variance that does not cancel.
            mean = distributed.all_gather_with_grad(y.mean(dims)[None]).mean(0)
            y = y - mean.view(shape)
            var = distributed.all_gather_with_grad(y.square().mean(dims)[None]).mean(0)
            if self.running_mean is not None and self.running_var is not None:
                self._follow(mean.detach(), var.detach(), distributed.world_size() * (x.numel() // x.shape[1]))
            y = y * (var + self.eps).rsqrt().view(shape)
            if self.weight is not None:
                y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _follow(self, mean: Tensor, var: Tensor, n: int) -> None:
        """The running mean and the running variance, without bias, of n values each."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * (n / max(n - 1, 1)), share)


def joined(net: nn.Module) -> nn.Module:
    """`net`, with its batch norms replaced by JointNorm where several processes train; names and tensors stay."""
    if distributed.world_size() == 1:
        return net
    for name, child in net.named_children():
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            assert isinstance(child, _BatchNorm)
            other = JointNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            for key, p in child.named_parameters():
                setattr(other, key, p)
            for key, t in child.named_buffers():
                setattr(other, key, t)
            setattr(net, name, other)
        else:
            joined(child)
    return net
