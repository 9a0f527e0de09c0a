"""Facts in files: what kind of value stands under each key of an index metadata and of a model's config.

Both are JSON that anybody may have written under a sound hash. Every value is looked at here, before anything uses it; keys
that are unknown are passed over, they may be those of a newer version.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from .arrays import MAX_CLASSES
from .calibration.tables import Calibration
from .codebooks import KINDS, MAX_BEAM, METRICS, RULES
from .errors import CheckpointError, ConfigError, IndexFileError, printable
from .modality import IMAGES, REGISTRY

MOST = 1 << 62  # of a count
DEPTH = 16  # of lists and objects in one another
_SHA256 = re.compile("[0-9a-f]{64}")

Rule = tuple[Callable[[Any], bool], str]  # what a value must be, in code and in words


def told(value: Any) -> str:
    """A value out of a file for a message: one line of at most 80 printable characters."""
    text = str(value) if not isinstance(value, int) or abs(value) < MOST else "a huge number"
    return printable(text if len(text) <= 80 else f"{text[:77]}...")


def _count(low: int) -> Rule:
    return (lambda v: type(v) is int and low <= v < MOST), f"a whole number from {low}"


def _one_of(words: tuple[str, ...]) -> Rule:
    return (lambda v: isinstance(v, str) and v in words), f"one of {', '.join(words)}"


_TEXT: Rule = (lambda v: isinstance(v, str) and len(v) <= 1000), "text"
_BOOL: Rule = (lambda v: type(v) is bool), "true or false"
_HASH: Rule = (lambda v: isinstance(v, str) and _SHA256.fullmatch(v) is not None), "a SHA-256 of 64 digits"
_OBJECT: Rule = (lambda v: isinstance(v, dict)), "an object"
_NAMES: Rule = (
    lambda v: v is None or (isinstance(v, list) and all(isinstance(name, str) for name in v)),
    "a list of names",
)
_EXTENDS: Rule = (
    lambda v: isinstance(v, list) and all(isinstance(step, dict) and _HASH[0](step.get("sha256")) for step in v),
    "a list of models, each by its SHA-256",
)


def _calibrates(value: Any) -> bool:
    try:
        Calibration.unpack(value)
    except ConfigError:
        return False
    return True


_CALIBRATION: Rule = (_calibrates, "the tables of a calibration")
_SHARE: Rule = ((lambda v: type(v) is float and 0 < v < 1), "a number between 0 and 1")

# The metadata of a gallery; those of the second table need not be there.
_CARD: dict[str, Rule] = {
    "target": _TEXT,
    "kind": _one_of(KINDS),
    "metric": _one_of(METRICS),
    "n": _count(0),
    "M": _count(0),  # lists alone may be a code
    **dict.fromkeys(("K", "nbits", "d"), _count(1)),
}
_QUERIES: dict[str, Rule] = {"encoder": _one_of(("none", "folded", "model")), "d_in": _count(1)}
_CARD_MORE: dict[str, Rule] = {
    "model_sha256": _HASH,
    "ids_sha256": _HASH,
    "rows_sha256": _HASH,
    "method": _TEXT,
    "faiss": _TEXT,
    "rule": _one_of(RULES),
    "class_names": _NAMES,
    "calibration": _CALIBRATION,
    "relevant_share": _SHARE,
    "pictures": _BOOL,
    "by_residual": _BOOL,
    "lists": _count(2),
    "list_beam": ((lambda v: type(v) is int and 1 <= v <= MAX_BEAM), f"a whole number from 1 to {MAX_BEAM}"),
    **dict.fromkeys(("model_bits", "content_bits", "nlist", "nprobe"), _count(1)),
    **dict.fromkeys(("bits", "skipped_rows", "repeated_ids"), _count(0)),
}
_MODEL: dict[str, Rule] = {"method": _TEXT, "encoder": _TEXT, "chain": _OBJECT, "codebooks": _OBJECT}
_MODEL_MORE: dict[str, Rule] = {
    **dict.fromkeys(("labels", "long_name"), (lambda v: v is None or isinstance(v, str), "text")),
    "class_names": _NAMES,
    "bits": _count(0),
    "extends": _EXTENDS,
    **dict.fromkeys(("settings", "training", "data", "backbone", "prefix", "content", "calibration"), _OBJECT),
}


def check_card(metadata: Mapping[str, Any], name: str) -> None:
    """Raise IndexFileError, naming the key, for a metadata that no export writes."""
    try:
        _check_plain(metadata, "the metadata")
        for key, (holds, _) in _QUERIES.items():
            if not holds(metadata.get(key)):
                raise ValueError("the metadata does not say how queries are encoded")
        _check(metadata, _CARD, "the metadata", required=True)
        _check(metadata, _CARD_MORE, "the metadata")
    except ValueError as error:
        raise IndexFileError(f"{name}: {error}") from None


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Raise CheckpointError, naming the key, for the config of a model that no training writes."""
    try:
        _check_plain(config, "the model's config")
        for key in ("method", "encoder"):
            if not isinstance(config.get(key), str):
                raise ValueError(f"a model that names no {key}")
        for key in ("chain", "codebooks"):
            if key not in config:
                raise ValueError(f"a model without {key!r}")
        _check(config, _MODEL, "the model's config", required=True)
        _check(config, _MODEL_MORE, "the model's config")
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None


