"""Sound images: what comes out of every form they may have. Those that cannot be used are in faults/test_i_images.py."""

import hashlib
import io
import json
import os
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from PIL import Image

from scqfaiss.data import images, open_rows
from scqfaiss.data.decoding import FITS, decode
from scqfaiss.data.images import ImageSource
from scqfaiss.errors import ConfigError, DataError, ScqWarning
from scqfaiss.modality import IMAGES, ROWS

RNG = np.random.default_rng(0)


def noise(h=8, w=8, seed=0):
    """(h, w, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def encoded(image, format="PNG", **options):
    f = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(f, format, **options)
    return f.getvalue()


def decoded(data, side, fit="crop"):
    """(side, side, 3) uint8."""
    return decode(io.BytesIO(data), side, fit).transpose(1, 2, 0)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(data) if isinstance(data, np.ndarray) else data)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/: 12 images of 8 x 8 in classes of 3, 4, 5, one a folder deeper, beside hidden files; {name: pixels}."""
    monkeypatch.chdir(tmp_path)
    names = [
        f"{c}/{'deep/er/' if c == 'dog' and i == 2 else ''}{c}{i}.png"
        for c, n in zip(CLASSES, (3, 4, 5))
        for i in range(n)
    ]
    pixels = {name: noise(seed=i) for i, name in enumerate(names)}
    for name, x in pixels.items():
        write(tmp_path / "photos" / name, x)
    for hidden in (".thumbs/a.png", "cat/.hidden", ".DS_Store", "cat/.git/HEAD"):
        write(tmp_path / "photos" / hidden, b"no image")
    return pixels


CLASSES = ("cat", "deer", "dog")


def opened(path="photos", side=8, fit="crop", **options):
    source = open_rows(path, **options)
    assert isinstance(source, ImageSource) and source.modality == IMAGES
    source.shaped(side, fit)
    return source


# ------------------------------------------------------------------------------------------------------------- decoding
# Where row 0 and column 0 of what is stored lie in the scene, written anew as indices of the stored array.
STORED_TO_SCENE = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED_TO_SCENE)
def test_exif_orientation(orientation, format):
    x = noise(8, 12)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    got = decoded(encoded(x, format, exif=exif, **options), 8)
    scene = STORED_TO_SCENE[orientation](x)
    h, w = scene.shape[:2]
    y, x = (h - 8) // 2, (w - 8) // 2
    np.testing.assert_array_equal(got, scene[y : y + 8, x : x + 8])


@pytest.mark.parametrize("orientation", STORED_TO_SCENE)
def test_exif_orientation_of_a_jpeg_decoded_small(orientation):
    """Red above left, green above right, blue below left, white below right in the scene, eight times too large."""
    scene = np.repeat(
        np.repeat(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255] * 3]], np.uint8), 64, 0), 96, 1
    )
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(STORED_TO_SCENE[undo](scene)), "JPEG", exif=exif, quality=95)
    got = decoded(data, 8, "squash").astype(int)
    np.testing.assert_allclose(got[[1, 1, 6, 6], [1, 6, 1, 6]], scene[[0, 0, -1, -1], [0, -1, 0, -1]], atol=12)


def test_an_odd_orientation_or_broken_exif_is_none():
    x = noise()
    for number in (0, 9, 200):
        exif = Image.Exif()
        exif[0x0112] = number
        np.testing.assert_array_equal(decoded(encoded(x, exif=exif), 8), x)
    data = encoded(x, "JPEG", quality=95, exif=b"Exif\0\0II*\0broken and cut off")
    np.testing.assert_array_equal(decoded(data, 8), decoded(encoded(x, "JPEG", quality=95), 8))


