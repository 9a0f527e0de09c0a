"""Images of items: one folder and nothing else, within bounds, held within bounds; and the routes that give them out."""

import asyncio
import io
import os
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
fastapi = pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from scqfaiss.data.decoding import Refused  # noqa: E402
from scqfaiss.errors import ConfigError  # noqa: E402
from scqfaiss.serving import page_routes  # noqa: E402
from scqfaiss.serving.galleries import Images  # noqa: E402
from scqfaiss.serving.problems import Problem  # noqa: E402
from scqfaiss.serving.thumbnails import SIDE, ImageFolder, NoImage, Thumbnails  # noqa: E402


def bomb(w=60_000, h=60_000):
    """A PNG of a few bytes that says it has w x h pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


NAMES = {
    "image": "a/photo.jpg",
    "dots": "../secret.png",
    "dots within": "a/../../secret.png",
    "absolute": "{outside}/secret.png",
    "link out": "link.png",
    "folder link out": "links/secret.png",
    "link within": "within.png",
    "NUL": "a/photo.jpg\0.png",
    "half a pair": "\ud800.png",
    "FIFO": "fifo.png",
    "folder": "a",
    "device": "null",
    "empty name": "a//photo.jpg",
    "missing": "b.png",
    "long": "x" * 4000,
    "bomb": "bomb.png",
    "50 million pixels": "large.png",
    "text": "text.png",
    "cut off": "cut.jpg",
    "small": "small.png",
}
STATUS = dict.fromkeys(NAMES, 404) | {"image": 200, "small": 200}
STATUS |= dict.fromkeys(("bomb", "50 million pixels", "text", "cut off"), 422)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images, good and bad, and one outside of it."""
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (9, 9), "red").save(outside / "secret.png")
    inside = tmp_path_factory.mktemp("images")
    (inside / "a").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (500, 800, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(inside / "a" / "photo.jpg")
    Image.new("RGBA", (8, 6), (255, 0, 0, 0)).save(inside / "small.png")
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "links").symlink_to(outside)
    (inside / "within.png").symlink_to("small.png")
    (inside / "null").symlink_to("/dev/null")
    os.mkfifo(inside / "fifo.png")
    (inside / "bomb.png").write_bytes(bomb())
    (inside / "large.png").write_bytes(bomb(10_000, 5_001))
    (inside / "text.png").write_text("no image")
    (inside / "cut.jpg").write_bytes((inside / "a" / "photo.jpg").read_bytes()[:2000])
    return inside, outside


class Known:
    """Items whose images have these paths, the way scqfaiss.items.store.Items gives them."""

    def __init__(self, paths):
        self.paths = paths

    def get(self, ids):
        inside = [0 <= i < len(self.paths) for i in ids]
        return [{"title": None, "image": self.paths[i]} if there else None for i, there in zip(ids, inside)]

    def some(self, n):
        return list(range(min(n, len(self.paths))))


class Client:
    """Asks an app without a server."""

    def __init__(self, app):
        self.transport = httpx.ASGITransport(app)

    def get(self, path, **options):
        async def ask():
            async with httpx.AsyncClient(transport=self.transport, base_url="http://app") as client:
                return await client.get(path, **options)

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def client(folder):
    inside, outside = folder
    known = Known([name.replace("{outside}", str(outside)) for name in NAMES.values()])
    shown = page_routes.Shown("g", 20, 3, ("ids",), False, False, True, True)
    app = fastapi.FastAPI()
    app.include_router(
        page_routes.page_router(
            lambda: [shown], {"g": known, "bare": None}.__getitem__, Thumbnails(ImageFolder(inside))
        )
    )
    return Client(app)


@pytest.mark.parametrize("name", NAMES)
def test_of_hostile_paths_and_images_each_has_its_status_and_tells_nothing(client, folder, name):
    answer = client.get(f"/v1/galleries/g/images/{list(NAMES).index(name)}")
    assert answer.status_code == STATUS[name], answer.text
    if answer.status_code != 200:
        assert not any(str(path) in answer.text for path in folder) and "secret" not in answer.text
    else:
        image = Image.open(io.BytesIO(answer.content))
        assert max(image.size) <= SIDE and answer.headers["content-type"] == f"image/{image.format.lower()}"
    assert ("too large" in answer.text) == (name in ("bomb", "50 million pixels"))


@pytest.mark.parametrize(
    "path, status",
    [
        ("/v1/galleries/g/images/999", 404),
        ("/v1/galleries/other/images/0", 404),
        ("/v1/galleries/bare/images/0", 404),
        ("/v1/galleries/g/images/..%2f..%2fsecret.png", 404),
        ("/v1/galleries/g/images/-1", 404),
        ("/v1/galleries/g/images/99999999999999999999", 404),
        ("/v1/galleries/g/images/x", 404),
        ("/page/..%2fpage_routes.py", 404),
        ("/page/%2e%2e/page_routes.py", 404),
        ("/page/index.html", 404),
        ("/page/page.css%00", 404),
    ],
)
def test_tricks_with_addresses_reach_nothing(client, path, status):
    assert client.get(path).status_code == status


