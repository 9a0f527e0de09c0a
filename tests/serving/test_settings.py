"""What a service may be started with, and what is refused before anything is opened."""

import pytest

from scqfaiss.errors import ConfigError
from scqfaiss.serving.settings import Served, Settings, parse_size, read_keys, settings_of
from serving.conftest import KEY


@pytest.mark.parametrize(
    "galleries, options, message",
    [
        ((), {}, "give one gallery or more, each under a name of its own"),
        (("a=x.faissindex", "a=y.faissindex"), {}, "give one gallery or more, each under a name of its own"),
        (("a b=x.faissindex",), {}, "'a b' cannot name a gallery in an address"),
        (("../x/ä.faissindex",), {}, "cannot name a gallery in an address"),
        (("a=x", "b=y"), {"model": ("m.safetensors",)}, "--model m.safetensors names none of a, b; give NAME=FILE"),
        (("a=x", "b=y"), {"items": ("c=i.csv",)}, "--items c=i.csv names none of a, b; give NAME=FILE"),
        (("a=x",), {"host": "0.0.0.0"}, "--host 0.0.0.0 can be reached from outside; that takes --api-key-file"),
        (("a=x",), {"host": "localhost.example"}, "can be reached from outside"),
        (("a=x",), {"allow_writes": True}, "--allow-writes takes --api-key-file"),
        (("a=x",), {"allow_host": ("a.example:8080",)}, "--allow-host a.example:8080 is no host"),
        (("a=x",), {"log": "xml"}, "log is 'xml', needs one of text, json"),
        (("a=x",), {"workers": 2, "device": "cuda"}, "several workers would each hold the codes on the GPU"),
        (("a=x",), {"workers": 0}, "workers is 0, needs 1 or more"),
        (("a=x",), {"threads": -1}, "threads is -1, needs 0 or more"),
        (("a=x",), {"connections": 0}, "connections is 0, needs 1 or more"),
        (("a=x",), {"queue": 0}, "queue is 0, needs 1 or more"),
        (("a=x",), {"port": -1}, "port is -1, needs 0 or more"),
        (("a=x",), {"port": 65536}, "port needs 0 to 65,535"),
        (("a=x",), {"timeout": 0.0}, "timeout a number above 0"),
        (("a=x",), {"timeout": float("nan")}, "timeout a number above 0"),
        (("a=x",), {"reload": -1.0}, "reload one from 0"),
        (("a=x",), {"max_body": "0"}, "max-body is 0, needs 1 or more"),
        (("a=x",), {"max_body": "much"}, "a size is much, needs a number of bytes, or one with kB, MB or GB"),
        (("a=x",), {"api_key_file": "missing"}, "missing: keys cannot be read"),
    ],
)
def test_refusals(galleries, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as found:
        settings_of(galleries, **options)
    assert message in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    "text, mode, message",
    [
        (KEY, 0o644, "others can read the keys; chmod 600"),
        (KEY, 0o620, "others can read the keys"),
        ("# nothing\n\n", 0o600, "holds no key"),
        (f"{KEY}\nshort\n", 0o600, "a key of 5 characters can be guessed, needs 16 or more"),
        (b"\xff\xfe", 0o600, "keys cannot be read (not text)"),
    ],
)
def test_files_of_keys(text, mode, message, tmp_path):
    path = tmp_path / "keys"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    with pytest.raises(ConfigError) as found:
        read_keys(str(path))
    assert message in str(found.value)


def test_names_files_and_sizes(shop):
    found = settings_of(
        ("b=x.faissindex", "y.faissindex"), model=("b=m", "y=n"), items=("y=i.csv",), api_key_file=str(shop / "keys")
    )
    assert found.galleries == (Served("b", "x.faissindex", "m"), Served("y", "y.faissindex", "n", "i.csv"))
    assert settings_of(("x.faissindex",), model=("a=b.safetensors",)).galleries[0].model == "a=b.safetensors"
    assert (parse_size("32MB"), parse_size("500kB"), parse_size("7"), parse_size("1 GB")) == (
        32 * 10**6,
        5 * 10**5,
        7,
        10**9,
    )
    assert found.knows(KEY) and not found.knows(KEY[1:]) and not found.knows("") and KEY not in repr(found)
    assert Settings.from_json(found.to_json()) == found and KEY not in found.to_json()
    assert found.hosts is None  # with keys
    named = settings_of(("x.faissindex",), host="::1", allow_host=("Search.example",))
    assert named.hosts == {"localhost", "127.0.0.1", "[::1]", "search.example"}
    assert Settings.from_json(named.to_json()) == named
    assert settings_of(("x.faissindex",), host="127.0.0.2").hosts > {"127.0.0.2"}
