"""A report: results of benchmarks as one HTML file that needs nothing else, and its charts as PNG files.

The page runs no script and asks no network for anything. All text out of results files is foreign: jinja2 escapes it.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from ..comparison.fields import clean
from ..comparison.results import FILE, read_results
from ..comparison.schema import cleaned
from ..comparison.selection import Document, Row, embedded, get, name_of
from ..data.decoding import Refused, decode, prove
from ..errors import format_bytes, printable
from ..files import PathLike, atomic_write, make_folder
from . import promised, unseen
from .charts import Chart, Missing, charts
from .gaps import Gap, gaps
from .summary import summary
from .tables import Table, tables
from .words import Point, class_name, count, embedding_of

KINDS = {
    "comparison": "Codes at equal length",
    "scale": "Time and memory by size",
    "training": "Training steps",
    "attack": "Adversarial queries",
}
SHOWN = ("image/png", "image/jpeg", "image/webp")  # what every browser shows
SMALL = 64  # pixels; images narrower than this are scaled up with their pixels left sharp
SIDE, BYTES = 192, 1 << 15  # the page shows images at 128 px at most, and repeats them: larger ones are made smaller
QUERIES, SIDES, HITS = 50, 4, 10  # that the gallery shows
LACKING = 20  # parts that are missing, of which the command tells


@dataclass(frozen=True)
class ExampleImage:
    uri: str
    width: int
    height: int
    small: bool


@dataclass(frozen=True)
class Tile:
    """One row of the gallery. right: of hits, None where nothing says so; image: None where there is none."""

    name: str
    id: str
    image: ExampleImage | None
    right: bool | None
    alt: str


@dataclass(frozen=True)
class Side:
    name: str
    hits: list[Tile]
    right: str


@dataclass(frozen=True)
class Card:
    query: Tile
    sides: list[Side]


@dataclass(frozen=True)
class Source:
    """Where figures come from: what is said once, files, and rows that were measured otherwise."""

    facts: list[tuple[str, str]]
    command: str
    files: list[tuple[str, str, str, str]]
    others: list[str]
    assumptions: list[str]


@dataclass(frozen=True)
class Result:
    """One results file as the page shows it. name: numbered where another has it; slug: that as part of file names;
    asked: what the metadata show of the gallery.
    """

    slug: str
    name: str
    kind: str
    what: str
    points: list[Point]
    table: Table
    full: Table | None
    unseen: Table | None
    promised: Table | None
    drawn: list[Chart]
    undrawn: list[Missing]
    cards: list[Card]
    asked: str
    source: Source
    gaps: list[Gap]


# ------------------------------------------------------------------------------------------------------------- writing
def write_report(
    paths: Sequence[PathLike], out: PathLike, *, png: PathLike | None = None, title: str | None = None
) -> str:
    """Draw results files, or folders that hold one each, into the page `out` (.html), and charts into the folder `png`.

    Returns a line of what was written, and one for each part that is missing, at most LACKING. Raises what
    `results.read_results` and `files.atomic_write` raise.
    """
    files = [Path(path) / FILE if Path(path).is_dir() else Path(path) for path in paths]
    with ExitStack() as held:
        documents = [read_results(path) for path in paths]
        output = held.enter_context(atomic_write(out, inputs=files, suffix=".html", what="written"))
        if png is not None:
            make_folder(png)
        found = results(documents)
        written = 0
        for name, data in images(found) if png is not None else ():
            with atomic_write(Path(png or "") / name, inputs=files, suffix=".png", what="written") as place:
                place.write(lambda f, data=data: f.write(data))  # type: ignore[misc]
            written += 1
        text = page(found, title).encode("utf-8")
        output.write(lambda f: f.write(text))
    done = f"{output.name}: {_many(len(found), 'result')}, {_many(sum(len(r.drawn) for r in found), 'chart')}, "
    done += format_bytes(len(text)) + (f"; {_many(written, 'PNG file')} in {printable(png)}" if png is not None else "")
    lacking = [f"{result.name}: {gap.title} ({gap.reason})" for result in found for gap in result.gaps]
    more = [f"and {len(lacking) - LACKING} more"] if len(lacking) > LACKING else []
    return "\n".join([done, *(printable(f"missing: {' '.join(text.split())}") for text in lacking[:LACKING]), *more])


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def page(found: Sequence[Result], title: str | None = None) -> str:
    """The HTML of some results. title: default their names."""
    if title is None:
        title = f"Report: {', '.join(result.name for result in found)}"
    room = _room()
    return room.get_template("page.html").render(
        title=clean(title),
        style=Markup(room.get_template("page.css").render()),
        results=found,
        kinds={result.kind for result in found},
    )


@functools.cache
def _room() -> jinja2.Environment:
    """The templates, read and compiled once."""
    room = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    room.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return room


def images(found: Sequence[Result]) -> list[tuple[str, bytes]]:
    """(file name, PNG) of every chart."""
    names: set[str] = set()
    return [
        (_unused(f"{result.slug}-{_slug(chart.name)}", names) + ".png", chart.png)
        for result in found
        for chart in result.drawn
    ]


def results(documents: Sequence[Document]) -> list[Result]:
    """Documents of `results.read_results` as the page shows them, in their order."""
    names: set[str] = set()
    slugs: set[str] = set()
    return [_result(cleaned(document), names, slugs) for document in documents]


def _result(document: dict[str, Any], names: set[str], slugs: set[str]) -> Result:
    name = _unused(" ".join((document.get("name") or "").split()) or "unnamed", names)
    drawn = charts(document)
    table, full = tables(document)
    undrawn = [chart for chart in drawn if isinstance(chart, Missing)]
    return Result(
        slug=_unused(_slug(name), slugs),
        name=name,
        kind=document["kind"],
        what=KINDS[document["kind"]],
        points=summary(document),
        table=table,
        full=full if full and full.lines else None,
        unseen=unseen.table(document),
        promised=promised.table(document),
        drawn=[chart for chart in drawn if isinstance(chart, Chart)],
        undrawn=undrawn,
        cards=gallery(document),
        asked=asked(document),
        source=source(document),
        gaps=[*gaps(document), *(Gap(f"chart: {chart.title}", chart.reason) for chart in undrawn)],
    )


def _slug(name: str) -> str:
    """A name as part of a file name and of an anchor: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60] or "results"


