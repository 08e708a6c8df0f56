"""Group normalisation with scale and shift, SiLU and a residual, in one pass over data that stays in cache.

With m and v the mean and the (biased) variance of each group of channels of a sample over all its points,

    xn = (x - m) / sqrt(v + eps),   z = gain xn + bias,   y = silu(z) + residual,   silu(z) = z / (1 + exp(-z))

(Wu & He, ECCV 2018, eq. 1-6; gain and bias hold the layer's weights and the scale and shift of a condition: Perez et
al., AAAI 2018, eq. 1.) Backward, with g the cotangent, s = 1/(1 + exp(-z)), dz = g s (1 + z (1 - s)) and <.> the mean
over a group:

    dbias = sum dz,   dgain = sum dz xn,   dx = (gain dz - <gain dz> - xn <gain dz xn>) / sqrt(v + eps),   dresidual = g

Mean and variance come from pieces of a group by Chan, Golub & LeVeque, Am. Statist. 37 (1983) 242, eq. 2.1: no
cancellation, one reading. Shapes: u (B, C, ...), gain and bias (B, C), mean and rate = 1/sqrt(v + eps) (B, groups).
A group is one worker's, so that results do not depend on the threads.
"""

import math

import numpy as np
from numba import njit

from fastdiff.kernels import _cuda
from fastdiff.kernels._contract import Kernel, Launch
from fastdiff.kernels._jit import FASTMATH, FLAGS, inner, kernel, wide_vectors
from fastdiff.kernels._math import exp_minus, exp_minus_constants, select
from fastdiff.kernels._part import AS_PART
from fastdiff.kernels._pointwise import CHUNK, dtype_of, flat, launch, like, line, workers_for
from fastdiff.kernels._run import SECOND, THIRD
from fastdiff.kernels._stream import fetch, finish_stream, stream
from fastdiff.kernels._team import counters, entry_of, next_piece, number_of, run, together
from fastdiff.kernels._threads import scratch


def _grouped(a, groups):
    return a.reshape(len(a), groups, -1)


def _wide(values, u):
    """(B, C) numbers in float64, with axes for the points of u."""
    return values.astype(np.float64).reshape(*values.shape, *[1] * (u.ndim - 2))


def _statistics(u, groups, eps):
    x = u.astype(np.float64).reshape(len(u), groups, -1 if u.size else 0)
    if not u.size:
        return np.zeros((len(u), groups)), np.zeros((len(u), groups))
    return x.mean(2), 1 / np.sqrt(x.var(2) + eps)


