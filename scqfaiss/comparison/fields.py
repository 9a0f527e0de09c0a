"""Kinds of fields of results files: text, numbers within bounds, and what becomes of anything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator

# Characters that no name has: controls but tab and line feed, and what turns the direction of the text around a name.
_FOREIGN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Text that UTF-8 holds, without controls and without what turns the direction of the text beside it."""
    if text.isascii() and text.isprintable():
        return text
    return _FOREIGN.sub("", text.encode("utf-8", "replace").decode("utf-8"))


def _none_if_wrong(value: Any, handler: Callable[[Any], Any]) -> Any:
    try:
        return handler(value)
    except ValidationError:
        return None


def _scalar(value: Any) -> Any:
    """Text, or a number that is finite and no larger than arrays hold; None for anything else."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, int):  # True and False among them
        return value if abs(value) < 1 << 63 else None
    return value if isinstance(value, float) and abs(value) <= 1e30 else None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def objects(value: Any) -> Any:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else value


def files_by_name(value: Any) -> Any:
    """Some results name a file by its hash alone."""
    if not isinstance(value, dict):
        return value
    files = {part: {"sha256": file} if isinstance(file, str) else file for part, file in value.items()}
    return {part: file for part, file in files.items() if isinstance(file, dict)}


T = TypeVar("T")
Maybe = Annotated[T | None, WrapValidator(_none_if_wrong)]
Text = Annotated[str, BeforeValidator(lambda value: clean(value) if isinstance(value, str) else value)]
Scalar = Annotated[Any, BeforeValidator(_scalar)]
# Bounds: squares and sums of what lies within them stay finite.
Share = Annotated[float, Field(ge=0, le=1)]
Ms = Annotated[float, Field(ge=1e-12, le=1e15)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Bytes = Annotated[float, Field(ge=0, le=1e18)]
Ratio = Annotated[float, Field(ge=1e-9, le=1e9)]
Figure = Annotated[float, Field(ge=0, le=1e30)]
Rate = Annotated[float, Field(ge=0, le=1e15)]
TrainState = Annotated[float, Field(ge=-1e12, le=1e12)]
Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]
Count = Annotated[int, Field(ge=0, le=10**15), BeforeValidator(_whole)]
Rows = Annotated[int, Field(ge=1, le=10**15), BeforeValidator(_whole)]
Bits = Annotated[int, Field(ge=0, le=1 << 20), BeforeValidator(_whole)]
ByRank = Maybe[dict[str, Maybe[Share]]]
ByRun = Maybe[dict[str, Maybe[dict[str, Maybe[dict[str, Maybe[Ms]]]]]]]
Named = Maybe[dict[Text, Scalar]]


def part(title: str = "", description: str = "", some: bool = False) -> Any:
    """A field. title: as what it is missed, '' for what nobody misses; some: a few rows carry it for all."""
    return Field(default=None, title=title, description=description, json_schema_extra={"some": True} if some else None)


class Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)
