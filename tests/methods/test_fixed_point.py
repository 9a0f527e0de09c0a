"""Scalar quantizers: the fixed points against slow twins, how fast they are reached, and what odd samples do."""

import doctest
import itertools
import math

import numpy as np
import pytest
import torch
from close import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from scqfaiss.errors import ConfigError, DataError
from scqfaiss.methods import fixed_point
from scqfaiss.methods.fixed_point import by_density, iterate, mixture, normal_levels, scalar_levels
from scqfaiss.methods.kmeans import lloyd

RNG = np.random.default_rng(0)
SAMPLES = {
    "normal": RNG.standard_normal(3000),
    "heavy": RNG.laplace(size=3000) ** 3,
    "corners": RNG.dirichlet(np.full(5, 0.1), 3000)[:, 0],
    "whole": RNG.integers(0, 90, 3000).astype(float),
    "two clumps": np.r_[RNG.normal(0, 1e-3, 1500), RNG.normal(1e4, 1, 1500)],
}


# ----------------------------------------------------------------------------------------------------------- slow twins
def slow_normal_step(g):
    """Means of the cells of N(0, 1), and the distortion, by a fine sum over the density."""
    t = np.linspace(-9, 9, 400_001)
    density = np.exp(-t * t / 2) / math.sqrt(2 * math.pi) * (t[1] - t[0])
    code = np.abs(t[:, None] - g).argmin(1)
    mean = [(t * density)[code == j].sum() / density[code == j].sum() for j in range(len(g))]
    return np.array(mean), ((t - g[code]) ** 2 * density).sum()


def slow_step(x, g):
    """Lloyd's step in loops: nearest level, the lower one on ties; a cell without samples keeps its level."""
    cells = [[] for _ in g]
    error = 0.0
    for value in x:
        j = min(range(len(g)), key=lambda j: (abs(value - g[j]), j))
        cells[j].append(value)
        error += (value - g[j]) ** 2 / len(x)
    return np.array([np.mean(c) if c else level for c, level in zip(cells, g)]), error


def slow_mixture(past):
    """The least squares written out, without a ridge."""
    f, images = zip(*past)
    dF = np.array([b - a for a, b in itertools.pairwise(f)]).T
    dG = np.array([b - a for a, b in itertools.pairwise(images)]).T
    return images[-1] - dG @ np.linalg.lstsq(dF, f[-1], rcond=None)[0]


# --------------------------------------------------------------------------------------------------------------- N(0, 1)
@pytest.mark.parametrize("g", [np.linspace(-2, 2, 7), np.array([-3.0, -2.5, 0.1, 4.0]), np.array([0.7])])
def test_a_step_on_the_normal_equals_its_slow_twin(g):
    mean, distortion = fixed_point._normal_step(g)
    slow_mean, slow_distortion = slow_normal_step(g)
    np.testing.assert_allclose(mean, slow_mean, atol=1e-4)  # the twin cuts cells at its own grid
    np.testing.assert_allclose(distortion, slow_distortion, rtol=1e-6)


def test_cells_far_out_keep_their_accuracy_and_cells_without_mass_their_level():
    g = np.array([-100.0, -90.0, 0.0, 12.0, 13.0, 100.0])
    mean, _ = fixed_point._normal_step(g)
    assert (mean[0], mean[1], mean[5]) == (-100, -90, 100)  # no mass left in float64
    # Of the cell (6, 12.5): phi(6) / Q(6) by the asymptotic series of Mills' ratio.
    series = sum((-1) ** k * math.prod(range(1, 2 * k, 2)) / 6.0 ** (2 * k + 1) for k in range(12))
    np.testing.assert_allclose(mean[3], 1 / series, rtol=1e-4)
    # exp and erfc are good to a few ulp, and not the same few for a number in another place.
    assert_close(fixed_point._normal_step(-g[::-1])[0], -mean[::-1], 64, np.abs(mean[::-1]), np.float64)


def test_sixteen_levels_from_four_fifths_of_the_optimum():
    best = normal_levels(16, tolerance=1e-12).levels
    plain, fast = (normal_levels(16, start=0.8 * best, memory=memory) for memory in (0, 5))
    assert plain.iterations >= 300
    assert fast.iterations <= 40
    assert plain.converged
    assert fast.converged
    np.testing.assert_allclose(fast.levels, plain.levels, atol=1e-6)
    np.testing.assert_allclose(fast.levels, best, atol=1e-6)


def test_sixty_four_levels_take_a_tenth_of_the_iterations():
    start = 0.8 * normal_levels(64).levels
    plain, fast = (normal_levels(64, start=start, memory=memory) for memory in (0, 5))
    assert plain.iterations >= 10 * fast.iterations
    assert fast.distortion <= plain.distortion * (1 + 1e-9)


@pytest.mark.parametrize("K", [1, 2, 3, 8, 64, 255])
def test_levels_of_the_normal_are_a_fixed_point_odd_and_rising(K):
    grid = normal_levels(K)
    image, distortion = fixed_point._normal_step(grid.levels)
    assert grid.converged
    assert np.abs(image - grid.levels).max() <= 1e-8
    assert (np.diff(grid.levels) > 0).all()
    np.testing.assert_allclose(grid.levels, -grid.levels[::-1], atol=1e-6)
    np.testing.assert_allclose(grid.distortion, distortion, rtol=1e-9)


