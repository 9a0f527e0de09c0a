"""What the searches of an open gallery run on, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, warn
from ..targets import gpu
from ..targets.pretransform import unwrap_index
from .reading import Stored


@dataclass(frozen=True)
class Snapshot:
    """What searches run on. A refresh puts another in its place; a search keeps the one it began with."""

    stored: Stored
    on_gpu: gpu.OnGpu | None = None
    decodable: list[Any] = field(
        default_factory=list
    )  # codebooks, codes and ids in their order, once `reconstruct` asked
    promises: list[Any] = field(default_factory=list)  # the calibration and the share of relevant rows, once asked for

    @staticmethod
    def on_device(stored: Stored, device: str) -> Snapshot:
        """With the codes on a GPU where that is asked for. Raises ConfigError or ResourceError where they cannot go there."""
        if device == "cpu":
            return Snapshot(stored)
        number, target = gpu.number_of(device), stored.target
        if target is None:
            kind = type(unwrap_index(stored.index)).__name__
            raise ConfigError(f"a {kind} holds no codes of ours and stays on the cpu")
        if not target.INFO.exact:
            warn(f"on a GPU the codes of target {target.INFO.name} are searched exactly, not as that target would")
        content, nprobe = target.unpack(stored.index, stored.shape), None
        if content[0].lists is not None and target.INFO.name != "buckets":  # whose searches are exact
            nprobe = unwrap_index(stored.index).nprobe
        elif content[0].L > gpu.MAX_NPROBE:
            warn(f"a GPU search looks at {gpu.MAX_NPROBE:,} of the {content[0].L:,} lists: not exact, as on the cpu")
        return Snapshot(stored, gpu.OnGpu(gpu.form(*content), number, nprobe))


@dataclass(frozen=True)
class Origin:
    """The file that a gallery was opened from, and how."""

    path: str
    device: str
    mmap: bool
    verify: bool
