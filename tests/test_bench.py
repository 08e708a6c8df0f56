"""`fastdiff bench`: right baselines, numbers for right kernels, none for a wrong one."""

import dataclasses
import json

import numba
import numpy as np
import pytest

import fastdiff.bench
from fastdiff.bench import kernels as runner
from fastdiff.bench import machine, sweeps, targets
from fastdiff.kernels import _threads, discover, gray_scott, heat
from fastdiff.kernels._edges import make_edges


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """A benchmark starts pytest within this process, and times nothing if it takes itself for one of several."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.mark.parametrize("steps", [4, 5])
@pytest.mark.parametrize("shape", [(1, 300), (1, 20, 30), (2, 20, 30), (12, 10, 9), (1, 6, 7, 8)], ids=str)
def test_plain_loops_are_right(shape, steps):
    u = targets.field_of(shape, np.float64)
    expected = heat.reference(u, np.full((len(u), u.ndim - 2), 0.15), targets.held(u), steps)
    for by_sample in (False, True):
        got = sweeps.heat(targets._with_edges(u), 0.15, by_sample)(steps)
        for a, b in zip(expected, got):
            np.testing.assert_allclose(np.reshape(b, a.shape), a, rtol=1e-14)


def test_the_plain_loop_of_gray_scott_is_right(rng):
    u = rng.uniform(0.1, 0.4, (1, 2, 13, 17))
    one, dt = np.ones(1), 0.5
    rate = np.array([[[0.16, 0.16], [0.08, 0.08]]])
    edges = make_edges((13, 17), [True, True], u.dtype, components=2)
    expected = gray_scott.reference(u, rate, 0.04 * dt * one, 0.06 * dt * one, dt * one, edges, 5)
    (got,) = sweeps.gray_scott(u, (0.16, 0.08), 0.04, 0.06, dt)(5)
    np.testing.assert_allclose(np.stack(got), expected[0], rtol=1e-13)


def test_roofs_are_positive():
    assert machine.triad(1, size_bytes=1 << 16, rounds=1) > 0
    rule = heat.rule(np.array([[0.2, 0.2]]), np.float32)
    assert machine.in_cache(rule, "float32", 2, threads=2, seconds=0.001, rounds=1) > 0


@pytest.fixture
def quick(monkeypatch):
    """Benchmarks so short that they only show that everything runs; the threads are as before when they are done."""
    monkeypatch.setattr(runner, "QUICK", {1: (400,), 2: (12, 16), 3: (6, 7, 8)})
    threads = _threads.default_threads(), numba.get_num_threads()
    yield
    _threads.set_threads(threads[0])
    numba.set_num_threads(threads[1])


def test_bench_writes_numbers_and_a_picture(quick, tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert fastdiff.bench.main(["heat_1d", "--quick", "--dtype", "float32", "--threads", "1", "--out", str(out)]) == 0
    (found,) = [b["extra_info"] for b in json.loads(out.read_text())["benchmarks"]]
    assert found["kernel"] == "heat_1d" and found["dtype"] == "float32"
    for name in ("updates_per_second", "memory_roof", "cache_roof", "reference", "sweep"):
        assert found[name] > 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "heat_1d" in capsys.readouterr().out


def test_a_wrong_kernel_gets_no_number(quick, tmp_path, capsys, monkeypatch):
    right = discover()["heat_1d"]

    def cpu(u, out, **how):
        return np.multiply(right.cpu(u, out=out, **how), 1.001, out=out)

    wrong = dataclasses.replace(right, cpu=cpu)
    monkeypatch.setattr(runner, "chosen", lambda names: [wrong])
    out = tmp_path / "bench.json"
    assert fastdiff.bench.main(["--quick", "--dtype", "float64", "--threads", "1", "--out", str(out)]) == 1
    assert not runner.read(out)
    assert "no number for" in (said := capsys.readouterr().out) and "differs from its reference" in said


def test_unknown_kernels_and_threads_are_refused():
    with pytest.raises(ValueError, match="'haet' is neither a suite .*targets.* name: .*heat_1d"):
        fastdiff.bench.main(["haet"])
    with pytest.raises(ValueError, match="threads must be between"):
        runner.use_threads(10_000)


def test_a_row_of_the_goals(tmp_path):
    """One small row; the others run in `fastdiff bench targets --tiny`, which takes minutes."""
    options = targets.Options(threads=1, rounds=1, scale=1 / 64, steps=1 / 50)
    row = targets.against_sweep("2-D", (1, 20, 30), 100, "float32", 1.0, options)
    assert row.ratio is not None and row.ratio > 0
    assert "| 2-D |" in targets.markdown([row], "somewhere")
