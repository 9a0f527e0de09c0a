"""Networks by the name of their factory, 'package.module:factory', and arguments given as texts."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from ..contract import TRUTHS
from ..errors import ConfigError, ScqError, printable, suggestion
from . import BACKBONES


def factory_name(name: str) -> str:
    """A short name of BACKBONES or 'package.module:factory' -> the latter. Raises ConfigError for anything else."""
    full = BACKBONES.get(name, name)
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", full):
        near = suggestion(name, BACKBONES)
        raise ConfigError(
            f"network '{printable(name)}' is neither {' nor '.join(BACKBONES)} nor package.module:factory{near}"
        )
    return full


def network(factory: str, arguments: Mapping[str, str], seed: int = 0) -> nn.Module:
    """The network that `factory` ('package.module:factory', or a short name of BACKBONES) makes of `arguments`.

    Arguments are texts, turned into what the factory's signature asks for. seed: of the initial weights; torch's own random
    state is left as it was. Raises ConfigError where the factory is missing, takes no such argument, or fails.
    """
    name = factory_name(factory)
    module, _, attribute = name.partition(":")
    try:
        with _seeded(seed):
            make = getattr(import_module(module), attribute)
            if not callable(make):
                raise TypeError(f"{attribute} is {type(make).__name__}, needs a function or class")
            net = make(**_converted(make, arguments, name))
    except ScqError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"network {name}: {one_line(error)}") from error
    if not isinstance(net, nn.Module):
        raise ConfigError(f"network {name}: the factory gives {type(net).__name__}, needs a torch.nn.Module")
    return net


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator started from `seed` within, and as it was after."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def one_line(error: BaseException) -> str:
    """The error in one line."""
    first = next(iter(str(error).splitlines()), "")
    return printable(f"{type(error).__name__}: {first}" if first else type(error).__name__)


def _converted(factory: Any, arguments: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # made in C: nothing is known of it
        return {key: _guessed(value) for key, value in arguments.items()}
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except Exception:  # names that exist for type checkers alone
        hints = {}
    takes = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    anything = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    out = {}
    for key, value in arguments.items():
        if key not in takes and not anything:
            what = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise ConfigError(f"network {name} has no argument '{printable(key)}'{suggestion(key, takes)}; {what}")
        p = parameters[key] if key in takes else None
        hint = hints.get(key, p.annotation) if p is not None else inspect.Parameter.empty
        if p is not None and hint is inspect.Parameter.empty and p.default not in (p.empty, None):
            hint = type(p.default)
        out[key] = _of_type(value, hint, f"network {name}: {key}")
    return out


# Narrow types before those that take their texts too.
_NEEDS = {bool: "true or false", int: "a whole number", float: "a number"}


def _of_type(text: str, hint: Any, what: str) -> Any:
    """`text` as a bool, int, float, str or None, whichever `hint` allows; guessed without a hint, a text for any other."""
    if hint in (inspect.Parameter.empty, Any) or isinstance(hint, str):
        return _guessed(text)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed = typing.get_args(hint) if union else (hint,)
    if type(None) in allowed and text.lower() == "none":
        return None
    kinds = [kind for kind in _NEEDS if kind in allowed]
    for kind in kinds:
        try:
            return TRUTHS[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            pass
    if kinds and set(allowed) <= {*_NEEDS, type(None)}:
        raise ConfigError(f"{what} is '{printable(text)}', needs {' or '.join(_NEEDS[kind] for kind in kinds)}")
    return text


def _guessed(text: str) -> Any:
    """A number, a truth value or None where the text reads like one, else the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
