"""Derivatives of a multilayer perceptron, pushed forward together with its value (Taylor mode), and their adjoint.

A network h = sigma(W h + b), ..., u = W h + b of d inputs. Channels are carried through it side by side: the value h,
first derivatives h_i along directions e_i, and second derivatives h_s = sum over terms (a, i, j) of a h_ij:

    linear        z = W h + b,   z_i = W h_i,   z_s = W h_s
    activation    h = sigma,     h_i = sigma' z_i,     h_s = sigma' z_s + sigma'' q,   q = sum of a z_i z_j

With one term (1, i, i) a channel is u_ii; with a term for each axis it is the whole Laplacian (a collapsed, or
forward, Laplacian); seeded at the input with b_k it is the whole operator L u = sum a u_ij + sum b_k u_k.
Adjoint (bars are cotangents):

    z-_s = sigma' h-_s          z-_i = sigma' h-_i + sigma'' sum a (z_j h-_s + ...)
    z-   = sigma' h- + sigma'' (sum z_i h-_i + sum z_s h-_s) + sigma''' sum q h-_s
    W-   = sum over points and channels of z- h^T,   b- = sum over points of z-,   h- = W^T z-

Points are cut into tiles that stay in cache, forwards and backwards: nothing is kept between the two passes but what a
tile holds. Points run along the vector lanes, so that all is products of small matrices (`_blocks.py`) and work on
whole rows. Each group of tiles sums its own gradient, and the groups are added in order: the same bits for any number
of threads.

Kernels: `forward` (channels of the output), `adjoint` (gradient of sum cot * channels), `residual` (gradient of a
weighted mean square of L u + c u - f, formed in the forward pass), `jacobian` (the adjoint of every point by itself).

Shapes: x (N, d), or jets (C, N, d) of an earlier layer; parameters flat: W (out, in), b (out) of each layer in turn;
channels (C, N, out), C = 1 + firsts + seconds, value first. float32 or float64.

Source: Griewank and Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 13 (Taylor mode); Dangel et al.,
Collapsing Taylor mode automatic differentiation, arXiv 2505.13644; the adjoint by the chain rule.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels import _math
from fastdiff.kernels._blocks import (
    get,
    lanes,
    lanes_of,
    outer_add,
    pull_1,
    pull_2,
    pull_3,
    pull_tanh_1,
    pull_tanh_2,
    pull_tanh_3,
    push_1,
    push_2,
    push_3,
    push_tanh_1,
    push_tanh_2,
    push_tanh_3,
    put,
    row_copy,
    row_gelu,
    row_mul,
    row_mul3,
    row_mul3_add,
    row_mul_add,
    row_negate,
    row_residual,
    row_second,
    row_silu,
    row_sum,
    row_tanh,
    row_two,
    times,
)
from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._jit import (
    atomic_add,
    borrow,
    flush_denormals,
    inner,
    kernel,
    restore_denormals,
    wide_vectors,
)
from fastdiff.kernels._threads import default_threads, scratch, together

ACTIVATIONS = ("tanh", "sin", "silu", "gelu")
WIDEST = 128  # wider layers go to BLAS


# -- plain NumPy: the reference in float64, and what wide layers use -------------------------------------------------


def slopes(activation, z):
    """An activation and its first three derivatives."""
    if activation == "tanh":
        s = np.tanh(z)
        p = (1 - s) * (1 + s)
        return s, p, -2 * s * p, p * (6 * s * s - 2)
    if activation == "sin":
        s, c = np.sin(z), np.cos(z)
        return s, c, -s, -c
    if activation == "silu":
        g = _math.sigmoid(z)
        g1 = g * (1 - g)
        g2 = g1 * (1 - 2 * g)
        g3 = g2 * (1 - 2 * g) - 2 * g1 * g1
        return z * g, g + z * g1, 2 * g1 + z * g2, 3 * g2 + z * g3
    cdf = (1 + _math.erf(z / z.dtype.type(np.sqrt(2)))) / 2
    pdf = np.exp(-z * z / 2) / z.dtype.type(np.sqrt(2 * np.pi))
    return z * cdf, cdf + z * pdf, pdf * (2 - z * z), pdf * z * (z * z - 4)


def layers(theta, widths):
    """(W, b) of each linear layer, views of the flat parameters."""
    found, at = [], 0
    for d, h in pairwise(widths):
        found.append((theta[at : at + h * d].reshape(h, d), theta[at + h * d : at + h * d + h]))
        at += h * (d + 1)
    return found


def count(widths) -> int:
    """Number of parameters."""
    return sum(h * (d + 1) for d, h in pairwise(widths))


def start(x, seeds, seconds, last_seed=None):
    """Jets (C, N, d) at the input; `last_seed` (N, d) is what the last channel starts with."""
    if x.ndim == 3:
        return x
    jets = np.zeros((1 + len(seeds) + seconds, *x.shape), x.dtype)
    jets[0] = x
    jets[1 : 1 + len(seeds)] = seeds[:, None]
    if last_seed is not None:
        jets[-1] = last_seed
    return jets


class _Step(NamedTuple):
    """What the adjoint of a layer needs: its input, what goes into the activation, and the slopes (None: linear)."""

    weight: Any
    input: Any
    z: Any
    slopes: Any


def _quadratics(z, firsts, seconds, terms):
    """q of each second channel."""
    q = np.zeros((seconds, *z.shape[1:]), z.dtype)
    for s, i, j, a in terms:
        q[s] += a * z[1 + i] * z[1 + j]
    return q


def push(jets, theta, widths, firsts, terms, activation, last):
    """Channels of the output, and what `pull` needs. `a` of a term is a number or (N, 1)."""
    steps, h, seconds = [], jets, len(jets) - 1 - firsts
    for n, (weight, bias) in enumerate(layers(theta, widths)):
        z = h @ weight.T
        z[0] += bias
        slope, before = None, h
        if n < len(widths) - 2 or last:
            slope = slopes(activation, z[0])
            h = slope[1] * z
            h[0] = slope[0]
            h[1 + firsts :] += slope[2] * _quadratics(z, firsts, seconds, terms)
        else:
            h = z
        steps.append(_Step(weight, before, z, slope))
    return h, steps


def pull(bar, steps, firsts, terms):
    """The adjoint of `push`: the layers' z-, last one first, and the cotangent of the input jets."""
    found = []
    for weight, _, z, slope in reversed(steps):
        if slope is not None:
            _, d1, d2, d3 = slope
            new = d1 * bar
            new[0] += d2 * (z[1:] * bar[1:]).sum(0)
            q = _quadratics(z, firsts, len(z) - 1 - firsts, terms)
            new[0] += d3 * (q * bar[1 + firsts :]).sum(0)
            for s, i, j, a in terms:
                e = a * d2 * bar[1 + firsts + s]
                new[1 + i] += e * z[1 + j]
                new[1 + j] += e * z[1 + i]
            bar = new
        found.append(bar)
        bar = bar @ weight
    return found, bar


