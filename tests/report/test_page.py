"""The page: what stands on it, whatever the results hold."""

import base64
import io
import itertools
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from scqfaiss.comparison.schema import cleaned
from scqfaiss.comparison.selection import get
from scqfaiss.report import page
from scqfaiss.report.gaps import gaps
from scqfaiss.report.tables import tables

from .conftest import CLASSES, KINDS, comparison, jpeg, row, scale, times, training

VOID = {"meta", "link", "img", "br"}
OPEN_ENDED = {"li", "tr", "td", "th", "thead", "tbody"}  # whose end tags HTML lets away


class Reader(HTMLParser):
    """Text, headings, ids, links and images of a page; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        held = dict(attributes)
        assert len(held) == len(attributes)
        self.tags.append((tag, held))
        self.ids += [held["id"]] if "id" in held else []
        self.links += [held["href"]] if tag == "a" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open[-1] != tag:
            assert self.open.pop() in OPEN_ENDED, f"</{tag}> closes what it does not"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)

    def said(self):
        return " ".join(" ".join(self.text).split())


def made(*documents):
    return page.page(page.results(documents))


def read(*documents):
    return Reader(made(*documents))


# ------------------------------------------------------------------------------------------------------------ the frame
def test_the_page_is_alone(plain_charts):
    text = made(comparison(), scale(), training())
    reader = Reader(text)
    names = [tag for tag, _ in reader.tags]
    assert not {"script", "iframe", "object", "embed", "form", "base", "video", "audio"} & set(names)
    (policy,) = [held["content"] for _, held in reader.tags if held.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    for tag, held in reader.tags:
        assert not any(name.startswith("on") for name in held), tag
        for name in ("src", "srcset", "href"):
            assert held.get(name, "#").startswith(("#", "data:")), (tag, held)
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert next(held for tag, held in reader.tags if tag == "html")["lang"] == "en"
    named = {held.get("name"): held.get("content") for tag, held in reader.tags if tag == "meta"}
    assert named["viewport"] == "width=device-width, initial-scale=1" and named["color-scheme"] == "light dark"


def test_the_outline_has_no_gaps(plain_charts):
    levels = [int(tag[1]) for tag, _ in read(comparison(), scale()).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_links_lead_somewhere_and_ids_stand_once(plain_charts):
    reader = read(comparison(), comparison(), {**comparison(), "name": "CIFAR10"}, scale())
    assert len(set(reader.ids)) == len(reader.ids)
    assert {"r-cifar10", "r-cifar10-2", "r-CIFAR10-3", "r-scale"} <= set(reader.ids)
    assert {link[1:] for link in reader.links} <= set(reader.ids)
    assert len(reader.links) == 1 + 4 + 3
    assert read(scale()).links == ["#main"]  # one result needs no way through


def test_the_same_results_make_the_same_page(plain_charts):
    assert made(comparison(), scale()) == made(comparison(), scale())


def test_the_frame_is_small(plain_charts):
    text = re.sub(r"data:image[^\"]*", "", made(comparison(), scale(), training()))
    assert len(text) < 67_000


def test_title(plain_charts):
    found = page.results([comparison(), scale()])
    assert "<h1>Report: cifar10, scale</h1>" in page.page(found)
    assert "<h1>&lt;mine&gt;</h1>" in page.page(found, "<mine>")
    assert "<h1>bad ?, and enip</h1>" in page.page(found, "bad \udcff,\x00 and \u202eenip")
    twice = page.page(page.results([comparison(), comparison()]))
    assert "<h1>Report: cifar10, cifar10-2</h1>" in twice


def test_regions_have_names_of_their_own(plain_charts):
    reader = read(comparison(), comparison(), scale(), scale(), training())
    named = [held["aria-label"] for _, held in reader.tags if held.get("role") == "region"]
    assert len(named) == len(set(named)) == 2 * 5 + 2 * 2 + 2
    assert "cifar10-2: All rows" in named


def test_names_turn_no_text_around(plain_charts):
    turned = "\u202eset\u2067\x00\x85"
    document = {**comparison(), "name": turned, "classes": [turned] * 3}
    document["rows"][0] |= {"container": turned}
    text = made(document)
    assert not set("\u202e\u2067\x00\x85") & set(text)
    for part in ('<h2 id="t-set"><bdi>set</bdi>', "<small><bdi>set</bdi></small>", "<br><bdi>set</bdi>"):
        assert part in text, part


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7 * 7 }}"


def poisoned(value):
    """The value with foreign text wherever text stands; what the format itself reads stays."""
    if isinstance(value, str):
        return EVIL
    if isinstance(value, list):
        return [poisoned(part) for part in value]
    if isinstance(value, dict):
        return {key: poisoned(part) for key, part in value.items()}
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_text_is_text(plain_charts, kind):
    document = KINDS[kind]()
    kept = {"kind": kind, "format": 1, "pictures": document.get("pictures")}
    rows = [{**poisoned(held), **{k: held[k] for k in ("role", "space") if k in held}} for held in document["rows"]]
    gallery = document.get("gallery")
    reader = read({**poisoned(document), **kept, "rows": rows, "gallery": gallery, "classes": [EVIL] * 3})
    assert EVIL in "".join(reader.text)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert all(set(held) <= KNOWN for _, held in reader.tags), "an attribute came out of foreign text"
    assert "49" not in [part.strip() for part in reader.text]


KNOWN = {
    *("lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "id", "tabindex", "role", "scope"),
    *("aria-label", "aria-labelledby", "aria-hidden", "colspan", "src", "srcset", "media", "alt", "width", "height"),
}


# ------------------------------------------------------------------------------------------------------------- tables
def cells(table, name, group=0):
    return next(line for line in table.groups[group].lines if line.name == name)


def test_the_table_of_a_comparison():
    table, full = tables(cleaned(comparison()))
    assert [group.title for group in table.groups] == [
        "4 bits a vector",
        "16 bits: 2 bytes a vector",
        "32 bits: 4 bytes a vector",
        "32 bits: 4 bytes a vector in 64 lists",
        "floats, without a code",
    ]
    ours = cells(table, "SCQ", 2)
    # Costs are those of buckets, the fastest container of these codes.
    assert ours.note == "buckets" and [cell.text for cell in ours.cells] == [
        *("0.630", "0.680", "0.400", "0.050", "0.020", "0.020", "12", "657 kB", "9.60", "3.20")
    ]
    assert [cell.best for cell in ours.cells] == [True, True, *[False] * 2, True, *[False] * 5]
    rows = [line for line in table.groups[2].lines if line.name == "RQ"]
    assert [line.note for line in rows] == ["IndexResidualQuantizer", "of the embedding, IndexResidualQuantizer"]
    # Rows as they are need no encoder, and the encoder of the embedding is that of the method that learned it.
    assert [(line.cells[5].text, line.cells[5].best) for line in rows] == [("none", True), ("0.020", False)]
    assert not ours.cells[5].best
    assert cells(table, "LSQ", 2).reason == "out of time"
    assert cells(table, "label code").mark == "*" and "Honesty row" in table.footnotes["*"]
    assert full is not None and full.lines == len(comparison()["rows"])
    labels = [label for label, _ in full.header]
    assert {f"search {b} at a time, {t}, {p}" for b in (1, 1000) for t in ("one thread", "all threads")
            for p in ("p50", "p95", "p99")} <= set(labels)  # fmt: skip


def test_the_best_is_none_where_all_are_alike_and_every_one_that_shows_the_same_figure():
    document = comparison()
    document["rows"] = [
        row("baseline", name, "raw", "faiss", 32, quality, 0.3)
        for name, quality in (("pq", 0.30004), ("opq", 0.3), ("rq", 0.2))
    ]
    table, _ = tables(cleaned(document))
    assert [line.cells[0].best for line in table.groups[0].lines] == [True, True, False]
    assert not any(cell.best for line in table.groups[0].lines for cell in line.cells[2:])


def test_a_sum_that_lacks_a_part_says_so_and_is_nobodys_best():
    document = comparison()
    document["rows"] = [row("baseline", name, "raw", "faiss", 32, 0.3, 0.3) for name in ("pq", "opq", "rq")]
    document["rows"][0]["seconds"] = {"add": 0.5}
    document["rows"][1]["seconds"] = {"train": 4.0, "add": 1.0}  # rows as they are need no encoder
    table, _ = tables(cleaned(document))
    assert [line.cells[8].text for line in table.groups[0].lines] == ["≥ 0.50", "5.00", "9.60"]
    assert [line.cells[8].best for line in table.groups[0].lines] == [False, True, False]


def test_the_encoder_of_an_embedding(plain_charts):
    def encoder(document):
        table, _ = tables(cleaned(document))
        return [line.cells[5].text for line in table.groups[2].lines if line.note.startswith("of the embedding")]

    document = comparison()
    for held in document["rows"]:
        if held["method"] == "scq" and held["bits"] == 16:  # not the length whose embedding FAISS codes
            held["encode_ms"] = times(0.5)
    assert encoder(document) == ["0.020"]
    del document["embedding"]
    assert encoder(document) == [""]
    for held in document["rows"]:
        if held["method"] == "rq" and held["space"] == "trained":
            held["encode_ms"] = times(0.04)
    assert encoder(document) == ["0.040"]


def test_every_verdict_has_a_mark(plain_charts):
    document = comparison()
    for held in document["rows"]:
        if held["method"] == "rq" and held["space"] == "raw":
            held["map"] = {16: 0.625, 32: 0.9}[held["bits"]]
    document["rows"] += [
        row("baseline", "rq", "raw", "faiss", bits, quality, 0.4) for bits, quality in ((8, 0.2), (64, 0.9))
    ]
    document["rows"] += [row("ours", "scq", "trained", "pq", bits, 0.63, 0.4) for bits in (8, 64)]
    text = made(document)
    for mark, verdict in (("▲", "ahead"), ("▼", "behind"), ("◆", "mixed")):
        assert f"<span class=verdict><span aria-hidden=true>{mark}</span> {verdict}</span>" in text


def test_marks_of_the_table_are_words_too(plain_charts):
    text = made(comparison())
    assert "<b>0.630<i class=vh> (best)</i></b>" in text
    assert "<td class=n><span>not measured</span>" in text
    assert "not measured: out of time" in text
    assert "honesty row" in text


def test_scale_and_training_tables():
    table, full = tables(cleaned(scale()))
    assert full is None and [group.title for group in table.groups][-1] == "10,000,000 rows"
    assert [cell.text for cell in cells(table, "buckets", 2).cells][:3] == ["0.025", "0.050", "1.000"]
    assert cells(table, "buckets", 2).cells[0].best and not cells(table, "buckets", 2).cells[2].best
    table, full = tables(cleaned(training()))
    assert full is None and [cell.text for cell in table.groups[0].lines[0].cells][:4] == ["64", "5.10", "4.84", "5.30"]


# ------------------------------------------------------------------------------------------------------------- gallery
def test_gallery():
    (card, *more) = page.gallery(cleaned(comparison()))
    assert len(more) == 2 and (card.query.name, card.query.id) == ("airplane", "50000")
    ours, base = card.sides
    assert (ours.name, ours.right, len(ours.hits)) == ("SCQ, 32 bits", "7 of 10 right", 10)
    assert base.name == "IVFPQ, 32 bits"
    assert [hit.right for hit in ours.hits] == [True] * 7 + [False] * 3
    assert ours.hits[9].alt == "hit 10 of SCQ, 32 bits: automobile, wrong"
    assert ours.hits[0].image.small and ours.hits[0].image.uri.startswith("data:image/jpeg;base64,")


def test_gallery_without_images_names_and_marks(plain_charts):
    document = {**comparison(), "pictures": None, "classes": None}
    for side in document["gallery"]["sides"]:
        for hits in side["hits"]:
            for hit in hits:
                del hit["right"]
    document["gallery"]["queries"][0]["labels"] = []
    document["gallery"]["queries"][1]["labels"] = [1, 2]
    first, second, _ = page.gallery(cleaned(document))
    assert (first.query.name, first.query.image, first.sides[0].right) == ("no label", None, "not judged")
    # What shares a label is right, as labels themselves say.
    assert (second.query.name, second.sides[0].right) == ("class 1, class 2", "10 of 10 right")
    assert "class 1, class 2" in read(document).said()


@pytest.mark.parametrize(
    "gallery",
    [
        5,
        {},
        {"queries": 1, "sides": 1},
        {
            "queries": [1, {}],
            "sides": [2, {}, {"key": 5, "hits": [3, [4, {"labels": 7, "right": "no", "picture": 9}]]}],
        },
        {"queries": [{"id": None}], "sides": [{"key": "gone", "hits": []}]},
    ],
)
def test_odd_galleries(plain_charts, gallery):
    read({**comparison(), "gallery": gallery})


def test_images():
    png = io.BytesIO()
    Image.new("RGB", (100, 50)).save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode()
    found = page.image({"type": "text/html", "data": data})
    assert found.uri == f"data:image/png;base64,{data}"  # its bytes say what it is
    assert (found.width, found.height, found.small) == (100, 50, False)
    tiff, gif = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (4, 4)).save(tiff, "TIFF")
    Image.new("RGB", (4, 4)).save(gif, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])
    broken = jpeg("red")["data"]
    for held in (
        None,
        {},
        {"data": 5},
        {"data": "no base64!"},
        {"data": "é"},
        {"data": base64.b64encode(b"<svg onload=alert(1)>").decode()},
        {"data": broken[: len(broken) // 2 // 4 * 4]},
        {"data": base64.b64encode(tiff.getvalue()).decode()},
        {"data": base64.b64encode(gif.getvalue()).decode()},
    ):
        assert page.image(held) is None


def held_image(image, kind, **options):
    f = io.BytesIO()
    image.save(f, kind, **options)
    return page.image({"data": base64.b64encode(f.getvalue()).decode()})


def opened(image):
    return Image.open(io.BytesIO(base64.b64decode(image.uri.partition(",")[2])))


def test_large_and_moving_images_are_made_small_and_still():
    noise = Image.effect_noise((900, 600), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    for kind, options, size in (
        ("PNG", {}, (192, 128)),
        ("JPEG", {}, (192, 128)),
        ("JPEG", {"exif": exif}, (128, 192)),
        ("WEBP", {}, (192, 128)),
    ):
        found = held_image(noise, kind, **options)
        assert found.uri.startswith("data:image/jpeg;base64,") and len(found.uri) < 50_000
        assert (found.width, found.height) == opened(found).size == size
    # Of few pixels but many bytes.
    found = held_image(noise.crop((0, 0, 170, 190)), "PNG")
    assert found.uri.startswith("data:image/jpeg;base64,") and opened(found).size == (170, 190)
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP"):
        found = held_image(frames[0], kind, save_all=True, append_images=frames[1:])
        assert found.uri.startswith("data:image/jpeg;base64,") and found.small
        red, _, blue = opened(found).convert("RGB").getpixel((5, 5))
        assert red > 200 and blue < 50
    assert held_image(noise, "JPEG", exif=b"Exif\0\0broken").width == 192


def test_a_query_that_is_no_object_keeps_its_place():
    document = comparison()
    held = document["gallery"]
    held["queries"].insert(1, "broken")
    for side in held["sides"]:
        side["hits"] = [[{**hit, "id": f"{q}-{hit['id']}"} for hit in hits] for q, hits in enumerate(side["hits"])]
        side["hits"].insert(1, [])
        side["hits"][0][2] = None
    cards = page.gallery(cleaned(document))
    assert [card.query.id for card in cards] == ["50000", "50001", "50002"]
    for q, card in enumerate(cards):
        for side in card.sides:
            assert {hit.id[0] for hit in side.hits} == {str(q)}
    assert [hit.alt.split(" of ")[0] for hit in cards[0].sides[0].hits[:3]] == ["hit 1", "hit 2", "hit 4"]


def test_a_gallery_without_end_is_cut():
    document = comparison()
    held = document["gallery"]
    held["queries"] = held["queries"] * 70
    held["sides"] = held["sides"] * 5
    cards = page.gallery(cleaned(document))
    assert len(cards) == 50 and {len(card.sides) for card in cards} == {4}
    text = page.asked(cleaned(document))
    assert text.endswith("50 of 210 queries are shown. 4 of 10 codes are shown.")
    assert "shown" not in page.asked(cleaned(comparison()))


# -------------------------------------------------------------------------------------------------------------- source
def test_where_the_figures_come_from(plain_charts):
    text = read(comparison(), scale()).said()
    for part in (
        "written 2026-11-21 20:00:00 UTC",
        "processor Example 9005",
        "memory 26.8 GB",
        "GPU none",
        "torch 2.13.0",
        "python benchmarks/ivfpq.py --train train.h5",
        "database.h5 , 54,000 rows, d = 512",
        "“of the embedding” is the embedding of SCQ at 32 bits",
        "03" * 32,
        "Everything fits into memory.",
    ):
        assert part in text
    assert "measured otherwise" not in text


def test_rows_that_were_measured_otherwise_are_named():
    document = comparison()
    odd = {"cpu": "Other 1", "cores": 8, "gpu": "H 1", "seed": 7, "data": {"train": "00"}, "more": 5}
    for held in document["rows"][:3]:
        held["run"] |= odd
    assert page.source(cleaned(document)).others == [
        "seed: 7 (3 rows)",
        "processor: Other 1 (3 rows)",
        "cores: 8 (3 rows)",
        "GPU: H 1 (3 rows)",
        "data: train 00 (3 rows)",
    ]
    document = comparison()
    document["machine"]["gpu"] = "H 1"  # which one row did without, and one does not speak of
    del document["rows"][1]["run"]["gpu"]
    assert page.source(cleaned({**document, "rows": document["rows"][:2]})).others == ["GPU: none (1 row)"]


def test_files_named_by_their_hash_alone():
    document = {**scale(), "data": {"train": "ab" * 32, "odd": 5}}
    assert page.source(cleaned(document)).files == [("train", "", "", "ab" * 32)]


# ------------------------------------------------------------------------------------------------------------- missing
def lacking(document):
    return {gap.title: gap.reason for gap in gaps(cleaned(document))}


def test_whole_results_lack_what_could_not_be_measured():
    assert lacking(comparison()) == {"lsq/raw/32": "out of time"}
    assert lacking(scale()) == lacking(training()) == {}
    document = comparison()
    del document["embedding"]
    assert lacking(document) == {"whose embedding FAISS codes": "not in the results", "lsq/raw/32": "out of time"}
    document["rows"] = [r for r in document["rows"] if r["role"] == "ours" or r["space"] == "raw"]
    assert lacking(document) == {"lsq/raw/32": "out of time"}  # none of FAISS's codes codes one


FIELDS = {kind: {key: None for held in make()["rows"] for key in held} for kind, make in KINDS.items()}
HEADS = {kind: [key for key in make() if key not in ("format", "kind", "rows")] for kind, make in KINDS.items()}


ODD = (
    5,
    "<x>",
    [],
    {},
    [[["x"]]],
    {"10": {}},
    True,
    -1,
    10**400,
    float("inf"),
    float("nan"),
    "\ud800",
    [None, {"a": 5}],
)


@pytest.mark.slow
@pytest.mark.parametrize("kind, part", [(kind, part) for kind in KINDS for part in HEADS[kind]])
def test_a_part_that_is_missing_or_odd(plain_charts, kind, part):
    whole = KINDS[kind]()
    without = {key: value for key, value in whole.items() if key != part}
    assert len(lacking(without)) == 1 + len(lacking(whole))
    assert "not in the results" in read(without).said()
    for odd in ODD:
        made({**whole, "gallery": None, "rows": whole["rows"][:3], part: odd}).encode("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("kind, field", [(k, f) for k in KINDS for f in FIELDS[k] if f not in ("key", "reason")])
def test_a_field_of_rows_that_is_missing_or_odd(plain_charts, kind, field):
    whole = KINDS[kind]()
    document = {**whole, "rows": [{k: v for k, v in held.items() if k != field} for held in whole["rows"]]}
    assert len(lacking(document)) > len(lacking(whole)), field
    assert re.search(r"not in (any|the one|\d+ of \d+) rows?|in none of the rows", read(document).said())
    for turn in (0, 5):  # every row another odd value
        changed = [{**held, field: ODD[(i + turn) % len(ODD)]} for i, held in enumerate(whole["rows"])]
        made({**whole, "gallery": None, "rows": changed}).encode("utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows(plain_charts, kind):
    text = read({**KINDS[kind](), "rows": []}).said()
    assert "These results hold no rows: there is nothing to say yet." in text
    assert "These results hold no rows that a table could show." in text
    assert "all figures : the results hold no rows" in text


def test_only_a_key(plain_charts):
    for kind in KINDS:
        text = read({"format": 1, "kind": kind, "rows": [{"key": "a"}]}).said()
        assert "The results do not say." in text and "unnamed" in text


def test_text_that_nests_too_deep_is_cut_off():
    deep = [1]
    for _ in range(900):
        deep = [deep]
    assert get(cleaned({**comparison(), "rows": [{"key": "a", "usage": deep}]})["rows"][0], "usage") is None


def test_charts_and_those_that_are_missing(plain_charts):
    text = made(comparison())
    for look in ("day", "night"):
        assert f'<img class={look} src="data:image/svg+xml;base64,' in text
    assert "This chart is missing: no row has &lt;plane&gt;" in text
    assert "<b><bdi>chart: The map</bdi></b>: no row has &lt;plane&gt;" in text
    assert 'alt="A &lt;b&gt;plain&lt;/b&gt; chart: &#34;0.630&#34; &amp; more."' in text
    assert CLASSES[0] in text


# -------------------------------------------------------------------------------------------------------------- bounds
@pytest.mark.parametrize(
    "kind, field, values",
    [
        ("comparison", "map", (17, -0.1, 1e308)),
        ("comparison", "bits", (-1, -8, 12.5, 1 << 21)),
        ("comparison", "lists", (0, -64, 2.5)),
        ("comparison", "nlist", (-1, 2.5)),
        ("comparison", "open_ms", (-5, 0, 1e308)),
        ("scale", "ms", (-5, 0, 1e15 * 2, 1e308)),
        ("scale", "rows", (0, 1e300, 2.5)),
        ("scale", "memory", (-1, 1e19)),
        ("scale", "build_seconds", (-1, 1e13)),
        ("training", "ratio", (0, -1, 1e308)),
    ],
)
def test_figures_that_cannot_be_true_were_not_measured(plain_charts, kind, field, values):
    for value in values:
        document = KINDS[kind]()
        document["rows"] = [{**held, field: value} for held in document["rows"]]
        found = cleaned(document)
        assert {held[field] for held in found["rows"]} == {None}, value
        made(document)


def test_bounds_reach_into_what_a_figure_holds():
    document = comparison()
    document["rows"][0] |= {
        "ms": {"1000": {"one": {"p50": -5, "p95": 0.5}}},
        "neighbours": {"coded": {"10": 1.5, "1": 1}},
        "seconds": {"train": 1e308, "add": 0},
        "points": ["odd", {"ms": 0, "recall": 2, "map": 0.5}],
        "pr": {"recall": [0, 1.5], "precision": [1, 0.5]},
    }
    (held, *_) = cleaned(document)["rows"]
    assert held["ms"] == {"1000": {"one": {"p50": None, "p95": 0.5}}}
    assert held["neighbours"] == {"coded": {"10": None, "1": 1}}
    assert held["seconds"] == {"train": None, "add": 0}
    assert held["points"] == [{"ms": None, "recall": None, "map": 0.5}]
    assert held["pr"] == {"recall": [0, None], "precision": [1, 0.5]}
    fits = {"rows": {"ms": {"exponent": 309.0, "factor": 1e-3}}}
    assert cleaned({**scale(), "fits": fits})["fits"] == {"rows": {"ms": {"exponent": None, "factor": 1e-3}}}


def test_what_was_measured_stands_within_the_bounds():
    for make in KINDS.values():
        document = make()
        found = cleaned(document)
        assert {part: found[part] for part in document} == document
