"""Settings: names, types, ranges; and the small helpers that every method uses."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scqfaiss.contract import check_product_shape, configure, flat, nearest_divisors, setting, settings
from scqfaiss.errors import ConfigError


@dataclass(frozen=True)
class Config:
    size: int = setting(4, low=1, high=64)
    rate: float = setting(0.5, low=0, high=100)
    on: bool = False
    kind: str = setting("near", choices=("near", "far"))
    note: str = ""


def test_defaults_stand_and_values_of_the_right_type_pass():
    assert configure(Config, {}) == Config()
    assert configure(Config, {"size": 8, "rate": 2, "on": True, "kind": "far"}) == Config(8, 2.0, True, "far")
    assert type(configure(Config, {"rate": 2}).rate) is float
    assert list(settings(Config)) == ["size", "rate", "on", "kind", "note"]


@pytest.mark.parametrize(
    "text, value", [("true", True), ("False", False), ("on", True), ("off", False), ("1", True), ("0", False)]
)
def test_words_of_the_command_line_become_values(text, value):
    assert configure(Config, {"size": "8", "rate": "1e-3", "on": text}) == Config(8, 1e-3, value)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"sise": 8}, "^unknown key 'sise'; did you mean 'size'\\?$"),
        ({"zzz": 8}, "^unknown key 'zzz'$"),
        ({"size": "many"}, "^size is 'many', needs a whole number$"),
        ({"size": 2.0}, "^size is 2.0, needs a whole number$"),
        ({"size": True}, "^size is True, needs a whole number$"),
        ({"size": "2.5"}, "^size is '2.5', needs a whole number$"),
        ({"rate": "fast"}, "^rate is 'fast', needs a number$"),
        ({"rate": False}, "^rate is False, needs a number$"),
        ({"on": "maybe"}, "^on is 'maybe', needs true or false$"),
        ({"on": 1}, "^on is 1, needs true or false$"),
        ({"note": 3}, "^note is 3, needs text$"),
        ({"size": 0}, "^size is 0, needs 1 to 64$"),
        ({"size": 65}, "^size is 65, needs 1 to 64$"),
        ({"rate": -1}, "^rate is -1.0, needs 0 to 100$"),
        ({"rate": "nan"}, "^rate is nan, needs 0 to 100$"),
        ({"kind": "faar"}, "^kind is 'faar', needs one of near, far; did you mean 'far'\\?$"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        configure(Config, values)


def test_the_place_stands_in_front():
    with pytest.raises(ConfigError, match=r"^file.toml: unknown key 'x'$"):
        configure(Config, {"x": 1}, "file.toml: ")


@dataclass(frozen=True)
class Steps:
    epochs: int = setting(3, low=0)
    lr: float = setting(0.1, low=0)


@dataclass(frozen=True)
class Staged:
    first: Steps = Steps()
    second: Steps = Steps()
    d: int = 0


def test_settings_of_a_stage_have_dotted_names():
    names = ["first.epochs", "first.lr", "second.epochs", "second.lr", "d"]
    assert list(settings(Staged)) == names == list(flat(Staged()))
    wanted = Staged(Steps(5), Steps(lr=1.0), 2)
    assert configure(Staged, {"first.epochs": "5", "second.lr": 1, "d": 2}) == wanted
    assert configure(Staged, {"first": {"epochs": 5}, "second": {"lr": 1}, "d": 2}) == wanted
    assert configure(Staged, flat(wanted)) == wanted
    # A file's table, and what the command line says after it.
    assert configure(Staged, {"first": {"epochs": 5, "lr": 2}, "first.lr": 3}).first == Steps(5, 3.0)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"first.epoch": 8}, r"^unknown key 'first.epoch'; did you mean 'first.epochs'\?$"),
        ({"first": {"epoch": 8}}, r"^unknown key 'first.epoch'; did you mean 'first.epochs'\?$"),
        ({"first": 8}, r"^unknown key 'first'; that is a group of settings: first.epochs, first.lr$"),
        ({"lr": 8}, r"^unknown key 'lr'; did you mean 'first.lr' or 'second.lr'\?$"),
        ({"cfa_lr": 8}, r"^unknown key 'cfa_lr'; did you mean 'first.lr' or 'second.lr'\?$"),
        ({"d.x": 8}, r"^unknown key 'd.x'$"),
        ({"first.epochs": -1}, r"^first.epochs is -1, needs 0 to 2147483647$"),
        ({"second.lr": "fast"}, r"^second.lr is 'fast', needs a number$"),
    ],
)
def test_dotted_names_are_refused_by_name(values, words):
    with pytest.raises(ConfigError, match=words):
        configure(Staged, values)


@hypothesis_settings(max_examples=50, derandomize=True, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_divisors_named_are_the_nearest(d, M):
    found = [int(m) for m in nearest_divisors(d, M).split(" or ") if m]
    assert all(d % m == 0 and m != M for m in found)
    nearest = min((abs(m - M) for m in range(1, d + 1) if d % m == 0 and m != M), default=None)
    assert nearest is None or nearest == min(abs(m - M) for m in found)


def test_product_shapes_that_faiss_cannot_hold_are_refused():
    check_product_shape(12, 4, 8)
    check_product_shape(8, 4, 3)
    check_product_shape(4, 4, 1)
    with pytest.raises(ConfigError, match=r"^d=12 is not divisible by M=5 codebooks; need M of 4 or 6$"):
        check_product_shape(12, 5, 8)
    with pytest.raises(
        ConfigError, match=r"^rows of d=8 in M=4 codebooks leaves 2 dimensions a codebook, which needs --nbits 3"
    ):
        check_product_shape(8, 4, 2, "rows of d")