@pytest.mark.parametrize("K, distortion", [(2, 0.3634), (4, 0.1175), (8, 0.03454), (16, 0.009497)])
def test_distortions_are_those_of_the_tables(K, distortion):
    """Max, "Quantizing for minimum distortion", IRE Trans. Inf. Theory 6(1), 1960, to the digits that were right."""
    np.testing.assert_allclose(normal_levels(K).distortion, distortion, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------------- iteration
def test_the_mixture_equals_its_slow_twin():
    rng = np.random.default_rng(1)
    for m in (1, 3, 5):
        past = [(rng.standard_normal(9), rng.standard_normal(9)) for _ in range(m + 1)]
        np.testing.assert_allclose(mixture(past), slow_mixture(past), rtol=1e-8, atol=1e-9)


def test_a_linear_iteration_ends_after_as_many_steps_as_it_has_directions():
    """Anderson's mixing is GMRES there: exact once its memory spans the space."""
    A = np.diag([0.99, 0.9, 0.5])
    answer = np.array([1.0, 2.0, 4.0])

    def step(g):
        return A @ (g - answer) + answer, float(((g - answer) ** 2).sum())

    fast = iterate(step, np.array([0.0, 0.5, 1.0]), 1e-10)
    plain = iterate(step, np.array([0.0, 0.5, 1.0]), 1e-10, memory=0)
    np.testing.assert_allclose(fast.levels, answer, atol=1e-7)
    assert fast.iterations <= 8
    assert plain.iterations > 1000


def test_mixed_levels_that_do_not_increase_or_do_not_help_are_not_taken():
    seen = []

    def step(g):  # the two levels oscillate around 0: mixing jumps to a point, where they meet
        seen.append(g)
        return g[::-1] * np.array([0.5, 0.5]) * -1, float((g**2).sum())

    grid = iterate(step, np.array([-1.0, 3.0]), 1e-9)
    assert all((np.diff(g) > 0).all() for g in seen)
    assert grid.converged
    errors = []

    def rising(g):  # mixing overshoots: every mixed step costs more
        errors.append(float(len(errors)))
        return 0.5 * g, errors[-1]

    assert iterate(rising, np.array([-1.0, 1.0]), 1e-3).converged


def test_nothing_moves_where_nothing_is_left_to_do():
    still = iterate(lambda g: (g, 1.0), np.array([1.0, 2.0]), 0.0)
    assert (still.iterations, still.converged, still.levels.tolist()) == (1, True, [1, 2])
    same = [(np.ones(3), np.arange(3.0))] * 3  # differences of zero
    np.testing.assert_allclose(mixture(same), np.arange(3.0))


def test_the_limit_ends_it_and_is_told():
    grid = normal_levels(64, limit=10)
    assert not grid.converged
    assert 10 <= grid.iterations <= 11


# --------------------------------------------------------------------------------------------------------------- samples
@pytest.mark.parametrize("name", SAMPLES)
def test_a_step_on_samples_equals_its_slow_twin(name):
    x = np.sort(SAMPLES[name][:400] - SAMPLES[name][:400].mean())
    for K in (1, 2, 7):
        g = np.linspace(x[0] - 1, x[-1] + 2, K)
        mean, distortion = fixed_point._Samples(x).step(g)
        slow_mean, slow_distortion = slow_step(x, g)
        np.testing.assert_allclose(mean, slow_mean, rtol=1e-9, atol=1e-9 * np.abs(x).max())
        np.testing.assert_allclose(distortion, slow_distortion, rtol=1e-9)


@pytest.mark.parametrize("memory", [0, 5])
@pytest.mark.parametrize("K", [2, 16, 60])
@pytest.mark.parametrize("name", SAMPLES)
def test_one_plain_step_after_the_end_changes_no_assignment(name, K, memory):
    x = SAMPLES[name]
    grid = scalar_levels(x, K, memory=memory)
    assert grid.converged
    assert grid.levels.shape == (K,)
    assert (np.diff(grid.levels) >= 0).all()
    border = (grid.levels[1:] + grid.levels[:-1]) / 2
    code = np.searchsorted(border, x)
    image = np.array([x[code == j].mean() if (code == j).any() else grid.levels[j] for j in range(K)])
    assert np.array_equal(np.searchsorted((image[1:] + image[:-1]) / 2, x), code)
    error = np.square(x - grid.levels[code]).mean()
    np.testing.assert_allclose(grid.distortion, error, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_the_error_never_rises_along_the_run(name):
    x = SAMPLES[name]
    middle = np.linspace(np.quantile(x, 0.4), np.quantile(x, 0.6), 20)  # a bad start makes a long run
    errors = [scalar_levels(x, 20, start=middle, limit=limit).distortion for limit in range(1, 60)]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


def test_mixing_is_ahead_of_plain_steps_after_as_many_of_them():
    x = np.random.default_rng(3).standard_normal(50_000)
    start = np.quantile(x, (np.arange(16) + 0.5) / 16)
    plain, fast = (scalar_levels(x, 16, start=start, memory=memory, limit=25).distortion for memory in (0, 5))
    assert fast < 0.99 * plain


def test_the_start_lies_where_the_density_asks_for_levels():
    """Of N(0, 1) the cube root of the density is that of N(0, 3): its quantiles, within what 100,000 samples tell."""
    x, counts = np.unique(np.random.default_rng(0).standard_normal(100_000), return_counts=True)
    found = by_density(x, counts, 33)
    want = math.sqrt(3) * torch.special.ndtri((torch.arange(33, dtype=torch.float64) + 0.5) / 33).numpy()
    np.testing.assert_allclose(found[5:-5], want[5:-5], atol=0.08)
    assert scalar_levels(x, 33).distortion < 1.02 * normal_levels(33).distortion


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from([-1e6, -1.0, 0.0, 1e-9, 1.0, 1.5, 2.0, 1e6, 1e6 + 1]), min_size=2), st.integers(1, 8))
def test_the_start_is_made_of_distinct_samples(values, K):
    x, counts = np.unique(values, return_counts=True)
    if len(x) <= K:
        return
    start = by_density(x, counts, K)
    assert (np.diff(start) > 0).all()
    assert set(start) <= set(x)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(1, 16))
