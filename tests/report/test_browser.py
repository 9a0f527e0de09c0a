"""The page as a browser shows it: wide and narrow, light and dark, and what the check itself can find."""

import base64
import json
import os
import re
import shutil
import zlib
from pathlib import Path

import pytest

from scqfaiss.report import page

from .conftest import KINDS, comparison, scale, training

pytestmark = pytest.mark.slow

WIDE, NARROW = 1280, 390
PUBLISHED = sorted(Path(__file__).parents[2].glob("benchmarks/results/**/report.html"))
VIEWS = [(width, theme) for width in (WIDE, NARROW) for theme in ("light", "dark")]

# Everything wrong with a page, as {kind: [what]}; nothing, as {}. Runs inside the page.
FIND = r"""
const dark = arguments[0], found = {};
const tell = (kind, what) => { const held = found[kind] ||= []; if (held.length < 5) held.push(what); };
const called = e => `${e.tagName.toLowerCase()}.${e.className} ${(e.textContent || '').trim().slice(0, 40)}`;
const root = document.documentElement, all = [...document.body.querySelectorAll('*')];
const styles = new Map();
const style = e => styles.get(e) || (styles.set(e, getComputedStyle(e)), styles.get(e));
// For readers of screens alone: a box of one pixel. What such a box holds, nobody sees.
const hidden = new Map();
const unseen = e => {
  if (!e || e === document.body) return false;
  if (!hidden.has(e)) hidden.set(e, e.clientWidth <= 1 && style(e).overflowX === 'hidden' || unseen(e.parentElement));
  return hidden.get(e);
};
const there = all.filter(e => e.checkVisibility({visibilityProperty: true}) && !unseen(e));

if (root.scrollWidth > root.clientWidth) tell('wider than the page', `${root.scrollWidth} of ${root.clientWidth}`);
for (const e of there) {
  const s = style(e), scrolls = /auto|scroll/.test(s.overflowX);
  if (s.display === 'inline' || e.tagName === 'IMG') continue;
  if (e.scrollWidth > e.clientWidth + 1) {
    if (!scrolls) tell('cut', called(e));
    else if (e.tabIndex !== 0 || e.getAttribute('role') !== 'region' || !e.ariaLabel) tell('no region', called(e));
  }
  if (s.overflowY === 'hidden' && e.scrollHeight > e.clientHeight + 1) tell('cut', called(e));
}

// Of every piece of text, and of every image, what can be seen of it: its lines, less what boxes around it clip.
const pieces = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange();
const seen = new Set(there);
const add = (e, {left, right, top, bottom}) => {
  const box = {left, right, top, bottom, e};
  for (let up = e.tagName === 'IMG' ? e.parentElement : e; up && up !== document.body; up = up.parentElement) {
    if (style(up).overflowX === 'visible') continue;
    const b = up.getBoundingClientRect();
    box.left = Math.max(box.left, b.left); box.right = Math.min(box.right, b.right);
    box.top = Math.max(box.top, b.top); box.bottom = Math.min(box.bottom, b.bottom);
  }
  if (box.right - box.left > 1 && box.bottom - box.top > 1 && box.bottom > 0) pieces.push(box);
};
while (walker.nextNode()) {
  const node = walker.currentNode, e = node.parentElement;
  if (!node.data.trim() || !seen.has(e)) continue;
  range.selectNodeContents(node);
  for (const line of range.getClientRects()) add(e, line);
}
for (const img of document.images) if (seen.has(img)) add(img, img.getBoundingClientRect());
pieces.sort((a, b) => a.top - b.top);
for (let i = 0; i < pieces.length; i++) {
  const a = pieces[i];
  for (let j = i + 1; j < pieces.length && pieces[j].top < a.bottom; j++) {
    const b = pieces[j];
    const w = Math.min(a.right, b.right) - Math.max(a.left, b.left), h = Math.min(a.bottom, b.bottom) - b.top;
    // The boxes of letters are higher than the letters: lines that only touch share less than this.
    if (w > 1.5 && h > .35 * Math.min(a.bottom - a.top, b.bottom - b.top)) tell('overlap', `${called(a.e)} / ${called(b.e)}`);
  }
}

const parts = text => text.match(/[\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, k) => sum + c * [.2126, .7152, .0722][k], 0);
const over = ([r, g, b, a = 1], under) => [r, g, b].map((c, k) => a * c + (1 - a) * under[k]);
const ground = e => {
  if (!e) return dark ? [0, 0, 0] : [255, 255, 255];
  const [r, g, b, a = 1] = parts(style(e).backgroundColor);
  return a === 1 ? [r, g, b] : over([r, g, b, a], ground(e.parentElement));
};
const opacity = e => e ? style(e).opacity * opacity(e.parentElement) : 1;
for (const e of new Set(pieces.map(piece => piece.e))) {
  if (e.tagName === 'IMG') continue;
  const under = ground(e), [r, g, bl, alpha = 1] = parts(style(e).color);
  const a = light(over([r, g, bl, alpha * opacity(e)], under)), b = light(under);
  const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (contrast < 4.5) tell('contrast', `${contrast.toFixed(2)} ${called(e)}`);
}
if ((light(ground(document.body)) < .1) !== dark) tell('ground', style(document.body).backgroundColor);

for (const img of document.images) {
  if (!img.complete || !img.naturalWidth) tell('image', img.src.slice(0, 40));
  if (!(img.getAttribute('alt') || '').trim()) tell('no alt', img.src.slice(0, 40));
}
for (const e of there) if (['A', 'SUMMARY', 'BUTTON'].includes(e.tagName) && e.getBoundingClientRect().bottom > 0)
  if (e.getBoundingClientRect().height < 40) tell('small target', called(e));

for (const e of there) {
  if (e.tabIndex > 0) tell('tab order', called(e));
  if (e.tabIndex !== 0) continue;
  e.focus({preventScroll: true});
  if (document.activeElement === e && getComputedStyle(e).outlineStyle === 'none') tell('no outline', called(e));
  e.blur();
}
const labels = new Set();
for (const {ariaLabel: label} of document.querySelectorAll('[role=region]')) {
  if (labels.has(label)) tell('label twice', label);
  labels.add(label);
}
return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One headless Chromium; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in programs.items():
        if path is None:
            pytest.skip(f"no {name}")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
    # Named outright, so that selenium looks for no program of its own.
    service = webdriver.ChromeService(programs["chromedriver"], log_output=os.devnull)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_page_load_timeout(30)
        # A window without focus shows no outlines, and whether a headless one has it depends on the version.
        driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page of all kinds of results, with its charts."""
    path = tmp_path_factory.mktemp("whole") / "report.html"
    path.write_text(page.page(page.results([comparison(), scale(), training()])))
    return path


