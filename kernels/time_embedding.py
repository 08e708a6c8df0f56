"""Sinusoidal embedding of times: how a network is told how much noise there is.

    f_j = exp(-ln(period) j / (half - shift)),   y[b, j] = cos(t_b f_j),   y[b, half + j] = sin(t_b f_j)

(Vaswani et al., NeurIPS 2017, section 3.5, as Ho et al., NeurIPS 2020, use it.) The frequencies are made in float64
and rounded; so is each product t f, which is then the exact argument of cosine and sine. |t f| <= 12800 in float32.

Shapes: t (B,), frequencies (half,), result (B, 2 half).
"""

import numpy as np

from fastdiff.kernels._contract import Kernel, Launch
from fastdiff.kernels._jit import kernel, wide_vectors
from fastdiff.kernels._math import cos, sin
from fastdiff.kernels._pointwise import flat, grid_for, launch, line, workers_for
from fastdiff.kernels._team import counters, entry_of, next_piece, number_of, run, together


def frequencies(half: int, period: float = 10000.0, shift: float = 0.0) -> np.ndarray:
    """(half,) frequencies in float64, the first one 1."""
    return np.exp(-np.log(period) * np.arange(half) / max(half - shift, 1))


def reference(t, frequencies, out=None):
    """The embedding in plain NumPy: arguments rounded to the dtype, then float64."""
    x = (t[:, None] * frequencies[None]).astype(np.float64)
    return np.concatenate([np.cos(x), np.sin(x)], 1)


@kernel()
def run_embedding(counter, t, frequencies, out):
    """Worker: lines of the result until none is left."""
    wide_vectors()
    half, me = np.uint64(len(frequencies)), number_of(counter)
    while True:
        b = next_piece(counter, me, len(t))
        if b >= np.uint64(len(t)):
            break
        at, now = b * (half + half), t[b]
        for j in range(half):
            x = now * frequencies[j]
            out[at + j] = cos(x)
            out[at + half + j] = sin(x)


_entry = entry_of(run_embedding)


@kernel()
def embedding_together(board, helpers, args):
    """`run_embedding` with helpers."""
    together(board, helpers, _entry, args)


def cpu(t, frequencies, out=None, threads=None):
    """The embedding (B, 2 half)."""
    out = np.empty((len(t), 2 * len(frequencies)), t.dtype) if out is None else out
    a, b = flat(t, t.dtype), flat(frequencies, t.dtype)
    workers = workers_for(len(a), out.size, threads)
    run(embedding_together, (counters(workers), a, b, out.reshape(-1)), workers)
    return out


def cuda(t, frequencies, out=None, stream=None):
    """As `cpu`, on the GPU."""
    from fastdiff.kernels._generative_cuda import embedding

    if out is None:
        full = t[:, None] * frequencies[None]
        out = np.concatenate([full, full], 1) if isinstance(t, np.ndarray) else full.repeat(1, 2)
    numbers = len(t) * len(frequencies)
    if numbers:
        launch(embedding, *grid_for(numbers), (line(t), line(frequencies)), (line(out),), (), stream)
    return out


def _sample(shape, dtype, rng):
    return dict(t=(1000 * rng.random(shape[0])).astype(dtype), frequencies=frequencies(shape[1]).astype(dtype))


def _machine_code(dtype):
    from numba import from_dtype, types

    a = types.Array(from_dtype(dtype), 1, "C")
    return [(run_embedding, (types.Array(types.int64, 1, "C"), a, a, a))]


def _ptx(dtype):
    from fastdiff.kernels._generative_cuda import embedding

    a = np.zeros(1, dtype)
    return [Launch("embedding", embedding, (a, a, a), (256, 1))]


KERNELS = [
    Kernel(name="time_embedding", reference=reference, cpu=cpu, cuda=cuda, sample=_sample, large=(512, 512),
           shapes={(1, 1): "one number", (3, 7): "ragged", (0, 4): "no times", (130, 64): "many", (5, 129): "odd"},
           outputs=lambda t, frequencies: np.empty((len(t), 2 * len(frequencies)), t.dtype),
           machine_code=_machine_code, ptx=_ptx, bytes_per_cell=1, tolerance=4),
]
__all__ = ["KERNELS", "cpu", "cuda", "frequencies", "reference"]
