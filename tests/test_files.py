"""The writer and the footer: whole files only, and a parser that any bytes can be thrown at."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scqfaiss import files, footer
from scqfaiss.errors import ConfigError, IndexFileError, WriteError


def sealed(stream=b"stream", metadata=None):
    f = io.BytesIO()
    footer.write_sealed(f, lambda put: put(stream), metadata or {})
    return f.getvalue()


def parsed(data, folder, **options):
    path = Path(folder) / "x"
    path.write_bytes(data)
    with open(path, "rb") as f:
        return footer.read_footer(f, "x", **options)


def test_seal_and_read(tmp_path):
    data = sealed(b"a" * 1000, {"n": 5, "name": "ä\n"})
    assert data.startswith(b"a" * 1000 + b"{") and data.endswith(footer.MAGIC)
    assert parsed(data, tmp_path) == ({"format": 1, "n": 5, "name": "ä\n"}, 1000)
    assert parsed(sealed(b""), tmp_path) == ({"format": 1}, 0)
    assert sealed(b"x", {"b": 1, "a": 2}) == sealed(b"x", {"a": 2, "b": 1})


def test_without_the_hash_lengths_still_count(tmp_path):
    data = bytearray(sealed(b"a" * 100))
    data[5] ^= 1
    assert parsed(data, tmp_path, hash_all=False)[1] == 100
    with pytest.raises(IndexFileError):
        parsed(data, tmp_path)
    with pytest.raises(IndexFileError):
        parsed(data + b"x", tmp_path, hash_all=False)


def test_cards_that_cannot_be_written():
    with pytest.raises(ConfigError, match=r"^the index metadata takes 2\.0 MB, at most 1\.0 MB fit$"):
        sealed(b"", {"names": "x" * 2_000_000})
    with pytest.raises(ValueError):
        sealed(b"", {"loss": float("nan")})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans(), st.booleans())
@example(b"", True, True)
@example(b"\0" * 48, True, True)
@example(b"\xff" * 48, True, False)
def test_parser_on_arbitrary_bytes(tmp_path_factory, data, magic, hash_all):
    """IndexFileError or success, nothing else."""
    folder = tmp_path_factory.getbasetemp()
    try:
        metadata, stream = parsed(data + (footer.MAGIC if magic else b""), folder, hash_all=hash_all)
    except IndexFileError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(metadata, dict) and stream >= 0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text().filter(lambda k: k != "format"), json_values, max_size=5), st.binary(max_size=50))
def test_card_round_trip(tmp_path_factory, metadata, stream):
    found, length = parsed(sealed(stream, metadata), tmp_path_factory.getbasetemp())
    assert (found, length) == ({"format": 1, **metadata}, len(stream))


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"1", b'{"a": 1, "a": 2}', b"{", b"\xff", b"[" * 10_000, b'{"a": {"b": 1, "b": 1}}']
)
def test_parse_json_takes_one_object_without_repeated_keys(text):
    assert files.parse_json(text) is None


def test_has_footer(tmp_path):
    for data, want in ((b"", False), (footer.MAGIC, False), (b"x" * 48 + footer.MAGIC, True), (sealed(), True)):
        (tmp_path / "x").write_bytes(data)
        with open(tmp_path / "x", "rb") as f:
            assert footer.has_footer(f) is want


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), MemoryError(), IndexFileError("bad")])
@pytest.mark.parametrize("where", ["fill", "check"])
def test_any_exception_leaves_the_old_file(tmp_path, error, where):
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")

    def refuse(_):
        raise error

    with pytest.raises(type(error)), files.atomic_write(target) as output:
        if where == "fill":
            output.write(refuse)
        else:
            output.write(lambda f: f.write(b"new"), check=refuse)
    assert os.listdir(tmp_path) == ["x.bin"]
    assert target.read_bytes() == b"old"


def test_slot_writes_twice(tmp_path):
    with files.atomic_write(tmp_path / "x.bin") as output:
        output.write(lambda f: f.write(b"first"))
        assert (tmp_path / "x.bin").read_bytes() == b"first"
        output.write(lambda f: f.write(b"second"))
    assert (tmp_path / "x.bin").read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_check_reads_what_will_be_renamed(tmp_path):
    seen = []
    with files.atomic_write(tmp_path / "x.bin") as output:
        output.write(lambda f: f.write(b"new"), check=lambda path: seen.append((path.parent, path.read_bytes())))
    assert seen == [(tmp_path, b"new")]


def test_lock_is_held_within_and_gone_after(tmp_path):
    target = tmp_path / "x.bin"
    with files.atomic_write(target, what="built"):
        with pytest.raises(WriteError) as caught, files.atomic_write(target):
            pass
        assert str(caught.value) == f"{target} is being built by pid {os.getpid()}"
    with files.atomic_write(target):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["with space", 'l\'été "x"', "two\nlines", b"\xff\xfe", "-o", "*", "\x1b[2J"])
def test_names_of_every_kind(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    with files.atomic_write(path) as output:
        output.write(lambda f: f.write(b"x"))
    assert os.listdir(tmp_path) == [os.fsdecode(name)]
    with files.open_regular(path) as f:
        assert f.read() == b"x"
    with pytest.raises(ConfigError) as caught:
        files.open_regular(os.fspath(path) + "2")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["no", "no/such/file", "x\0y"])
def test_missing_files(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r": no such file$"):
        files.open_regular(name)


def test_what_can_be_made_anew_need_not_be_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd))
    for durable, times in ((True, 2), (False, 2)):  # the file and its folder, and nothing more
        with files.atomic_write(tmp_path / "a") as output:
            output.durable = durable
            output.write(lambda f: f.write(b"whole"))
        assert len(synced) == times and (tmp_path / "a").read_bytes() == b"whole"
