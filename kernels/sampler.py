"""One step of the reverse process of a diffusion model, for every sampler that is linear in what it knows.

From the state x, the network's output m and, where a sampler wants them, its output without the condition m', an
older array o and noise z:

    e  = m + w (m - m')                         classifier-free guidance (Ho & Salimans, arXiv 2207.12598, eq. 6)
    x0 = clip(cx x + cm e, -c, c)               the estimate of the data
    x' = kd x0 + kx x + km e + ko o + s z

DDPM (Ho et al., NeurIPS 2020, eq. 7 and 11), DDIM (Song et al., ICLR 2021, eq. 12), Euler and Heun (Karras et al.,
NeurIPS 2022, algorithm 1) and DPM-Solver++ 2M (Lu et al., arXiv 2211.01095, algorithm 2) are ten numbers each, made in
float64 on the host: one pass over memory, and nothing waits for the device. Clipping keeps NaN.

Shapes: u = x, model, without, old, noise and the result alike (B, ...); coefficients (10,) in the order of
`Coefficients`, shared by all samples. With `estimate` the result is a pair, x' and x0. Units: any.
With `draw` the noise is made inside, by the counters of kernels/noise.py: the same for any threads and batches.

Weighted mean square, the loss: sum over samples of w_b / N_b * sum (a - b)^2; its gradient 2 g w_b / N_b (a - b).
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from fastdiff.kernels._contract import Kernel, Launch
from fastdiff.kernels._jit import FASTMATH, FLAGS, inner, kernel, wide_vectors
from fastdiff.kernels._part import AS_PART
from fastdiff.kernels._pointwise import CHUNK, dtype_of, flat, grid_for, launch, like, line, workers_for
from fastdiff.kernels._team import counters, entry_of, next_piece, number_of, run, together
from fastdiff.kernels._threads import scratch
from fastdiff.kernels.noise import (
    PART,
    SHAPES,
    Draw,
    draw_reference,
    fill_normal,
)


class Coefficients(NamedTuple):
    """What one step of a sampler is made of; see above."""

    data_state: float = 1.0  # cx
    data_model: float = 0.0  # cm
    clip: float = np.inf  # c
    data: float = 0.0  # kd
    state: float = 0.0  # kx
    model: float = 0.0  # km
    old: float = 0.0  # ko
    noise: float = 0.0  # s
    guidance: float = 0.0  # w
    unused: float = 0.0

    def array(self, dtype) -> np.ndarray:
        """(10,) numbers of a dtype."""
        return np.array(self, dtype)


# -- references ------------------------------------------------------------------------------------------------------


def reference(u, model, coefficients, without=None, old=None, noise=None, draw=None, estimate=False, out=None):
    """One step in plain NumPy, float64; with `estimate` the pair of x' and x0."""
    k = Coefficients(*coefficients.astype(np.float64))
    x, e = u.astype(np.float64), model.astype(np.float64)
    if without is not None:
        e = e + k.guidance * (e - without)
    data = np.clip(k.data_state * x + k.data_model * e, -k.clip, k.clip)
    new = k.data * data + k.state * x + k.model * e
    if old is not None:
        new = new + k.old * old
    if noise is not None or draw is not None:
        new = new + k.noise * (draw_reference(u.shape, u.dtype, draw) if noise is None else noise)
    return (new, data) if estimate else new


def _lines(values, ndim):
    return values.astype(np.float64).reshape(-1, *[1] * (ndim - 1))


def loss_reference(u, target, weight, out=None):
    """The weighted mean square of each sample (B,), in plain NumPy, float64."""
    squares = (u.astype(np.float64) - target) ** 2
    return weight * squares.mean(tuple(range(1, u.ndim)))


def loss_gradient_reference(u, target, weight, out=None):
    """2 w_b / N_b (u - target), in plain NumPy, float64."""
    size = max(int(np.prod(u.shape[1:], dtype=int)), 1)
    return _lines(2 * weight.astype(np.float64) / size, u.ndim) * (u.astype(np.float64) - target)


# -- compiled --------------------------------------------------------------------------------------------------------


@inner
def _clipped(d, c):
    """d within [-c, c]; NaN stays."""
    d = c if d > c else d
    return -c if d < -c else d


@inner
def _step(out, u, m, cx, cm, c, kd, kx, km, lo, hi):
    for i in range(lo, hi):
        x, e = u[i], m[i]
        out[i] = kd * _clipped(cx * x + cm * e, c) + (kx * x + km * e)


