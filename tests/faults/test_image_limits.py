"""What a decoder will not take is not told as damage, and what is small on disk takes little memory."""

import io
import os
import struct
import subprocess
import sys
import zlib
from functools import cache

import h5py
import numpy as np
import pytest
from PIL import Image

from scqfaiss.data import open_rows, png_text
from scqfaiss.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
BIG = np.random.default_rng(1).integers(32, 122, 1_200_000, np.uint8).tobytes()  # text that unpacks to more than 1 MiB
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/>' + BIG + b"</x:xmpmeta>"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def encoded(format="PNG", image=X, **options):
    f = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(f, format, **options)
    return f.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*notes, late=False):
    """X as a PNG with these chunks before its pixels, or behind them."""
    plain = encoded()
    at = len(plain) - 12 if late else 33
    return plain[:at] + b"".join(notes) + plain[at:]


@cache
def bomb():
    """A few kB that unpack to 128 MiB."""
    return zlib.compress(bytes(1 << 27), 1)


def packed(kind, text, keyword=b"a"):
    head = {b"zTXt": b"\0\0", b"iCCP": b"\0\0", b"iTXt": b"\0\1\0en\0\0"}[kind]
    return chunk(kind, keyword + head + (bomb() if text is bomb else zlib.compress(text)))


def put(name, data):
    with open(name, "wb") as f:
        f.write(data)
    return name


def read(name, side=8):
    with open_rows(name) as source:
        source.shaped(side, "crop")
        return source.read(0, 1)[0].transpose(1, 2, 0)


def refused(name):
    with pytest.raises(DataError) as caught:
        read(name)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ texts and profiles