def test_items_of_ids_that_are_typed(client):
    assert [item and item["image"] for item in client.get("/page/items/g?ids=1,999,2").json()["items"]] == [
        "../secret.png",
        None,
        "a/../../secret.png",
    ]
    assert client.get("/page/items/bare?ids=1,2").json() == {"items": [None, None]}
    assert client.get("/page/items/g?ids=x,,-1,99999999999999999999,1e5").json() == {"items": []}
    assert len(client.get("/page/items/g?ids=" + ",".join(["1"] * 5000)).json()["items"]) == page_routes.MOST_ITEMS
    assert [client.get(f"/page/items/{name}").status_code for name in ("other?ids=1", "g")] == [404, 200]


def test_an_image_is_whole_upright_and_no_larger_than_a_tile(folder):
    thumbnails = Thumbnails(ImageFolder(folder[0]))
    photo = thumbnails.get("a/photo.jpg")
    image = Image.open(io.BytesIO(photo.content))
    assert image.size == (SIDE, SIDE * 500 // 800) and photo.media_type == "image/jpeg"
    small = thumbnails.get("small.png")
    image = Image.open(io.BytesIO(small.content))
    assert (image.size, image.getpixel((0, 0)), small.media_type) == ((8, 6), (255, 255, 255), "image/png")


def test_a_browser_asks_again_and_is_told_that_it_has_the_image(client):
    first = client.get("/v1/galleries/g/images/0")
    etag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, max-age=300"
    for asked in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        again = client.get("/v1/galleries/g/images/0", headers={"If-None-Match": asked})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get("/v1/galleries/g/images/0", headers={"If-None-Match": '"x"'}).status_code == 200


def test_what_is_held_has_a_bound_and_changes_with_the_file(tmp_path):
    for i in range(20):
        Image.new("RGB", (200, 200), (i, 0, 0)).save(tmp_path / f"{i}.png")
    folder = ImageFolder(tmp_path)
    one = len(Thumbnails(folder).get("0.png").content)
    thumbnails = Thumbnails(folder, cache_bytes=3 * one + 10)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: thumbnails.get(f"{i % 20}.png"), range(60)))
    assert thumbnails._held <= 3 * one + 10
    assert thumbnails._held == sum(len(held.content) for held in thumbnails._cache.values())
    assert all(made[i].content == made[i + 20].content for i in range(20))
    held = thumbnails.get("1.png")
    assert thumbnails.get("1.png") is held
    Image.new("RGB", (200, 200), "white").save(tmp_path / "1.png")
    assert thumbnails.get("1.png").etag != held.etag


def test_folders_that_are_none(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "missing", "a\0b"):
        with pytest.raises(ConfigError, match="images are served from a folder"):
            ImageFolder(tmp_path / name)
    folder = ImageFolder(tmp_path)
    folder.close()
    folder.close()
    with pytest.raises(NoImage):
        folder.open("file")


def test_a_file_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("scqfaiss.serving.thumbnails.MAX_FILE", 10)
    (tmp_path / "a.png").write_bytes(bomb())
    with pytest.raises(Refused, match="too large, its file has"):
        Thumbnails(ImageFolder(tmp_path)).get("a.png")


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 5_001)])
def test_a_bomb_to_search_with_is_refused_by_its_header(size):
    images = Images(lambda x: x.reshape(len(x), -1), 8, "crop", True)
    with pytest.raises(Problem, match="image 0 cannot be read: too large, it has more than") as refused:
        images.rows([bomb(*size)])
    assert refused.value.status == 422


def test_the_page_lets_nothing_in_from_elsewhere(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    text = page.text + "".join(client.get(f"/page/{name}").text for name in page_routes.FILES)
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert "<style" not in page.text and "style=" not in page.text and "onclick" not in page.text
    for name, kind in page_routes.FILES.items():
        answer = client.get(f"/page/{name}")
        assert answer.headers["content-type"].startswith(kind) and answer.headers["x-content-type-options"] == "nosniff"


def test_too_many_images_at_once_are_turned_away(folder, monkeypatch):
    monkeypatch.setattr(page_routes, "IMAGES_WAITING", 3)
    go = threading.Event()

    class Slow:
        def get(self, path):
            go.wait(10)
            raise NoImage

    async def ask():
        images = page_routes._Images(Slow())
        asked = [asyncio.create_task(images.get("a")) for _ in range(5)]
        await asyncio.sleep(0.05)
        go.set()
        return [error.status_code for error in await asyncio.gather(*asked, return_exceptions=True)]

    assert asyncio.run(ask()) == [404, 404, 404, 503, 503]