@inner
def _step_estimate(out, data, u, m, cx, cm, c, kd, kx, km, lo, hi):
    for i in range(lo, hi):
        x, e = u[i], m[i]
        d = _clipped(cx * x + cm * e, c)
        out[i] = kd * d + (kx * x + km * e)
        data[i] = d


@inner
def _guide(e, m, without, w, lo, hi):
    """m + w (m - m') into e, which begins at 0."""
    for i in range(lo, hi):
        e[i - lo] = m[i] + w * (m[i] - without[i])


@inner
def _step_guided(out, data, u, e, cx, cm, c, kd, kx, km, lo, hi, estimate):
    if estimate:
        for i in range(lo, hi):
            x, f = u[i], e[i - lo]
            d = _clipped(cx * x + cm * f, c)
            out[i] = kd * d + (kx * x + km * f)
            data[i] = d
    else:
        for i in range(lo, hi):
            x, f = u[i], e[i - lo]
            out[i] = kd * _clipped(cx * x + cm * f, c) + (kx * x + km * f)


@inner
def _add(out, e, shift, s, lo, hi):
    for i in range(lo, hi):
        out[i] += s * e[i - shift]


NONE, GIVEN, DRAWN = 0, 1, 2  # noise


@kernel()
def run_step(counter, u, m, without, old, noise, k, words, z, out, data, size, guided, has_old, noisy, estimate):
    """Worker: pieces of `CHUNK` numbers of a sample until none is left."""
    wide_vectors()
    chunk, part, zero = np.uint64(CHUNK), np.uint64(PART), np.uint64(0)
    size = np.uint64(size)
    cuts = (size + chunk - np.uint64(1)) // chunk
    pieces, me = np.uint64(len(u)) // max(size, np.uint64(1)) * cuts, number_of(counter)
    z = z[me * PART : (me + 1) * PART]
    cx, cm, c, kd, kx, km, ko, s, w = k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8]
    while True:
        piece = next_piece(counter, me, pieces)
        if piece >= pieces:
            break
        b, begin = piece // cuts, piece % cuts * chunk
        end = min(begin + chunk, size)
        while begin < end:
            here = min(part, end - begin)
            lo = b * size + begin
            hi = lo + here
            if guided:
                _guide(z, m, without, w, lo, hi)
                _step_guided(out, data, u, z, cx, cm, c, kd, kx, km, lo, hi, estimate)
            elif estimate:
                _step_estimate(out, data, u, m, cx, cm, c, kd, kx, km, lo, hi)
            else:
                _step(out, u, m, cx, cm, c, kd, kx, km, lo, hi)
            if has_old:
                _add(out, old, zero, ko, lo, hi)
            if noisy == GIVEN:
                _add(out, noise, zero, s, lo, hi)
            elif noisy == DRAWN:
                fill_normal(z, begin, here, b + words[4], words, s)
                _add(out, z, lo, s, lo, hi)
            begin += part


_sum = njit(fastmath={*FASTMATH, "reassoc"}, **FLAGS, **AS_PART)  # one order, fixed when compiled; NaN stays visible


@_sum
def _square_sum(u, v, lo, hi, zero):
    total = zero
    for i in range(lo, hi):
        d = u[i] - v[i]
        total += d * d
    return total


@kernel()
def run_loss(counter, u, v, zero, out, size):
    """Worker: the sum of squares of each piece, to out[piece]."""
    wide_vectors()
    chunk, size = np.uint64(CHUNK), np.uint64(size)
    cuts, me = (size + chunk - np.uint64(1)) // chunk, number_of(counter)
    while True:
        piece = next_piece(counter, me, len(out))
        if piece >= np.uint64(len(out)):
            break
        b, begin = piece // cuts, piece % cuts * chunk
        end = min(begin + chunk, size)
        out[piece] = _square_sum(u, v, b * size + begin, b * size + end, zero[0])


@inner
def _scaled_difference(out, u, v, k, lo, hi):
    for i in range(lo, hi):
        out[i] = k * (u[i] - v[i])


@kernel()
def run_loss_gradient(counter, u, v, k, out, size):
    """Worker: out = k (u - v), k one for each sample."""
    wide_vectors()
    chunk, size = np.uint64(CHUNK), np.uint64(size)
    cuts = (size + chunk - np.uint64(1)) // chunk
    pieces, me = np.uint64(len(k)) * cuts, number_of(counter)
    while True:
        piece = next_piece(counter, me, pieces)
        if piece >= pieces:
            break
        b, begin = piece // cuts, piece % cuts * chunk
        end = min(begin + chunk, size)
        _scaled_difference(out, u, v, k[b], b * size + begin, b * size + end)


_step_entry, _loss_entry, _gradient_entry = entry_of(run_step), entry_of(run_loss), entry_of(run_loss_gradient)