def _spread(values, u):
    """(B, groups) numbers for the channels of u."""
    return _wide(np.repeat(values, u.shape[1] // values.shape[1], 1), u)


def reference(u, gain, bias, groups, eps, silu=True, residual=None, out=None):
    """y, mean and rate in plain NumPy, float64."""
    mean, rate = _statistics(u, groups, float(eps))
    z = _wide(gain, u) * (u.astype(np.float64) - _spread(mean, u)) * _spread(rate, u) + _wide(bias, u)
    y = z / (1 + np.exp(-z)) if silu else z
    return y if residual is None else y + residual, mean, rate


def reference_backward(u, cotangent, mean, rate, gain, bias, silu=True, out=None):
    """dx, dgain and dbias in plain NumPy, float64."""
    points = tuple(range(2, u.ndim))
    xn = (u.astype(np.float64) - _spread(mean, u)) * _spread(rate, u)
    z = _wide(gain, u) * xn + _wide(bias, u)
    s = 1 / (1 + np.exp(-z))
    dz = cotangent * (s * (1 + z * (1 - s))) if silu else cotangent.astype(np.float64)
    dn = _wide(gain, u) * dz
    groups = mean.shape[1]
    if not u.size:
        return dn, np.zeros(gain.shape), np.zeros(gain.shape)
    first, second = (_spread(a.reshape(len(u), groups, -1).mean(2), u) for a in (dn, dn * xn))
    return (dn - first - xn * second) * _spread(rate, u), (dz * xn).sum(points), dz.sum(points)


# -- compiled ----------------------------------------------------------------------------------------------------------

TILE = 256  # numbers that are finished before they are written; for as many memory is asked at a time
NEAR = 1024  # numbers from asking for a residual to its use; what is read twice is asked for a group before
HELD = SECOND // 2  # bytes of a group whose slopes are kept in cache between the two sweeps of the backward pass
MOST_FLOAT, MOST_DOUBLE = 87.0, 708.0  # beyond them exp(-|z|) is as good as zero, and hardly a normal number
AROUND = THIRD  # bytes of input and result from which on the result goes past the caches

_loop = njit(fastmath=FASTMATH, **FLAGS, **AS_PART)
_sum = njit(fastmath={*FASTMATH, "reassoc"}, **FLAGS, **AS_PART)  # one order, fixed when compiled; NaN stays visible


@_sum
def _total(u, lo, hi, zero):
    total = zero
    for i in range(lo, hi):
        total += u[i]
    return total


@_sum
def _squares(u, mean, lo, hi, zero):
    total = zero
    for i in range(lo, hi):
        d = u[i] - mean
        total += d * d
    return total


@inner
def _mean_and_squares(u, lo, hi, sizes, zero):
    """Mean, and sum of squares about it, of u[lo:hi]. sizes: lengths of a chunk and of the last one, as floats."""
    mean, squares, count = zero, zero, zero
    chunk = np.uint64(CHUNK)
    while lo < hi:
        end = min(lo + chunk, hi)
        n = sizes[0] if end - lo == chunk else sizes[1]
        m = _total(u, lo, end, zero) / n
        s = _squares(u, m, lo, end, zero)
        d = m - mean
        both = count + n
        mean += d * (n / both)
        squares += s + d * d * (count * n / both)
        count = both
        lo = end
    return mean, squares


@inner
def _constants(sizes):
    """What the loops with an exponential hold in registers: bounds of its argument, and its constants."""
    k = sizes[7:]
    return (-sizes[6], sizes[6]), (k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], k[9])


@_loop
def _silu(t, into, u, a, b, lo, hi, one, bounds, constants):
    """silu(a u + b) to t[into:]."""
    for i in range(lo, hi):
        z = a * u[i] + b
        z = select(z < bounds[0], bounds[0], z)
        t[into + (i - lo)] = z / (one + exp_minus(select(z > bounds[1], bounds[1], z), constants))


@_loop
def _silu_plus(t, into, u, r, a, b, lo, hi, one, bounds, constants):
    for i in range(lo, hi):
        z = a * u[i] + b
        z = select(z < bounds[0], bounds[0], z)
        t[into + (i - lo)] = z / (one + exp_minus(select(z > bounds[1], bounds[1], z), constants)) + r[i]


@_loop
def _linear(t, into, u, a, b, lo, hi):
    for i in range(lo, hi):
        t[into + (i - lo)] = a * u[i] + b


@_loop
def _linear_plus(t, into, u, r, a, b, lo, hi):
    for i in range(lo, hi):
        t[into + (i - lo)] = (a * u[i] + b) + r[i]


@kernel()
def run_forward(counter, u, gain, bias, residual, sizes, scrap, out, mean, rate, channels, points, silu, added, around):
    """Worker: groups of `channels` channels of `points` points. sizes: chunk, rest, group, eps, 0, 1, as floats.

    `scrap` holds `TILE` numbers for each worker. `around`: results go to memory past the caches.
    """
    wide_vectors()
    channels, points, tile, near = np.uint64(channels), np.uint64(points), np.uint64(TILE), np.uint64(NEAR)
    eps, zero, one = sizes[3], sizes[4], sizes[5]
    bounds, constants = _constants(sizes)
    me, group = number_of(counter), channels * points
    t = scrap[me * TILE : (me + 1) * TILE]
    there = t if around else out
    while True:
        g = next_piece(counter, me, len(mean))
        if g >= np.uint64(len(mean)):
            break
        first = g * channels
        m, squares = _mean_and_squares(u, first * points, first * points + group, sizes, zero)
        r = one / np.sqrt(squares / sizes[2] + eps)
        mean[g] = m
        rate[g] = r
        for c in range(first, first + channels):
            a = gain[c] * r
            b, lo, end = bias[c] - a * m, c * points, (c + np.uint64(1)) * points
            while lo < end:
                hi = min(lo + tile, end)
                fetch(u, lo + group, hi + group)
                if added:
                    fetch(residual, lo + near, hi + near)
                into = np.uint64(0) if around else lo
                if silu and added:
                    _silu_plus(there, into, u, residual, a, b, lo, hi, one, bounds, constants)
                elif silu:
                    _silu(there, into, u, a, b, lo, hi, one, bounds, constants)
                elif added:
                    _linear_plus(there, into, u, residual, a, b, lo, hi)
                else:
                    _linear(there, into, u, a, b, lo, hi)
                if around:
                    stream(out, lo, t, into, hi - lo)
                lo = hi
    if around:
        finish_stream()


@_sum
def _slope(dz, into, u, g, m, a, b, lo, hi, zero, one, bounds, constants):
    """dz to dz[into:], and its sums with 1 and u - m."""
    first, second = zero, zero
    for i in range(lo, hi):
        x = u[i] - m
        z = a * x + b
        z = select(z < bounds[0], bounds[0], z)
        s = one / (one + exp_minus(select(z > bounds[1], bounds[1], z), constants))
        d = (g[i] * s) * (one + z * (one - s))
        dz[into + (i - lo)] = d
        first += d
        second += d * x
    return first, second


@_sum
def _slope_linear(dz, into, u, g, m, lo, hi, zero):
    first, second = zero, zero
    for i in range(lo, hi):
        d = g[i]
        dz[into + (i - lo)] = d
        first += d
        second += d * (u[i] - m)
    return first, second


@_loop
def _finish(t, at, dz, into, u, m, k, k1, k2, lo, hi):
    """gain dz - k1 - (u - m) k2 to t[at:], all three with the rate in them, k2 with its square."""
    for i in range(lo, hi):
        t[at + (i - lo)] = (k * dz[into + (i - lo)] - k1) - (u[i] - m) * k2


@kernel()
def run_backward(counter, u, cotangent, mean, rate, gain, bias, sizes, scrap, dx, dgain, dbias, channels, points, silu,
                 around, held):
    """Worker: as `run_forward`. `held`: the slopes of a group fit into `scrap`, `TILE` and a group for each worker."""
    wide_vectors()
    channels, points, tile = np.uint64(channels), np.uint64(points), np.uint64(TILE)
    zero, one, next_channel = sizes[4], sizes[5], np.uint64(1)
    bounds, constants = _constants(sizes)
    me, group = number_of(counter), channels * points
    size = np.int64(TILE) + (np.int64(group) if held else np.int64(0))
    t = scrap[me * size : me * size + TILE]
    slopes = scrap[me * size + TILE : (me + 1) * size] if held else dx
    around = around or not held  # else the last sweep would read what it writes
    there = t if around else dx
    while True:
        g = next_piece(counter, me, len(mean))
        if g >= np.uint64(len(mean)):
            break
        m, r, first, second = mean[g], rate[g], zero, zero
        begin = np.uint64(0) if held else g * group
        for c in range(g * channels, (g + next_channel) * channels):
            lo, hi = c * points, (c + next_channel) * points
            into = begin + (lo - g * group)
            if silu:
                one_sum, x_sum = zero, zero
                while lo < hi:
                    end = min(lo + tile, hi)
                    fetch(u, lo + group, end + group)
                    fetch(cotangent, lo + group, end + group)
                    sums = _slope(slopes, into, u, cotangent, m, gain[c] * r, bias[c], lo, end, zero, one, bounds,
                                  constants)
                    one_sum += sums[0]
                    x_sum += sums[1]
                    into += tile
                    lo = end
            else:
                one_sum, x_sum = _slope_linear(slopes, into, u, cotangent, m, lo, hi, zero)
            dbias[c] = one_sum
            dgain[c] = x_sum * r
            first += gain[c] * one_sum
            second += gain[c] * dgain[c]
        first, second = r * (first / sizes[2]), (r * r) * (second / sizes[2])
        for c in range(g * channels, (g + next_channel) * channels):
            lo, end = c * points, (c + next_channel) * points
            while lo < end:
                hi = min(lo + tile, end)
                if not silu:
                    fetch(u, lo + group, hi + group)
                    fetch(cotangent, lo + group, hi + group)
                at = np.uint64(0) if around else lo
                _finish(there, at, slopes, begin + (lo - g * group), u, m, r * gain[c], first, second, lo, hi)
                if around:
                    stream(dx, lo, t, at, hi - lo)
                lo = hi
    if around:
        finish_stream()


_forward_entry, _backward_entry = entry_of(run_forward), entry_of(run_backward)


@kernel()
def forward_together(board, helpers, args):
    """`run_forward` with helpers."""
    together(board, helpers, _forward_entry, args)


@kernel()
def backward_together(board, helpers, args):
    """`run_backward` with helpers."""
    together(board, helpers, _backward_entry, args)


# -- calls -------------------------------------------------------------------------------------------------------------


def check_groups(channels: int, groups: int) -> None:
    """Refuse groups that do not divide the channels."""
    if groups < 1 or channels % groups:
        fits = [g for g in range(1, channels + 1) if channels % g == 0]
        raise ValueError(f"{groups} groups do not divide {channels} channels; groups that do: "
                         f"{', '.join(map(str, fits))}")


def affine(weight, bias, scale, shift) -> tuple:
    """gain and bias of weight n (1 + scale) + bias (1 + scale) + shift, arrays or tensors; a part may be None."""
    gain, offset = 1 if weight is None else weight, 0 if bias is None else bias
    if scale is not None:
        more = 1 + scale
        gain, offset = more if weight is None else gain * more, offset * more
    return gain, offset if shift is None else offset + shift


def affine_backward(dgain, dbias, weight, bias, scale, shift) -> tuple:
    """Cotangents of what `affine` was given, from those of its results (B, C)."""
    more = None if scale is None else 1 + scale
    to_weight, to_bias = ((d if more is None else d * more).sum(0) if part is not None else None
                          for d, part in ((dgain, weight), (dbias, bias)))
    if scale is None:
        to_scale = None
    else:
        to_scale = dgain if weight is None else dgain * weight
        to_scale = to_scale if bias is None else to_scale + dbias * bias
    return to_weight, to_bias, to_scale, None if shift is None else dbias


def _sizes(channels, points, eps, dtype):
    """What the compiled code wants to know as floats: chunk, rest, numbers of a group, eps, 0, 1; then of exp."""
    n = channels * points
    most = MOST_FLOAT if np.dtype(dtype) == np.float32 else MOST_DOUBLE
    return np.array([CHUNK, n % CHUNK or CHUNK, n, eps, 0, 1, most, *exp_minus_constants()], dtype)


def _counts(shape, groups):
    check_groups(shape[1], groups)
    return shape[1] // groups, math.prod(shape[2:])


def cpu(u, gain, bias, groups, eps, silu=True, residual=None, out=None, threads=None):
    """y, mean and rate."""
    channels, points = _counts(u.shape, groups)
    dtype = u.dtype
    out = (np.empty_like(u), *(np.empty((len(u), groups), dtype) for _ in range(2))) if out is None else out
    x, a, b = flat(u, dtype), flat(gain, dtype), flat(bias, dtype)
    r, added = (x, False) if residual is None else (flat(residual, dtype), True)
    sizes, there = _sizes(channels, points, eps, dtype), [o.reshape(-1) for o in out]
    workers, around = workers_for(len(u) * groups, u.size, threads), 2 * u.nbytes >= AROUND
    scrap = scratch(workers * TILE, dtype)
    run(forward_together, (counters(workers), x, a, b, r, sizes, scrap, *there, channels, points, silu, added, around),
        workers)
    return out


def backward(u, cotangent, mean, rate, gain, bias, silu=True, out=None, threads=None):
    """dx, dgain and dbias."""
    channels, points = _counts(u.shape, mean.shape[1])
    dtype = u.dtype
    out = (np.empty_like(u), np.empty_like(gain), np.empty_like(gain)) if out is None else out
    given = [flat(a, dtype) for a in (u, cotangent, mean, rate, gain, bias)]
    sizes, there = _sizes(channels, points, 0, dtype), [o.reshape(-1) for o in out]
    workers, held = workers_for(mean.size, u.size, threads), channels * points * dtype.itemsize <= HELD
    scrap = scratch(workers * (TILE + (channels * points if held else 0)), dtype)
    flags = channels, points, silu, 2 * u.nbytes >= AROUND, held
    run(backward_together, (counters(workers), *given, sizes, scrap, *there, *flags), workers)
    return out


def _threads():
    return 8 if _cuda.simulated() else 256


def cuda(u, gain, bias, groups, eps, silu=True, residual=None, out=None, stream=None):
    """As `cpu`, on the GPU: a block of threads for each group."""
    channels, points = _counts(u.shape, groups)
    if out is None:
        out = like(u), *(like(_rows(gain, groups)) for _ in range(2))
    x, added = line(u), residual is not None
    r = line(residual) if added else x
    sizes = _sizes(channels, points, eps, dtype_of(u))
    if len(u):
        from fastdiff.kernels._generative_cuda import group_norm_kernels

        forward, _ = group_norm_kernels(dtype_of(u), _threads())
        launch(forward, len(u) * groups, _threads(), (x, line(gain), line(bias), r, sizes), tuple(map(line, out)),
               (channels, points, int(silu), int(added)), stream)
    return out


def _rows(gain, groups):
    """Something of shape (B, groups), of gain's kind."""
    return gain[:, :1].repeat(groups, 1) if isinstance(gain, np.ndarray) else gain[:, :groups].contiguous()


def backward_cuda(u, cotangent, mean, rate, gain, bias, silu=True, out=None, stream=None):
    """As `backward`, on the GPU."""
    channels, points = _counts(u.shape, mean.shape[1])
    out = (like(u), like(gain), like(gain)) if out is None else out
    sizes = _sizes(channels, points, 0, dtype_of(u))
    if len(u):
        from fastdiff.kernels._generative_cuda import group_norm_kernels

        launch(group_norm_kernels(dtype_of(u), _threads())[1], len(u) * mean.shape[1], _threads(),
               (*map(line, (u, cotangent, mean, rate, gain, bias)), sizes), tuple(map(line, out)),
               (channels, points, int(silu)), stream)
    return out


# -- the contract ------------------------------------------------------------------------------------------------------

SHAPES = {
    (1, 4, 2): "two points a channel",
    (2, 4, 3, 5): "primes, two axes",
    (1, 4, 2, 3, 2): "three axes",
    (3, 8, 1): "a single point: one number a channel",
    (2, 12, 17, 31): "ragged vectors",
    (1, 8, 4099): "groups of several chunks, with a rest",
    (2, 4, 64, 64): "groups of whole chunks",
    (0, 4, 5): "no samples",
}


def _sample(silu, residual):
    def sample(shape, dtype, rng):
        def of(*shape):
            return rng.standard_normal(shape).astype(dtype)

        return dict(u=(3 * of(*shape) + 2).astype(dtype), gain=of(*shape[:2]), bias=of(*shape[:2]), groups=4 // 2,
                    eps=1e-5, silu=silu, residual=of(*shape) if residual else None)

    return sample


def _sample_backward(silu):
    def sample(shape, dtype, rng):
        given = _sample(silu, False)(shape, dtype, rng)
        mean, rate = _statistics(given["u"], 2, 1e-5)
        return dict(u=given["u"], cotangent=rng.standard_normal(shape).astype(dtype), mean=mean.astype(dtype),
                    rate=rate.astype(dtype), gain=given["gain"], bias=given["bias"], silu=silu)

    return sample


def _outputs(u, gain, groups, **_):
    return u, np.empty((len(u), groups), u.dtype), np.empty((len(u), groups), u.dtype)


def _machine_code(backwards):
    def machine_code(dtype):
        from numba import from_dtype, types

        a, n, flag = types.Array(from_dtype(dtype), 1, "C"), types.Array(types.int64, 1, "C"), types.boolean
        numbers = types.int64, types.int64, flag
        if backwards:
            return [(run_backward, (n, *[a] * 11, *numbers, flag, flag))]
        return [(run_forward, (n, *[a] * 9, *numbers, flag, flag))]

    return machine_code


def _ptx(backwards):
    def ptx(dtype):
        a = np.zeros(1, dtype)
        from fastdiff.kernels._generative_cuda import group_norm_kernels

        forward, back = group_norm_kernels(str(dtype), 256)
        if backwards:
            return [Launch("backward", back, (*[a] * 10, 1, 1, 1), (256, 1))]
        return [Launch("forward", forward, (*[a] * 8, 1, 1, 1, 1), (256, 1))]

    return ptx


def _kernel(name, silu, residual, flops):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(silu, residual), shapes=SHAPES,
                  outputs=_outputs, large=(32, 128, 32, 32), machine_code=_machine_code(False), ptx=_ptx(False),
                  bytes_per_cell=2 + residual, flops_per_cell=flops, tolerance=16)


def _kernel_backward(name, silu, flops):
    return Kernel(name=name, reference=reference_backward, cpu=backward, cuda=backward_cuda,
                  sample=_sample_backward(silu), shapes=SHAPES, outputs=lambda u, gain, **_: (u, gain, gain),
                  large=(32, 128, 32, 32), machine_code=_machine_code(True), ptx=_ptx(True), bytes_per_cell=3,
                  flops_per_cell=flops, tolerance=32)


KERNELS = [
    _kernel("group_norm", False, False, 7),
    _kernel("group_norm_silu", True, False, 25),
    _kernel("group_norm_silu_residual", True, True, 26),
    _kernel_backward("group_norm_backward", False, 14),
    _kernel_backward("group_norm_silu_backward", True, 38),
]
