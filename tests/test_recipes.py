"""Published recipes: against independent solutions, exact ones, and what is known of the originals."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.data import campaign, initial, recipes
from fastdiff.data.layouts import source
from fastdiff.data.published import choice

SMALLER: dict[str, Any] = {"pdebench-diff-react": (24, 24), "well-gray-scott": (32, 32), "pdebench-diff-sorp": (64,),
                           "pdebench-reacdiff": (64,), "pdebench-advection": (64,), "apebench-diffusion": (64,)}


def job(name, shape=None, **changes):
    recipe = recipes.get(name, **changes)
    return campaign._job(recipe, 4, shape or SMALLER.get(name, (20,) * len(recipe.shape)), 0, None, "cpu")


@pytest.mark.parametrize("name", recipes.known())
def test_every_recipe_makes_sound_data(tmp_path, name):
    """Its first frames at a small size: verified, solved again, and the same for another block."""
    recipe = recipes.get(name)
    few = 4
    recipe = replace(recipe, t_end=recipe.t_end * (few - 1) / (recipe.frames - 1) / (20 if recipe.frames < 50 else 1))
    shape = SMALLER.get(name, (20,) * len(recipe.shape))
    arguments: dict[str, Any] = dict(samples=3, shape=shape, frames=few, progress=False)
    report = fd.data.generate(recipe, tmp_path / "a.h5", **arguments)
    found = fd.data.verify(report.path)
    assert found.ok and found.solved == 1, found
    fd.data.generate(recipe, tmp_path / "b.h5", **arguments, block=1, threads=1)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    with source(report.path) as there:
        u = np.stack([there.read(i) for i in range(3)])
        assert np.ptp(u[:, -1]) > 0 and there.names == recipe.fields and (u[0] != u[1]).any()


def relative(a, b):
    return float(np.sqrt(np.sum((a - b) ** 2) / np.sum(b**2)))


def test_diff_react_against_scipy():
    """The same semi-discretisation by DOP853 at 1e-10: closer than RK45 at its default tolerance, the original's."""
    from scipy.integrate import solve_ivp

    made = job("pdebench-diff-react", dtype="float64", frames=11)
    (n, _), dx = made.grid.shape, made.grid.spacing[0]

    def slope(t, y):
        u, v = y.reshape(2, n, n)
        lap = lambda w: sum(np.diff(w, axis=a, prepend=w.take([0], a), append=w.take([-1], a), n=2) for a in (0, 1))
        return np.stack([1e-3 * lap(u) / dx**2 + u - u**3 - 5e-3 - v, 5e-3 * lap(v) / dx**2 + u - v]).ravel()

    _, u0 = made.recipe.draw(made.grid, 0, 2)
    solve = lambda **how: solve_ivp(slope, (0, 5), u0.ravel(), t_eval=made.times, **how).y.T.reshape(-1, 2, n, n)
    exact, theirs, ours = solve(method="DOP853", rtol=1e-10, atol=1e-10), solve(method="RK45"), made.march_one(2)
    assert relative(ours, exact) < relative(theirs, exact) < 1e-2


def test_diff_sorp_against_scipy():
    from scipy.integrate import solve_ivp

    made = job("pdebench-diff-sorp", dtype="float64")
    dx = made.grid.spacing[0]

    def slope(t, u):
        left, b = 2.0 - u[0], 5e-4
        right = u[-1] * (b / dx - 0.5) / (b / dx + 0.5)
        w = np.concatenate([[left], u, [right]])
        R = 1 + 0.71 / 0.29 * 2880 * 3.5e-4 * 0.874 * (u + 1e-6) ** (0.874 - 1)
        return 5e-4 * np.diff(w, n=2) / dx**2 / R

    parameters, u0 = made.recipe.draw(made.grid, 0, 1)
    exact = solve_ivp(slope, (0, 500), u0[0], method="LSODA", t_eval=made.times, rtol=1e-9, atol=1e-11).y.T
    assert u0.std() < 1e-15 and 0 <= u0.min() <= 0.2 and relative(made.march_one(1)[:, 0], exact) < 2e-3


def test_reacdiff_becomes_one_and_not_the_mean():
    """The original's data tend to the mean (PDEBench issue 94): here the logistic growth is there."""
    made = job("pdebench-reacdiff", (128,), parameters={"D": 2.0, "r": 10.0}, labels=(), dtype="float64")
    u = made.march_one(0)[:, 0]
    mean, t = u[20].mean(), made.times[20:] - made.times[20]
    assert np.ptp(u[20]) < 1e-6  # diffusion has done its work
    logistic = mean * np.exp(10 * t) / (1 + mean * (np.exp(10 * t) - 1))
    assert np.allclose(u[20:].mean(1), logistic, atol=1e-5) and u[-1].min() > 0.99


