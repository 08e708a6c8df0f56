"""Random walks: the heat equation within error bars, clouds, and that nothing depends on threads or on chunks."""

from typing import Any

import numpy as np
import pytest
from scipy import special, stats

import fastdiff as fd
from fastdiff.kernels import random_walk
from fastdiff.kernels.random_walk import ABSORB, FREE, REFLECT


def within_error_bars(estimate, exact):
    """Chi-square of the deviations, one degree of freedom a point; and no bar that is absurdly wide."""
    pulls = (estimate.values - exact) / estimate.errors
    assert stats.chi2.sf((pulls**2).sum(), len(pulls)) > 1e-3, pulls
    assert stats.chi2.cdf((pulls**2).sum(), len(pulls)) > 1e-4, "the error bars are too wide"


# -- the heat equation at points ---------------------------------------------------------------------------------------


def test_a_user_asks_for_single_points():
    grid = fd.Grid((64, 64))
    x, y = grid.coordinates()
    points = [(0.3, 0.4), (0.5, 0.5), (0.05, 0.9)]
    found = fd.monte_carlo(fd.Heat(0.1), np.sin(np.pi * x) * np.sin(np.pi * y), grid, points, 0.2,
                           boundary=fd.Dirichlet(0.0), walkers=20_000, seed=1)
    exact = [np.exp(-0.2 * np.pi**2 * 0.2) * np.sin(np.pi * a) * np.sin(np.pi * b) for a, b in points]
    assert found.values.shape == found.errors.shape == (3,)
    assert np.abs(found.values - exact).max() < 5 * found.errors.max() < 0.02