def _gradient(bars, steps):
    parts = []
    for z, step in zip(reversed(bars), steps):
        parts += [np.einsum("cno,cni->oi", z, step.input, optimize=True).ravel(), z[0].sum(0)]
    return np.concatenate(parts)


def _filled(out, *results):
    if out is None:
        return results[0] if len(results) == 1 else results
    for place, result in zip(out if isinstance(out, tuple) else (out,), results):
        place[...] = result
    return out


def _wide(*values):
    return tuple(np.asarray(v, np.float64) for v in values)


def reference(x, theta, widths, seeds, terms=(), activation="tanh", last=False, out=None):
    """Channels (C, N, out) of the output, float64. `terms`: (second channel, i, j, a)."""
    x, theta, seeds = _wide(x, theta, seeds)
    jets = start(x, seeds, seconds_of(terms))
    return _filled(out, push(jets, theta, widths, len(seeds), terms, activation, last)[0])


def reference_adjoint(x, theta, widths, seeds, cot, terms=(), activation="tanh", last=False, out=None):
    """Gradients of sum(cot * channels) by the parameters and by x, float64."""
    x, theta, seeds, cot = _wide(x, theta, seeds, cot)
    jets = start(x, seeds, seconds_of(terms))
    steps = push(jets, theta, widths, len(seeds), terms, activation, last)[1]
    bars, bar = pull(cot, steps, len(seeds), terms)
    return _filled(out, _gradient(bars, steps), bar if x.ndim == 3 else bar[0])


def reference_residual(x, theta, widths, seeds, terms, a, b, c, f, weight, activation="tanh", out=None):
    """r = L u + c u - f at every point, and the gradient of mean(weight r^2), float64. `terms`: (i, j)."""
    x, theta, seeds, a, b, c, f, weight = _wide(x, theta, seeds, a, b, c, f, weight)
    jets = start(x, seeds, 1, b.T)
    full = [(0, i, j, a[k][:, None]) for k, (i, j) in enumerate(terms)]
    u, steps = push(jets, theta, widths, len(seeds), full, activation, False)
    r = u[-1, :, 0] + c * u[0, :, 0] - f
    bar = np.zeros_like(u)
    bar[-1, :, 0] = 2 / len(x) * weight * r
    bar[0, :, 0] = c * bar[-1, :, 0]
    return _filled(out, r, _gradient(pull(bar, steps, len(seeds), full)[0], steps))


def reference_jacobian(x, theta, widths, seeds, cot, terms=(), activation="tanh", out=None):
    """The gradient of sum(cot * channels) of each point: (parameters, N), float64."""
    x, theta, seeds, cot = _wide(x, theta, seeds, cot)
    steps = push(start(x, seeds, seconds_of(terms)), theta, widths, len(seeds), terms, activation, False)[1]
    bars, parts = pull(cot, steps, len(seeds), terms)[0], []
    for z, step in zip(reversed(bars), steps):
        parts += [np.einsum("cno,cni->oin", z, step.input).reshape(-1, len(x)), z[0].T]
    return _filled(out, np.concatenate(parts))


def seconds_of(terms) -> int:
    """Number of second-derivative channels that terms (channel, i, j, a) fill."""
    return 1 + max((s for s, *_ in terms), default=-1)


# -- compiled: a tile of points forwards and backwards ---------------------------------------------------------------


class Plan(NamedTuple):
    """Sizes, and where things are: a tile has `subs` panels of points, each with a panel for every channel."""

    points: Any
    subs: Any
    tiles: Any
    groups: Any
    channels: Any
    firsts: Any
    linears: Any
    activation: Any
    last: Any
    jets: Any  # whether x holds the jets of an earlier layer
    operator: Any  # whether the last channel is a whole operator
    want_x: Any
    parameters: Any
    inputs: Any  # offsets in the scratch memory: input jets,
    ping: Any  # two matrices that are passed on,
    pong: Any
    factors: Any  # coefficients of the terms (and, of an operator, b, c, f, weight) at the points,
    rows: Any  # a few rows
    widths: Any
    weights: Any  # offsets of each W in the parameters
    keep: Any  # offsets in the scratch memory of what goes into each activation
    terms: Any  # (second channel, i, j) of each
    factor_at: Any  # where each coefficient begins, and
    factor_step: Any  # 0 if it is one number, 1 if it is one a point
    bends: Any  # fused activations: where the coefficient of each first channel's square is; empty: they are not fused


class Data(NamedTuple):
    """The arrays that a tile reads."""

    x: Any
    theta: Any
    turned: Any  # the parameters with every W transposed
    seeds: Any
    factors: Any
    cot: Any


FORWARD, ADJOINT, RESIDUAL, JACOBIAN, RESIDUAL_ONLY = range(5)


@inner
def _tanh_row(s, source, to):
    wide_vectors()
    for p in range(lanes(s)):
        put(s, to + p, _math.tanh(get(s, source + p)))


@inner
def _sin_row(s, source, to):
    wide_vectors()
    for p in range(lanes(s)):
        put(s, to + p, _math.sin(get(s, source + p)))


@inner
def _cos_row(s, source, to):
    wide_vectors()
    for p in range(lanes(s)):
        put(s, to + p, _math.cos(get(s, source + p)))


