"""What a service is started with: galleries, limits, keys. Plain values, so that every worker can be handed the same."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import re
import stat
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError, printable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # of a gallery, as it stands in addresses
SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
MIN_KEY = 16  # characters of a key
LOGS = ("text", "json")
OWN_HOSTS = ("localhost", "127.0.0.1", "[::1]")  # that no foreign page can be called by
HOST = re.compile(r"[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\]")  # without its port


@dataclass(frozen=True)
class Served:
    """A gallery by the name it is served under, and the files that belong to it."""

    name: str
    gallery: str
    model: str | None = None
    items: str | None = None
    onnx: str | None = None


@dataclass(frozen=True)
class Settings:
    """Everything a worker has to know. threads: that search, of each worker; 0: one a core. queue: requests that may wait,
    at most. reload: seconds between looks at the files; 0: none. timeout: seconds for a request to arrive, and for an
    answer to be found. allow_host: names that clients may ask for, see `hosts`. connections: open at a time, of each worker.
    most_queries, most_hits: of one request; most_k: hits of a query.
    """

    galleries: tuple[Served, ...]
    host: str = "127.0.0.1"
    port: int = 8080
    device: str = "cpu"
    mmap: bool = False
    threads: int = 0
    reload: float = 2.0
    api_key_file: str | None = None
    allow_host: tuple[str, ...] = ()
    allow_writes: bool = False
    max_body: int = 32 * 10**6
    timeout: float = 10.0
    log: str = "text"
    workers: int = 1
    connections: int = 1000
    queue: int = 1000
    images: str | None = None
    most_queries: int = 10_000
    most_k: int = 10_000
    most_hits: int = 1_000_000
    keys: tuple[str, ...] = field(default=(), repr=False)  # SHA-256 of each

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Settings:
        values = json.loads(text)
        galleries = tuple(Served(**part) for part in values.pop("galleries"))
        return Settings(galleries, **(values | {name: tuple(values[name]) for name in ("keys", "allow_host")}))

    @property
    def hosts(self) -> frozenset[str] | None:
        """Hosts that requests may name, None for any.

        Without keys a foreign page whose name was pointed at loopback (DNS rebinding) could search here; its requests carry
        that name.
        """
        if self.keys and not self.allow_host:
            return None
        own = f"[{self.host}]" if ":" in self.host else self.host
        return frozenset(name.lower() for name in (*OWN_HOSTS, own, *self.allow_host))

    def knows(self, key: str) -> bool:
        """Whether a key is one of those in the file; every one is compared, in a time that tells nothing."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return sum(hmac.compare_digest(digest, known) for known in self.keys) > 0


def settings_of(galleries: tuple[str, ...], **options: Any) -> Settings:
    """What the command line gave -> Settings. model, items, onnx: NAME=FILE, as galleries are; a file alone is of the only
    gallery.

    Raises ConfigError for what cannot be served, or not safely.
    """
    named = dict(_named(text, "GALLERY") for text in galleries)
    if not galleries or len(named) < len(galleries):
        raise ConfigError("give one gallery or more, each under a name of its own: NAME=GALLERY.faissindex")
    of_gallery: dict[str, dict[str, str]] = {name: {} for name in named}
    for kind in ("model", "items", "onnx"):
        for text in options.pop(kind, ()) or ():
            name, _, path = text.partition("=") if text.partition("=")[0] in named else ("", "", text)
            if not name and len(named) > 1:
                raise ConfigError(f"--{kind} {printable(text)} names none of {', '.join(named)}; give NAME=FILE")
            of_gallery[name or next(iter(named))][kind] = path
    options = {key: value for key, value in options.items() if value is not None}
    size = options.pop("max_body", None)
    if size is not None:
        options["max_body"] = parse_size(size)
    if options.get("api_key_file"):
        options["keys"] = read_keys(options["api_key_file"])
    settings = Settings(tuple(Served(n, path, **of_gallery[n]) for n, path in named.items()), **options)
    _check(settings)
    return settings


def _named(text: str, what: str) -> tuple[str, str]:
    name, sign, path = text.partition("=")
    if not sign:
        path, name = text, Path(text).name.partition(".")[0]
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"'{printable(name)}' cannot name a gallery in an address (letters, digits, . _ -, at most 64); give NAME={what}"
        )
    return name, path


def parse_size(text: str | int) -> int:
    """'32MB', '500kB' or bytes. Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d{1,15})\s*([kKMG]?B?)", str(text).strip())
    unit = found[2].upper() if found else None
    if found is None or unit not in SIZES:
        raise ConfigError(f"a size is {printable(str(text))}, needs a number of bytes, or one with kB, MB or GB")
    return int(found[1]) * SIZES[unit]


def read_keys(path: str) -> tuple[str, ...]:
    """The keys of a file, a line each, as their SHA-256. Raises ConfigError where others can read it, or a key is short."""
    name = printable(path)
    try:
        with open(path, encoding="utf-8") as f:
            mode = os.fstat(f.fileno()).st_mode
            lines = [line.strip() for line in f.read(1 << 20).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: keys cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from error
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise ConfigError(f"{name}: others can read the keys; chmod 600 {name}")
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{name} holds no key; write one a line, such as of `openssl rand -hex 32`")
    if min(map(len, keys)) < MIN_KEY:
        raise ConfigError(f"{name}: a key of {min(map(len, keys))} characters can be guessed, needs {MIN_KEY} or more")
    return tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(s: Settings) -> None:
    if not is_loopback(s.host) and not s.keys:
        raise ConfigError(f"--host {printable(s.host)} can be reached from outside; that takes --api-key-file")
    for name in s.allow_host:
        if not HOST.fullmatch(name.lower()):
            raise ConfigError(
                f"--allow-host {printable(name)} is no host; give a name such as search.example.com, without a port"
            )
    if s.allow_writes and not s.keys:
        raise ConfigError("--allow-writes takes --api-key-file: nobody without a key may change a gallery")
    if s.log not in LOGS:
        raise ConfigError(f"log is {s.log!r}, needs one of {', '.join(LOGS)}")
    if s.workers > 1 and s.device != "cpu":
        raise ConfigError("several workers would each hold the codes on the GPU; use one, or --device cpu")
    low = {"port": 0, "threads": 0, "workers": 1, "connections": 1, "queue": 1, "max_body": 1}
    for f in fields(Settings):
        value = getattr(s, f.name)
        if f.name in low and value < low[f.name]:
            raise ConfigError(f"{f.name.replace('_', '-')} is {value}, needs {low[f.name]} or more")
    if s.port > 65535 or not s.timeout > 0 or not s.reload >= 0:
        raise ConfigError("port needs 0 to 65,535, timeout a number above 0, reload one from 0")
