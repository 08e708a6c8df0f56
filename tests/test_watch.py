"""Callbacks, stop conditions, and frames that stream to a file."""

import gc
import tracemalloc
from typing import Any

import h5py
import numpy as np
import pytest

import fastdiff as fd
from fastdiff import watch

ROD, GRID = fd.Heat(0.1), fd.Grid(64, extent=2.0)
U0 = np.cos(np.pi * GRID.points(0) / 2)


def gray_scott(n=24, batch=None):
    """A small Gray-Scott problem."""
    rng = np.random.default_rng(0)
    shape = (n, n) if batch is None else (batch, n, n)
    v = np.zeros(shape)
    v[..., n // 3 : n // 2, n // 3 : n // 2] = 0.5
    u0 = np.stack([1 - v, v + 0.01 * rng.random(shape)], -3)
    return fd.GrayScott(), u0.astype(np.float32), fd.Grid((n, n), periodic=True)


# -- callbacks and stop conditions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["euler", "spectral", "auto", "rk4", "rk23", "rkl2"])
def test_a_callback_sees_the_saved_times_and_looks_between(method):
    seen = []
    sol = fd.solve(ROD, U0, GRID, save_at=[0.5, 1.0], t_end=2.0, method=method, look_every=0.25,
                   callback=lambda t, u, state: seen.append((t, u, state.seconds, state.looks, state.frames)))
    t, u, seconds, looks, frames = zip(*seen)
    assert np.allclose(t, np.arange(1, 9) / 4) and looks == tuple(range(1, 9)) and frames == (0, 1, 1, 2, 2, 2, 2, 2)
    assert all(b >= a for a, b in zip(seconds, seconds[1:]))
    assert (u[1] == sol.u[0]).all() and (u[3] == sol.u[1]).all() and (u[-1] == sol.final).all()
    assert sol.t.tolist() == [0.5, 1.0] and sol.u.shape == (2, 64) and sol.stats["stopped"] is None
    for when, field in zip(t, u):
        assert np.abs(field - np.exp(-0.1 * np.pi**2 / 4 * when) * U0).max() < 2e-3


def test_watching_changes_nothing_but_the_steps():
    plain = fd.solve(ROD, U0, GRID, t_end=1.0, method="euler", dt=1e-3)
    seen = fd.solve(ROD, U0, GRID, t_end=1.0, method="euler", dt=1e-3, look_every=0.1, callback=lambda t, u, s: None)
    assert np.abs(seen.final - plain.final).max() < 1e-14 and seen.stats["steps"] == plain.stats["steps"]


def test_large_frames_are_put_by_all_threads():
    rng = np.random.default_rng(5)
    frames, u = np.full((3, 2, 1, 300, 400), np.nan), rng.random((3, 2, 300, 400))[:, :1]
    assert u.nbytes >= watch.MUCH and not u.flags.c_contiguous
    for threads in (1, 2, None):
        assert watch.put(frames, 1, u, threads) is False
        assert np.array_equal(frames[:, 1], u) and np.isnan(frames[:, 0]).all()
        frames[:, 1] = np.nan


def test_a_callback_may_stop_the_run():
    sol = fd.solve(ROD, U0, GRID, save_at=np.arange(1, 11), method="euler", look_every=0.5,
                   callback=lambda t, u, state: t > 3.2)
    assert sol.t.tolist() == [1, 2, 3, 3.5] and (sol.u[-1] == sol.final).all()
    assert sol.stats["stopped"] == "the callback at t = 3.5"
    assert np.abs(sol.final - np.exp(-0.1 * np.pi**2 / 4 * 3.5) * U0).max() < 2e-3


def test_steady_state():
    """Heat between walls at 0 and 1 ends as a straight line."""
    sol = fd.solve(ROD, np.zeros(64), GRID, t_end=1000.0, boundary={"x": (fd.Dirichlet(0.0), fd.Dirichlet(1.0))},
                   stop=fd.SteadyState(1e-5), look_every=1.0, method="euler")
    assert 30 < sol.t[-1] < 100 and sol.t.shape == (1,)
    assert np.abs(sol.final - GRID.points(0) / 2).max() < 1e-3
    assert sol.stats["stopped"].startswith("SteadyState(1e-05) at t = ")
    never = fd.solve(ROD, U0, GRID, t_end=1.0, stop=fd.SteadyState(1e-9))
    assert never.stats["stopped"] is None and never.t.tolist() == [1.0]


def test_a_steady_state_can_be_used_again():
    condition = fd.SteadyState(1e-4)
    ends = [fd.solve(ROD, U0, GRID, t_end=500.0, stop=condition, method="euler", look_every=1.0).t[-1]
            for _ in range(2)]
    assert ends[0] == ends[1] < 500


def test_wall_clock():
    equation, u0, grid = gray_scott(128)
    sol = fd.solve(equation, u0, grid, t_end=1e7, stop=fd.WallClock(0.5), look_every=20.0, method="euler")
    assert sol.t[-1] < 1e6 and sol.stats["stopped"].startswith("WallClock(0.5)") and sol.stats["seconds"] < 30
    assert sol.stats["steps"] >= sol.t[-1] > 0


def test_several_conditions_and_a_function_of_the_user():
    def half_gone(t, u, state):
        return u.max() < 0.5

    sol = fd.solve(ROD, U0, GRID, t_end=50.0, stop=[fd.SteadyState(1e-9), half_gone], method="euler")
    assert sol.stats["stopped"].startswith("half_gone at") and 0.45 < sol.final.max() < 0.5


def test_the_state_remembers():
    def count(t, u, state):
        state.mine = getattr(state, "mine", 0) + 1
        return state.mine == 5

    assert fd.solve(ROD, U0, GRID, t_end=1.0, stop=count, method="euler").t[0] == pytest.approx(0.05)


def test_torch_and_batches_come_in_their_own_shape():
    torch = pytest.importorskip("torch")
    equation, u0, grid = gray_scott(batch=3)
    seen = []
    sol = fd.solve(equation, torch.from_numpy(u0), grid, t_end=20.0, look_every=10.0,
                   callback=lambda t, u, state: seen.append(u))
    assert isinstance(seen[0], torch.Tensor) and seen[0].shape == sol.final.shape == (3, 2, 24, 24)
    assert sol.u.shape == (3, 1, 2, 24, 24)


def test_a_method_that_solves_again_is_not_watched():
    watch: dict[str, Any] = dict(callback=lambda t, u, state: None)
    with pytest.raises(ValueError, match="goes through time once"):
        fd.solve(ROD, U0, GRID, t_end=1.0, method="crank_nicolson", **watch)
    fd.solve(ROD, U0, GRID, t_end=1.0, method="crank_nicolson", dt=0.05, **watch)


# -- streaming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 2])
def test_frames_go_to_a_file(tmp_path, batch):
    equation, u0, grid = gray_scott(batch=batch)
    given: dict[str, Any] = dict(save_at=[0, 10, 20, 40], t_end=50.0, method="euler")
    plain = fd.solve(equation, u0, grid, **given)
    sol = fd.solve(equation, u0, grid, **given, save_to=tmp_path / "run.h5")
    assert sol.u.shape == plain.u.shape and (np.asarray(sol.u) == plain.u).all() and (sol.final == plain.final).all()
    assert (sol.u[..., 1, :, :, :] == plain.u[..., 1, :, :, :]).all()
    loaded = fd.Solution.load(tmp_path / "run.h5")
    assert (loaded.u == plain.u).all() and (loaded.t == plain.t).all() and (loaded.final == plain.final).all()
    assert loaded.equation == equation and loaded.grid == grid and loaded.names == ("u", "v")
    with h5py.File(tmp_path / "run.h5") as file:
        assert np.asarray(file["u"]).shape == plain.u.shape
    assert [f.name for f in tmp_path.iterdir()] == ["run.h5"]
    sol.plot(path=tmp_path / "run.png")


@pytest.mark.parametrize("method", ["auto", "rkl2", "crank_nicolson"])
def test_every_kind_of_method_streams(tmp_path, method):
    """`auto` solves the rough field twice, crank_nicolson again and again: only the last frames are in the file."""
    u0 = np.where(GRID.points(0) > 1, 1.0, 0.0)
    given: dict[str, Any] = dict(save_at=[0.01, 0.5, 1.0], method=method)
    plain = fd.solve(ROD, u0, GRID, **given)
    sol = fd.solve(ROD, u0, GRID, **given, save_to=tmp_path / "run.h5")
    assert (np.asarray(sol.u) == plain.u).all() and sol.stats["why"] == plain.stats["why"]
    assert [f.name for f in tmp_path.iterdir()] == ["run.h5"]


def test_memory_stays_bounded(tmp_path):
    grid, u0 = fd.Grid((256, 256)), np.random.default_rng(0).random((256, 256))
    given: dict[str, Any] = dict(save_at=np.linspace(0.0, 1e-3, 101), method="euler", dt=1e-5)
    fd.solve(ROD, u0, grid, save_at=[1e-4], method="euler", dt=1e-5)
    gc.collect()
    tracemalloc.start()
    fd.solve(ROD, u0, grid, **given, save_to=tmp_path / "run.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * u0.nbytes < 101 * u0.nbytes


def test_a_stopped_run_is_whole(tmp_path):
    sol = fd.solve(ROD, U0, GRID, save_at=np.arange(1, 11), method="euler", save_to=tmp_path / "run.h5",
                   stop=lambda t, u, state: t >= 2.5, look_every=0.5)
    loaded = fd.Solution.load(tmp_path / "run.h5")
    assert sol.t.tolist() == loaded.t.tolist() == [1, 2, 2.5] and loaded.u.shape == (3, 64)
    assert "t = 2.5" in loaded.stats["stopped"]


def test_a_run_that_fails_leaves_nothing(tmp_path):
    def broken(t, u, state):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fd.solve(ROD, U0, GRID, t_end=1.0, callback=broken, save_to=tmp_path / "run.h5")
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused_before_the_run(tmp_path):
    (tmp_path / "there.h5").write_text("")
    with pytest.raises(FileExistsError, match="exists"):
        fd.solve(ROD, U0, GRID, t_end=1.0, save_to=tmp_path / "there.h5")
    with pytest.raises(FileNotFoundError, match="make it first"):
        fd.solve(ROD, U0, GRID, t_end=1.0, save_to=tmp_path / "no" / "run.h5")
    with pytest.raises(TypeError, match="callback is a function"):
        fd.solve(ROD, U0, GRID, t_end=1.0, callback=3)
    with pytest.raises(TypeError, match="SteadyState"):
        fd.solve(ROD, U0, GRID, t_end=1.0, stop=3)
    with pytest.raises(ValueError, match="look_every"):
        fd.solve(ROD, U0, GRID, t_end=1.0, look_every=0.1)
    with pytest.raises(ValueError, match="positive time"):
        fd.solve(ROD, U0, GRID, t_end=1.0, look_every=-1, stop=fd.WallClock(1))
    with pytest.raises(ValueError, match="must be positive"):
        fd.SteadyState(0)
    with pytest.raises(ValueError, match="must be positive"):
        fd.WallClock(-1)