@inner
def _sigmoid_row(s, source, to):
    wide_vectors()
    for p in range(lanes(s)):
        put(s, to + p, _math.sigmoid(get(s, source + p)))


@inner
def _erf_row(s, source, to):
    wide_vectors()
    scale = s.dtype.type(0.7071067811865476)
    for p in range(lanes(s)):
        put(s, to + p, _math.erf(get(s, source + p) * scale))


@inner
def _gauss_row(s, source, to):
    wide_vectors()
    scale = s.dtype.type(-0.5)
    for p in range(lanes(s)):
        z = get(s, source + p)
        put(s, to + p, _math.exp(z * z * scale))


@inner
def _slopes(activation, s, z, h, d, kept):
    """A row of values h and of slopes at d, d + lanes, d + 2 lanes. tanh keeps its value in place of z."""
    width = lanes(s)
    d2, d3 = d + width, d + 2 * width
    if activation == 0:
        if kept:
            row_copy(s, (z, h))
        else:
            _tanh_row(s, z, h)
            row_copy(s, (h, z))
        row_tanh(s, (h, d, d2, d3))
    elif activation == 1:
        _sin_row(s, z, h)
        _cos_row(s, z, d)
        row_negate(s, (h, d2))
        row_negate(s, (d, d3))
    elif activation == 2:
        _sigmoid_row(s, z, d)
        row_silu(s, (z, d, h, d, d2, d3))
    else:
        _erf_row(s, z, d)
        _gauss_row(s, z, d2)
        row_gelu(s, (z, d, d2, h, d, d2, d3))