@kernel()
def step_together(board, helpers, args):
    """`run_step` with helpers."""
    together(board, helpers, _step_entry, args)


@kernel()
def loss_together(board, helpers, args):
    """`run_loss` with helpers."""
    together(board, helpers, _loss_entry, args)


@kernel()
def gradient_together(board, helpers, args):
    """`run_loss_gradient` with helpers."""
    together(board, helpers, _gradient_entry, args)


# -- calls -------------------------------------------------------------------------------------------------------------

_NO_WORDS = np.zeros(5, np.uint64)


def _size(u):
    return math.prod(u.shape[1:])


def cpu(u, model, coefficients, without=None, old=None, noise=None, draw=None, estimate=False, out=None, threads=None):
    """One step; with `estimate` the pair of x' and x0."""
    out = out if out is not None else (np.empty_like(u), np.empty_like(u)) if estimate else np.empty_like(u)
    new, data = (a.reshape(-1) for a in (out if estimate else (out, out)))
    size, dtype = _size(u), u.dtype
    x, m = flat(u, dtype), flat(model, dtype)
    other, before, e = (x if a is None else flat(a, dtype) for a in (without, old, noise))
    k = flat(coefficients, dtype)
    noisy = GIVEN if noise is not None else NONE if draw is None else DRAWN
    words = draw.words() if draw is not None and noisy == DRAWN else _NO_WORDS

    numbers = x.size // (1 if noisy == DRAWN else 4)
    workers = workers_for(u.shape[0] * -(-size // CHUNK), numbers, threads)
    flags = size, without is not None, old is not None, noisy, estimate
    z = scratch(workers * PART, dtype)
    run(step_together, (counters(workers), x, m, other, before, e, k, words, z, new, data, *flags), workers)
    return out


def loss(u, target, weight, out=None, threads=None):
    """The weighted mean square of each sample (B,)."""
    size, dtype = _size(u), u.dtype
    out = np.empty(len(u), dtype) if out is None else out
    cuts = -(-size // CHUNK)
    sums, a, b = np.zeros(len(u) * cuts, dtype), flat(u, dtype), flat(target, dtype)
    workers = workers_for(len(sums), a.size // 4, threads)
    run(loss_together, (counters(workers), a, b, np.zeros(1, dtype), sums, size), workers)
    out[...] = weight * sums.reshape(len(u), cuts).sum(1, dtype=np.float64) / max(size, 1) if len(u) else 0
    return out


def loss_gradient(u, target, weight, out=None, threads=None):
    """2 w_b / N_b (u - target)."""
    out = np.empty_like(u) if out is None else out
    size, dtype = _size(u), u.dtype
    k, a, b = flat(2 * weight.astype(np.float64) / max(size, 1), dtype), flat(u, dtype), flat(target, dtype)
    workers = workers_for(len(k) * -(-size // CHUNK), a.size // 4, threads)
    run(gradient_together, (counters(workers), a, b, k, out.reshape(-1), size), workers)
    return out


def cuda(u, model, coefficients, without=None, old=None, noise=None, draw=None, estimate=False, out=None, stream=None):
    """As `cpu`, on the GPU; device arrays or NumPy's. `coefficients` may stay on the host."""
    out = out if out is not None else (like(u), like(u)) if estimate else like(u)
    new, data = out if estimate else (out, like(coefficients))  # the second is not written
    numbers, x = int(np.prod(tuple(u.shape), dtype=int)), line(u)
    other, before, e = (x if a is None else line(a) for a in (without, old, noise))
    flags = int(without is not None), int(old is not None), int(noise is not None), int(estimate)
    from fastdiff.kernels._generative_cuda import step_drawn, step_given

    if numbers and draw is not None:
        launch(step_drawn, *grid_for(numbers // 4 + 1), (x, line(model), other, before, coefficients, draw.words()),
               (line(new), line(data)), (_size(u), flags[0], flags[1], flags[3]), stream)
    elif numbers:
        launch(step_given, *grid_for(numbers), (x, line(model), other, before, e, coefficients),
               (line(new), line(data)), flags, stream)
    return out


def loss_cuda(u, target, weight, out=None, stream=None):
    """As `loss`, on the GPU."""
    size = _size(u)
    out = like(weight) if out is None else out
    if len(u) and size:
        threads = grid_for(size)[1]
        from fastdiff.kernels._generative_cuda import loss_kernels

        launch(loss_kernels(dtype_of(u), threads)[0], len(u), threads, (line(u), line(target), weight / size), (out,),
               (size,), stream)
    return out


def loss_gradient_cuda(u, target, weight, out=None, stream=None):
    """As `loss_gradient`, on the GPU."""
    size, out = _size(u), like(u) if out is None else out
    if len(u) and size:
        blocks, threads = grid_for(len(u) * size)
        from fastdiff.kernels._generative_cuda import loss_kernels

        launch(loss_kernels(dtype_of(u), threads)[1], blocks, threads, (line(u), line(target), weight * (2 / size)),
               (line(out),), (size,), stream)
    return out


# -- the contract ----------------------------------------------------------------------------------------------------


def _sample(kind):
    def sample(shape, dtype, rng):
        def field():
            return rng.standard_normal(shape).astype(dtype)

        k = Coefficients(1.25, -0.75, 0.9 if kind != "linear" else np.inf, 0.6, 0.3, 0.4 if kind != "ddpm" else 0.0,
                         -0.2, 0.15, 1.5)
        drawn = kind in ("ddpm", "all")
        return dict(u=field(), model=field(), coefficients=k.array(dtype),
                    without=field() if kind in ("guided", "all") else None,
                    old=field() if kind in ("multistep", "all") else None,
                    noise=field() if kind == "given" else None, draw=Draw(3, 2**33, 5) if drawn else None,
                    estimate=kind in ("multistep", "all"))

    return sample


def _array(dtype):
    from numba import from_dtype, types

    return types.Array(from_dtype(np.dtype(dtype)), 1, "C")


def _machine_code(dtype):
    from numba import types

    a, b = _array(dtype), types.boolean
    numbers = types.int64, b, b, types.int64, b
    return [(run_step, (_array("int64"), a, a, a, a, a, a, _array("uint64"), a, a, a, *numbers))]


def _machine_code_loss(dtype):
    from numba import types

    a = _array(dtype)
    return [(run_loss, (_array("int64"), a, a, a, a, types.int64))]


def _machine_code_gradient(dtype):
    from numba import types

    a = _array(dtype)
    return [(run_loss_gradient, (_array("int64"), a, a, a, a, types.int64))]


def _ptx(kind):
    def ptx(dtype):
        a, words = np.zeros(1, dtype), np.zeros(5, np.uint64)
        from fastdiff.kernels._generative_cuda import step_drawn, step_given

        if kind in ("ddpm", "all"):
            return [Launch("drawn", step_drawn, (a, a, a, a, a, words, a, a, 1, 1, 1, 1), (256, 1))]
        return [Launch("step", step_given, (a, a, a, a, a, a, a, a, 1, 1, 1, 1), (256, 1))]

    return ptx


def _ptx_loss(which):
    def ptx(dtype):
        from fastdiff.kernels._generative_cuda import loss_kernels

        a = np.zeros(1, dtype)
        return [Launch("loss", loss_kernels(str(dtype), 256)[which], (a, a, a, a, 1), (256, 1))]

    return ptx


def _kernel(name, kind, bytes_per_cell, flops):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(kind), shapes=SHAPES,
                  outputs=lambda u, estimate, **_: (u, u) if estimate else u, large=(128, 3, 64, 64),
                  machine_code=_machine_code, ptx=_ptx(kind), bytes_per_cell=bytes_per_cell, flops_per_cell=flops,
                  tolerance=8)


def _loss_sample(shape, dtype, rng):
    u, target = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    return dict(u=u, target=target, weight=rng.uniform(0.5, 2, shape[0]).astype(dtype))


KERNELS = [
    _kernel("reverse_step", "linear", 3, 9),
    _kernel("reverse_step_noise", "given", 4, 13),
    _kernel("reverse_step_draw", "ddpm", 3, 13),
    _kernel("reverse_step_multistep", "multistep", 5, 13),
    _kernel("reverse_step_guided", "guided", 4, 14),
    _kernel("reverse_step_all", "all", 6, 18),
    Kernel(name="weighted_mse", reference=loss_reference, cpu=loss, cuda=loss_cuda, sample=_loss_sample, shapes=SHAPES,
           outputs=lambda u, target, weight: weight, large=(128, 3, 64, 64), machine_code=_machine_code_loss,
           ptx=_ptx_loss(0), bytes_per_cell=2, flops_per_cell=3, tolerance=16),
    Kernel(name="weighted_mse_gradient", reference=loss_gradient_reference, cpu=loss_gradient, cuda=loss_gradient_cuda,
           sample=_loss_sample, shapes=SHAPES, large=(128, 3, 64, 64), machine_code=_machine_code_gradient,
           ptx=_ptx_loss(1), bytes_per_cell=3, flops_per_cell=2, tolerance=8),
]
