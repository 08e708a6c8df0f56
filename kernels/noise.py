"""The forward process of a diffusion model: data with noise, and what the network is to say of it.

    x_t = a x_0 + s e,     target = p x_0 + q e,     e ~ N(0, 1)

with four numbers a sample: (p, q) = (0, 1) is the noise e (Ho et al., NeurIPS 2020, eq. 4 and 14), (1, 0) the data,
(-s, a) the velocity v (Salimans & Ho, ICLR 2022, appendix D), and the target of EDM's preconditioned network is of
this form too (Karras et al., NeurIPS 2022, eq. 8). One pass over memory.

The noise is given, or made inside by Philox (_philox.py): number i of sample b in stream r of a seed is a function of
(seed, r, b, i) alone, whatever the threads and however a batch is cut. Numbers come in groups of 64 that share 16
counters of four words: i = 64 g + 16 w + l is made from word w of counter 16 g + l, where words 0 and 1, and 2 and 3,
are a pair of Box and Muller. The counter is (16 g + l, b, r): no two numbers share one.

Shapes: u, noise, x_t and target alike, (B, ...); coefficients (B, 4), each line (a, s, p, q). Units: any.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._contract import Kernel, Launch
from fastdiff.kernels._jit import inner, kernel, wide_vectors
from fastdiff.kernels._philox import everywhere, normal_pair, philox, split
from fastdiff.kernels._pointwise import CHUNK, dtype_of, flat, grid_for, launch, like, line, workers_for
from fastdiff.kernels._team import counters, entry_of, next_piece, number_of, run, together
from fastdiff.kernels._threads import scratch

GROUP, LANES = 64, 16
PART = 1024  # numbers of noise that are made before they are used: a part stays in L1


class Draw(NamedTuple):
    """Which noise: a seed and a stream, each from 0 to 2**64 - 1, and the number of the batch's first sample."""

    seed: int
    stream: int
    first: int = 0

    def words(self) -> np.ndarray:
        """(5,) uint64: the stream's two words, the seed's two words, the first sample."""
        if not 0 <= self.first < 1 << 32:
            raise ValueError(f"samples are numbered from 0 to 2**32 - 1, not from {self.first}")
        return np.array([*split(self.stream), *split(self.seed), self.first], np.uint64)


# -- the reference ---------------------------------------------------------------------------------------------------


def draw_reference(shape, dtype, draw) -> np.ndarray:
    """Standard normal noise (B, ...) in plain NumPy, float64, from the 32-bit words that a dtype would use."""
    size = int(np.prod(shape[1:], dtype=int))
    g, w, l = _places(size)
    s0, s1, k0, k1, first = map(int, draw.words())
    sample = (np.arange(shape[0], dtype=np.uint64) + np.uint64(first))[:, None]
    with np.errstate(over="ignore"):
        words = philox((LANES * g + l).astype(np.uint64)[None], sample, np.uint64(s0), np.uint64(s1), np.uint64(k0),
                       np.uint64(k1))
    words = [np.broadcast_to(word, (shape[0], size)).astype(np.float64) for word in words]
    radius, angle = np.where(w < 2, words[0], words[2]), np.where(w < 2, words[1], words[3])
    return _box_muller(radius, angle, w & 1 == 1, np.dtype(dtype)).reshape(shape)


def _places(size):
    i = np.arange(size)
    return i // GROUP, i % GROUP // LANES, i % LANES


def _box_muller(radius, angle, second, dtype):
    one = dtype.type
    uniform = (radius.astype(one) * one(2.0**-32) + one(2.0**-33)).astype(np.float64)
    quarter, rest = angle // 2.0**30, angle % 2.0**30
    turn = np.pi / 2 * quarter + 2 * np.pi * np.where(rest < 2.0**29, rest, rest - 2.0**30) / 2.0**32
    return np.sqrt(-2 * np.log(uniform)) * np.where(second, np.sin(turn), np.cos(turn))


def reference(u, coefficients, noise=None, draw: Any = None, target=False, out=None):
    """x_t, or with `target` the pair of x_t and target, in plain NumPy, float64."""
    x = u.astype(np.float64)
    e = draw_reference(u.shape, u.dtype, draw) if noise is None else noise.astype(np.float64)
    a, s, p, q = (coefficients[:, k].astype(np.float64).reshape(-1, *[1] * (u.ndim - 1)) for k in range(4))
    return (a * x + s * e, p * x + q * e) if target else a * x + s * e


def normal_reference(like, draw, out=None):
    """Noise alone, of the shape and dtype of `like`."""
    return draw_reference(like.shape, like.dtype, draw)


# -- compiled ----------------------------------------------------------------------------------------------------------


@everywhere
def normal4(n, sample, s0, s1, k0, k1, one):
    """The four numbers of counter `n` of a sample: elements l, 16 + l, 32 + l, 48 + l of its group."""
    w = philox(n, sample, s0, s1, k0, k1)
    a, b = normal_pair(w[0], w[1], one)
    c, d = normal_pair(w[2], w[3], one)
    return a, b, c, d