def check_facts(config: Mapping[str, Any], lists: bool, network: bool) -> None:
    """Raise CheckpointError where a model's config does not say how rows become codes. lists, network: whether its codebooks have
    lists, and whether there is a network for images.
    """
    if config.get("rule") not in RULES:
        raise CheckpointError(f"the assignment rule is {config.get('rule')!r}, needs one of {', '.join(RULES)}")
    for key, name in (("beam", "beam"), ("list_beam", "beam of lists")):
        beam = config.get(key, 1)
        if type(beam) is not int or not 1 <= beam <= MAX_BEAM:
            raise CheckpointError(f"the {name} is {beam!r}, needs a whole number from 1 to {MAX_BEAM}")
    if not lists and config.get("list_beam", 1) != 1:
        raise CheckpointError(f"the beam of lists is {config['list_beam']}, and the codebooks have no lists")
    if lists and config["rule"] != "l2":
        raise CheckpointError(f"the assignment rule is '{config['rule']}', codebooks with lists need 'l2'")
    whole = config.get("prefix")
    if whole is not None and not _tells_of_a_whole(whole):
        raise CheckpointError(f"the model is a prefix of {whole!r}, needs the SHA-256 and the bits of the whole one")
    if not _tells_of_classes(config):
        raise CheckpointError(
            "the class numbers of the model need to be whole numbers that rise, one for each of its classes"
        )
    if network != ("backbone" in config) or not isinstance(config.get("backbone", {}), dict):
        raise CheckpointError("a network for images needs its tensors and its description")
    modality = config.get("backbone", {}).get("modality", IMAGES.name)
    if not isinstance(modality, str) or modality not in REGISTRY:
        raise CheckpointError(f"the model's encoder is of '{printable(str(modality))[:80]}', which is not known here")


def _check(found: Mapping[str, Any], rules: Mapping[str, Rule], what: str, required: bool = False) -> None:
    for key, (holds, words) in rules.items():
        if (required or key in found) and not holds(found.get(key)):
            raise ValueError(f"{what} says {key}={told(found.get(key))}, needs {words}")


def _check_plain(value: Any, what: str, depth: int = 0) -> None:
    """Raise ValueError for what JSON, a terminal or UTF-8 cannot take: NaN, huge numbers, half characters, endless depth."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{what} says {value}, which is no number")
    if isinstance(value, int) and abs(value) > MOST:
        raise ValueError(f"{what} holds a number of {value.bit_length():,} bits, at most 62 are read")
    if isinstance(value, str) and not _encodes(value):
        raise ValueError(f"{what} holds text that is no Unicode: {told(value)}")
    if isinstance(value, list | dict):
        if depth >= DEPTH:
            raise ValueError(f"{what} holds lists more than {DEPTH} deep in one another")
        for part in value if isinstance(value, list) else [*value, *value.values()]:
            _check_plain(part, what, depth + 1)


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _tells_of_classes(config: Mapping[str, Any]) -> bool:
    """Whether a config that holds 'C', and 'classes', holds what training writes."""
    C, numbers = config.get("C", 0), config.get("classes")
    if type(C) is not int or not 0 <= C <= MAX_CLASSES:
        return False
    if numbers is None:
        return "classes" not in config
    if not isinstance(numbers, list) or len(numbers) != C or any(type(c) is not int for c in numbers):
        return False
    return all(a < b for a, b in zip([-1, *numbers], [*numbers, MAX_CLASSES]))


def _tells_of_a_whole(prefix: Any) -> bool:
    """Whether the 'prefix' of a config is what Model.prefix writes."""
    return isinstance(prefix, dict) and len(str(prefix.get("sha256"))) == 64 and type(prefix.get("bits")) is int
