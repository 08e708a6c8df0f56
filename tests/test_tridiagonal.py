"""Tridiagonal lines: the same bits however they are shared out, written and aligned."""

import numpy as np
import pytest

from fastdiff.kernels import tridiagonal
from fastdiff.kernels.tridiagonal import Systems, reference

# lines beside each other, and contiguous ones: more and fewer than a block, no whole vectors, longer than a strip
CASES = [((2, 67, 40), 1), ((1, 150, 64), 1), ((1, 5, 301), 1), ((70, 130), 1), ((3, 9), 1), ((300, 17), 1)]


def bands(shape, axis, each, rng):
    form = shape if each else (shape[axis],)
    lower, upper = -rng.random(form), -rng.random(form)
    return lower, 1.2 - lower - upper, upper


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("shape, axis", CASES)
def test_the_same_bits_for_any_threads_and_blocks(shape, axis, each, cyclic, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    made, u = bands(shape, axis, each, rng), rng.random(shape).astype(dtype)
    want = reference(*made, u, axis, cyclic)
    first = Systems(*made, shape, axis, dtype, cyclic=cyclic, threads=1).solve(u)
    assert np.abs(first - want).max() < 8 * np.finfo(dtype).eps * np.abs(want).max()
    for threads, block in ((2, 1 << 19), (5, 1), (2, 1 << 13)):
        monkeypatch.setattr(tridiagonal, "BLOCK_BYTES", block)
        assert np.array_equal(Systems(*made, shape, axis, dtype, cyclic=cyclic, threads=threads).solve(u), first)
    there = u.copy()
    assert Systems(*made, shape, axis, dtype, cyclic=cyclic, threads=2).solve(there, out=there) is there
    assert np.array_equal(there, first)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("shape", [(1, 33, 320), (2, 17, 16), (1, 5, 301)])
def test_the_same_bits_past_the_caches_wherever_the_result_starts(shape, each, dtype, monkeypatch):
    rng = np.random.default_rng(1)
    made, u = bands(shape, 1, each, rng), rng.random(shape).astype(dtype)
    want = Systems(*made, shape, 1, dtype, threads=2).solve(u)
    monkeypatch.setattr(tridiagonal, "PAST", 0)
    monkeypatch.setattr(tridiagonal, "BLOCK_BYTES", 1)
    memory = np.full(u.size + 32, np.nan, dtype)
    for start in (0, 1, 5, 15):
        memory[:] = np.nan
        out = memory[start : start + u.size].reshape(shape)
        Systems(*made, shape, 1, dtype, threads=2).solve(u, out=out)
        assert np.array_equal(out, want)
        assert np.isnan(memory[:start]).all() and np.isnan(memory[start + u.size :]).all()  # and nothing else
