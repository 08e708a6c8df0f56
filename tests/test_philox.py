"""Philox against the known answers of Random123, and its uniform and normal numbers against plain NumPy."""

import numpy as np
import pytest
from scipy import stats

from fastdiff.kernels._jit import kernel
from fastdiff.kernels._philox import normal_pair, philox, split, uniform

# Random123's kat_vectors, "philox4x32 10": counter, key, words.
KNOWN = """
    00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
    ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
    243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""
ANSWERS = [[np.uint64(int(word, 16)) for word in line.split()] for line in KNOWN.strip().splitlines()]


@kernel()
def draw(n, s0, s1, k0, k1, one, words, uniforms, normals):
    """Words of the first n counters, and the numbers they make."""
    for i in range(n):
        w = philox(np.uint64(i), np.uint64(0), s0, s1, k0, k1)
        words[i, 0], words[i, 1], words[i, 2], words[i, 3] = w
        uniforms[i, 0], uniforms[i, 1] = uniform(w[0], one), uniform(w[1], one)
        normals[i, 0], normals[i, 1] = normal_pair(w[0], w[1], one)
        normals[i, 2], normals[i, 3] = normal_pair(w[2], w[3], one)


@kernel()
def compiled(c0, c1, c2, c3, k0, k1):
    """The words of a counter, from compiled code."""
    return philox(c0, c1, c2, c3, k0, k1)


def drawn(n, dtype, seed=1, stream=2):
    words, uniforms, normals = np.empty((n, 4), np.uint64), np.empty((n, 2), dtype), np.empty((n, 4), dtype)
    draw(n, *split(stream), *split(seed), np.dtype(dtype).type(1), words, uniforms, normals)
    return words, uniforms, normals


@pytest.mark.parametrize("line", ANSWERS, ids=["zeros", "ones", "pi"])
def test_known_answers(line):
    assert list(philox(*line[:6])) == line[6:]
    assert list(compiled(*line[:6])) == line[6:]


def test_compiled_words_are_those_of_plain_numpy():
    words, _, _ = drawn(1000, "float32")
    n, zero = np.arange(1000, dtype=np.uint64), np.zeros(1000, np.uint64)
    s0, s1 = (np.full_like(n, part) for part in split(2))
    plain = philox(n, zero, s0, s1, *split(1))
    assert (words == np.stack(plain, 1)).all() and (words < 2**32).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_are_those_of_the_formula(dtype):
    words, uniforms, normals = drawn(20_000, dtype)
    exact = (words + 0.5) * 2.0**-32
    eps = np.finfo(dtype).eps
    assert uniforms.dtype == dtype and (uniforms > 0).all() and (uniforms <= 1).all()
    assert np.abs(uniforms - exact[:, :2]).max() <= eps
    rounded = words[:, ::2].astype(dtype) * np.dtype(dtype).type(2.0**-32) + np.dtype(dtype).type(2.0**-33)
    r = np.sqrt(-2 * np.log(rounded.astype(np.float64)))
    turns = words[:, 1::2] >> np.uint64(30)
    part = (words[:, 1::2] << np.uint64(2)).astype(np.uint32).view(np.int32) * 2.0**-32
    angle = np.pi / 2 * (turns + part)
    expected = np.stack([r * np.cos(angle), r * np.sin(angle)], 2).reshape(-1, 4)
    assert np.abs(normals - expected).max() <= 4 * eps * np.abs(expected).max()


def test_plain_python_and_compiled_code_agree():
    words, uniforms, normals = drawn(200, "float32")
    one = np.float32(1)
    for w, u, z in zip(words, uniforms, normals):
        assert uniform(w[0], one) == u[0]
        assert np.abs(np.array(normal_pair(w[0], w[1], one)) - z[:2]).max() <= 4e-6


def test_numbers_have_their_distributions():
    """Kolmogorov's test of each column, and the correlations between them; the seed is fixed."""
    n = 200_000
    _, uniforms, normals = drawn(n, "float64", seed=3)
    for k in range(2):
        assert stats.kstest(uniforms[:, k], "uniform").pvalue > 1e-3
    for k in range(4):
        assert stats.kstest(normals[:, k], "norm").pvalue > 1e-3
    together = np.corrcoef(np.concatenate([normals, normals**2], 1).T) - np.eye(8)
    assert np.abs(together).max() < 5 / np.sqrt(n)


def test_a_seed_has_64_bits():
    assert split(2**64 - 1) == (2**32 - 1, 2**32 - 1)
    for bad in (-1, 2**64):
        with pytest.raises(ValueError, match=r"0 to 2\*\*64 - 1"):
            split(bad)
