"""Exit codes and the words that all messages are made of."""

import warnings

import pytest

from scqfaiss import errors
from scqfaiss.errors import format_bytes, printable, suggestion


def test_every_error_has_a_code_of_the_contract_and_none_is_1():
    codes = {
        name: cls.exit_code
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.ScqError)
    }
    assert codes == {
        "ScqError": 3,
        "ConfigError": 2,
        "DataError": 3,
        "IndexFileError": 3,
        "CheckpointError": 3,
        "WriteError": 4,
        "ResourceError": 5,
        "Stopped": 130,
    }


@pytest.mark.parametrize(
    "name, text",
    [
        ("plain.h5", "plain.h5"),
        ("with space.h5", "with space.h5"),
        ('l\'été "x".h5', 'l\'été "x".h5'),
        ("two\nlines", "two\\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("tab\tbell\x07", "tab\\tbell\\x07"),
        (b"\xff\xfe.h5", "\\udcff\\udcfe.h5"),
        ("line\u2028separator", "line\\u2028separator"),
        ("\u202eright to left", "\\u202eright to left"),
    ],
)
def test_names_are_shown_on_one_printable_line(name, text):
    assert printable(name) == text
    assert len(printable(name).splitlines()) == 1
    printable(name).encode()


@pytest.mark.parametrize(
    "n, text",
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (123_456, "123 kB"),
        (999_960, "1.0 MB"),
        (80e6, "80.0 MB"),
        (1.2e9, "1.2 GB"),
        (20.48e12, "20.5 TB"),
        (5e18, "5000 PB"),
    ],
)
def test_size(n, text):
    assert format_bytes(n) == text


def test_suggestion():
    assert suggestion("sofft", ["soft", "hard"]) == "; did you mean 'soft'?"
    assert suggestion("zzz", ["soft", "hard"]) == ""


def test_warn_points_at_the_caller_of_the_function_that_warns():
    def careful():
        errors.warn("look out")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        careful()
    assert (caught[0].category, caught[0].filename) == (errors.ScqWarning, __file__)
