"""scqfaiss: labels shape the codes in PyTorch, FAISS serves them.

    model = scqfaiss.train(x, y, bits=32)
    model.save("model.safetensors")
    scqfaiss.export(model, xb, ids=ids, path="gallery.faissindex")
    gallery = scqfaiss.open("gallery.faissindex", model="model.safetensors")
    D, I = gallery.search(xq, k=10)

Names load on first use: importing the package loads neither torch nor faiss.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import forks as forks  # looks first, before any library is loaded
from .errors import (
    CheckpointError,
    ConfigError,
    DataError,
    IndexFileError,
    ResourceError,
    ScqError,
    ScqWarning,
    WriteError,
)

if TYPE_CHECKING:
    from .codebooks import Codebooks
    from .editing import append, merge, remove
    from .evaluation import evaluate, evaluate_pairs
    from .exporting import export
    from .gallery import Gallery
    from .gallery import open_gallery as open
    from .model import Model
    from .training import train

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Codebooks",
    "ConfigError",
    "DataError",
    "Gallery",
    "IndexFileError",
    "Model",
    "ResourceError",
    "ScqError",
    "ScqWarning",
    "WriteError",
    "append",
    "evaluate",
    "evaluate_pairs",
    "export",
    "merge",
    "open",
    "remove",
    "train",
]

_LAZY = {
    "Codebooks": ("codebooks", "Codebooks"),
    "Gallery": ("gallery", "Gallery"),
    "Model": ("model", "Model"),
    "append": ("editing", "append"),
    "evaluate": ("evaluation", "evaluate"),
    "evaluate_pairs": ("evaluation", "evaluate_pairs"),
    "export": ("exporting", "export"),
    "merge": ("editing", "merge"),
    "open": ("gallery", "open_gallery"),
    "remove": ("editing", "remove"),
    "train": ("training", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'scqfaiss' has no attribute '{name}'")
    module, attribute = _LAZY[name]
    try:
        found = getattr(import_module(f".{module}", __name__), attribute)
    except Exception as error:
        from .parts import missing

        lacking = missing(error, name)
        if lacking is None:
            raise
        raise lacking from error
    globals()[name] = found
    return found