def test_levels_of_few_values(values, K):
    grid = scalar_levels(values, K)
    distinct = sorted(set(values))
    assert grid.levels.shape == (K,)
    if len(distinct) <= K:
        assert grid.levels.tolist() == distinct + [distinct[-1]] * (K - len(distinct))
        assert grid.distortion == 0
    elif K == 1:
        np.testing.assert_allclose(grid.levels, np.mean(values))
    else:
        image, error = slow_step(values, grid.levels)
        np.testing.assert_allclose(image, grid.levels, atol=1e-9)  # a fixed point of the slow twin
        np.testing.assert_allclose(error, grid.distortion, atol=1e-9)


def test_a_cell_without_samples_keeps_its_level():
    grid = scalar_levels([0.0, 1.0, 10.0, 11.0], 3, start=[0.4, 5.4, 10.6])
    assert grid.levels.tolist() == [0.5, 5.4, 10.5]


def test_halves_go_to_the_lower_level_as_everywhere():
    grid = scalar_levels([0.0, 1.0, 2.0], 2, start=[0.0, 2.0])
    assert grid.levels.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    "x, K, error, words",
    [
        ([1.0, np.nan, np.inf], 2, DataError, r"^sample 1 is nan \(2 of 3 are not finite\)$"),
        ([], 2, DataError, "^no samples, levels need at least 1$"),
        ([1.0], 0, ConfigError, "^K is 0 levels, needs 1 or more$"),
    ],
)
def test_samples_that_cannot_be_quantized_are_refused(x, K, error, words):
    with pytest.raises(error, match=words):
        scalar_levels(x, K)


@pytest.mark.parametrize("start", [[0.0, 1.0, 2.0], [1.0, 0.0], [0.0, np.nan], [1.0, 1.0]])
def test_starts_that_do_not_fit_are_refused(start):
    with pytest.raises(
        ConfigError, match=r"^start of the levels has shape \(.,\), needs 2 finite numbers that increase$"
    ):
        scalar_levels([1, 2, 3, 4], 2, start=start)
    with pytest.raises(ConfigError, match="finite numbers that increase"):
        normal_levels(2, start=start)
    with pytest.raises(ConfigError, match="K is -1 levels"):
        normal_levels(-1)


# --------------------------------------------------------------------------------------------------------------- k-means
def test_k_means_of_one_dimension_is_the_scalar_quantizer():
    z = torch.from_numpy(np.stack([SAMPLES["heavy"], SAMPLES["corners"]])).float()[:, :, None]
    none = torch.zeros(3000, dtype=torch.int64)
    everyone, seeds = torch.ones(1, 32, dtype=torch.bool), (torch.arange(3000), none)
    found = lloyd(z, none, everyone, none[:32], seeds, torch.Generator())
    assert (found.shape, found.dtype) == ((2, 32, 1), torch.float32)
    for m in range(2):
        np.testing.assert_array_equal(found[m, :, 0], scalar_levels(z[m, :, 0], 32).levels.astype(np.float32))
    few = lloyd(z[:, :5], none[:5], everyone, none[:32], (torch.arange(5), none[:5]), torch.Generator())
    assert torch.cdist(z[:, :5], few).amin(2).max() == 0  # every row has its codeword


def test_private_codewords_of_one_dimension_stay_with_their_class():
    z = torch.randn(1, 200, 1, generator=torch.Generator().manual_seed(0))
    y = torch.arange(200) % 2
    z[0, y == 1] += 100
    owner = torch.arange(8) // 4
    w = lloyd(z, y, torch.arange(2)[:, None] == owner, owner, (torch.arange(200), y), torch.Generator().manual_seed(0))
    assert ((w[0, :, 0] > 50) == (owner == 1)).all()


def test_the_examples_of_the_docstrings_are_right():
    assert doctest.testmod(fixed_point).failed == 0