def show(browser, path, width=WIDE, theme="light"):
    for log in ("browser", "performance"):
        browser.get_log(log)  # of the page before
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    browser.get(path.as_uri())


def faults(browser, path, width=WIDE, theme="light"):
    """{kind: [what]} of everything wrong with a page, its details closed and open."""
    show(browser, path, width, theme)
    found = browser.execute_script(FIND, theme == "dark")
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    for kind, what in browser.execute_script(FIND, theme == "dark").items():
        found.setdefault(kind, what)
    if asked := requests(browser, path):
        found["request"] = asked
    if said := browser.get_log("browser"):
        found["console"] = [line["message"] for line in said]
    return found


def requests(browser, path):
    """What the page asked for, but for itself and what it holds. The page's own list leaves out files."""
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert path.as_uri() in urls
    # chrome: is the browser's own start page, which may still be loading.
    return [url for url in urls if url != path.as_uri() and not url.startswith(("data:", "chrome:"))]


@pytest.mark.parametrize("width, theme", VIEWS)
def test_the_whole_page(browser, whole, width, theme):
    assert faults(browser, whole, width, theme) == {}


@pytest.mark.parametrize("width, theme", VIEWS)
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_the_pages_of_our_own_results(browser, path, width, theme):
    assert faults(browser, path, width, theme) == {}
    assert path.stat().st_size < 3_000_000


