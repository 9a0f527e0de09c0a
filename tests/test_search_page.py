"""The page of `scqfaiss serve` in a browser: every way to search, every state, the keyboard alone, both widths and themes."""

import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
from contents import with_content
from images import model as image_model
from images import photos
from report.test_browser import FIND, NARROW, VIEWS, WIDE, browser  # noqa: F401

import scqfaiss
from scqfaiss.demo.digits import write_parts
from scqfaiss.demo.page import items_csv, png
from scqfaiss.errors import ScqWarning
from scqfaiss.galleries.exporting import export_file

pytest.importorskip("fastapi")

from scqfaiss.serving.run import in_background
from scqfaiss.serving.settings import settings_of

ROOT = Path(__file__).parents[1]

# ruff: noqa: F811  (fixtures are imported by name)
pytestmark = pytest.mark.slow

TAB, ENTER, ESCAPE, RIGHT, DOWN, LEFT, HOME, END = (
    "\ue004",
    "\ue007",
    "\ue00c",
    "\ue014",
    "\ue015",
    "\ue012",
    "\ue011",
    "\ue010",
)
LATENCY = 20_000  # milliseconds, of a server that is slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Digits with content codes, a calibration and items, and photos with a network: files for `scqfaiss serve`."""
    folder = tmp_path_factory.mktemp("shop")
    parts = write_parts(folder)
    x, labels, ids = parts["database"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        digits = with_content(scqfaiss.train(x, method="pq", bits=16, nbits=4), x)
        digits = scqfaiss.calibrate(digits, parts["query"][0], parts["query"][1].y)
        digits.save(folder / "digits.safetensors")
        scqfaiss.export(digits, x, ids=ids, path=folder / "digits.faissindex")
        images = photos(folder / "images" / "photos", each=4)
        image_model().save(folder / "photos.safetensors")
        export_file(folder / "photos.safetensors", images, folder / "photos.faissindex", keys={})
    for row, i in zip(x, ids):
        (folder / "images" / f"{i}.png").write_bytes(png(row))
    (folder / "digits.csv").write_text(items_csv(labels.y, ids))
    paths = sorted(str(path.relative_to(folder / "images")) for path in images.rglob("*.png"))
    lines = [f"{i},{Path(path).stem},{Path(path).parts[1]},{path}" for i, path in enumerate(paths)]
    (folder / "photos.csv").write_text("\n".join(["id,title,label,image", *lines]))
    return folder


@contextmanager
def service(shop, names, **more):
    """A service in this process -> its address."""
    options = {
        "model": tuple(f"{name}={shop}/{name}.safetensors" for name in names),
        "items": tuple(f"{name}={shop}/{name}.csv" for name in names),
        "images": str(shop / "images"),
    }
    settings = settings_of(tuple(f"{name}={shop}/{name}.faissindex" for name in names), port=0, **options, **more)
    thread, server, port = in_background(settings)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(shop):
    with service(shop, ("digits", "photos")) as address:
        yield address


class Page:
    """The page in the browser, and what is done and seen on it."""

    def __init__(self, browser, base):
        self.browser, self.base = browser, base

    def open(self, hash="", width=WIDE, theme="light", shown="search"):
        for log in ("browser", "performance"):
            self.browser.get_log(log)
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.browser.get("about:blank")
        self.browser.get(f"{self.base}/{hash}")
        self.wait(
            "return document.getElementById(arguments[0]) && !document.getElementById(arguments[0]).hidden", shown
        )
        return self

    def js(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, script, *arguments):
        end = time.monotonic() + 25
        while not (found := self.js(script, *arguments)):
            assert time.monotonic() < end, script
            time.sleep(0.05)
        return found

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def ids(self):
        """Ids of the hits, in their order."""
        return self.js("return [...document.querySelectorAll('.hit')].map(e => e.dataset.id)")

    def found(self, heading):
        """Wait until a search with this heading is answered and its images are there -> ids of its hits."""
        self.wait(
            "return document.querySelector('.asked h2')?.textContent.startsWith(arguments[0]) "
            "&& !document.querySelector('.stale')",
            heading,
        )
        self.wait("return [...document.querySelectorAll('.hit img')].every(i => (i.loading = 'eager', i.naturalWidth))")
        return self.ids()

    def keys(self, *keys):
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    def focused(self):
        return self.js("return document.activeElement.dataset.id ?? document.activeElement.id")

    def requests(self):
        events = [json.loads(line["message"])["message"] for line in self.browser.get_log("performance")]
        return [e["params"]["request"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def unclean(self, failed=False):
        """Lines of the console, but for the browser's own about answers that are errors, and requests to anywhere else."""
        lines = [line["message"] for line in self.browser.get_log("browser")]
        if failed:
            lines = [line for line in lines if "Failed to load resource" not in line]
        own = (self.base, f"blob:{self.base}", "data:", "about:", "chrome:")
        return lines + [asked["url"] for asked in self.requests() if not asked["url"].startswith(own)]


@pytest.fixture
def page(browser, served):
    return Page(browser, served)


@pytest.mark.parametrize("width, theme", VIEWS)
def test_both_widths_and_themes(page, width, theme):
    page.open("#gallery=digits&ids=18", width, theme)
    assert len(page.found("More like Handwritten eight")) == 24
    assert page.js(FIND, theme == "dark") == {}
    columns = page.js("return new Set([...document.querySelectorAll('.hit')].map(e => e.offsetLeft)).size")
    assert columns == (2 if width == NARROW else 7)
    assert page.unclean() == []


def test_by_id_more_like_this_and_back(page):
    page.open()
    assert len(page.found("Begin with one of these")) == 24
    assert page.js(FIND, False) == {}
    box = page.one("#ids")
    box.send_keys("18", ENTER)
    first = page.found("More like Handwritten eight")
    assert page.one("#status").text == "24 hits found." and "ids=18" in page.browser.current_url
    page.browser.find_elements("css selector", ".hit")[3].click()
    second = page.found("More like Handwritten")
    page.wait("return document.getElementById('ids').value === arguments[0]", first[3])
    assert page.one("#ids").get_attribute("value") == first[3] and len(second) == 24
    page.browser.back()
    page.wait("return document.getElementById('ids').value === '18'")
    assert page.found("More like Handwritten eight") == first
    assert page.unclean() == []


def test_several_ids_are_several_searches(page):
    page.open()
    page.one("#ids").send_keys("18, 21", ENTER)
    page.wait("return document.querySelectorAll('.found').length === 2")
    assert len(page.ids()) == 48
    assert page.unclean() == []


def test_the_keyboard_alone(page):
    page.open()
    stops = []
    for _ in range(12):
        page.keys(TAB)
        stops.append(
            page.js(
                "return document.activeElement.id || document.activeElement.className || document.activeElement.value"
            )
        )
        if stops[-1] == "hit":
            break
    assert stops[0] == "skip" and stops[1:] == ["gallery", "ids", "ids", "k", "least", "auto", "go", "hit"], stops
    page.browser.find_element("id", "ids").send_keys("18", ENTER)
    ids = page.found("More like Handwritten eight")
    for _ in range(5):  # past hits, probability, the slider's box and the button
        page.keys(TAB)
    assert page.focused() == ids[0]
    for key, at in ((RIGHT, 1), (DOWN, 8), (LEFT, 7), (END, 23), (RIGHT, 23), (HOME, 0)):
        page.keys(key)
        assert page.focused() == ids[at], key
    page.keys(RIGHT, ENTER)
    page.wait("return document.getElementById('ids').value === arguments[0]", ids[1])
    page.found("More like")
    page.wait("return document.activeElement === document.querySelector('.hit')")
    assert page.unclean() == []


def test_what_a_screen_reader_says(page):
    page.open("#gallery=digits&ids=18")
    page.found("More like Handwritten eight")
    names = {name: page.one(f"#{name}").accessible_name for name in ("ids", "k", "known", "auto", "go")}
    assert names == {
        "ids": "More like these ids",
        "k": "Hits",
        "known": "Class of the query",
        "auto": "automatic",
        "go": "Search",
    }
    said = page.one(".hit").accessible_name
    assert re.fullmatch(r"Handwritten eight, 8, score \d\.\d{3}, probability \d+ %", said)
    assert page.one("#status").get_attribute("aria-live") == "polite"
    assert page.one("#alert").aria_role == "alert"
    assert page.js("return document.documentElement.lang") == "en"


def test_wrong_input_never_leaves_the_page(page):
    page.open()
    page.requests()
    for text, message in (
        ("", "Type an id"),
        ("abc", "“abc” is no id"),
        ("9223372036854775808", "is no id"),
        (" ".join("1" * 21), "21 ids are given, at most 20"),
    ):
        page.js("document.getElementById('ids').value = arguments[0]", text)
        page.one("#ids").send_keys(ENTER)
        assert message in page.one("#alert").text
    assert not [asked for asked in page.requests() if "search" in asked["url"]]
    text = '{"ids": [9223372036854775807, 5], "t": "[9223372036854775807, \\"12345678901234567\\"]", "f": 0.12345678901234567}'
    parsed = page.browser.execute_async_script(
        "const [text, done] = arguments; import('/page/server.js').then(m => done(m.parse(text)))", text
    )
    assert parsed == json.loads(text) | {"ids": ["9223372036854775807", 5]}
    assert page.unclean() == []


def test_an_image_that_is_chosen_and_one_that_is_dropped(page, shop):
    page.open("#gallery=photos")
    page.found("Begin with one of these")
    image = shop / "images" / "photos" / "red" / "p1.png"
    page.one("[value=image]").click()
    page.one("#image").send_keys(str(image))
    chosen = page.found("More like the image")
    assert ", red, score " in page.one(".hit").accessible_name
    page.open("#gallery=photos")
    page.js(
        """const [name, text] = arguments, bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], name, {type: 'image/png'}));
        for (const kind of ['dragover', 'drop'])
          document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));""",
        image.name,
        base64.b64encode(image.read_bytes()).decode(),
    )
    assert page.found("More like the image") == chosen and len(chosen) == 12
    assert page.unclean() == []


def test_numbers_the_slider_and_a_probability_that_no_hit_has(page):
    page.open("#gallery=digits")
    page.one("[value=numbers]").click()
    box = page.one("#numbers")
    box.send_keys("1, 2 3")
    page.one("#go").click()
    assert page.one("#alert").text == "3 numbers given, digits needs 64."
    box.clear()
    box.send_keys(", ".join(["0.5"] * 64))
    page.one("#go").click()
    found = page.found("Nearest to the numbers")
    page.js("const e = document.getElementById('least'); e.value = 0.9; e.dispatchEvent(new Event('change'))")
    page.wait("return document.getElementById('status').textContent.startsWith('No hits')")
    assert "No hits with a probability of 90 % or more." in page.one("#results").text and page.ids() == []
    page.one("#auto").click()
    page.wait("return document.querySelectorAll('.hit').length === 24")
    page.js("const e = document.getElementById('known'); e.value = 0; e.dispatchEvent(new Event('input'))")
    page.js("document.getElementById('known').dispatchEvent(new Event('change'))")
    assert page.one("#known-value").text == "0.00"
    other = page.found("Nearest to the numbers")
    page.one("[value=ids]").click()
    page.one("#ids").send_keys("18", ENTER)
    unknown = page.found("More like Handwritten eight")
    page.js("const e = document.getElementById('known'); e.value = 1; e.dispatchEvent(new Event('change'))")
    page.wait(
        "return [...document.querySelectorAll('.hit')].map(e => e.dataset.id).join() !== arguments[0]",
        ",".join(unknown),
    )
    assert len(other) == len(found) and other != found and not page.one("#least").is_enabled()
    assert page.unclean() == []


def test_an_error_of_the_server_and_a_server_that_is_gone(page, browser):
    page.open("#gallery=digits&ids=999999")
    page.wait("return document.querySelector('#alert p')")
    assert "999999" in page.one("#alert").text and page.ids() == []
    page.open("#gallery=digits")
    browser.set_network_conditions(offline=True, latency=0, throughput=1 << 30)
    try:
        page.one("#ids").send_keys("18", ENTER)
        page.wait("return document.querySelector('#alert button')")
        assert "The server does not answer" in page.one("#alert").text
    finally:
        browser.delete_network_conditions()
    page.one("#alert button").click()
    assert len(page.found("More like Handwritten eight")) == 24 and page.one("#alert").text == ""
    assert page.unclean(failed=True) == []


def test_a_slow_server_shows_a_sign_and_can_be_cancelled(page, browser):
    page.open("#gallery=digits&ids=18")
    page.found("More like Handwritten eight")
    browser.set_network_conditions(offline=False, latency=LATENCY, throughput=1 << 30)
    try:
        for how in (lambda: page.one("#cancel").click(), lambda: page.keys(ESCAPE)):
            page.one("#ids").clear()
            page.one("#ids").send_keys("21", ENTER)
            page.wait("return !document.getElementById('waiting').hidden")
            assert page.one(".bar").aria_role == "progressbar" and "Searching" in page.one("#waiting").text
            how()
            page.wait("return document.getElementById('waiting').hidden")
            assert "Cancelled." in page.one("#alert").text
        page.one("#alert button").click()
        page.wait("return !document.getElementById('waiting').hidden")
        page.js(
            "const e = document.getElementById('gallery'); e.value = 'photos'; e.dispatchEvent(new Event('change'))"
        )
        time.sleep(0.2)  # what is given up must not come back
        assert len(page.ids()) == 12 and page.one("#alert").text == "" and not page.one("#waiting").is_displayed()
        page.js(
            "const e = document.getElementById('gallery'); e.value = 'digits'; e.dispatchEvent(new Event('change'))"
        )
    finally:
        browser.delete_network_conditions()
    page.one("#go").click()
    page.found("More like Handwritten")
    assert page.js("return document.getElementById('waiting').hidden") and page.one("#alert").text == ""
    assert page.unclean() == []


def test_a_server_with_keys_asks_for_one_and_images_come_with_it(browser, shop):
    keys = shop / "keys"
    keys.write_text("0123456789abcdef\n")
    keys.chmod(0o600)
    with service(shop, ("digits",), api_key_file=str(keys)) as address:
        page = Page(browser, address)
        page.open("#gallery=digits&ids=18", shown="key-form")
        assert page.focused() == "key" and page.one("#key").accessible_name == "Key" and page.ids() == []
        page.keys("wrong", ENTER)
        page.wait("return document.querySelector('#alert p')")
        assert page.one("#alert").text == "This key is not one of the server's."
        page.one("#key").clear()
        page.one("#key").send_keys("0123456789abcdef", ENTER)
        assert len(page.found("More like Handwritten eight")) == 24
        assert page.js("return [...document.querySelectorAll('.hit img')].every(i => i.src.startsWith('blob:'))")
        assert not page.one("#key-form").is_displayed() and page.one("#alert").text == ""
        assert page.unclean(failed=True) == []
        page.browser.get("about:blank")  # or the server would wait for the browser's connections


def test_the_demo_serves_digits_that_are_trained_already_until_ctrl_c(shop):
    shutil.copy(shop / "digits.csv", shop / "items.csv")
    command = [sys.executable, "-m", "scqfaiss", "demo", "--serve", "-o", str(shop), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        lines = []
        while not (address := re.search(r"http://localhost:\d+/", "".join(lines))):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        with urllib.request.urlopen(address[0], timeout=20) as page:
            assert b"<title>Search</title>" in page.read()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in told and "Error" not in told
    assert f"scqfaiss serve digits={shop}/digits.faissindex --model {shop}/digits.safetensors" in "".join(lines)
