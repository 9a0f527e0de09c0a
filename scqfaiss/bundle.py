"""The model file: one .safetensors, tensors and a JSON config with a hash over both. No pickle, no code.

Read as NumPy, so that a model loads where torch is not installed. Same model, same bytes: nothing in it depends on
clock, host or path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as _load
from safetensors.numpy import save as _save

from .errors import CheckpointError, printable
from .files import PathLike, open_regular, parse_json

FORMAT = 3  # the newest that is read; 2 is for lists, 3 for content codes, and 1 says all that other files need
_KEY = "scqfaiss"  # one metadata key: safetensors keeps several in no fixed order, which would change the bytes


@dataclass(frozen=True, eq=False)
class Bundle:
    """Tensors by name and a config of plain JSON values. format: the first whose readers understand them."""

    tensors: Mapping[str, NDArray[Any]]
    config: Mapping[str, Any]
    format: int = 1

    def digest(self) -> str:
        """SHA-256 (hex) over config and tensors."""
        sha = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in sorted(self.tensors):
            t = self.tensors[name]
            sha.update(f"\0{name}\0{t.dtype}\0{t.shape}\0".encode())
            sha.update(np.ascontiguousarray(t).data)
        return sha.hexdigest()

    def to_bytes(self) -> bytes:
        """The file, the same bytes for the same content."""
        meta = {"format": self.format, "sha256": self.digest(), "config": self.config}
        tensors = {name: np.ascontiguousarray(t) for name, t in self.tensors.items()}
        return bytes(_save(tensors, {_KEY: json.dumps(meta, sort_keys=True, allow_nan=False)}))


def from_bytes(data: bytes, name: str) -> Bundle:
    """The inverse of to_bytes. Raises CheckpointError on anything else, damage of a single bit included."""
    try:
        tensors = _load(data)
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")]) or {}
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        if name.endswith(".faissindex"):
            raise CheckpointError(f"{name} is a gallery; a model is the .safetensors file that made it") from error
        raise CheckpointError(f"{name}: not a sound .safetensors file; train again or restore a copy") from error
    meta = parse_json(str(header.get("__metadata__", {}).get(_KEY, "")))
    if meta is None or not isinstance(meta.get("config"), dict):
        raise CheckpointError(f"{name}: a .safetensors file, but not a model of scqfaiss")
    if type(meta.get("format")) is not int or not 1 <= meta["format"] <= FORMAT:
        raise CheckpointError(
            f"{name}: made by a newer scqfaiss: format {meta.get('format')}, this version reads {FORMAT}"
        )
    bundle = Bundle(tensors, meta["config"], meta["format"])
    if bundle.digest() != meta.get("sha256"):
        raise CheckpointError(f"{name}: checksum mismatch; train again or restore a copy")
    return bundle


def read(path: PathLike) -> tuple[Bundle, str]:
    """The bundle in a file, and the SHA-256 (hex) of the file, by which index metadata name their model.

    Raises ConfigError where the file is missing, CheckpointError where it is damaged or something else.
    """
    with open_regular(path, CheckpointError) as f:
        data = f.read()
    return from_bytes(data, printable(path)), hashlib.sha256(data).hexdigest()


def read_tensors(path: PathLike) -> tuple[dict[str, NDArray[Any]], str]:
    """The tensors of any .safetensors file, whoever wrote it, and the file's SHA-256 (hex).

    Raises ConfigError where it is missing, CheckpointError where it is damaged or holds types that NumPy lacks.
    """
    with open_regular(path, CheckpointError) as f:
        data = f.read()
    try:
        return dict(_load(data)), hashlib.sha256(data).hexdigest()
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{printable(path)}: not a sound .safetensors file of plain numbers ({error})") from error


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """'bits is 64 there and 32 here' for every field in which two identities differ."""
    return [
        f"{key} is {short(theirs.get(key))} there and {short(ours.get(key))} here"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
    ]


def short(value: Any) -> str:
    """A value for a message; of a SHA-256 its first 12 digits."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