def _unused(name: str, taken: set[str]) -> str:
    """`name`, numbered where it is taken, whatever its case: some file systems know none. Taken from here on."""
    found, k = name, 1
    while found.lower() in taken:
        k += 1
        found = f"{name}-{k}"
    taken.add(found.lower())
    return found


# ------------------------------------------------------------------------------------------------------------- gallery
def gallery(document: Document) -> list[Card]:
    """The first queries of the results, each with the hits of every side. What is no object keeps its place, and is not shown."""
    queries, sides = _asked(document)
    rows = {row["key"]: row for row in document["rows"]}
    images: dict[str, ExampleImage | None] = {}
    cards = []
    for place, query in queries[:QUERIES]:
        shown_sides = []
        for side in sides[:SIDES]:
            hits = (side.get("hits") or [])[place : place + 1]
            name = _side_name(rows.get(str(side.get("key"))), side)
            tiles = [
                _tile(document, hit, images, f"hit {rank} of {name}", query)
                for rank, hit in enumerate(((hits and hits[0]) or [])[:HITS], 1)
                if hit is not None
            ]
            judged = [tile.right for tile in tiles if tile.right is not None]
            right = f"{sum(judged)} of {len(judged)} right" if judged else "not judged" if tiles else "nothing found"
            shown_sides.append(Side(name, tiles, right))
        cards.append(Card(_tile(document, query, images, "query"), shown_sides))
    return cards


def asked(document: Document) -> str:
    """What `gallery` shows of what the results hold."""
    text = f"The first {HITS} hits of each query. ✓ shares a class with the query, ✗ does not."
    queries, sides = _asked(document)
    for present, most, what in ((len(queries), QUERIES, "queries"), (len(sides), SIDES, "codes")):
        text += f" {most} of {count(present)} {what} are shown." if present > most else ""
    return text


def _asked(document: Document) -> tuple[list[tuple[int, Row]], list[Row]]:
    """((place, query), ...), and sides, whose hits stand in the places of the queries."""
    held = document.get("gallery") or {}
    queries = [(place, query) for place, query in enumerate(held.get("queries") or ()) if query is not None]
    return queries, [side for side in held.get("sides") or () if side is not None]


def _side_name(row: Row | None, side: Row) -> str:
    if row is None:
        return str(side.get("key") or "unnamed")
    return name_of(row) + ("" if row.get("bits") is None else f", {row['bits']} bits")


def _tile(
    document: Document, row: Row, images: dict[str, ExampleImage | None], what: str, query: Row | None = None
) -> Tile:
    labels, key = row.get("labels") or [], row.get("picture") or ""
    name = ", ".join(class_name(document, label) for label in labels) or "no label"
    right = row.get("right") if query else None
    if query and right is None and labels and query.get("labels"):
        right = any(label in query["labels"] for label in labels)
    if key not in images:
        images[key] = image((document.get("pictures") or {}).get(key))
    alt = f"{what}: {name}" + ("" if right is None else ", right" if right else ", wrong")
    return Tile(name, str(row.get("id", "")), images.get(key), right, alt)


