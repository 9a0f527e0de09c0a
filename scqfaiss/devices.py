"""Names of devices and precisions, read in one place. Whether torch has a device is asked here, whether FAISS has it in
targets.gpu.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import ConfigError, suggestion

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Device:
    """A device by its name. kind: 'auto', 'cpu' or 'cuda'; number: of the GPU, None where the name has none."""

    kind: str
    number: int | None = None

    def __str__(self) -> str:
        return self.kind if self.number is None else f"{self.kind}:{self.number}"


def parse_device(name: str, setting: str = "device", auto: bool = True) -> Device:
    """'auto' (where that is taken), 'cpu', 'cuda' or 'cuda:N' -> Device. Raises ConfigError for any other text."""
    if name == "cpu" or (auto and name == "auto"):
        return Device(name)
    match = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", str(name))
    if match is None:
        raise ConfigError(f"{setting} is '{name}', needs {'auto, ' if auto else ''}cpu, cuda or cuda:N")
    return Device("cuda", None if match[1] is None else int(match[1]))


def check_precision(name: str, setting: str = "precision", known: Sequence[str] = PRECISIONS) -> None:
    """Raise ConfigError unless `name` is one of the `known` precisions."""
    if name not in known:
        raise ConfigError(f"{setting} is '{name}', needs one of {', '.join(known)}{suggestion(str(name), known)}")


def torch_device(name: str, setting: str = "device", number: int | None = None) -> str:
    """Name of a device -> the one that torch has: 'cpu', 'cuda' or 'cuda:N'.

    number: the GPU that a plain 'cuda', or 'auto' where there are GPUs, stands for. Raises ConfigError for other names, and
    where torch sees no such GPU.
    """
    import torch

    device = parse_device(name, setting)
    if device.kind == "auto":
        device = Device("cuda" if torch.cuda.is_available() else "cpu")
    if device.kind == "cuda" and device.number is None:
        device = Device("cuda", number)
    if device.kind == "cuda" and not torch.cuda.is_available():
        option = f"--{setting.replace(' ', '-')}"
        raise ConfigError(f"{setting} {device} was asked for, but this torch sees no GPU; use {option} cpu")
    if device.number is not None and device.number >= torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise ConfigError(f"{setting} {device} was asked for, but this torch sees {gpus} GPUs, from cuda:0 on")
    return str(device)


def torch_dtype(precision: str) -> torch.dtype | None:
    """The type in which torch is to run what may run in a lower precision; None for float32, which needs none."""
    import torch

    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