@inner
def fill_normal(z, first, count, sample, words, one):
    """Numbers `first` (a multiple of 64) to `first + count` of a sample to z, and a few more to fill the group."""
    lanes, group = np.uint64(LANES), np.uint64(GROUP)
    start = np.uint64(first) // group * lanes
    s0, s1, k0, k1 = words[0], words[1], words[2], words[3]
    for g in range((np.uint64(count) + group - np.uint64(1)) // group):
        place, n = g * group, start + g * lanes
        for l in range(np.uint64(0), lanes):
            a, b, c, d = normal4(n + l, sample, s0, s1, k0, k1, one)
            z[place + l] = a
            z[place + lanes + l] = b
            z[place + lanes + lanes + l] = c
            z[place + lanes + lanes + lanes + l] = d


@inner
def _mix(out, u, e, shift, a, s, lo, hi):
    """out = a u + s e from lo to hi; e begins at `shift`."""
    for i in range(lo, hi):
        out[i] = a * u[i] + s * e[i - shift]


@inner
def _mix_two(out, target, u, e, shift, a, s, p, q, lo, hi):
    for i in range(lo, hi):
        x, y = u[i], e[i - shift]
        out[i] = a * x + s * y
        target[i] = p * x + q * y


@kernel()
def run_noise(counter, u, coefficients, noise, words, z, out, target, size, given, two):
    """Worker: pieces of `CHUNK` numbers of a sample until none is left. `given`: noise is an array, not drawn."""
    wide_vectors()
    chunk, part, none = np.uint64(CHUNK), np.uint64(PART), np.uint64(0)
    size = np.uint64(size)
    cuts = (size + chunk - np.uint64(1)) // chunk
    pieces, me = np.uint64(len(u)) // max(size, np.uint64(1)) * cuts, number_of(counter)
    z = z[me * PART : (me + 1) * PART]
    while True:
        piece = next_piece(counter, me, pieces)
        if piece >= pieces:
            break
        b, begin = piece // cuts, piece % cuts * chunk
        end = min(begin + chunk, size)
        k = np.uint64(4) * b
        a, s = coefficients[k], coefficients[k + np.uint64(1)]
        p, q = coefficients[k + np.uint64(2)], coefficients[k + np.uint64(3)]
        base = b * size
        if given:
            if two:
                _mix_two(out, target, u, noise, none, a, s, p, q, base + begin, base + end)
            else:
                _mix(out, u, noise, none, a, s, base + begin, base + end)
            continue
        while begin < end:
            here = min(part, end - begin)
            fill_normal(z, begin, here, b + words[4], words, a)
            lo = base + begin
            if two:
                _mix_two(out, target, u, z, lo, a, s, p, q, lo, lo + here)
            else:
                _mix(out, u, z, lo, a, s, lo, lo + here)
            begin += part


@kernel()
def run_normal(counter, words, z, out, size):
    """Worker: as `run_noise`, the noise alone."""
    wide_vectors()
    chunk, part = np.uint64(CHUNK), np.uint64(PART)
    size = np.uint64(size)
    cuts = (size + chunk - np.uint64(1)) // chunk
    pieces, me = np.uint64(len(out)) // max(size, np.uint64(1)) * cuts, number_of(counter)
    z = z[me * PART : (me + 1) * PART]
    while True:
        piece = next_piece(counter, me, pieces)
        if piece >= pieces:
            break
        b, begin = piece // cuts, piece % cuts * chunk
        end = min(begin + chunk, size)
        while begin < end:
            here = min(part, end - begin)
            fill_normal(z, begin, here, b + words[4], words, z[0])
            lo = b * size + begin
            for i in range(lo, lo + here):
                out[i] = z[i - lo]
            begin += part


_noise_entry, _normal_entry = entry_of(run_noise), entry_of(run_normal)


@kernel()
def noise_together(board, helpers, args):
    """`run_noise` with helpers."""
    together(board, helpers, _noise_entry, args)


@kernel()
def normal_together(board, helpers, args):
    """`run_normal` with helpers."""
    together(board, helpers, _normal_entry, args)


# -- calls -----------------------------------------------------------------------------------------------------------

_NO_WORDS = np.zeros(5, np.uint64)


def _sizes(u):
    """Numbers of a sample, and pieces of work in the batch."""
    size = math.prod(u.shape[1:])
    return size, u.shape[0] * -(-size // CHUNK)


def _results(u, target, out):
    out = out if out is not None else (np.empty_like(u), np.empty_like(u)) if target else np.empty_like(u)
    return out, *(out if target else (out, out))


def cpu(u, coefficients, noise=None, draw: Any = None, target=False, out=None, threads=None):
    """x_t, or the pair of x_t and target; noise is either given or drawn."""
    out, first, second = _results(u, target, out)
    size, pieces = _sizes(u)
    given = noise is not None
    x, k = flat(u, u.dtype), flat(coefficients, u.dtype)
    e, words = (flat(noise, u.dtype), _NO_WORDS) if given else (x, draw.words())
    there = first.reshape(-1), second.reshape(-1)
    workers = workers_for(pieces, x.size // (4 if given else 1), threads)
    z = scratch(workers * PART, u.dtype)
    run(noise_together, (counters(workers), x, k, e, words, z, *there, size, given, target), workers)
    return out


def normal(like, draw, out=None, threads=None):
    """Noise alone, of the shape and dtype of `like`."""
    out = np.empty_like(like) if out is None else out
    size, pieces = _sizes(out)
    words, there = draw.words(), out.reshape(-1)
    workers = workers_for(pieces, out.size, threads)
    run(normal_together, (counters(workers), words, scratch(workers * PART, out.dtype), there, size), workers)
    return out


def cuda(u, coefficients, noise=None, draw: Any = None, target=False, out=None, stream=None):
    """As `cpu`, on the GPU; device arrays or NumPy's."""
    out = out if out is not None else tuple(like(u) for _ in range(2)) if target else like(u)
    first, second = out if target else (out, like(coefficients))  # the second is not written
    size = int(np.prod(tuple(u.shape[1:]), dtype=int))
    numbers = int(np.prod(tuple(u.shape), dtype=int))
    from fastdiff.kernels._generative_cuda import noise_drawn, noise_given

    if numbers and noise is not None:
        launch(noise_given, *grid_for(numbers), (line(u), line(coefficients), line(noise)), (line(first), line(second)),
               (size, int(target)), stream)
    elif numbers:
        launch(noise_drawn, *grid_for(numbers // 4 + 1), (line(u), line(coefficients), draw.words()),
               (line(first), line(second)), (size, int(target)), stream)
    return out


def normal_cuda(like, draw, out=None, stream=None):
    """As `normal`, on the GPU."""
    out = like(like) if out is None else out
    size, numbers = (int(np.prod(tuple(part), dtype=int)) for part in (out.shape[1:], out.shape))
    if numbers:
        from fastdiff.kernels._generative_cuda import noise_alone

        launch(noise_alone, *grid_for(numbers // 4 + 1), (draw.words(), np.ones(1, dtype_of(out))), (line(out),),
               (size,), stream)
    return out


# -- the contract ----------------------------------------------------------------------------------------------------

SHAPES = {
    (1, 1): "one number",
    (2, 7): "less than a group of 64 numbers",
    (3, 2, 5, 2): "several axes",
    (2, 70): "a group and a rest",
    (1, 1025): "one more than a part",
    (5, 3, 1381): "several pieces of work a sample, prime",
    (0, 4): "no samples",
    (300, 64): "many small samples",
}


def _sample(drawn, target):
    def sample(shape, dtype, rng):
        u = rng.standard_normal(shape).astype(dtype)
        angle = rng.uniform(0, np.pi / 2, shape[0])
        numbers = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], 1).astype(dtype)
        noise = None if drawn else rng.standard_normal(shape).astype(dtype)
        return dict(u=u, coefficients=numbers, noise=noise, draw=Draw(12345678901234567890, 2**40 + 3, 17) if drawn
                    else None, target=target)

    return sample


def _machine_code(dtype):
    from numba import from_dtype, types

    line, words = types.Array(from_dtype(dtype), 1, "C"), types.Array(types.uint64, 1, "C")
    count = types.Array(types.int64, 1, "C")
    return [(run_noise, (count, line, line, line, words, line, line, line, types.int64, types.boolean, types.boolean))]


def _machine_code_normal(dtype):
    from numba import from_dtype, types

    line, words = types.Array(from_dtype(dtype), 1, "C"), types.Array(types.uint64, 1, "C")
    return [(run_normal, (types.Array(types.int64, 1, "C"), words, line, line, types.int64))]


def _ptx(which):
    def ptx(dtype):
        from fastdiff.kernels import _generative_cuda as k

        line, words = np.zeros(1, dtype), np.zeros(5, np.uint64)
        arguments = {"given": (line, line, line, line, line, 1, 1), "drawn": (line, line, words, line, line, 1, 1),
                     "normal": (words, line, line, 1)}[which]
        function = {"given": k.noise_given, "drawn": k.noise_drawn, "normal": k.noise_alone}[which]
        return [Launch(which, function, arguments, (256, 1))]

    return ptx


def _kernel(name, drawn, target, bytes_per_cell):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(drawn, target), shapes=SHAPES,
                  outputs=lambda u, target, **_: (u, u) if target else u, large=(128, 3, 64, 64),
                  machine_code=_machine_code, ptx=_ptx("drawn" if drawn else "given"), bytes_per_cell=bytes_per_cell,
                  flops_per_cell=6 if target else 3, tolerance=8)


KERNELS = [
    _kernel("add_noise", False, False, 3),
    _kernel("add_noise_target", False, True, 4),
    _kernel("draw_noise", True, False, 2),
    _kernel("draw_noise_target", True, True, 3),
    Kernel(name="normal", reference=normal_reference, cpu=normal, cuda=normal_cuda, shapes=SHAPES,
           sample=lambda shape, dtype, rng: dict(like=np.zeros(shape, dtype), draw=Draw(2**63 + 5, 9)),
           outputs=lambda like, draw: like, large=(128, 3, 64, 64), machine_code=_machine_code_normal,
           ptx=_ptx("normal"), bytes_per_cell=1, tolerance=8),
]