def test_charts_follow_the_theme(browser, whole):
    look = "return [...document.querySelectorAll('figure img')].filter(i => i.checkVisibility()).map(i => i.className)"
    for theme, name in (("light", "day"), ("dark", "night")):
        show(browser, whole, theme=theme)
        assert browser.execute_script(look) == [name] * 11


def test_charts_stand_in_two_columns_where_there_is_room(browser, whole):
    for width, columns in ((WIDE, 2), (NARROW, 1)):
        show(browser, whole, width)
        left = "return new Set([...document.querySelectorAll('figure')].map(f => f.getBoundingClientRect().left)).size"
        assert browser.execute_script(left) == columns


def test_small_images_keep_their_pixels(browser, whole):
    show(browser, whole)
    look = "return getComputedStyle(document.querySelector('.hits img')).imageRendering"
    assert browser.execute_script(look) == "pixelated"


def test_the_first_column_stays_while_a_table_scrolls(browser, whole):
    show(browser, whole, NARROW)
    script = """const region = document.querySelector('.scroll'), cell = region.querySelector('tbody th[scope=row]');
    region.scrollLeft = 200;
    return [region.scrollLeft, cell.getBoundingClientRect().left - region.getBoundingClientRect().left]"""
    scrolled, place = browser.execute_script(script)
    assert scrolled == 200 and 0 <= place <= 2


def test_the_keyboard_reaches_the_summary_and_the_tables(browser, whole):
    show(browser, whole)
    keys = browser.switch_to.active_element
    stops = []
    for _ in range(9):
        keys.send_keys("\ue004")  # tab
        keys = browser.switch_to.active_element
        stops.append(keys.get_attribute("class") or keys.tag_name)
    assert stops[0] == "skip" and "scroll" in stops


def test_the_main_table_may_be_as_high_as_the_window(browser, tmp_path, plain_charts):
    document = comparison()
    document["rows"] = [
        {**held, "key": f"{held['key']} {i}", "method": f"m{i}"} for i in range(9) for held in document["rows"]
    ]
    path = tmp_path / "long.html"
    path.write_text(page.page(page.results([document])))
    show(browser, path)
    assert browser.execute_script(
        "return document.querySelector('.scroll').offsetHeight / innerHeight"
    ) == pytest.approx(0.9)


def colours(pdf):
    """(red, green, blue) of what a PDF fills, shapes of charts and text alike."""
    found = set()
    for packed in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            text = zlib.decompressobj().decompress(packed)
        except zlib.error:  # a font or an image, packed otherwise
            continue
        found |= {
            tuple(round(255 * float(part)) for part in held)
            for held in re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg\b", text)
        }
    return found


