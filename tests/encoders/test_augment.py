"""Views of images against a slow twin that samples pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from close import assert_close

from scqfaiss.encoders import augment
from scqfaiss.encoders.augment import COLUMNS, PRESETS, Strengths, strengths, table, views

GREY = torch.tensor([0.485, 0.456, 0.406])


def images(b=5, size=12, seed=0):
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(seed))


def numbers(n=5, seed=0):
    return table(n, torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------------------- the slow twin
def reflected(at, n):
    """A place in pixels, mirrored at the outer edges of the first and the last pixel until it lies between them."""
    low, high = -0.5, n - 0.5
    while not low <= at <= high:
        at = 2 * low - at if at < low else 2 * high - at
    return min(max(at, 0.0), n - 1.0)


def pixel(x, row, column):
    """x (3, S, S) at a place between pixels, bilinear."""
    S = x.shape[1]
    row, column = reflected(row, S), reflected(column, S)
    r, c = math.floor(row), math.floor(column)
    total = np.zeros(3)
    for rr, wr in ((r, 1 - (row - r)), (r + 1, row - r)):
        for cc, wc in ((c, 1 - (column - c)), (c + 1, column - c)):
            if wr * wc:
                total += wr * wc * x[:, rr, cc]
    return total


def slow_placed(x, u, s):
    out = np.empty_like(x)
    S = x.shape[2]
    for i, row in enumerate(u):
        side = 1 + s.zoom * (2 * row[3] - 1)
        dx, dy = (s.shift * (2 * row[k] - 1) * S for k in (1, 2))
        sign = -1 if row[0] < s.flip else 1
        middle = (S - 1) / 2
        for r in range(S):
            for c in range(S):
                out[i, :, r, c] = pixel(
                    x[i], middle + dy + side * (r - middle), middle + dx + sign * side * (c - middle)
                )
    return out


def slow_coloured(x, u, s):
    out = x.copy()
    luma = np.array([0.299, 0.587, 0.114])
    for i, row in enumerate(u):
        out[i] *= 1 + s.brightness * (2 * row[4] - 1)
        mean = np.einsum("c,chw->hw", luma, out[i]).mean()
        out[i] = mean + (1 + s.contrast * (2 * row[5] - 1)) * (out[i] - mean)
        grey = np.einsum("c,chw->hw", luma, out[i])
        out[i] = grey + (1 + s.saturation * (2 * row[6] - 1)) * (out[i] - grey)
    return np.clip(out, 0, 1)


@pytest.mark.parametrize(
    "s",
    [
        Strengths(flip=0.5),
        Strengths(shift=0.1),
        Strengths(zoom=0.3),
        Strengths(flip=0.5, shift=0.5, zoom=0.9),
        PRESETS["light"],
    ],
    ids=["flip", "shift", "zoom", "far beyond the border", "light"],
)
def test_places_equal_the_slow_twin(s):
    x, u = images(), numbers()
    want = slow_placed(x.double().numpy(), u.numpy(), s)
    np.testing.assert_allclose(views(x, u, s, GREY).numpy(), want, atol=2e-5)
    assert len(set((u[:, 0] < 0.5).tolist())) == 2  # some are mirrored, some are not


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "all"])
def test_colours_equal_the_slow_twin(name):
    s = Strengths(brightness=0.9, contrast=0.7, saturation=0.8) if name == "all" else Strengths(**{name: 0.9})
    x, u = images(), numbers()
    want = slow_coloured(x.double().numpy(), u.numpy(), s)
    np.testing.assert_allclose(views(x, u, s, GREY).numpy(), want, atol=2e-6)


def test_places_and_colours_come_one_after_the_other():
    s = Strengths(flip=0.5, shift=0.1, zoom=0.15, brightness=0.3, saturation=0.1)
    assert s == PRESETS["auto"]
    x, u = images(), numbers()
    want = slow_coloured(slow_placed(x.double().numpy(), u.numpy(), s), u.numpy(), s)
    np.testing.assert_allclose(views(x, u, s, GREY).numpy(), want, atol=2e-5)


# ------------------------------------------------------------------------------------------------------ edge cases
def test_without_strength_a_view_is_the_image_bit_for_bit():
    x = images()
    assert views(x, numbers(), Strengths(), GREY) is x
    assert not Strengths().any and all(s.any for name, s in PRESETS.items() if name != "none")


def test_mirrored_twice_is_the_image():
    x, u = images(), numbers()
    s = Strengths(flip=1.0)
    assert torch.equal(views(x, u, s, GREY), x.flip(3))
    assert torch.equal(views(views(x, u, s, GREY), u, s, GREY), x)


def test_a_constant_image_stays_constant_wherever_it_is_put():
    x = torch.full((64, 3, 9, 9), 0.25)
    got = views(x, numbers(64), Strengths(flip=0.5, shift=0.5, zoom=0.9), GREY)
    assert_close(got, torch.full_like(got, 0.25), terms=8)  # weights of four pixels, which sum to 1


def test_noise_has_its_deviation_and_is_each_images_own():
    s = Strengths(noise=0.1)
    x = torch.full((8, 3, 32, 32), 0.5)
    u = numbers(8)
    noise = (views(x, u, s, GREY) - x) / 0.1
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert abs(float((noise[0] * noise[1]).mean())) < 0.1
    for i in range(8):  # whatever images stand beside it; a product and a sum
        assert_close(views(x[i : i + 1], u[i : i + 1], s, GREY)[0], views(x, u, s, GREY)[i], terms=2)


def test_colours_and_noise_stay_between_black_and_white():
    x = views(images(32), numbers(32), Strengths(brightness=1, contrast=1, saturation=1, noise=1), GREY)
    assert 0 <= float(x.min()) and float(x.max()) <= 1


def test_a_patch_is_a_rectangle_of_the_given_colour():
    x, u = 2 + images(200, 20), numbers(200)
    got = views(x, u, Strengths(erase=0.5), GREY)
    covered = (got != x).any(1)
    count = 0
    for i in range(200):
        if not covered[i].any():
            continue
        count += 1
        rows, columns = covered[i].any(1).nonzero()[:, 0], covered[i].any(0).nonzero()[:, 0]
        assert covered[i][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert int(covered[i].sum()) == len(rows) * len(columns)
        assert torch.equal(got[i][:, covered[i]], GREY[:, None].expand(3, int(covered[i].sum())))
        # Pixels that a border cuts count or not: as much as a pixel a side.
        h, w = len(rows), len(columns)
        assert (h + 1) * (w + 1) / 400 >= augment.ERASE_AREA[0] or 20 in (h, w)
        assert (h - 1) * (w - 1) / 400 <= augment.ERASE_AREA[1]
    assert 70 < count < 130
    assert float((got == x).double().mean()) > 0.5


def test_images_without_probability_of_a_patch_have_none():
    x = images()
    assert torch.equal(views(x, numbers(), Strengths(erase=1e-9), GREY), x)


# ------------------------------------------------------------------------------------------------------- random numbers
@pytest.mark.parametrize("s", [PRESETS["auto"], PRESETS["paper"], Strengths(erase=1.0, noise=0.1, contrast=0.5)])
def test_a_images_view_depends_on_its_row_alone(s):
    x, u = images(6), numbers(6)
    whole = views(x, u, s, GREY)
    parts = torch.cat([views(x[i : i + 2], u[i : i + 2], s, GREY) for i in (0, 2, 4)])
    # Places are off by a few eps of the 12 pixels of a side, a pixel by its distance to the next one, at most 1.
    assert_close(parts, whole, terms=8 * 12, scale=1)


def test_a_longer_table_begins_like_a_shorter_one():
    assert torch.equal(numbers(100)[:33], numbers(33))
    assert numbers(3).shape == (3, COLUMNS)


def test_one_strength_leaves_the_numbers_of_the_others():
    x, u = images(), numbers()
    moved = views(x, u, Strengths(shift=0.2), GREY)
    both = views(x, u, Strengths(shift=0.2, brightness=0.3), GREY)
    assert_close(both, views(moved, u, Strengths(brightness=0.3), GREY), terms=8)


@pytest.mark.parametrize("s", [PRESETS["paper"], Strengths(shift=0.1, contrast=0.3, erase=0.5)])
def test_reduced_precision_is_not_for_images(s):
    x, u = images(), numbers()
    with torch.autocast("cpu", torch.bfloat16):
        got = views(x, u, s, GREY)
    assert got.dtype == torch.float32
    assert torch.equal(got, views(x, u, s, GREY))


def test_fast_products_leave_places_alone():
    """Matrix products of a training may be bfloat16, which tells apart 256 places of an image at best."""
    x, u, s = images(4, 40), numbers(4), PRESETS["light"]
    exact, before = views(x, u, s, GREY), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(views(x, u, s, GREY), exact)
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_gradient_and_no_change_of_what_came_in():
    x, u = images().requires_grad_(), numbers()
    before = x.detach().clone()
    got = views(x, u, Strengths(brightness=0.3, noise=0.1, erase=1.0), GREY)
    assert not got.requires_grad and torch.equal(x, before)


def test_presets_and_knobs():
    assert strengths("none", {}) == Strengths()
    assert strengths("light", {"flip": -1.0, "zoom": 0.0, "size": 3}) == Strengths(flip=0.5, shift=0.1, zoom=0.0)
    assert strengths("paper", {"noise": 0.2}).noise == 0.2
    paper = PRESETS["paper"]
    assert (paper.brightness, paper.saturation, paper.noise) == (0.3, 0.1, 0.01)
    assert (1 - paper.zoom, 1 + paper.zoom) == (0.7, 1.3) and paper.flip == 0.5


def test_the_papers_smallest_window_stays_within_the_image():
    """0.7 of the side, moved by 0.15 at most: nothing is mirrored in."""
    x = torch.arange(12.0).expand(1, 3, 12, 12) / 12
    u = numbers(1)
    u[0, 1:4] = torch.tensor([1.0, 1.0, 0.0])
    s = Strengths(shift=PRESETS["paper"].shift, zoom=PRESETS["paper"].zoom)
    got = views(x, u, s, GREY)[0, 0, 0]
    step = got[1:] - got[:-1]
    np.testing.assert_allclose(
        step[:-1].numpy(), 0.7 / 12, atol=1e-5
    )  # one straight line, up to the half pixel at the edge
