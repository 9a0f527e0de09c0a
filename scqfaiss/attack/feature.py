"""The feature attack: what is searched with shall move far away. It knows the encoder, and nothing of codes."""

from __future__ import annotations

from torch import Tensor

from .soft_codes import CleanQueries


def feature(vectors: Tensor, clean: CleanQueries) -> Tensor:
    """J = || z(q') - z(q) ||^2; vectors (b, d) of q' -> (b,)."""
    return (vectors - clean.vectors).square().sum(1)