def test_paper(browser, whole):
    printed = {}
    for theme in ("light", "dark"):
        show(browser, whole, theme=theme)
        printed[theme] = colours(base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"]))
    assert printed["dark"] == printed["light"]  # paper is white
    assert (0x1B, 0x20, 0x26) in printed["light"]  # --ink
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    displayed = (
        "return ['nav', 'details', 'figure', '.card', '.night'].map(s => document.querySelector(s).checkVisibility())"
    )
    assert browser.execute_script(displayed) == [False, False, True, True, False]


# ------------------------------------------------------------------------------------------------------- other results
def long_names():
    """Class names that no line can hold, several labels a row, no images, and names of results and files as long."""
    name = "a_class_name_of_40_letters_without_a_gap"
    document = {**comparison(), "pictures": None, "classes": [name, name.upper(), "W" * 40], "name": "W" * 60}
    for part in document["gallery"]["queries"]:
        part["labels"] = [0, 1, 2]
    for side in document["gallery"]["sides"]:
        for hits in side["hits"]:
            for hit in hits:
                hit |= {"labels": [0, 1], "id": 2**62}
    document["data"]["train"]["file"] = "x" * 120 + ".h5"
    document["rows"][0] |= {"container": "W" * 40, "method": "W" * 40}
    document["rows"].append({"key": "k" * 200, "reason": "w" * 200})
    return document


def nameless():
    document = comparison()
    return {**document, "rows": [{**held, "map": None, "points": None} for held in document["rows"]]}


ODD = {
    "long names": lambda: [long_names(), long_names()],
    "no rows": lambda: [{**make(), "rows": []} for make in KINDS.values()],
    "only keys": lambda: [{"format": 1, "kind": kind, "rows": [{"key": "a"}]} for kind in KINDS],
    "no quality": lambda: [nameless()],
    "one result": lambda: [training()],
}


@pytest.mark.parametrize("case", ODD)
def test_other_results(browser, plain_charts, tmp_path, case):
    path = tmp_path / "odd.html"
    path.write_text(page.page(page.results(ODD[case]()), "W" * 80 if case == "long names" else None))
    for width, theme in VIEWS[1:3]:
        assert faults(browser, path, width, theme) == {}, (width, theme)


# ------------------------------------------------------------------------------------------------------ the check itself
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
# What is wrong, or wrong in yet another way (after a colon).
BROKEN = {
    "wider than the page": '<div style="width: 3000px">wide</div>',
    "cut": '<p style="width: 60px; overflow: hidden; white-space: nowrap">a line that is longer than its box</p>',
    "no region": '<div style="width: 60px; overflow-x: auto"><div style="width: 90px">unreachable</div></div>',
    "overlap": '<p>one line of text</p><p style="margin-top: -1.2em">another on top of it</p>',
    "overlap: lines of one text": '<p style="width: 9em; line-height: .6">lines that are closer than they are high</p>',
    "overlap: an image": f'<p>covered</p><img alt=c src="{DOT}" style="display: block; margin-top: -1em; height: 9px">',
    "contrast": '<p style="color: #9a9a9a; background: #fff">pale</p>',
    "contrast: opacity": '<div style="opacity: .15"><p>pale</p></div>',
    "tab order": '<a href="#main" tabindex=2 style="display: block; line-height: 3">first</a>',
    "no outline": '<a href="#main" style="display: block; line-height: 3; outline: none">where</a>',
    "label twice": '<div role=region aria-label="a"></div><div role=region aria-label="a"></div>',
    "ground": "<style>body { background: #fff; color: #000 } @media all { :root { color-scheme: light } }</style>",
    "image": '<img alt="none" src="data:image/png;base64,AAAA">',
    "no alt": f'<img src="{DOT}">',
    "small target": '<details style="margin: 3em"><summary style="min-height: 0; padding: 0">small</summary></details>',
    "request": '<img alt="elsewhere" src="elsewhere.gif">',
    "console": "<script>alert(1)</script>",
}


def test_a_plain_page_has_no_faults(browser, tmp_path):
    path = tmp_path / "plain.html"
    path.write_text(f'<!doctype html><html lang=en><title>.</title><p>text</p><img alt="dot" src="{DOT}">')
    assert faults(browser, path) == {}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_check_finds(browser, plain_charts, tmp_path, kind):
    text = page.page(page.results([training()]))
    if kind == "request":  # the page's own policy would refuse it before it is asked for
        text = text.replace("default-src 'none'; img-src data:", "img-src * data: file:")
        (tmp_path / "elsewhere.gif").write_bytes(base64.b64decode(DOT.partition(",")[2]))
    path = tmp_path / "broken.html"
    path.write_text(text.replace("<h2 id=summary>", BROKEN[kind] + "<h2 id=summary>"))
    assert kind.partition(":")[0] in faults(browser, path, theme="dark" if kind == "ground" else "light")