BOUNDARIES = {
    "held": {"x": (fd.Dirichlet(1.0), fd.Dirichlet(-0.5)), "y": fd.Dirichlet(0.25)},
    "no flux": None,
    "slopes": {"x": (fd.Neumann(0.5), fd.Neumann(-1.0)), "y": (fd.Dirichlet(0.0), fd.Neumann(2.0))},
    "Robin": {"x": (fd.Robin(2.0, 0.5, 1.0), fd.Robin(1.0, 1.0)), "y": fd.Robin(-0.5, 1.0, 0.2)},
    "flux": {"x": (fd.Flux(0.1), fd.Flux(-0.2)), "y": fd.Neumann(0.0)},
    "in time and place": {"x": (fd.Dirichlet("sin(5*t)*y"), fd.Neumann(0.0)), "y": fd.Dirichlet("x*exp(-t)")},
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_agrees_with_finite_differences(name):
    """16 points against a fine grid; the differences are of the size that the error bars say."""
    grid, rng = fd.Grid((97, 81), extent=((-0.5, 1.0), (0.0, 1.2))), np.random.default_rng(3)
    x, y = grid.coordinates()
    u0 = np.cos(3 * x) * np.exp(-y) + 0 * x
    nodes = rng.integers(1, (96, 80), (16, 2))
    nodes[:4, 0], nodes[4:8, 1] = (1, 95, 2, 94), (1, 79, 2, 78)  # close to the walls
    rod = fd.Heat((0.2, 0.1))
    fine = fd.solve(rod, u0, grid, t_end=0.4, boundary=BOUNDARIES[name], method="euler")
    points = np.stack([grid.points(a)[nodes[:, a]] for a in range(2)], 1)
    found = fd.monte_carlo(rod, lambda x, y: np.cos(3 * x) * np.exp(-y), grid, points, 0.4, walkers=4000,
                           boundary=BOUNDARIES[name], seed=5)
    within_error_bars(found, fine.final[tuple(nodes.T)])


def test_a_walk_is_exact_in_a_single_step_where_there_are_no_walls():
    grid = fd.Grid(32, extent=2.0, periodic=True)
    points = np.linspace(0, 2, 40, endpoint=False)
    found = fd.monte_carlo(fd.Heat(0.3), np.sin(np.pi * grid.points(0)), grid, points, 0.5, walkers=2000, seed=2)
    within_error_bars(found, np.exp(-0.3 * np.pi**2 * 0.5) * np.sin(np.pi * points))


def test_three_axes_and_a_time_for_each_point():
    grid = fd.Grid((24, 24, 24), periodic=(True, False, False), centering="cells")
    points = np.random.default_rng(0).uniform(0.02, 0.98, (24, 3))
    t = np.linspace(0.01, 0.1, 24)
    found = fd.monte_carlo(
        fd.Heat((0.1, 0.2, 0.3)), lambda x, y, z: np.sin(2 * np.pi * x) * np.cos(np.pi * y) * np.sin(np.pi * z), grid,
        points, t, boundary={"z": fd.Dirichlet(0.0)}, walkers=3000, seed=4)
    decay = np.exp(-np.pi**2 * (0.4 + 0.2 + 0.3) * t)
    x, y, z = points.T
    within_error_bars(found, decay * np.sin(2 * np.pi * x) * np.cos(np.pi * y) * np.sin(np.pi * z))


def test_errors_fall_with_the_square_root():
    grid = fd.Grid(64)
    few, many = (fd.monte_carlo(fd.Heat(0.1), np.cos(np.pi * grid.points(0)), grid, [0.3], 0.1, walkers=n, seed=1)
                 for n in (1000, 100_000))
    assert 8 < few.errors[0] / many.errors[0] < 12.5


def test_the_same_for_any_threads_chunks_and_number_of_walkers(monkeypatch):
    from fastdiff import walks

    grid = fd.Grid((32, 32))
    args = fd.Heat(0.1), np.ones(grid.shape), grid, [(0.1, 0.2), (0.6, 0.5)], 0.3
    more: dict[str, Any] = dict(boundary={"x": fd.Dirichlet("t")}, walkers=3001, seed=9)
    a, b = (fd.monte_carlo(*args, **more, threads=n) for n in (1, 3))
    assert (a.values == b.values).all() and (a.errors == b.errors).all()
    monkeypatch.setattr(walks, "CHUNK", 1000)
    c = fd.monte_carlo(*args, **more)
    assert np.abs(c.values - a.values).max() < 1e-12


def test_no_counter_serves_twice():
    """The numbers of two steps, two walkers, two seeds have nothing in common; a walk can be cut anywhere."""
    x = np.full((500, 2), 0.5)
    walls = np.array([[[0.0, 0, 0], [1, 0, 0]]] * 2)
    given: dict[str, Any] = dict(spread=np.full(2, 0.05), drift=np.zeros((1, 2)), walls=walls,
                                 kinds=np.array([[REFLECT, REFLECT], [FREE, FREE]]), seed=7)
    whole, _ = random_walk.cpu(x=x, steps=10, **given)
    half, _ = random_walk.cpu(x=x, steps=4, **given)
    rest, _ = random_walk.cpu(x=half, steps=6, step=4, **given)
    assert np.abs(rest - whole).max() < 1e-14
    late, _ = random_walk.cpu(x=x[:100], steps=10, first=200, **given)
    assert (late == whole[200:300]).all()
    steps = np.concatenate([random_walk.cpu(x=x, steps=1, step=s, **given)[0] for s in range(20)])
    assert len(np.unique(steps[:, 0])) > 0.999 * len(steps)
    other, _ = random_walk.cpu(x=x, steps=10, **{**given, "seed": 8})
    assert np.abs(np.corrcoef(whole[:, 1], other[:, 1])[0, 1]) < 0.2


# -- the laws of the walk itself ---------------------------------------------------------------------------------------


def one_wall(kind, steps, n=40_000, start=0.3, spread=1.0, drift=0.0, far=40.0, k=0.0, q=0.0):
    """Walks of total spread 1 beside a wall at 0."""
    walls = np.array([[[0.0, k, q], [far, 0.0, 0.0]]])
    return random_walk.cpu(x=np.full((n, 1), start), spread=np.array([spread / np.sqrt(steps)]),
                           drift=np.full((1, 1), drift / steps), walls=walls, kinds=np.array([[kind, REFLECT]]),
                           steps=steps, seed=11)


@pytest.mark.parametrize("steps", [1, 7])
def test_reflected_walks_have_the_folded_law(steps):
    ends, _ = one_wall(REFLECT, steps)
    law = stats.foldnorm(c=0.3)
    assert stats.kstest(ends[:, 0], law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("steps", [1, 7])
def test_first_passage_has_its_law(steps):
    """Levy's law of the hour, cut at the end of the walk; survivors have the law of the killed walk."""
    ends, fate = one_wall(ABSORB, steps)
    hit = fate[:, 2] == 0
    share = 2 * stats.norm.cdf(-0.3)
    assert abs(hit.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(hit))
    hours = fate[hit, 3] / steps
    assert stats.kstest(hours, lambda t: 2 * stats.norm.cdf(-0.3 / np.sqrt(t)) / share).pvalue > 1e-3
    law = stats.norm

    def survivors(x):
        return (law.cdf(x - 0.3) - law.cdf(-0.3) - law.cdf(x + 0.3) + law.cdf(0.3)) / (1 - share)

    assert stats.kstest(ends[~hit, 0], survivors).pvalue > 1e-3
    assert (ends[hit, 0] == 0).all()


@pytest.mark.parametrize("steps", [1, 5])
def test_first_passage_with_drift(steps):
    """The inverse Gaussian law, for a drift towards the wall."""
    _, fate = one_wall(ABSORB, steps, drift=-1.0)
    hit = fate[:, 2] == 0
    law = stats.invgauss(mu=1 / 0.3, scale=0.3**2)  # mean 0.3/1, shape 0.3**2
    share = law.cdf(1.0)
    assert abs(hit.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(hit))
    assert stats.kstest(fate[hit, 3] / steps, lambda t: law.cdf(t) / share).pvalue > 1e-3


@pytest.mark.parametrize("steps", [1, 6])
def test_weights_of_a_robin_wall(steps):
    """E exp(-k L) from the wall is erfcx(k/sqrt 2), and E L is sqrt(2/pi)."""
    _, fate = one_wall(REFLECT, steps, start=0.0, k=1.5, q=1.5)
    exact = special.erfcx(1.5 / np.sqrt(2))
    bar = fate[:, 0].std() / np.sqrt(len(fate))
    assert abs(fate[:, 0].mean() - exact) < 4 * bar
    assert np.abs(fate[:, 0] + fate[:, 1] - 1).max() < 1e-12  # the gain is 1 - weight for q = k
    _, fate = one_wall(REFLECT, steps, start=0.0, q=1.0)
    assert abs(fate[:, 1].mean() - np.sqrt(2 / np.pi)) < 4 * fate[:, 1].std() / np.sqrt(len(fate))


# -- clouds ------------------------------------------------------------------------------------------------------------


def test_a_cloud_spreads_like_the_heat_equation():
    grid = fd.Grid((20, 24), centering="cells")
    x, y = grid.coordinates()
    density = (1 + np.cos(np.pi * x)) * (1 + 0.5 * np.cos(2 * np.pi * y))
    cloud = fd.Cloud.drawn(fd.Heat(0.05), density, grid, 60_000, seed=1).move(0.3).move(0.2)
    exact = (1 + np.exp(-np.pi**2 * 0.025) * np.cos(np.pi * x)) * (
        1 + 0.5 * np.exp(-4 * np.pi**2 * 0.025) * np.cos(2 * np.pi * y))
    counts, expected = cloud.density() * 60_000 / 480, exact * 60_000 / 480
    assert cloud.time == 0.5 and abs(cloud.density().mean() - 1) < 1e-12
    assert stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), 479) > 1e-3


