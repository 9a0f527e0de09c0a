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
    from .evaluation.galleries import evaluate, evaluate_pairs
    from .galleries.editing import append, merge, remove
    from .galleries.exporting import export
    from .galleries.gallery import Gallery
    from .galleries.opening import open_any as open
    from .galleries.shards.sharded import Sharded
    from .model import Model
    from .training.calibrating import calibrate
    from .training.extending import extend
    from .training.interface import train

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
    "Sharded",
    "WriteError",
    "append",
    "calibrate",
    "evaluate",
    "evaluate_pairs",
    "export",
    "extend",
    "merge",
    "open",
    "remove",
    "train",
]

_LAZY = {
    "Codebooks": ("codebooks", "Codebooks"),
    "Gallery": ("galleries.gallery", "Gallery"),
    "Model": ("model", "Model"),
    "append": ("galleries.editing", "append"),
    "calibrate": ("training.calibrating", "calibrate"),
    "evaluate": ("evaluation.galleries", "evaluate"),
    "evaluate_pairs": ("evaluation.galleries", "evaluate_pairs"),
    "export": ("galleries.exporting", "export"),
    "extend": ("training.extending", "extend"),
    "merge": ("galleries.editing", "merge"),
    "Sharded": ("galleries.shards.sharded", "Sharded"),
    "open": ("galleries.opening", "open_any"),
    "remove": ("galleries.editing", "remove"),
    "train": ("training.interface", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'scqfaiss' has no attribute '{name}'")
    module, attribute = _LAZY[name]
    try:
        found = getattr(import_module(f".{module}", __name__), attribute)
    except Exception as error:
        from .dependencies import missing

        lacking = missing(error, name)
        if lacking is None:
            raise
        raise lacking from error
    globals()[name] = found
    return found
