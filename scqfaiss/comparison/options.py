"""Options of `scqfaiss compare` and `scqfaiss compare-growth`: names, defaults and help; the command line is made from them.

A field's metadata holds `help`, perhaps `range` (lowest, highest), and `parse` where the value is not plain text or a number:
text of the command line -> value, raising ValueError with what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..methods import REGISTRY as METHODS
from ..targets import REGISTRY as TARGETS

FAISS_METHODS = ("ivf", "pq", "opq", "ivfpq", "rq", "ivfrq", "lsq", "fastscan", "rabitq")
SPACES = ("raw", "trained")
MAX = 2**31 - 1
# name -> (target, codebooks, options of the target, whether its lists grow with the rows)
CASES: dict[str, tuple[str, str, dict[str, int], bool]] = {
    "ivfpq": ("ivfpq", "wide", {}, False),
    "ivfpq-lists": ("ivfpq", "wide", {}, True),
    "pq": ("pq", "wide", {}, False),
    "buckets": ("buckets", "wide", {}, False),
    "fastscan": ("fastscan", "narrow", {}, False),
    "lift": ("lift", "additive", {}, False),
    "residual": ("residual", "additive", {}, False),
    # What else is worth a look beside them: no default.
    "buckets-plain": ("buckets", "wide", {}, False),
    "pq-narrow": ("pq", "narrow", {}, False),
    "fastscan-plain": ("fastscan", "narrow", {"refine": -1}, False),
    "fastscan-additive": ("fastscan", "additive", {}, False),
    "fastscan-additive-plain": ("fastscan", "additive", {"refine": -1}, False),
}
DEFAULT_CASES = tuple(CASES)[:7]
K_NEAREST = 10  # hits that are looked for
SMALL_BATCH = 16  # queries, at least


def option(
    help: str,
    default: Any = ...,
    *,
    parse: Callable[[str], Any] | None = None,
    low: float | None = None,
    high: float = MAX,
    shown_default: str | None = None,
) -> Any:
    """A field of an options class. shown_default: the default as help tells it, where it is not the value's own text."""
    metadata = {"help": help, "parse": parse, "range": None if low is None else (low, high), "shown": shown_default}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


def names(text: str) -> tuple[str, ...]:
    """'pq, opq' -> ('pq', 'opq'), each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def whole_numbers(text: str) -> tuple[int, ...]:
    """'100,1000' -> (100, 1000), each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError("is no list of whole numbers above 0, such as 64,512")
    return tuple(dict.fromkeys(map(int, parts)))


def lengths(text: str) -> tuple[int, ...]:
    """'32,8' -> (8, 32): bits of a code. 0: the list that a row stands in, and nothing more."""
    needs = ValueError("needs lengths in bits, multiples of 8, such as 0,8,16,32,64")
    try:
        bits = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise needs from None
    if any(b < 0 or b % 8 for b in bits):
        raise needs
    return bits


def rows_and_columns(text: str) -> tuple[int, int]:
    """'8x8' -> (8, 8)."""
    try:
        rows, columns = (int(part) for part in text.split("x"))
    except ValueError:
        raise ValueError("needs rows and columns, such as 8x8") from None
    return rows, columns


def whole_numbers_or_auto(text: str) -> tuple[int, ...] | None:
    """'64,1' -> (1, 64); 'auto' -> None."""
    if text == "auto":
        return None
    try:
        return tuple(sorted(whole_numbers(text)))
    except ValueError:
        raise ValueError("needs auto, or whole numbers above 0, such as 1,64,1024") from None


