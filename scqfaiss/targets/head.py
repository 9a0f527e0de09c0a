"""An encoder inside the index file: affine layers and L2 norms as a FAISS pre-transform chain.

With it plain FAISS searches with the user's own query rows. Nothing else nonlinear exists in FAISS: every other encoder
runs before the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError


def wrap(index: Any, d_in: int, layers: Sequence[tuple[str, Mapping[str, NDArray[np.float32]]]]) -> Any:
    """A filled index behind `layers` ('linear', 'center', 'normalize', applied in order to rows of d_in).

    The index must be full already: add_sa_codes of an IndexPreTransform throws, and adding to the index inside leaves the
    outer count behind. Raises ConfigError for other layers.
    """
    if not layers:
        return index
    transforms, d = [], d_in
    for op, arrays in layers:
        transforms.append(_transform(op, arrays, d))
        d = transforms[-1].d_out
    out = faiss.IndexPreTransform(index)
    for t in reversed(transforms):
        out.prepend_transform(t)
    return out


def _transform(op: str, arrays: Mapping[str, NDArray[np.float32]], d: int) -> Any:
    if op == "linear":
        A = arrays["A"]
        t = faiss.LinearTransform(A.shape[1], A.shape[0], "b" in arrays)
        faiss.copy_array_to_vector(np.ascontiguousarray(A, np.float32).ravel(), t.A)
        if "b" in arrays:
            faiss.copy_array_to_vector(np.ascontiguousarray(arrays["b"], np.float32), t.b)
        t.is_trained = True
        t.set_is_orthonormal()
        return t
    if op == "center":
        t = faiss.CenteringTransform(d)
        faiss.copy_array_to_vector(np.ascontiguousarray(arrays["mean"], np.float32), t.mean)
        t.is_trained = True
        return t
    if op == "normalize":
        return faiss.NormalizationTransform(d, 2.0)
    raise ConfigError(f"an encoder layer '{op}' cannot stand inside a FAISS file")


def inner(index: Any) -> Any:
    """The index behind the chain, or the index itself."""
    index = faiss.downcast_index(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
