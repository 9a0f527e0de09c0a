"""A model in torch, differentiable from what goes in to what its codes are chosen by."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.torch_chain import TorchChain
from ..errors import ConfigError
from ..features.source import DEFAULT_INFERENCE, InferenceOptions, front_encoder_of
from ..model import Model


class Twin(nn.Module):
    """Rows x (b, d_in), or images (b, 3, size, size) of pixels from 0 to 255, -> vectors (b, d) as Model.vectors has them.

    The network, the chain, and the content chain where there is one; within rounding the same numbers as in NumPy. Raises
    ConfigError as front_encoder_of does.
    """

    def __init__(self, model: Model, options: InferenceOptions = DEFAULT_INFERENCE, device: str = "cpu") -> None:
        super().__init__()
        self.model = model
        self.front: Any = front_encoder_of(model, options) if model.modality.needs_encoder else None
        self.chain = TorchChain(model.chain)
        self.content = None if model.content is None else TorchChain(model.content.chain)
        self.to(device).eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.front is not None:
            x = self.front(x)[0].float()
        z: Tensor = self.chain(x)
        return z if self.content is None else self._joined(z, self.content(x))

    def _joined(self, z: Tensor, v: Tensor) -> Tensor:
        """As content.Joint.join lays both parts out, with weights of 1."""
        joint = self.model.joint
        assert joint is not None
        if joint.content.kind == "additive":
            return torch.cat([z, v], 1)
        parts = []
        for part, b in ((z, joint.semantic), (v, joint.content)):
            words = part.reshape(len(part), b.M, -1)
            parts.append(F.pad(words, (0, joint.dsub - words.shape[2])))
        return torch.cat(parts, 1).flatten(1)


def gradient(J: Tensor, x: Tensor) -> Tensor:
    """dJ/dx of sums over rows. Raises ConfigError where the network before it passes no gradient on."""
    if not J.requires_grad:
        raise ConfigError("the model's network passes no gradient on to its images, which an attack needs")
    found: Tensor = torch.autograd.grad(J.sum(), x)[0]
    return found