@inner
def _quadratic(p, s, second, z, step, factor, q):
    """The row q of a second channel, from the rows z + channel * step."""
    width, empty = lanes(s), True
    for k in range(p.terms.size // 3):
        if p.terms[3 * k] == second:
            zi, zj = z + (1 + p.terms[3 * k + 1]) * step, z + (1 + p.terms[3 * k + 2]) * step
            a = factor + k * p.subs * width
            if empty:
                row_mul3(s, (a, zi, zj, q))
                empty = False
            else:
                row_mul3_add(s, (a, zi, zj, q, q))
    if empty:
        zero = s.dtype.type(0)
        for n in range(width):
            put(s, q + n, zero)


@inner
def _activate(p, s, rows, keep, to):
    """h of a layer from its z."""
    width = lanes(s)
    for t in range(p.subs):
        for n in range(rows):
            z, h = keep + (t * p.channels * rows + n) * width, to + (t * p.channels * rows + n) * width
            if p.bends.size == 0:
                _activate_row(p, s, rows * width, z, h, p.factors + t * width)
            elif p.activation == 0:
                _tanh_row(s, z, h)
                row_copy(s, (h, z))
                _push_tanh(p, s, rows * width, z, h, t * width)
            else:
                _slopes(p.activation, s, z, h, p.rows, False)
                _push(p, s, rows * width, z, h, t * width)


@inner
def _activate_row(p, s, step, z, h, factor):
    """One neuron's channels, whatever they are."""
    width = lanes(s)
    d1, d2, q = p.rows, p.rows + width, p.rows + 4 * width
    _slopes(p.activation, s, z, h, d1, False)
    for c in range(1, 1 + p.firsts):
        row_mul(s, (d1, z + c * step, h + c * step))
    for c in range(1 + p.firsts, p.channels):
        _quadratic(p, s, c - 1 - p.firsts, z, step, factor, q)
        row_two(s, (d1, z + c * step, d2, q, h + c * step))


@inner
def _push(p, s, step, z, h, shift):
    d1, d2, a = p.rows, p.rows + lanes(s), p.bends
    if p.firsts == 1:
        push_1(s, (d1, d2, a[0] + shift, z + step, z + 2 * step, h + step, h + 2 * step))
    elif p.firsts == 2:
        push_2(s, (d1, d2, a[0] + shift, a[1] + shift, z + step, z + 2 * step, z + 3 * step, h + step, h + 2 * step,
                   h + 3 * step))
    else:
        push_3(s, (d1, d2, a[0] + shift, a[1] + shift, a[2] + shift, z + step, z + 2 * step, z + 3 * step, z + 4 * step,
                   h + step, h + 2 * step, h + 3 * step, h + 4 * step))


@inner
def _push_tanh(p, s, step, z, h, shift):
    a = p.bends
    if p.firsts == 1:
        push_tanh_1(s, (h, a[0] + shift, z + step, z + 2 * step, h + step, h + 2 * step))
    elif p.firsts == 2:
        push_tanh_2(s, (h, a[0] + shift, a[1] + shift, z + step, z + 2 * step, z + 3 * step, h + step, h + 2 * step,
                        h + 3 * step))
    else:
        push_tanh_3(s, (h, a[0] + shift, a[1] + shift, a[2] + shift, z + step, z + 2 * step, z + 3 * step, z + 4 * step,
                        h + step, h + 2 * step, h + 3 * step, h + 4 * step))


@inner
def _deactivate(p, s, rows, keep, bar):
    """The adjoint: z- in place of h-, and h in place of z."""
    width = lanes(s)
    for t in range(p.subs):
        for n in range(rows):
            z, b = keep + (t * p.channels * rows + n) * width, bar + (t * p.channels * rows + n) * width
            if p.bends.size == 0:
                _deactivate_row(p, s, rows * width, z, b, p.factors + t * width)
            elif p.activation == 0:
                _pull_tanh(p, s, rows * width, z, b, t * width)
            else:
                _slopes(p.activation, s, z, p.rows + 3 * width, p.rows, True)
                _pull(p, s, rows * width, z, b, t * width)


@inner
def _deactivate_row(p, s, step, z, b, factor):
    """One neuron's channels, whatever they are."""
    width = lanes(s)
    d1, d2, d3 = p.rows, p.rows + width, p.rows + 2 * width
    value, q, e, v = p.rows + 3 * width, p.rows + 4 * width, p.rows + 5 * width, p.rows + 6 * width
    _slopes(p.activation, s, z, value, d1, True)
    row_mul(s, (d1, b, v))
    for c in range(1, 1 + p.firsts):
        row_mul3_add(s, (d2, z + c * step, b + c * step, v, v))
        row_mul(s, (d1, b + c * step, b + c * step))
    for c in range(1 + p.firsts, p.channels):
        zs, bs = z + c * step, b + c * step
        _quadratic(p, s, c - 1 - p.firsts, z, step, factor, q)
        row_second(s, (d1, d2, d3, q, zs, bs, v, v, e, zs, bs))
        for k in range(p.terms.size // 3):
            if p.terms[3 * k] == c - 1 - p.firsts:
                i, j = (1 + p.terms[3 * k + 1]) * step, (1 + p.terms[3 * k + 2]) * step
                a = factor + k * p.subs * width
                row_mul3_add(s, (a, e, z + j, b + i, b + i))
                row_mul3_add(s, (a, e, z + i, b + j, b + j))
    for c in range(1, 1 + p.firsts):
        row_mul(s, (d1, z + c * step, z + c * step))
    row_copy(s, (value, z))
    row_copy(s, (v, b))


@inner
def _pull(p, s, step, z, b, shift):
    d1, a = p.rows, p.bends
    d2, d3, value = d1 + lanes(s), d1 + 2 * lanes(s), d1 + 3 * lanes(s)
    z1, z2, z3, z4, b1, b2, b3, b4 = _channels(step, z, b)
    if p.firsts == 1:
        pull_1(s, (value, d1, d2, d3, a[0] + shift, z1, z2, b, b1, b2, z, z1, z2, b, b1, b2))
    elif p.firsts == 2:
        pull_2(s, (value, d1, d2, d3, a[0] + shift, a[1] + shift, z1, z2, z3, b, b1, b2, b3,
                   z, z1, z2, z3, b, b1, b2, b3))
    else:
        pull_3(s, (value, d1, d2, d3, a[0] + shift, a[1] + shift, a[2] + shift, z1, z2, z3, z4, b, b1, b2, b3, b4,
                   z, z1, z2, z3, z4, b, b1, b2, b3, b4))


@inner
def _pull_tanh(p, s, step, z, b, shift):
    a = p.bends
    z1, z2, z3, z4, b1, b2, b3, b4 = _channels(step, z, b)
    if p.firsts == 1:
        pull_tanh_1(s, (z, a[0] + shift, z1, z2, b, b1, b2, z, z1, z2, b, b1, b2))
    elif p.firsts == 2:
        pull_tanh_2(s, (z, a[0] + shift, a[1] + shift, z1, z2, z3, b, b1, b2, b3, z, z1, z2, z3, b, b1, b2, b3))
    else:
        pull_tanh_3(s, (z, a[0] + shift, a[1] + shift, a[2] + shift, z1, z2, z3, z4, b, b1, b2, b3, b4,
                        z, z1, z2, z3, z4, b, b1, b2, b3, b4))


@inner
def _channels(step, z, b):
    return z + step, z + 2 * step, z + 3 * step, z + 4 * step, b + step, b + 2 * step, b + 3 * step, b + 4 * step


@inner
def _fill(s, row, value):
    for q in range(lanes(s)):
        put(s, row + q, value)


@inner
def _prepare(p, data, s):
    """What is the same in every tile: derivatives of the coordinates, coefficients that are one number, zeros."""
    width, d, terms = lanes(s), p.widths[0], p.terms.size // 3
    zero = s.dtype.type(0)
    for t in range(p.subs):
        for k in range(p.factor_at.size):
            if p.factor_step[k] == 0:
                _fill(s, p.factors + (k * p.subs + t) * width, get(data.factors, p.factor_at[k]))
        _fill(s, p.factors + (p.factor_at.size * p.subs + t) * width, zero)
        if p.jets:
            continue
        for c in range(1, p.channels):
            for k in range(d):
                row = p.inputs + ((t * p.channels + c) * d + k) * width
                if p.operator and c == p.channels - 1:
                    _fill(s, row, get(data.factors, p.factor_at[terms + k]))
                else:
                    _fill(s, row, get(data.seeds, (c - 1) * d + k) if c <= p.firsts else zero)


@inner
def _read(p, s, row, source, at, step, begin):
    """A row of numbers of the tile's points. Beyond the last point the last one is repeated."""
    for q in range(lanes(s)):
        put(s, row + q, get(source, at + min(begin + q, p.points - 1) * step))


@inner
def _fetch(p, data, s, begin):
    """The input jets of a tile, and the coefficients that differ from point to point."""
    width, d, terms = lanes(s), p.widths[0], p.terms.size // 3
    for t in range(p.subs):
        first = begin + t * width
        for c in range(p.channels if p.jets else 1):
            for k in range(d):
                _read(p, s, p.inputs + ((t * p.channels + c) * d + k) * width, data.x, c * p.points * d + k, d, first)
        for k in range(p.factor_at.size):
            if p.factor_step[k] == 1:
                row = p.factors + (k * p.subs + t) * width
                if p.operator and terms <= k and k < terms + d:
                    row = p.inputs + ((t * p.channels + p.channels - 1) * d + k - terms) * width
                _read(p, s, row, data.factors, p.factor_at[k], 1, first)


@inner
def _forward(p, data, s):
    """Run a tile forwards; return where the output's panels are."""
    source, depth = p.inputs, p.widths[0]
    for l in range(p.linears):
        rows, at = p.widths[l + 1], p.weights[l]
        times(p.subs * p.channels, depth, rows, data.turned, at, rows, s, source, s, p.keep[l], data.theta,
              at + rows * depth, p.channels)
        source, depth = p.keep[l], rows
        if l + 1 < p.linears or p.last:
            _activate(p, s, rows, p.keep[l], p.ping)
            source = p.ping
    return source


@inner
def _move(p, s, outer, place, width_out, begin, inwards):
    """Panels of a tile from (inwards) or to an array (C, N, width_out); what has no point becomes 0."""
    width = lanes(s)
    zero = s.dtype.type(0)
    for t in range(p.subs):
        for c in range(p.channels):
            for o in range(width_out):
                row = place + ((t * p.channels + c) * width_out + o) * width
                for q in range(width):
                    n = begin + t * width + q
                    if n < p.points:
                        far = (c * p.points + n) * width_out + o
                        if inwards:
                            put(s, row + q, outer[far])
                        else:
                            outer[far] = get(s, row + q)
                    elif inwards:
                        put(s, row + q, zero)


@inner
def _judge(p, s, found, bar, begin, out):
    """The residual r = L u + c u - f of a tile, and the cotangent of the sum of weight r^2 / 2."""
    width, first = lanes(s), p.terms.size // 3 + p.widths[0]
    zero, last = s.dtype.type(0), (p.channels - 1) * width
    for t in range(p.subs):
        u, cot, r = found + t * p.channels * width, bar + t * p.channels * width, p.rows
        c = p.factors + (first * p.subs + t) * width
        f = c + p.subs * width
        row_residual(s, (c, f, f + p.subs * width, u, u + last, r, cot + last, cot))
        for k in range(1, p.channels - 1):
            _fill(s, cot + k * width, zero)
        here = begin + t * width
        there = max(min(width, p.points - here), 0)
        for q in range(there):
            out[here + q] = get(s, r + q)
        for q in range(there, width):
            put(s, cot + q, zero)
            put(s, cot + last + q, zero)


@inner
def _bias_sums(p, s, rows, bar, gradient, at):
    width = lanes(s)
    for t in range(p.subs):
        for n in range(rows):
            gradient[at + n] += row_sum(s, bar + (t * p.channels * rows + n) * width)


@inner
def _each_point(p, s, rows, columns, bar, h, out, at, begin):
    """The gradient of one layer at every point by itself, into out (parameters, N)."""
    width = lanes(s)
    for o in range(rows):
        for i in range(columns + 1):
            param = at + o * columns + i if i < columns else at + rows * columns + o
            for t in range(p.subs):
                a, b = bar + (t * p.channels * rows + o) * width, h + (t * p.channels * columns + i) * width
                total = a
                if i < columns:
                    total = p.rows
                    row_mul(s, (a, b, total))
                    for c in range(1, p.channels):
                        row_mul_add(s, (a + c * rows * width, b + c * columns * width, total, total))
                here = begin + t * width
                for q in range(min(width, p.points - here)):
                    out[param * p.points + here + q] = get(s, total + q)


@inner
def _backward(p, data, s, mode, begin, out, gradient, shift, xbar):
    """Run a tile backwards: the cotangent of the output is in `pong`."""
    bar, other = p.pong, p.ping
    if p.last:
        _deactivate(p, s, p.widths[p.linears], p.keep[p.linears - 1], bar)
    for l in range(p.linears - 1, -1, -1):
        rows, columns, at = p.widths[l + 1], p.widths[l], p.weights[l]
        h = p.inputs if l == 0 else p.keep[l - 1]
        if l > 0 or p.want_x:
            times(p.subs * p.channels, rows, columns, data.theta, at, columns, s, bar, s, other, data.theta, 0, 0)
        if l > 0:
            _deactivate(p, s, columns, h, other)
        if mode == JACOBIAN:
            _each_point(p, s, rows, columns, bar, h, out, at, begin)
        else:
            outer_add(p.subs * p.channels, rows, columns, s, bar, s, h, gradient, shift + at)
            _bias_sums(p, s, rows, bar, gradient, shift + at + rows * columns)
        bar, other = other, bar
    if p.want_x:
        _hand_back(p, s, bar, begin, xbar)


@inner
def _hand_back(p, s, bar, begin, xbar):
    """The cotangent of x: of all channels if x holds jets, else of the value, whose derivatives are constants."""
    width, d = lanes(s), p.widths[0]
    if p.jets:
        _move(p, s, xbar, bar, d, begin, False)
        return
    for t in range(p.subs):
        for k in range(d):
            row = bar + (t * p.channels * d + k) * width
            for q in range(min(width, p.points - begin - t * width)):
                xbar[(begin + t * width + q) * d + k] = get(s, row + q)


@kernel()
def run(p, data, mode, out, gradient, xbar, s, counter):
    """Take groups of tiles until none is left."""
    wide_vectors()
    p, data, out, gradient, xbar, s = borrow((p, data, out, gradient, xbar, s))
    before = flush_denormals()
    _prepare(p, data, s)
    while True:
        group = atomic_add(counter, 0, 1)
        if group >= p.groups:
            break
        for tile in range(group * p.tiles // p.groups, (group + 1) * p.tiles // p.groups):
            begin = tile * p.subs * lanes(s)
            _fetch(p, data, s, begin)
            found = _forward(p, data, s)
            if mode == FORWARD:
                _move(p, s, out, found, p.widths[p.linears], begin, False)
                continue
            if mode == RESIDUAL or mode == RESIDUAL_ONLY:
                _judge(p, s, found, p.pong, begin, out)
                if mode == RESIDUAL_ONLY:
                    continue
            else:
                _move(p, s, data.cot, p.pong, p.widths[p.linears], begin, True)
            _backward(p, data, s, mode, begin, out, gradient, group * p.parameters, xbar)
    restore_denormals(before)


# -- sizes, memory, threads ------------------------------------------------------------------------------------------

TILE_BYTES = 448 << 10  # of a second-level cache
MOST_GROUPS = 32
_ROWS = 8
_NOTHING = {np.dtype(t): np.zeros(1, t) for t in (np.float32, np.float64)}


def _plan(x, widths, seeds, terms, activation, last, factors, operator, want_x):
    """Sizes and places for a call; the number of threads has no say in it."""
    return _planned(x.shape, x.dtype, tuple(widths), len(seeds), tuple(tuple(map(int, t[:3])) for t in terms),
                    activation, bool(last), tuple(f.size for f in factors), operator, want_x)


@lru_cache(maxsize=256)
def _planned(shape, dtype, widths, firsts, terms, activation, last, sizes, operator, want_x):
    seconds = 1 if operator else seconds_of(terms)
    channels, width, jets = 1 + firsts + seconds, lanes_of(dtype), len(shape) == 3
    points, d = shape[-2:]
    around, hidden = max(widths), sum(widths[1:])
    cells = channels * (d + hidden + 2 * around) + len(sizes) + 1
    most = max(1, min(8, TILE_BYTES // (cells * width * dtype.itemsize)))
    subs = max(1, min(most, points // (width * MOST_GROUPS)))
    panel, at, keep = subs * channels * width, 0, []
    places = {}
    for name, size in (("inputs", d), ("ping", around), ("pong", around)):
        places[name], at = at, at + size * panel
    for rows in widths[1:]:
        keep.append(at)
        at += rows * panel
    places["factors"], at = at, at + (len(sizes) + 1) * subs * width
    places["rows"], at = at, at + _ROWS * width
    bends = [places["factors"] + k * subs * width for k in _bends(firsts, seconds, terms, len(sizes))]
    tiles = -(-points // (subs * width))
    weights = np.cumsum([0, *(h * (k + 1) for k, h in pairwise(widths))])
    whole = lambda values: np.array(values, np.int64)
    plan = Plan(points=points, subs=subs, tiles=tiles, groups=min(tiles, MOST_GROUPS), channels=channels,
                firsts=firsts, linears=len(widths) - 1, activation=ACTIVATIONS.index(activation), last=last, jets=jets,
                operator=operator, want_x=want_x, parameters=int(weights[-1]), widths=whole(widths),
                weights=whole(weights[:-1]), keep=whole(keep), terms=whole(terms).ravel(),
                factor_at=whole(np.cumsum([0, *sizes])[:-1]), factor_step=whole([int(n > 1) for n in sizes]),
                bends=whole(bends), **places)
    return plan, at


def _bends(firsts, seconds, terms, zeros):
    """Where each first channel's square has its coefficient (`zeros`: nowhere), if there is nothing but squares."""
    own = [[k for k, (_, i, j) in enumerate(terms) if i == j == c] for c in range(firsts)]
    if seconds != 1 or not 1 <= firsts <= 3 or sum(map(len, own)) < len(terms) or max(map(len, own)) > 1:
        return []
    return [k[0] if k else zeros for k in own]


def _launch(plan, memory, mode, x, theta, widths, seeds, factors, cot, out, threads, want_x=False):
    """Run a plan; return the gradient of each group and the cotangent of x."""
    dtype, nothing = x.dtype, _NOTHING[x.dtype]
    turned = np.empty_like(theta)
    for (weight, _), (place, _) in zip(layers(theta, widths), _turned(turned, widths)):
        place[...] = weight.T
    flat = np.concatenate([f.reshape(-1) for f in factors]) if factors else nothing
    data = Data(x.reshape(-1), theta, turned, seeds.reshape(-1) if seeds.size else nothing, flat,
                nothing if cot is None else cot.reshape(-1))
    gradient = np.zeros(plan.groups * plan.parameters if mode in (ADJOINT, RESIDUAL) else 1, dtype)
    xbar = np.empty(x.size, dtype) if want_x else nothing
    counter = np.zeros(1, np.int64)

    def task():
        run(plan, data, mode, out, gradient, xbar, scratch(memory, dtype), counter)

    together(task, min(default_threads() if threads is None else threads, plan.groups))
    summed = gradient.reshape(plan.groups, -1).sum(0) if gradient.size > 1 else None
    return summed, xbar.reshape(x.shape) if want_x else None


def _turned(flat, widths):
    found, at = [], 0
    for d, h in pairwise(widths):
        found.append((flat[at : at + h * d].reshape(d, h), flat[at + h * d : at + h * d + h]))
        at += h * (d + 1)
    return found


def _checked(x, theta, widths, seeds, terms, activation, cot=None, width_out=None):
    """Refuse what the compiled code, which checks nothing, would get wrong."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    if x.dtype not in (np.float32, np.float64) or theta.dtype != x.dtype:
        raise ValueError(f"x and parameters must both be float32 or both float64, not {x.dtype} and {theta.dtype}")
    if len(widths) < 2 or x.ndim not in (2, 3) or x.shape[-1] != widths[0] or min(widths) < 1:
        raise ValueError(f"x of shape {x.shape} does not fit a network of widths {tuple(widths)}")
    if theta.shape != (count(widths),):
        raise ValueError(f"widths {tuple(widths)} have {count(widths)} parameters, not {theta.shape}")
    channels = 1 + len(seeds) + seconds_of(terms)
    if x.ndim == 3 and len(x) != channels:
        raise ValueError(f"x holds {len(x)} channels, but there are {channels}")
    if cot is not None and (cot.shape != (channels, x.shape[-2], width_out) or cot.dtype != x.dtype):
        raise ValueError(f"the cotangent must have shape {(channels, x.shape[-2], width_out)} and {x.dtype}, "
                         f"not {cot.shape} and {cot.dtype}")
    if any(not 0 <= i < len(seeds) or not 0 <= j < len(seeds) for _, i, j, *_ in terms):
        raise ValueError(f"terms {terms} use more than the {len(seeds)} first derivatives that are carried")
    return np.ascontiguousarray(x), np.ascontiguousarray(theta), np.ascontiguousarray(seeds, x.dtype)


def _is_wide(widths):
    return max(widths) > WIDEST


def _numbers(terms, dtype):
    return [np.array([t[3]], dtype) for t in terms]


def forward(x, theta, widths, seeds, terms=(), activation="tanh", last=False, out=None, threads=None):
    """Channels (C, N, out) of a network's output: value, first derivatives along the rows of `seeds`, second ones.

    terms  (s, i, j, a): second channel s has a times the derivative along seeds i and j added to it
    last   whether the activation follows the last layer too
    """
    x, theta, seeds = _checked(x, theta, widths, seeds, terms, activation)
    shape = (1 + len(seeds) + seconds_of(terms), x.shape[-2], widths[-1])
    out = np.empty(shape, x.dtype) if out is None else out
    if _is_wide(widths):
        return _wide_forward(x, theta, widths, seeds, terms, activation, last, out)
    plan, memory = _plan(x, widths, seeds, terms, activation, last, _numbers(terms, x.dtype), False, False)
    _launch(plan, memory, FORWARD, x, theta, widths, seeds, _numbers(terms, x.dtype), None, out.reshape(-1), threads)
    return out


def adjoint(x, theta, widths, seeds, cot, terms=(), activation="tanh", last=False, want_x=True, out=None, threads=None):
    """Gradients of sum(cot * forward(...)) by the parameters and by x; the latter is None without `want_x`."""
    x, theta, seeds = _checked(x, theta, widths, seeds, terms, activation, cot, widths[-1])
    cot, factors = np.ascontiguousarray(cot), _numbers(terms, x.dtype)
    if _is_wide(widths):
        results = _wide_adjoint(x, theta, widths, seeds, cot, terms, activation, last)
    else:
        plan, memory = _plan(x, widths, seeds, terms, activation, last, factors, False, want_x)
        results = _launch(plan, memory, ADJOINT, x, theta, widths, seeds, factors, cot, _NOTHING[x.dtype], threads,
                          want_x)
    return results if out is None else _filled(out, *results)


def residual(x, theta, widths, seeds, terms, a, b, c, f, weight, activation="tanh", gradient=True, out=None,
             threads=None):
    """r = L u + c u - f at every point and the gradient of mean(weight r^2) by the parameters, in one pass.

    L u = sum over terms (i, j) of a u_ij + sum over inputs k of b_k u_k, for a network with one output. Rows of `a` and
    `b`, and c, f and weight, have one number or one a point.
    """
    full = [(0, i, j) for i, j in terms]
    x, theta, seeds = _checked(x, theta, widths, seeds, full, activation)
    factors = [np.ascontiguousarray(v, x.dtype).reshape(-1) for v in (*a, *b, c, f, weight)]
    n = len(x)
    if len(a) != len(terms) or len(b) != widths[0] or widths[-1] != 1 or x.ndim != 2:
        raise ValueError(f"an operator has a number for each of {len(terms)} terms and each of {widths[0]} inputs, and "
                         f"acts on one output")
    if any(v.size not in (1, n) for v in factors):
        raise ValueError(f"coefficients have one number or one for each of {n} points")
    r = np.empty(n, x.dtype)
    if _is_wide(widths):
        results = _wide_residual(x, theta, widths, seeds, terms, factors, activation, gradient)
    else:
        plan, memory = _plan(x, widths, seeds, full, activation, False, factors, True, False)
        factors[-1] = factors[-1] * x.dtype.type(2 / n)
        grad, _ = _launch(plan, memory, RESIDUAL if gradient else RESIDUAL_ONLY, x, theta, widths, seeds, factors,
                          None, r, threads)
        results = r, grad if gradient else None
    return results if out is None else _filled(out, *results)


def jacobian(x, theta, widths, seeds, cot, terms=(), activation="tanh", out=None, threads=None):
    """The gradient of each point's sum of cot * forward(...) by the parameters: (parameters, N)."""
    x, theta, seeds = _checked(x, theta, widths, seeds, terms, activation, cot, widths[-1])
    cot, factors = np.ascontiguousarray(cot), _numbers(terms, x.dtype)
    out = np.empty((count(widths), x.shape[-2]), x.dtype) if out is None else out
    if _is_wide(widths):
        steps = push(start(x, seeds, seconds_of(terms)), theta, widths, len(seeds), terms, activation, False)[1]
        return _filled(out, np.concatenate(list(_wide_rows(pull(cot, steps, len(seeds), terms)[0], steps))))
    plan, memory = _plan(x, widths, seeds, terms, activation, False, factors, False, False)
    _launch(plan, memory, JACOBIAN, x, theta, widths, seeds, factors, cot, out.reshape(-1), threads)
    return out


# -- wide layers: the products by BLAS, in chunks of points that stay in cache ---------------------------------------

CHUNK = 512


def _chunks(n):
    return [slice(k, min(k + CHUNK, n)) for k in range(0, n, CHUNK)]


def _wide_forward(x, theta, widths, seeds, terms, activation, last, out):
    for part in _chunks(x.shape[-2]):
        jets = start(x[..., part, :], seeds, seconds_of(terms))
        out[:, part] = push(jets, theta, widths, len(seeds), terms, activation, last)[0]
    return out


def _wide_adjoint(x, theta, widths, seeds, cot, terms, activation, last):
    gradient, xbar = np.zeros_like(theta), np.empty_like(x)
    for part in _chunks(x.shape[-2]):
        jets = start(x[..., part, :], seeds, seconds_of(terms))
        steps = push(jets, theta, widths, len(seeds), terms, activation, last)[1]
        bars, bar = pull(cot[:, part], steps, len(seeds), terms)
        gradient += _gradient(bars, steps)
        xbar[..., part, :] = bar if x.ndim == 3 else bar[0]
    return gradient, xbar


def _wide_residual(x, theta, widths, seeds, terms, factors, activation, gradient):
    n, d = x.shape
    a, b, (c, f, weight) = factors[: len(terms)], factors[len(terms) : len(terms) + d], factors[-3:]
    r, total = np.empty(n, x.dtype), np.zeros_like(theta)
    for part in _chunks(n):
        size = part.stop - part.start
        here = [np.broadcast_to(v if v.size == 1 else v[part], size) for v in (*a, *b, c, f, weight)]
        full = [(0, i, j, here[k][:, None]) for k, (i, j) in enumerate(terms)]
        jets = start(x[part], seeds, 1, np.stack(here[len(terms) : len(terms) + d], 1))
        u, steps = push(jets, theta, widths, len(seeds), full, activation, False)
        r[part] = u[-1, :, 0] + here[-3] * u[0, :, 0] - here[-2]
        if gradient:
            bar = np.zeros_like(u)
            bar[-1, :, 0] = x.dtype.type(2 / n) * here[-1] * r[part]
            bar[0, :, 0] = here[-3] * bar[-1, :, 0]
            total += _gradient(pull(bar, steps, len(seeds), full)[0], steps)
    return r, total if gradient else None


def _wide_rows(bars, steps):
    for z, step in zip(reversed(bars), steps):
        yield np.einsum("cno,cni->oin", z, step.input, optimize=True).reshape(-1, z.shape[1])
        yield z[0].T


# -- samples ---------------------------------------------------------------------------------------------------------


def _network(rng, widths, dtype):
    """Parameters of unit size where z is of unit size."""
    parts = []
    for d, h in pairwise(widths):
        parts += [rng.standard_normal(h * d) / np.sqrt(d), 0.5 * rng.standard_normal(h)]
    return np.concatenate(parts).astype(dtype)


def _inputs(shape, dtype, rng, activation, jets=False, width_out=2):
    """A network of 2 inputs: value, u_t, u_x, u_xx, and t-x mixed with a collapsed sum."""
    points, *hidden = shape
    widths = (2, *hidden, width_out)
    terms = ((0, 1, 1, 1.0), (1, 0, 1, 0.5), (1, 0, 0, -2.0))
    x = rng.standard_normal((5, points, 2) if jets else (points, 2)).astype(dtype)
    return dict(x=x, theta=_network(rng, widths, dtype), widths=widths, seeds=np.eye(2, dtype=dtype), terms=terms,
                activation=activation)


def _sample(activation, cot=False, jets=False, last=False):
    def sample(shape, dtype, rng):
        inputs = _inputs(shape, dtype, rng, activation, jets)
        if cot:
            inputs["cot"] = rng.standard_normal((5, shape[0], 2)).astype(dtype)
        return inputs | ({"last": True} if last else {})

    return sample


def _sample_residual(shape, dtype, rng):
    inputs = _inputs(shape, dtype, rng, "tanh", width_out=1)
    n = shape[0]
    more = dict(a=rng.standard_normal((2, n)), b=rng.standard_normal((2, 1)), c=rng.standard_normal(1),
                f=rng.standard_normal(n), weight=rng.random(n))
    return inputs | dict(terms=((1, 1), (0, 1))) | {name: value.astype(dtype) for name, value in more.items()}


SHAPES = {
    (1, 3): "one point, one hidden layer",
    (5, 1, 2): "one neuron",
    (3, 5, 7): "odd widths",
    (97, 13, 4): "a point more than some panels, rows in groups of 8, 4 and 1",
    (1001, 10, 10): "several tiles",
    (40, 64, 64, 64): "blocks of every size",
    (700, 130): "wide: by BLAS",
}
_SINGLE = {(7, 11): "one hidden layer", (130, 6, 9): "odd widths"}


def _outputs(x, theta, widths, **rest):
    return np.empty((5, x.shape[-2], widths[-1]), x.dtype)


def _outputs_adjoint(x, theta, widths, **rest):
    return np.empty_like(theta), np.empty_like(x)


def _outputs_residual(x, theta, widths, **rest):
    return np.empty(len(x), x.dtype), np.empty_like(theta)


def _outputs_jacobian(x, theta, widths, **rest):
    return np.empty((theta.size, x.shape[-2]), x.dtype)


def _machine_code(dtype):
    from numba import from_dtype, types

    array, place = types.Array(from_dtype(dtype), 1, "C"), types.int64
    return [(f, (array, place, place)) for f in (_tanh_row, _sin_row, _cos_row, _sigmoid_row, _erf_row, _gauss_row)] + [
        (times, (*[place] * 3, array, place, place, array, place, array, place, array, place, place)),
        (outer_add, (*[place] * 3, array, place, array, place, array, place))]


def _cuda_forward(x, theta, widths, seeds, out=None, **net):
    from fastdiff.kernels._jet_cuda import forward

    return forward(x, theta, widths, seeds, out=out, **net)


def _cuda_adjoint(x, theta, widths, seeds, cot, out=None, **net):
    from fastdiff.kernels._jet_cuda import adjoint

    return adjoint(x, theta, widths, seeds, cot, out=out, **net)


def _cuda_jacobian(x, theta, widths, seeds, cot, out=None, **net):
    from fastdiff.kernels._jet_cuda import jacobian

    return jacobian(x, theta, widths, seeds, cot, out=out, **net)


def _ptx(*channels, each=False):
    """One CUDA kernel serves all activations: it is compiled for some numbers of channels, and not for each again."""

    def launches(dtype):
        from fastdiff.kernels._jet_cuda import launches

        return launches(dtype, channels, each)

    return launches


_CHANNELS = {"jet_tanh": (4,), "jet_tanh_adjoint": (5,), "jet_jacobian": (4,)}


def _kernel(name, reference, cpu, sample, outputs, shapes, large, tolerance, cuda=None):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=sample, outputs=outputs, shapes=shapes,
                  large=large, machine_code=_machine_code, tolerance=tolerance,
                  ptx=_ptx(*_CHANNELS.get(name, ()), each=name == "jet_jacobian") if cuda else None)


_LARGE = (10000, 64, 64, 64, 64)
KERNELS = [
    *(_kernel(f"jet_{act}", reference, forward, _sample(act), _outputs, SHAPES if act == "tanh" else _SINGLE, _LARGE,
              64, _cuda_forward) for act in ACTIVATIONS),
    *(_kernel(f"jet_{act}_adjoint", reference_adjoint, adjoint, _sample(act, cot=True), _outputs_adjoint,
              SHAPES if act == "tanh" else _SINGLE, _LARGE, 128, _cuda_adjoint) for act in ACTIVATIONS),
    _kernel("jet_chain", reference, forward, _sample("tanh", jets=True, last=True), _outputs, _SINGLE, _LARGE, 64,
            _cuda_forward),
    _kernel("jet_chain_adjoint", reference_adjoint, adjoint, _sample("sin", cot=True, jets=True, last=True),
            _outputs_adjoint, _SINGLE, _LARGE, 128, _cuda_adjoint),
    _kernel("jet_residual", reference_residual, residual, _sample_residual, _outputs_residual, SHAPES, _LARGE, 128),
    _kernel("jet_jacobian", reference_jacobian, jacobian, _sample("tanh", cot=True), _outputs_jacobian, SHAPES,
            (2000, 20, 20), 128, _cuda_jacobian),
]