def test_a_cloud_drifts_and_is_absorbed():
    grid = fd.Grid((50, 50), extent=10.0, periodic=(False, True))
    cloud = fd.Cloud(fd.Heat(0.1), np.full((20_000, 2), (5.0, 3.0)), grid, velocity=(1.0, 1.0), seed=3,
                     boundary={"x": fd.Dirichlet(0.0)})
    cloud.move(2.0)
    assert np.abs(cloud.positions.mean(0) - (7.0, 5.0)).max() < 0.02
    assert np.abs(cloud.positions.var(0) - 0.4).max() < 0.02
    cloud.move(6.0)
    gone = cloud.absorbed == 1
    assert gone.mean() > 0.98 and (cloud.positions[gone, 0] == 10).all()
    assert abs(np.mean(cloud.absorbed_at[gone]) - 5.0) < 0.1 and np.isnan(cloud.absorbed_at[~gone]).all()


def test_a_cloud_in_a_velocity_that_changes():
    """Rotation: the mean goes round, and diffusion does not care."""
    grid = fd.Grid((8, 8), extent=((-4.0, 4.0), (-4.0, 4.0)))
    cloud = fd.Cloud(fd.Heat(0.01), np.full((10_000, 2), (1.0, 0.0)), grid, velocity=lambda t, x, y: (-y, x), seed=3)
    cloud.move(np.pi / 2, steps=400)
    assert np.abs(cloud.positions.mean(0) - (0.0, 1.0)).max() < 0.02


