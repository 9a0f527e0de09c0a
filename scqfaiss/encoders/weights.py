"""Weights of a network: out of a file, checked against the network, and into it."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..bundle import read_tensors
from ..errors import CheckpointError, ConfigError, ScqError, printable, warn
from ..files import PathLike, open_regular

PICKLES = (".pth", ".pt", ".bin", ".ckpt")  # files of weights that torch writes


def load_weights(net: nn.Module, path: PathLike) -> str:
    """Put the weights of a file into `net` -> SHA-256 (hex) of the file.

    path: .safetensors, or a torch file (.pth, .pt, .bin, .ckpt) of tensors alone, whose pickled code is never run. Weights
    that the network lacks, such as those of a classifier, are left out with a notice. Raises ConfigError where the network has
    weights that the file lacks, or of another shape; CheckpointError where the file is unsound.
    """
    name = printable(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".safetensors":
        arrays, sha = read_tensors(path)
        # The arrays may be views of the file's bytes, which torch must not write to.
        weights = {key: torch.tensor(a) for key, a in arrays.items()}
    elif suffix in PICKLES:
        weights, sha = _pickled(path)
        warn(f"{name}: a pickle, of which only tensors were read; .safetensors cannot hold anything else and is safer")
    else:
        raise ConfigError(f"{name}: files of weights end in .safetensors, or {', '.join(PICKLES)}")
    network_names = state_of(net)
    parallel = any(key.startswith("module.") for key in network_names)
    # nn.DataParallel puts 'module.' in front of all names.
    if weights and all(key.startswith("module.") for key in weights) and not parallel:
        weights = {key.removeprefix("module."): t for key, t in weights.items()}
    check_fit(net, weights, name, ConfigError)
    put(net, weights)
    unused = sorted(set(weights) - set(network_names))
    if unused:
        warn(f"{name}: {len(unused)} tensors have no place in the network and are left out: {first_few(unused)}")
    return sha


def _pickled(path: PathLike) -> tuple[dict[str, Tensor], str]:
    name = printable(path)
    with open_regular(path, CheckpointError) as f:
        data = f.read()
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes make of the reader
        raise CheckpointError(
            f"{name}: not a plain state dict of torch ({type(error).__name__}); only tensors are read, and no code is run"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{name}: holds {type(state).__name__}, needs a state dict: tensors by name")
    for key, t in state.items():
        if not isinstance(key, str) or not isinstance(t, Tensor) or t.layout != torch.strided or t.device.type != "cpu":
            raise CheckpointError(f"{name}: '{printable(str(key))}' is {type(t).__name__}, needs plain tensors by name")
    return dict(state), hashlib.sha256(data).hexdigest()


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name. Raises ConfigError where the network keeps anything else."""
    state = net.state_dict()
    for key, t in state.items():
        if not isinstance(t, Tensor):
            raise ConfigError(f"the network's state holds {key}, {type(t).__name__}; needs tensors alone")
    return state


def check_fit(net: nn.Module, weights: Mapping[str, Tensor], where: str, error: type[ScqError]) -> None:
    """Raise `error` where a tensor of the network is lacking or is of another kind, CheckpointError where one is not finite."""
    network_state = state_of(net)
    # Counters of batches came to torch's norms late, and nothing but momentum=None looks at them.
    missing = [key for key in network_state if key not in weights and not key.endswith("num_batches_tracked")]
    if missing:
        raise error(
            f"{where}: lacks {len(missing)} of the network's {len(network_state)} tensors: {first_few(missing)}"
        )
    for key, t in network_state.items():
        if key in weights and weights[key].shape != t.shape and (weights[key].shape, t.shape) != ((1,), ()):
            raise error(f"{where}: {key} is {tuple(weights[key].shape)}, the network needs {tuple(t.shape)}")
        if key in weights and weights[key].is_complex() != t.is_complex():
            raise error(f"{where}: {key} is {weights[key].dtype}, the network needs {t.dtype}")
        if key in weights and weights[key].is_floating_point() and not weights[key].isfinite().all():
            raise CheckpointError(f"{where}: {key} holds NaN or infinity")


@torch.no_grad()
def put(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy tensors that fit into the network's, by name."""
    for key, t in state_of(net).items():
        if key in weights:
            t.copy_(weights[key].view_as(t))


def first_few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(printable, names[:most])) + (", ..." if len(names) > most else "")
