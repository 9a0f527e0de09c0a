"""Galleries opened by name: one file, or a folder of shards."""

from __future__ import annotations

from ..files import PathLike
from ..model import Model
from .base import AnyGallery
from .gallery import open_gallery
from .shards.manifest import is_sharded
from .shards.sharded import open_sharded


def open_any(
    path: PathLike,
    *,
    model: Model | PathLike | None = None,
    device: str = "cpu",
    mmap: bool = False,
    verify: bool = True,
) -> AnyGallery:
    """Open a gallery for searching: a .faissindex file, or a folder .shards of several (see open_gallery, open_sharded).

    model: the model its codes came from, or for one file one that extends it; needed where the encoder is not folded into
    the file, and refused when it is another one. device: cpu, cuda or cuda:N. mmap: codes and ids stay in the files, for
    those larger than memory; replace such a file by another, never write into it. verify=False leaves out the SHA-256
    (about 0.6 seconds a GB), not the other checks.
    Raises ConfigError, IndexFileError or ResourceError (see read_gallery), CheckpointError for a damaged model.
    """
    opened = open_sharded if is_sharded(path) else open_gallery
    gallery: AnyGallery = opened(path, model=model, device=device, mmap=mmap, verify=verify)
    return gallery