def image(held: Any) -> ExampleImage | None:
    """An image of `images` as a data URI; None where it is no image that every browser shows.

    What it is, its bytes say, not the type beside them. Large ones are made smaller, and of moving ones the first image stands.
    """
    if not isinstance(held, dict) or not isinstance(held.get("data"), str):
        return None
    try:
        data = base64.b64decode(held["data"], validate=True)
        prove(io.BytesIO(data))
        with Image.open(io.BytesIO(data)) as image:
            kind = Image.MIME.get(image.format or "")
            if kind not in SHOWN:
                return None
            width, height = image.size if not _turned(image) else image.size[::-1]
            if max(width, height) > SIDE or len(data) > BYTES or getattr(image, "is_animated", False):
                kind, (data, width, height) = "image/jpeg", _smaller(data, width, height)
    except (binascii.Error, ValueError, Refused):
        return None
    return ExampleImage(f"data:{kind};base64,{base64.b64encode(data).decode()}", width, height, width < SMALL)


def _turned(image: Image.Image) -> bool:
    """Whether EXIF has the image lie on its side."""
    try:
        return image.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception:  # broken EXIF raises whatever Pillow meets there, and the image is none the worse
        return False


def _smaller(data: bytes, width: int, height: int) -> tuple[bytes, int, int]:
    """(JPEG, width, height) of an image of that size, the whole of it within SIDE x SIDE pixels."""
    longest = max(width, height)
    side = min(SIDE, longest)
    pixels = decode(io.BytesIO(data), side, "pad")  # in the middle, between bars
    w, h = (max(1, round(length * side / longest)) for length in (width, height))
    x, y = (side - w) // 2, (side - h) // 2
    f = io.BytesIO()
    Image.fromarray(pixels[:, y : y + h, x : x + w].transpose(1, 2, 0)).save(f, "JPEG", quality=80)
    return f.getvalue(), w, h


# -------------------------------------------------------------------------------------------------------------- source
def source(document: Document) -> Source:
    """Machine, versions, seed, command, files and date of a document; and of rows that were measured with others."""
    machine = document.get("machine") or {}
    memory = get(machine, "memory")
    has = {
        "written": (document.get("written") or "").replace("T", " ").replace("+00:00", " UTC"),
        "seed": document.get("seed"),
        "processor": machine.get("cpu"),
        "cores": machine.get("cores"),
        "memory": None if memory is None else format_bytes(memory),
        "GPU": machine.get("gpu") or ("none" if "gpu" in machine else None),
        "system": machine.get("system"),
        "versions": _pairs(machine.get("versions")),
        "“of the embedding” is": embedding_of(document) if embedded(document) else None,
        "ranks that count in mAP": _counted(document, "at"),
        "at operating points": _counted(document, "sweep_at"),
        "how the codes came about": document.get("how"),
    }
    data = document.get("data") or {}
    files = [
        (str(part), str(held.get("file", "")), _shape(held), str(held.get("sha256", ""))) for part, held in data.items()
    ]
    return Source(
        [(what, str(value)) for what, value in has.items() if value not in (None, "")],
        str(document.get("command") or ""),
        files,
        _otherwise(document, machine),
        [str(text) for text in document.get("assumptions") or []],
    )


def _pairs(held: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in held.items()) if isinstance(held, dict) else ""


def _counted(document: Document, key: str) -> str | None:
    found = get(document, key)
    return None if found is None else f"the first {count(found)}"


def _shape(held: Row) -> str:
    rows, d = get(held, "rows"), get(held, "d")
    parts = [f"{count(rows)} rows" if rows is not None else "", f"d = {d:.0f}" if d is not None else ""]
    return ", ".join(part for part in parts if part)


def _otherwise(document: Document, machine: Row) -> list[str]:
    """What rows say of their own run where the whole says another thing; None says a thing, too: no GPU."""
    named = {"cpu": "processor", "cores": "cores", "gpu": "GPU", "versions": "versions"}
    whole = {key: document[key] for key in ("command", "seed") if key in document}
    whole |= {key: machine[key] for key in named if key in machine}
    if document.get("data"):
        whole["data"] = {part: held.get("sha256") for part, held in document["data"].items()}
    found: dict[str, int] = {}
    for row in document["rows"]:
        run = row.get("run")
        for key in whole if isinstance(run, dict) else ():
            if key in run and run[key] != whole[key]:
                value = run[key]
                told = "none" if value is None else _pairs(value) if isinstance(value, dict) else str(value)
                told = f"{named.get(key, key)}: {told}"
                found[told] = found.get(told, 0) + 1
    return [f"{text} ({_many(n, 'row')})" for text, n in found.items()]