def test_grey_palette_and_one_bit():
    grey = noise()[..., 0]
    np.testing.assert_array_equal(decoded(encoded(grey), 8), np.repeat(grey[..., None], 3, 2))
    few = np.array([[10, 20, 30], [200, 100, 0], [255, 255, 255]], np.uint8)
    which = RNG.integers(0, 3, (8, 8)).astype(np.uint8)
    palette = Image.frombytes("P", (8, 8), which.tobytes())
    palette.putpalette(few.tobytes())
    for format in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decoded(encoded(palette, format), 8), few[which])
    bits = Image.fromarray(which * 127).point(lambda v: 255 * (v > 100), "1")
    np.testing.assert_array_equal(decoded(encoded(bits), 8), np.where(which[..., None] > 0, 255, 0) + np.zeros(3))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_of_16_bits_the_upper_8_stay(format):
    deep = RNG.integers(0, 1 << 16, (8, 8)).astype(np.uint16)
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(deep), format), 8)[..., 1], deep >> 8)


def test_transparent_pixels_lie_over_white():
    rgba = np.concatenate([noise(), RNG.integers(0, 256, (8, 8, 1)).astype(np.uint8)], 2)
    alpha = rgba[..., 3:] / 255
    want = rgba[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(decoded(encoded(rgba), 8), want, atol=0.5001)
    la = encoded(Image.fromarray(rgba).convert("LA"))
    grey = np.asarray(Image.fromarray(rgba).convert("L"))[..., None]
    np.testing.assert_allclose(decoded(la, 8), np.repeat(grey * alpha + 255 * (1 - alpha), 3, 2), atol=0.5001)
    # One colour of a palette, and one of RGB, may be transparent without an alpha channel.
    palette = Image.frombytes("P", (2, 1), b"\0\1")
    palette.putpalette([9, 9, 9, 50, 60, 70])
    np.testing.assert_array_equal(decoded(encoded(palette, transparency=0).ljust(0), 1, "crop").shape, (1, 1, 3))
    x = np.broadcast_to(np.array([9, 8, 7], np.uint8), (8, 8, 3)).copy()
    x[0, 0] = 1
    want = np.where((x == [9, 8, 7]).all(-1, keepdims=True), 255, x)
    np.testing.assert_array_equal(decoded(encoded(x, transparency=(9, 8, 7)), 8), want)


def test_cmyk_as_pillow_turns_it_to_rgb():
    data = encoded(Image.fromarray(noise()).convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_array_equal(decoded(data, 8), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_image_of_an_animation(format):
    first, second = (Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (40, 200))
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(first, format, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(decoded(data, 8), np.full((8, 8, 3), 40))


def test_pixels_without_an_agreed_range_are_refused(tmp_path):
    (tmp_path / "f.tiff").write_bytes(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"))
    with pytest.raises(
        DataError, match=r"f.tiff cannot be used: no image, its pixels of 32 bits have no agreed range$"
    ):
        open_rows(tmp_path / "f.tiff").read(0, 1)


# ------------------------------------------------------------------------------------------------------------- geometry
def ramp(h, w):
    """Red grows by 2 with the column, green by 2 with the row, blue stands: bicubic keeps straight lines straight."""
    y, x = np.mgrid[:h, :w]
    return np.stack([2 * x, 2 * y, 0 * x + 77], 2).astype(np.uint8)


@pytest.mark.parametrize("h, w", [(40, 100), (100, 40), (41, 100), (64, 64)])
def test_crop_squash_and_pad_on_straight_lines(h, w):
    side = 20
    inner = slice(3, -3)  # at the edges of an image bicubic sees one half of the line
    out = {fit: decoded(encoded(ramp(h, w)), side, fit).astype(float) for fit in FITS}
    places = np.arange(side) + 0.5

    def line(origin, scale):
        return 2 * (origin + places * scale - 0.5)

    short, long = min(h, w), max(h, w)
    x0, y0 = (w - short) // 2, (h - short) // 2
    np.testing.assert_allclose(out["crop"][10, inner, 0], line(x0, short / side)[inner], atol=1)
    np.testing.assert_allclose(out["crop"][inner, 10, 1], line(y0, short / side)[inner], atol=1)
    np.testing.assert_allclose(out["squash"][10, inner, 0], line(0, w / side)[inner], atol=1)
    np.testing.assert_allclose(out["squash"][inner, 10, 1], line(0, h / side)[inner], atol=1)
    new_h, new_w = round(h * side / long), round(w * side / long)
    top, left = (side - new_h) // 2, (side - new_w) // 2
    inside = np.zeros((side, side), bool)
    inside[top : top + new_h, left : left + new_w] = True
    np.testing.assert_array_equal(out["pad"][..., 2] > 0, inside)
    np.testing.assert_array_equal(out["pad"][~inside], 0)
    assert abs(out["pad"][inside][:, 2] - 77).max() <= 1


@pytest.mark.parametrize("h, w", [(13, 30), (30, 13), (12, 12)])
def test_pixels_stay_as_they_are_where_nothing_is_scaled(h, w):
    x = noise(h, w)
    side, y0, x0 = min(h, w), (h - min(h, w)) // 2, (w - min(h, w)) // 2
    np.testing.assert_array_equal(decoded(encoded(x), side), x[y0 : y0 + side, x0 : x0 + side])
    side, long = max(h, w), decoded(encoded(x), max(h, w), "pad")
    y0, x0 = (side - h) // 2, (side - w) // 2
    np.testing.assert_array_equal(long[y0 : y0 + h, x0 : x0 + w], x)
    assert long.astype(int).sum() == x.astype(int).sum()


@pytest.mark.parametrize("h, w", [(1, 50), (50, 1), (1, 1), (3, 2000)])
@pytest.mark.parametrize("fit", FITS)
def test_extreme_forms(h, w, fit):
    got = decoded(encoded(np.full((h, w, 3), 90, np.uint8)), 16, fit)
    assert set(np.unique(got)) <= ({0, 90} if fit == "pad" else {90})
    assert (got == 90).any()


@pytest.mark.parametrize("fit", FITS)
def test_bicubic_is_pillows(fit):
    x = noise(50, 70)
    image = Image.fromarray(x)
    want = {
        "crop": image.crop((10, 0, 60, 50)).resize((16, 16), Image.Resampling.BICUBIC),
        "squash": image.resize((16, 16), Image.Resampling.BICUBIC),
        "pad": image.resize((16, 11), Image.Resampling.BICUBIC),
    }[fit]
    got = decoded(encoded(x), 16, fit)
    got = got[2:13] if fit == "pad" else got
    # Cutting first hides the surroundings from the outermost pixels; nothing else differs.
    inner = np.s_[:, 2:-2] if fit == "crop" else np.s_[:]
    np.testing.assert_array_equal(got[inner], np.asarray(want)[inner])


@pytest.mark.slow
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("h, w", [(500, 700), (701, 499)])
def test_a_large_jpeg_decoded_small_is_nearly_the_same(fit, h, w):
    y, x = np.mgrid[:h, :w] / 30
    smooth = np.stack([np.sin(x) + np.cos(y), np.sin(x * y / 9), np.cos(x - y)], 2)
    image = Image.fromarray((127 + 60 * smooth).astype(np.uint8))
    data = encoded(image, "JPEG", quality=95)
    exact = encoded(Image.open(io.BytesIO(data)).convert("RGB"))
    difference = np.abs(decoded(data, 48, fit).astype(int) - decoded(exact, 48, fit))
    assert difference.mean() < 2 and np.percentile(difference, 99) < 12


# --------------------------------------------------------------------------------------------------------------- source
def test_a_folder_of_classes(photos):
    with opened() as source:
        assert source.names == sorted(photos)
        assert (len(source), source.d, source.has_ids, source.dropped) == (12, 192, False, 0)
        np.testing.assert_array_equal(source.ids, np.arange(12))
        assert source.labels.class_names == CLASSES
        np.testing.assert_array_equal(source.labels.y, [CLASSES.index(n.split("/")[0]) for n in sorted(photos)])
        x = source.read(0, 12)
        assert (x.dtype, x.shape, x.flags.c_contiguous) == (np.uint8, (12, 3, 8, 8), True)
        np.testing.assert_array_equal(x.transpose(0, 2, 3, 1), [photos[n] for n in sorted(photos)])
        assert source.read(5, 5).shape == (0, 3, 8, 8)
        with pytest.raises(IndexError):
            source.read(5, 13)
    with opened(labels_key=None) as source:
        assert source.labels is None


def test_order_is_that_of_whole_paths(tmp_path):
    for name in ("b/a.png", "b/a-1.png", "b a/x.png", "B/x.png", "b/a/1.png"):
        write(tmp_path / "p" / name, noise())
    with opened(tmp_path / "p") as source:
        assert source.names == ["B/x.png", "b a/x.png", "b/a-1.png", "b/a.png", "b/a/1.png"]
        assert source.labels.class_names == ("B", "b", "b a")
        np.testing.assert_array_equal(source.labels.y, [0, 2, 1, 1, 1])


def test_numbers_as_names_are_ids(tmp_path):
    for name in ("x/0017.png", "x/3.jpg", "y/9223372036854775807.png"):
        write(tmp_path / "p" / name, noise())
    with opened(tmp_path / "p") as source:
        assert (source.has_ids, source.ids.tolist()) == (True, [17, 3, (1 << 63) - 1])
    for other in ("y/9223372036854775808.png", "y/17.png", "y/a.png", "y/-1.png", "y/1.5.png", "y/\u0663.png"):
        write(tmp_path / "p" / other, noise())
        with opened(tmp_path / "p") as source:
            assert (source.has_ids, source.ids.tolist()) == (False, [0, 1, 2, 3]), other
        (tmp_path / "p" / other).unlink()


def test_a_flat_folder_has_no_labels(tmp_path, photos):
    with opened("photos/deer") as source:
        assert (len(source), source.labels, source.names[0]) == (4, None, "deer0.png")
    (tmp_path / "none").mkdir()
    with opened("none") as source:
        assert (len(source), list(source.blocks()), source.has_ids) == (0, [], False)


def test_links_are_followed_but_not_round_in_circles(photos, tmp_path):
    os.symlink("../cat/cat0.png", "photos/deer/link.png")
    os.symlink("../../elsewhere", "photos/deer/more")
    write(tmp_path / "elsewhere" / "x.png", noise(seed=50))
    with opened() as source:
        assert len(source) == 14
        np.testing.assert_array_equal(source.take([source.names.index("deer/link.png")]), source.read(0, 1))
        assert "deer/more/x.png" in source.names
    os.symlink("../deer", "photos/deer/round")
    with (
        opened() as source,
        pytest.raises(DataError, match=r"1 of 15 files cannot be used: 1 unreadable \(first: deer/round"),
    ):
        source.read(0, 15)


def test_one_image(photos, tmp_path):
    with opened("photos/cat/cat1.png") as source:
        assert (len(source), source.names, source.labels, source.ids.tolist()) == (1, ["cat1.png"], None, [0])
        np.testing.assert_array_equal(source.read(0, 1)[0].transpose(1, 2, 0), photos["cat/cat1.png"])
    write(tmp_path / "77.PNG", noise())
    with opened(tmp_path / "77.PNG") as source:
        assert source.ids.tolist() == [77]


@pytest.mark.parametrize("locked", [1e-9, images.LOCKED, 1.0])  # all threads, those of use, one
def test_any_order_any_partition_any_number_of_threads(photos, locked, monkeypatch):
    monkeypatch.setattr(images, "LOCKED", locked)
    sources = [opened(workers=n) for n in (1, 4)]
    assert [s.workers for s in sources] == [1, 4]
    assert opened().workers == len(os.sched_getaffinity(0))
    whole = sources[0].read(0, 12)
    rows = RNG.integers(0, 12, 100)
    for source in sources:
        np.testing.assert_array_equal(source.take(rows), whole[rows])
        np.testing.assert_array_equal(source.take(np.arange(12)[::-1]), whole[::-1])
        assert source.take(np.zeros(0, int)).shape == (0, 3, 8, 8)
        for step in (1, 5, 12, 20):
            np.testing.assert_array_equal(np.concatenate([x for _, x in source.blocks(step)]), whole)
        for rows_out in ([12], [-1]):
            with pytest.raises(IndexError):
                source.take(rows_out)
        np.testing.assert_array_equal(source.fetch(3, 7), whole[3:7].reshape(4, -1))
        source.close()
        source.close()
    with pytest.raises(ConfigError, match=r"^workers=-1, needs 0 \(one for each core\) or more$"):
        opened(workers=-1)


def test_large_images_are_decoded_in_turns(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LOCKED", 1e-9)
    with opened() as source:
        whole = source.read(0, 12)
    monkeypatch.setattr("scqfaiss.data.decoding.LARGE_PIXELS", 10)
    with opened(workers=4) as source:
        np.testing.assert_array_equal(source.read(0, 12), whole)
    path = tmp_path / "photos/cat/cat0.png"
    path.write_bytes(path.read_bytes()[:150])
    with opened(workers=4) as source, pytest.raises(DataError, match=r"1 of 12 files cannot be used: 1 damaged"):
        source.prove()


def test_where_the_work_goes_on_does_not_matter(photos, monkeypatch):
    with opened() as source:
        monkeypatch.chdir("/")
        assert source.read(0, 12).shape == (12, 3, 8, 8)


def test_shaped(photos):
    with open_rows("photos") as source:
        assert (source.size, source.fit, source.d, source.block_rows) == (224, "crop", 3 * 224 * 224, 111)
        source.shaped(4, "pad")
        assert (source.read(0, 2).shape, source.d) == ((2, 3, 4, 4), 48)
        source.shaped(4096, "squash")
        assert source.block_rows == 16
        for size in (0, 4097):
            with pytest.raises(ConfigError, match=f"^images of size={size}, needs 1 to 4,096 pixels$"):
                source.shaped(size, "crop")
        with pytest.raises(ConfigError, match=r"^fit is 'corp', needs one of crop, squash, pad; did you mean 'crop'"):
            source.shaped(8, "corp")


def test_digest_is_of_what_is_stored(photos, tmp_path):
    with opened() as source:
        before = source.digest()
        stored = [(tmp_path / "photos" / name).read_bytes() for name in source.names]
        of_each = b"".join(hashlib.sha256(data).digest() for data in stored)
        assert before == hashlib.sha256(of_each).hexdigest()
        assert source.digest(np.array([3, 1])) == hashlib.sha256(of_each[96:128] + of_each[32:64]).hexdigest()
        source.shaped(16, "pad")
        assert source.digest() == before
    with open("photos/cat/cat1.png", "r+b") as f:
        f.seek(-1, os.SEEK_END)
        last = f.read(1)[0]
        f.seek(-1, os.SEEK_END)
        f.write(bytes([last ^ 1]))
    with opened() as source:
        assert source.digest() != before


def test_align_numbers_classes_by_name(photos):
    with opened() as source:
        y = source.labels.y
        source.align(["dog", "horse", "deer", "cat"])
        assert (source.labels.C, source.labels.class_names) == (4, ("dog", "horse", "deer", "cat"))
        np.testing.assert_array_equal(source.labels.y, np.array([3, 2, 0])[y])
    with (
        opened() as source,
        pytest.raises(ConfigError, match=r"^photos: class 'deer' is unknown here, where classes are cat, doe, dog$"),
    ):
        source.align(["cat", "doe", "dog"])
    os.mkdir("photos/empty")
    with opened() as source:  # a class without images has nothing to be numbered
        assert source.labels.class_names == (*CLASSES, "empty")
        source.align(CLASSES)
        np.testing.assert_array_equal(source.labels.y, y)
    with opened("photos/cat") as source:
        source.align(CLASSES)
        assert source.labels is None


def test_bad_images_may_be_left_out(photos, tmp_path):
    (tmp_path / "photos/deer/a0.png").write_bytes(b"")
    (tmp_path / "photos/cat/zz.txt").write_bytes(b"hello")
    with pytest.warns(ScqWarning) as caught:
        source = opened(skip_bad_rows=True)
    assert [str(w.message) for w in caught] == [
        "photos: left out 2 of 14 files: 1 empty, 1 no image (cat/zz.txt, deer/a0.png)"
    ]
    with source:
        assert (len(source), source.dropped, source.names) == (12, 2, sorted(photos))
        np.testing.assert_array_equal(source.ids, np.delete(np.arange(14), [3, 4]))
        np.testing.assert_array_equal(source.labels.y, [0] * 3 + [1] * 4 + [2] * 5)
        np.testing.assert_array_equal(source.take([4])[0].transpose(1, 2, 0), photos["deer/deer1.png"])
        assert len(source.digest()) == 64


# ---------------------------------------------------------------------------------------------------------------- lists
def lines(path, *text):
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(text) + "\n")
    return path


def test_csv(photos, tmp_path):
    names = ["deer/deer1.png", "cat/cat0.png", "dog/dog1.png", "cat/cat0.png"]
    text = [f"{i + 5},{name},{name[:3]}x" for i, name in enumerate(names)]
    with pytest.warns(ScqWarning, match=r"1 image stands on more than one line \(cat/cat0.png on lines 4 and 6\)"):
        source = opened(lines("photos/l.csv", "\ufeffid, path ,labels", text[0], "", *text[1:]))
    with source:
        assert (source.names, source.ids.tolist(), source.has_ids) == (names, [5, 6, 7, 8], True)
        assert source.labels.class_names == ("catx", "deex", "dogx")
        np.testing.assert_array_equal(source.labels.y, [1, 0, 2, 0])
        np.testing.assert_array_equal(source.read(0, 4).transpose(0, 2, 3, 1), [photos[n] for n in names])
    with opened(lines("photos/l.csv", "path,label", "cat/cat0.png,2", "cat/cat1.png,0.0")) as source:
        assert (source.labels.y.tolist(), source.labels.class_names, source.has_ids) == ([2, 0], None, False)
    with opened(lines("photos/l.csv", "path", "cat/cat0.png", os.path.abspath("photos/dog/dog1.png"))) as source:
        assert source.labels is None
        np.testing.assert_array_equal(source.read(1, 2)[0].transpose(1, 2, 0), photos["dog/dog1.png"])
    with opened(
        lines("photos/l.csv", "path,kind,key", '"cat/cat0.png",a,9'), labels_key="kind", ids_key="key"
    ) as source:
        assert (source.labels.class_names, source.ids.tolist()) == (("a",), [9])
    with opened(lines("photos/l.csv", "path,labels", "cat/cat0.png,a"), labels_key=None) as source:
        assert source.labels is None


def test_images_without_a_label(photos):
    """-1, -1.0, an empty field, null, and a list that holds nothing or -1: of one label an image, and of several."""
    csv = [
        (["2", "-1", "0", ""], [2, -1, 0, -1], None),
        (["1.0", "-1.0", "0.0", " "], [1, -1, 0, -1], None),
        (["b", "-1", "a", ""], [1, -1, 0, -1], ("a", "b")),
        (["0;2", "-1", "1", ""], [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]], None),
    ]
    json_lists = [
        ([2, -1, 0, None], csv[0][1:]),
        ([1.0, -1.0, 0.0, ""], csv[1][1:]),
        (["b", None, "a", " "], csv[2][1:]),
        ([[0, 2], [-1], 1, []], csv[3][1:]),
    ]
    names = [f"cat/cat{i}.png" for i in range(3)] + ["dog/dog0.png"]
    made = [("l.csv", ["path,labels", *(f"{p},{y}" for p, y in zip(names, given))], want) for given, *want in csv]
    for given, want in json_lists:
        made.append(("l.jsonl", [json.dumps({"path": p, "labels": y}) for p, y in zip(names, given)], want))
    for name, text, (y, class_names) in made:
        with opened(lines(f"photos/{name}", *text), keep_unlabelled=True) as source:
            assert (source.labels.y.tolist(), source.labels.class_names) == (y, class_names), text
    with opened(lines("photos/l.csv", "path,labels", f"{names[0]},-1", f"{names[1]},")) as source:
        assert source.labels is None and len(source) == 2
    text = ["path,labels", *(f"{p},{y}" for p, y in zip(names, csv[0][0]))]
    with pytest.warns(ScqWarning, match="left out 2 of 4 rows without a label"):
        source = opened(lines("photos/l.csv", *text))
    with source:
        assert (source.names, source.labels.y.tolist(), source.labels.C) == (names[::2], [2, 0], 3)
        np.testing.assert_array_equal(source.read(1, 2)[0].transpose(1, 2, 0), photos[names[2]])


def test_csv_with_many_labels(photos):
    with opened(lines("photos/l.csv", "path,labels", "cat/cat0.png,b; a", "cat/cat1.png,", "cat/cat2.png,c")) as source:
        assert source.labels.class_names == ("a", "b", "c")
        assert source.labels.y.dtype == np.uint8
        np.testing.assert_array_equal(source.labels.y, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
        source.align("cab")
        np.testing.assert_array_equal(source.labels.y, [[0, 1, 1], [0, 0, 0], [1, 0, 0]])
    with opened(lines("photos/l.csv", "path,labels", "cat/cat0.png,0;3", "cat/cat1.png,1")) as source:
        np.testing.assert_array_equal(source.labels.y, [[1, 0, 0, 1], [0, 1, 0, 0]])


def test_jsonl(photos):
    rows = [
        {"path": "cat/cat0.png", "labels": "b", "id": 4},
        {"path": "dog/dog0.png", "labels": "a", "id": 0, "more": {}},
    ]
    with opened(lines("photos/l.jsonl", *map(json.dumps, rows))) as source:
        assert (source.labels.class_names, source.labels.y.tolist()) == (("a", "b"), [1, 0])
        assert (source.ids.tolist(), source.names) == ([4, 0], ["cat/cat0.png", "dog/dog0.png"])
        np.testing.assert_array_equal(source.read(1, 2)[0].transpose(1, 2, 0), photos["dog/dog0.png"])
    rows = [
        {"path": "cat/cat0.png", "labels": [2, 0]},
        {"path": "cat/cat1.png", "labels": []},
        {"path": "cat/cat2.png"},
    ]
    with opened(lines("photos/l.jsonl", json.dumps(rows[0]), "", *map(json.dumps, rows[1:]))) as source:
        np.testing.assert_array_equal(source.labels.y, [[1, 0, 1], [0, 0, 0], [0, 0, 0]])
        assert source.labels.class_names is None
    with opened(lines("photos/l.jsonl", '{"path": "cat/cat0.png", "label": 3}')) as source:
        assert (source.labels.y.tolist(), source.has_ids) == ([3], False)


def test_ids_of_a_list_may_repeat_where_that_is_allowed(photos):
    lines("photos/l.csv", "path,id", "cat/cat0.png,5", "cat/cat1.png,5")
    with pytest.raises(DataError, match="ids: 5 stands more than once"):
        open_rows("photos/l.csv")
    with open_rows("photos/l.csv", role="queries") as source:
        assert source.ids.tolist() == [5, 5]
    with pytest.warns(ScqWarning, match="repeat an id"), open_rows("photos/l.csv", allow_duplicate_ids=True):
        pass


# ----------------------------------------------------------------------------------------------------------------- HDF5
def forms(stored):
    """The same encoded images in every form that a dataset may have them in."""
    longest = max(map(len, stored))
    fixed = np.array([data.ljust(longest, b"\0") for data in stored], f"S{longest}")
    return {
        "variable": None,
        "bytes": fixed,
        "opaque": fixed.view(f"V{longest}"),
        "padded": fixed.view(np.uint8).reshape(len(stored), longest),
    }


@pytest.mark.parametrize("form", ["variable", "bytes", "opaque", "padded"])
def test_hdf5(photos, form):
    names = sorted(photos)
    stored = [encoded(photos[name]) for name in names]
    y = np.arange(12) % 3
    with h5py.File("p.h5", "w") as f:
        if form == "variable":
            f.create_dataset("images", (12,), h5py.vlen_dtype(np.uint8), chunks=(5,))
            for i, data in enumerate(stored):
                f["images"][i] = np.frombuffer(data, np.uint8)
        else:
            f.create_dataset("images", data=forms(stored)[form], fletcher32=True, compression="gzip")
        f.create_dataset("labels", data=y, fletcher32=True, chunks=True)
        f.create_dataset("ids", data=np.arange(12) + 7, fletcher32=True, chunks=True)
        f.attrs["class_names"] = ["a", "b", "c"]
    with warnings.catch_warnings():
        if form == "variable":  # HDF5 has no checksums for what has a length of its own
            warnings.filterwarnings("ignore", message="p.h5: images has no checksum")
        source = opened("p.h5")
    with source:
        assert (source.names[:2], source.labels.class_names, source.has_ids) == (["#0", "#1"], ("a", "b", "c"), True)
        np.testing.assert_array_equal(source.labels.y, y)
        np.testing.assert_array_equal(source.ids, np.arange(12) + 7)
        np.testing.assert_array_equal(source.read(0, 12).transpose(0, 2, 3, 1), [photos[n] for n in names])
        np.testing.assert_array_equal(source.take([3, 3, 0]), source.read(0, 12)[[3, 3, 0]])
        source.prove()
        if form == "variable":
            with opened("photos", workers=1) as files:
                assert source.digest() == files.digest()


def test_hdf5_rows_come_first_unless_asked_otherwise(photos):
    data = forms([encoded(photos[name]) for name in sorted(photos)])["opaque"]
    with h5py.File("p.h5", "w") as f:
        f["features"] = np.ones((12, 4), np.float32)
        f["images"] = data
    with open_rows("p.h5") as source:
        assert (source.modality, source.d) == (ROWS, 4)
    with open_rows("p.h5", features_key="/images") as source:
        assert (source.modality, len(source)) == (IMAGES, 12)
    with h5py.File("p.h5", "w") as f:  # rows may be called images, too
        f["images"] = np.ones((12, 4), np.float32)
    with open_rows("p.h5", features_key="images") as source:
        assert (source.modality, source.d) == (ROWS, 4)


def test_hdf5_left_out(photos):
    stored = [encoded(photos[name]) for name in sorted(photos)]
    stored[2], stored[5] = b"", b"hello"
    with h5py.File("p.h5", "w") as f:
        f.create_dataset("images", data=forms(stored)["padded"], fletcher32=True, chunks=True)
    with pytest.raises(DataError) as caught, opened("p.h5") as source:
        source.read(0, 3)
    assert str(caught.value) == (
        "p.h5: 2 of 12 images cannot be used: 2 no image "
        "(first: #2: no image, it is neither JPEG, PNG, WebP, GIF, BMP nor TIFF); --skip-bad-rows leaves them out"
    )
    with pytest.warns(ScqWarning, match=r"left out 2 of 12 images: 2 no image \(#2, #5\)$"):
        source = opened("p.h5", skip_bad_rows=True)
    with source:
        assert (len(source), source.names[2], source.ids[2]) == (10, "#3", 3)


# -------------------------------------------------------------------------------------------------------------- library
def test_pillow_is_loaded_by_images_alone_and_its_absence_told(photos):
    code = """
import sys
import scqfaiss.data.images
assert not {"PIL", "torch", "h5py"} & set(sys.modules)
sys.modules["PIL"] = None
try:
    scqfaiss.data.open_rows("photos")
except ModuleNotFoundError as error:
    print(error.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "PIL\n"


def test_warnings_of_pillow_stay_inside_and_its_settings_as_they_were(photos, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # from here on Pillow warns, and refuses twice as many
    filters = list(warnings.filters)
    with opened() as source:
        assert source.read(0, 12).shape == (12, 3, 8, 8)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == (40, filters)
    with pytest.warns(Image.DecompressionBombWarning), open("photos/cat/cat0.png", "rb") as f:
        Image.open(f)