def test_advection_comes_back():
    made = job("pdebench-advection", parameters={"velocity": 1.0}, labels=(), dtype="float64")
    u = made.march_one(3)[:, 0]
    assert np.allclose(u[100], u[0], atol=1e-9) and np.allclose(u[200], u[0], atol=1e-9)
    assert np.allclose(u[50], np.roll(u[0], 32), atol=1e-9) and np.abs(u[25] - u[0]).max() > 0.1
    with pytest.raises(ValueError, match="Travelling is for one periodic axis"):
        job("pdebench-advection", (16, 16)).march_one(0)


def test_apebench_diffusion_decays_as_it_should():
    made = job("apebench-diffusion", (160,), dtype="float64")
    u = made.march_one(1)[:, 0]
    modes = np.abs(np.fft.rfft(u, axis=1))
    for k in range(1, 6):
        decay = np.exp(-4 / (2 * 160**2) * (2 * np.pi * k) ** 2 * made.times)
        assert np.allclose(modes[:, k] / modes[0, k], decay, rtol=1e-9)
    assert np.abs(u[0]).max() == pytest.approx(1) and abs(u.mean()) < 1e-12


def test_the_wells_gray_scott_uses_the_published_patterns_and_starts():
    recipe = recipes.get("well-gray-scott")
    drawn = [recipe.draw(recipe.grid((16, 16)), 0, i) for i in range(80)]
    assert {(p["pattern"], p["F"], p["k"]) for p, _ in drawn} == set(recipe.parameters["pattern"].rows)
    blobs = [u.min() == 0 and u.max() == 1 for _, u in drawn]
    assert 20 < sum(blobs) < 60 and recipe.grid().spacing == (1 / 64, 1 / 64)
    assert np.allclose(np.diff(np.linspace(0, recipe.t_end, recipe.frames)), 10)


def test_a_published_set_in_its_own_layout(tmp_path):
    report = fd.data.generate("pdebench-advection", tmp_path / "a.hdf5", samples=4, shape=(64,), layout="pdebench",
                              progress=False)
    with source(report.path) as there:
        assert there.layout == "pdebench-tensor" and there.shape == (4, 201, 1, 64)
    one = replace(recipes.get("pdebench-advection"), parameters={"v": choice("beta", "velocity", 0.4)})
    fd.data.generate(one, tmp_path / "b.hdf5", samples=4, shape=(64,), layout="pdebench", progress=False)
    with source(tmp_path / "b.hdf5") as there:
        assert there.attributes["beta"] == there.attributes["velocity"] == 0.4


def test_an_exact_recipe_of_the_wrong_shape_is_told():
    flat = lambda rng, grid, parameters, times: np.zeros((1, 64))
    recipe = replace(recipes.get("pdebench-advection"), initial=flat)
    with pytest.raises(ValueError, match=r"has shape \(1, 64\), expected \(201, 1, 64\) \(frames, components, "):
        campaign._job(recipe, 1, (64,), 0, None, "cpu").march_one(0)


@pytest.mark.parametrize("changes, message", [
    (dict(method="leap"), "unknown method 'leap' of recipe 'heat'; known: euler, rk4"),
    (dict(method="crank_nicolson"), "has the method 'crank_nicolson', but no dt"),
])
def test_methods_that_a_recipe_cannot_have(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        fd.data.generate(replace(recipes.HEAT, **changes), tmp_path / "a.h5", samples=1, shape=(8, 8), progress=False)


def test_a_method_whose_numbers_could_depend_on_the_batch_solves_one_by_one(tmp_path):
    """RKL2 chooses its stages for the stiffest sample: each is solved alone where diffusivities vary."""
    recipe = replace(recipes.HEAT, method="rkl2", dt=0.01, t_end=0.05, initial=initial.FourierSeries())
    for name, how in {"a": dict(block=4), "b": dict(block=1)}.items():
        fd.data.generate(recipe, tmp_path / name, samples=4, shape=(40,), frames=3, progress=False, **how)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_of_the_bench(tmp_path, capsys):
    """They run, and write what they found; the long ones (The Well's) are left to `fastdiff bench data`."""
    import json

    import fastdiff.bench

    fastdiff.bench.main(["data", "writing", "overlap", "reading", "--tiny", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "data.json").read_text())["rows"]
    assert len(found) == 3 and all(row["ratio"] > 0 for row in found)
    assert "windows/s" in capsys.readouterr().out and "# Training data" in (tmp_path / "data.md").read_text()


def test_the_bench_s_own_etdrk4_agrees_with_the_method():
    """Two implementations of one scheme: for t = 20 of two patterns, the same to rounding."""
    from fastdiff.bench.data import etdrk4

    made = job("well-gray-scott", (32, 32), dtype="float64", dt=1.0)
    made = replace(made, recipe=replace(made.recipe, t_end=20.0, frames=3))
    for i in (0, 1):
        parameters, u0 = made.recipe.draw(made.grid, 0, i)
        exact = etdrk4(u0[None], parameters["F"], parameters["k"], [10.0, 20.0])[0]
        assert relative(made.march_one(i)[1:], exact) < 1e-8