@dataclass(frozen=True, kw_only=True)
class Files:
    """What every comparison reads and writes."""

    train: Path = option("Labelled rows to train on.")
    query: Path = option("Labelled queries.")
    database: Path = option("Labelled rows that are searched.")
    out: Path = option("Folder for results.json.")
    seed: int = option("Of training, drawing and order.", 0, low=0)
    fresh: bool = option("Begin anew: what results.json holds is measured again.", False)

    @property
    def inputs(self) -> dict[str, Path]:
        """The three files by their roles."""
        return {"train": self.train, "query": self.query, "database": self.database}


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Files):
    """Of a comparison with FAISS's own codes at equal bits a vector. Raises ConfigError on names that nothing has."""

    bits: tuple[int, ...] = option("Bits a vector; 0: the list of a row alone.", (0, 8, 16, 32, 64), parse=lengths)
    lists: tuple[int, ...] | None = option(
        "Inverted lists of the codes, ours and FAISS's; 1: codes of whole vectors; auto: 1 and 4 sqrt(n), a power of two.",
        None,
        parse=whole_numbers_or_auto,
        shown_default="auto",
    )
    methods: tuple[str, ...] = option(
        "Of `scqfaiss train`; :4 for codebooks of 4 bits.", ("scq", "scq:4", "dpq", "label"), parse=names
    )
    baselines: tuple[str, ...] = option("FAISS's own.", FAISS_METHODS, parse=names)
    spaces: tuple[str, ...] = option("What baselines code.", SPACES, parse=names)
    containers: tuple[str, ...] = option("Targets of ours.", tuple(TARGETS), parse=names)
    at: int | None = option("Ranks that count in mAP; default: the whole database.", None, low=1)
    sweep_at: int = option("The same at operating points.", 1000, low=1)
    draws: int = option("Draws of classes that a training does not see; 0: none.", 5, low=0)
    content_bits: int = option("Bits of the content codes of these trainings, beside those of the codes.", 32, low=8)
    training_rows: int = option("Database rows for baselines.", 256 * 64, low=1)  # 64 for each codeword of 8 bits
    images: Path | None = option("Folder of images named by ids, 17.jpg or 00017.png, for the report's gallery.", None)
    image_shape: tuple[int, int] | None = option(
        "Rows and columns, such as 8x8, where rows are grey images themselves.", None, parse=rows_and_columns
    )
    map_rows: int = option("Rows in the 2-D map.", 1500, low=20)
    budget: float = option("Seconds of each timing, at least.", 0.5)

    def __post_init__(self) -> None:
        for given, known in ((self.baselines, FAISS_METHODS), (self.spaces, SPACES), (self.containers, tuple(TARGETS))):
            for name in given:
                if name not in known:
                    raise ConfigError(f"'{name}' is unknown, needs one of {', '.join(known)}")
        for name in self.methods:
            method, colon, nbits = name.partition(":")
            if method not in METHODS or (colon and nbits not in ("4", "8")):
                known_methods = ", ".join(METHODS)
                raise ConfigError(
                    f"--methods names '{name}', needs some of {known_methods}, with :4 for codebooks of 4 bits"
                )
            if method in FAISS_METHODS:
                raise ConfigError(f"--methods names '{name}', which has no labels; it is one of --baselines")
        if self.content_bits % 8:
            raise ConfigError(f"--content-bits: {self.content_bits} is no multiple of 8")
        if self.bits == (0,) and self.lists == (1,):
            raise ConfigError(
                "--bits 0 leaves the list of a row alone, and --lists 1 has none; needs --lists such as 64"
            )

    @property
    def charted_bits(self) -> int:
        """The length that charts of single codes are drawn for."""
        return 32 if 32 in self.bits else max(self.bits)


@dataclass(frozen=True, kw_only=True)
class GrowthOptions(Files):
    """Of a comparison of time and memory against rows. Raises ConfigError on what cannot be measured."""

    rows: tuple[int, ...] = option(
        "Sizes of the galleries.", (100_000, 316_228, 1_000_000, 3_162_278, 10_000_000), parse=whole_numbers
    )
    targets: tuple[str, ...] = option(f"Of {', '.join(CASES)}.", DEFAULT_CASES, parse=names)
    baseline: bool = option("Measure FAISS's own IVFPQ too, with two kinds of lists.", False)
    work: Path | None = option("Folder of what is encoded, which then stays; default: OUT/work.", None)
    bits: int = option("Of a code, a multiple of 8.", 32, low=8)
    members: int = option("Classifiers of the encoder.", 3, low=1)
    noise: float = option("Standard deviations of each feature.", 0.1)
    queries: int = option("Queries, from all over the file.", 200, low=SMALL_BATCH)
    budget: float = option("Seconds of a timing, at most.", 8.0)

    def __post_init__(self) -> None:
        for name in self.targets:
            if name not in CASES:
                raise ConfigError(f"--targets: '{name}' is no target measured here; needs some of {', '.join(CASES)}")
        if self.bits % 8:
            raise ConfigError(f"--bits: {self.bits} is no multiple of 8")
        if min(self.rows) < K_NEAREST:
            raise ConfigError(f"--rows: {min(self.rows)} rows are fewer than the {K_NEAREST} that are looked for")
