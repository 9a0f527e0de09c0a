"""Methods trained in torch, and the one registry of all methods: a line each, imported only when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..dependencies import missing
from ..errors import ConfigError, suggestion

if TYPE_CHECKING:
    from ..contract import Method

REGISTRY = {
    "scq": "scqfaiss.methods.scq:SCQ",
    "label": "scqfaiss.methods.label:LabelCode",
    "dpq": "scqfaiss.methods.dpq:DPQ",
    "mecoq": "scqfaiss.methods.mecoq:MeCoQ",
    "mopq": "scqfaiss.methods.mopq:MoPQ",
    "phpq": "scqfaiss.methods.phpq:PHPQ",
    # Trained by FAISS; only their names stand here, so that this package never imports it.
    "pq": "scqfaiss.baselines:PQ",
    "opq": "scqfaiss.baselines:OPQ",
    "rq": "scqfaiss.baselines:RQ",
}

ALIASES = {"dpgq": "dpq"}

# Names that would be taken for one of ours: what they mean, and what to do.
MISTAKEN = {
    "deep-product-quantization": "it is the method of Klein and Wolf, CVPR 2019, which shares the letters DPQ with dpq, "
    "Deep Progressive Quantization (Gao et al., IJCAI 2019), and is not offered here; for dpq ask for dpq",
}


def method_class(name: str) -> type[Method]:
    """The method registered under `name`. Raises ConfigError with the known names."""
    name = ALIASES.get(name, name)
    if name in MISTAKEN:
        raise ConfigError(f"there is no method '{name}': {MISTAKEN[name]}")
    if name not in REGISTRY:
        raise ConfigError(f"unknown method '{name}'{suggestion(name, REGISTRY)}; there are {', '.join(REGISTRY)}")
    module, _, cls = REGISTRY[name].partition(":")
    try:
        registered: type[Method] = getattr(import_module(module), cls)
    except Exception as error:
        lacking = missing(error, f"method {name}")
        if lacking is None:
            raise
        raise lacking from error
    return registered