def test_a_wall_that_takes_a_part():
    grid = fd.Grid(40, centering="cells")
    cloud = fd.Cloud.drawn(fd.Heat(0.1), np.ones(40), grid, 40_000, seed=2, boundary=fd.Robin(0.5, 1.0)).move(0.4)
    fine = fd.solve(fd.Heat(0.1), np.ones(400), fd.Grid(400, centering="cells"), t_end=0.4, method="euler",
                    boundary=fd.Robin(0.5, 1.0))
    assert abs(cloud.weights.mean() - fine.final.mean()) < 5 * cloud.weights.std() / 200


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused():
    grid, u0 = fd.Grid((9, 9)), np.zeros((9, 9))
    heat = fd.Heat(0.1)
    with pytest.raises(ValueError, match="outside the grid"):
        fd.monte_carlo(heat, u0, grid, [(0.5, 1.5)], 1.0)
    with pytest.raises(ValueError, match=r"expected \(points, 2\)"):
        fd.monte_carlo(heat, u0, grid, [0.5, 0.5, 0.5], 1.0)
    with pytest.raises(ValueError, match="at least 2"):
        fd.monte_carlo(heat, u0, grid, [(0.5, 0.5)], 1.0, walkers=1)
    with pytest.raises(ValueError, match="positive time"):
        fd.monte_carlo(heat, u0, grid, [(0.5, 0.5)], 0.0)
    with pytest.raises(ValueError, match="only Dirichlet values"):
        fd.monte_carlo(heat, u0, grid, [(0.5, 0.5)], 1.0, boundary=fd.Neumann("t"))
    with pytest.raises(TypeError, match="not GrayScott"):
        fd.monte_carlo(fd.GrayScott(), u0, grid, [(0.5, 0.5)], 1.0)
    with pytest.raises(ValueError, match="u0 has shape"):
        fd.monte_carlo(heat, u0[:5], grid, [(0.5, 0.5)], 1.0)
    with pytest.raises(ValueError, match="must be 0"):
        fd.Cloud(heat, [(0.5, 0.5)], grid, boundary=fd.Dirichlet(1.0))
    with pytest.raises(ValueError, match="no negative value"):
        fd.Cloud.drawn(heat, u0 - 1, grid, 10)
    with pytest.raises(ValueError, match="drift has shape"):
        random_walk.cpu(x=u0, spread=np.ones(9), drift=np.zeros((2, 9)), walls=np.zeros((9, 2, 3)),
                        kinds=np.zeros((9, 2), int), steps=1, seed=0)