SOUND = {
    "text": lambda: png(chunk(b"tEXt", b"a\0" + BIG)),
    "packed text": lambda: png(packed(b"zTXt", BIG)),
    "text behind the pixels": lambda: png(packed(b"zTXt", BIG), late=True),
    "international text": lambda: png(packed(b"iTXt", BIG)),
    "profile": lambda: png(packed(b"iCCP", BIG)),
    "sixty texts": lambda: png(*[chunk(b"tEXt", b"a\0" + BIG)] * 60),
    "a text that unpacks to 134 MB": lambda: png(packed(b"zTXt", bomb)),
    "JPEG with a profile": lambda: encoded("JPEG", icc_profile=BIG, quality=95),
    "JPEG with many segments": lambda: b"\xff\xd8" + (b"\xff\xef\xfe\xea" + BIG[:65256]) * 40 + encoded("JPEG")[2:],
    "TIFF with a profile": lambda: encoded("TIFF", icc_profile=BIG),
    "WebP with a profile": lambda: encoded("WEBP", icc_profile=BIG, lossless=True),
    "WebP with XMP": lambda: encoded("WEBP", xmp=BIG, lossless=True),
    "GIF with a comment": lambda: encoded("GIF", comment=BIG),
    "MPO": lambda: encoded("MPO", save_all=True, append_images=[Image.fromarray(X)]),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_image_with_much_text_is_decoded(kind):
    data = SOUND[kind]()
    format = {"JPEG": "JPEG", "GIF": "GIF", "MPO": "JPEG"}.get(kind.split()[0], "PNG")
    quality = {"quality": 95} if kind == "JPEG with a profile" else {}
    os.mkdir("photos")
    put("photos/a", data)
    put("plain.png", encoded(format, **quality))
    want = read("plain.png")
    np.testing.assert_array_equal(read("photos"), want)
    with open_rows("photos", skip_bad_rows=True) as source:
        assert (len(source), source.dropped) == (1, 0)


@pytest.mark.parametrize("kind, keyword", [(b"iTXt", b"XML:com.adobe.xmp"), (b"zTXt", b"Raw profile type exif")])
def test_an_orientation_in_a_large_text_still_counts(kind, keyword):
    exif = Image.Exif()
    exif[0x0112] = 6
    text = XMP
    if kind == b"zTXt":
        raw = exif.tobytes()
        text = b"\nexif\n%8d\n" % len(raw) + raw.hex().encode() + b"\n" + b" " * (1 << 21)
    want = read(put("turned.png", encoded(exif=exif)))
    np.testing.assert_array_equal(read(put("a.png", png(packed(kind, text, keyword)))), want)


def test_a_text_that_has_to_be_read_and_cannot_be(monkeypatch):
    monkeypatch.setattr(png_text, "TEXT_BYTES", 1 << 21)
    put("a.png", png(packed(b"iTXt", XMP * 2, b"XML:com.adobe.xmp")))
    assert refused("a.png") == "a.png cannot be used: too large, its texts unpack to more than 16.8 MB"


def test_damage_beside_large_texts_stays_damage():
    good = png(packed(b"zTXt", BIG))
    at = good.index(b"IDAT") + 20
    for broken in (good[: len(good) // 2], good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]):
        assert refused(put("a.png", broken)) == "a.png cannot be used: damaged, its pixels are broken or cut off"
    in_text = bytearray(good)
    in_text[5000] ^= 1
    assert "damaged, " in refused(put("b.png", bytes(in_text)))


def test_images_inside_hdf5_are_decoded_alike():
    with h5py.File("p.h5", "w") as f:
        f.create_dataset("images", data=np.array([encoded(), png(packed(b"iCCP", BIG))]), fletcher32=True, chunks=(2,))
    with open_rows("p.h5") as source:
        source.shaped(8, "crop")
        x = source.read(0, 2)
    np.testing.assert_array_equal(x[0], x[1])


# ------------------------------------------------------------------------------------------------------------------ sides
def one_bit(width, height):
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(((width + 7) // 8 + 1) * height, 1 << 21)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bmp(width, height):
    head = struct.pack("<2sIHHI", b"BM", 1000, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 1, 0, 0, 0, 0, 0, 0) + bytes(1000)


TALL = {
    "a.png": lambda: one_bit(1, 178_956_970),
    "b.png": lambda: one_bit(178_956_970, 1),
    "a.bmp": lambda: bmp(1, 178_956_970),
    "a.tif": lambda: encoded("TIFF", Image.new("1", (1, 1_100_000)), compression="group4"),
}


@pytest.mark.parametrize("name", TALL)
def test_a_side_of_many_pixels_is_refused_by_the_header(name, monkeypatch):
    put(name, TALL[name]())
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were loaded"))
    side = "1,100,000" if name == "a.tif" else "178,956,970"
    assert refused(name) == f"{name} cannot be used: too large, a side has {side} pixels, at most 1,048,576 are read"


def test_a_long_image_within_the_bound_is_read():
    put("a.png", one_bit(1, 1 << 20))
    np.testing.assert_array_equal(read("a.png", 4), np.zeros((4, 4, 3)))


@pytest.mark.slow
def test_what_is_small_on_disk_takes_little_memory():
    """Forged sides, texts that unpack to much, animations of many images: as image files and inside HDF5."""
    os.mkdir("photos")
    small = {name: make() for name, make in TALL.items()}
    small |= {"text.png": png(packed(b"zTXt", bomb)), "icc.png": png(packed(b"iCCP", bomb))}
    frames = [Image.fromarray((X.astype(int) + i).astype(np.uint8)) for i in range(50)]
    for format in ("GIF", "TIFF", "PNG"):
        small[format] = encoded(format, frames[0], save_all=True, append_images=frames[1:])
    for name, data in small.items():
        put(f"photos/{name}", data)
    with h5py.File("p.h5", "w") as f:
        images = f.create_dataset("images", (len(small),), h5py.vlen_dtype(np.uint8))
        for k, data in enumerate(small.values()):
            images[k] = np.frombuffer(data, np.uint8)
    code = """
import sys
import PIL.Image
from scqfaiss.data import open_rows
from scqfaiss.errors import DataError
PIL.Image.init()
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
before = peak()
for path in ("photos", "p.h5"):
    source = open_rows(path, workers=1)
    try:
        source.prove()
    except DataError as error:
        assert "4 of 9 " in str(error) and "4 too large" in str(error), error
    else:
        sys.exit(1)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000  # kB
