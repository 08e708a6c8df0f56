"""Burgers' equation, forward Euler in time, second-order finite volumes in space.

    u_t + (u²/2)_x = nu u_xx

    u_i^{n+1} = u_i^n - (dt/dx) (F_{i+1/2} - F_{i-1/2}),
    F(a, b) = (a² + a b + b²)/6 - max(nu/dx, q) (b - a),   q = max(|a|, |b|)/2 + |b - a|/12

The first part of the flux F between a cell's a and the next one's b keeps the energy, whatever the step in space; the
second is viscosity: nu where that resolves shocks (about |u| dx <= 2 nu: second order), otherwise as much as Rusanov's
flux has, or a little more (first order; the field keeps its range). What leaves a cell enters its neighbour. Stable for
dt <= 1 / (2 nu/dx² + 4/3 max|u|/dx).

Shapes: u (B, 1, n); speed = dt/dx and rate = nu dt/dx², each (B,). Units: any.
Source: Tadmor, Math. Comp. 49 (1987) 91, for the flux that keeps the energy; Rusanov, USSR Comput. Math. Math. Phys. 1
(1962) 304; Spalding, Int. J. Numer. Methods Eng. 4 (1972) 551, for the choice of viscosity.
"""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._edges import Side, hold, make_edges, pad
from fastdiff.kernels._math import select
from fastdiff.kernels._run import march


def reference(u, speed, rate, edges, steps, out=None):
    """The same in plain NumPy, float64."""
    v = hold(np.array(u, np.float64), edges, 0)
    speed, rate = (np.asarray(p, np.float64).reshape(-1, 1, 1) for p in (speed, rate))
    for n in range(steps):
        p = pad(v, edges, n)
        a, b = p[..., :-1], p[..., 1:]
        needed = speed * (np.maximum(np.abs(a), np.abs(b)) / 2 + np.abs(b - a) / 12)
        flux = speed * (a * a + a * b + b * b) / 6 - np.maximum(rate, needed) * (b - a)
        v = hold(v - (flux[..., 1:] - flux[..., :-1]), edges, n + 1)
    if out is None:
        return v
    out[...] = v
    return out


class Burgers1D(NamedTuple):
    """u_t + (u²/2)_x = nu u_xx."""

    sixth: Any
    half: Any
    twelfth: Any
    rate: Any

    @staticmethod
    def change(p, u, at):
        c, low, high = u.c, u.m2, u.p2
        size, before, after = abs(c), abs(low), abs(high)
        left = p.half * select(before < size, size, before) + p.twelfth * abs(c - low)
        right = p.half * select(after < size, size, after) + p.twelfth * abs(high - c)
        left, right = select(left < p.rate, p.rate, left), select(right < p.rate, p.rate, right)
        carried = p.sixth * ((low - high) * ((low + high) + c))  # of the two central fluxes, c² cancels
        return carried + (right * (high - c) - left * (c - low))


def rule(speed, rate, dtype):
    """The rule for speed and rate (B,)."""
    dtype = np.dtype(dtype)
    speed, rate = np.atleast_1d(np.asarray(speed, np.float64)), np.atleast_1d(np.asarray(rate, dtype))
    return Burgers1D(*((speed / n).astype(dtype) for n in (6, 2, 12)), np.ascontiguousarray(rate))


def cpu(u, speed, rate, edges, steps, out=None, **how):
    """Forward Euler by the blocked schedule; `how` as in `march`."""
    return march(rule(speed, rate, u.dtype), u, edges, steps, out=out, **how)


def cuda(u, speed, rate, edges, steps, out=None, **how):
    """Forward Euler on the GPU; `how` as in `march_cuda`."""
    from fastdiff.kernels._march_cuda import march_cuda

    return march_cuda(rule(speed, rate, u.dtype), u, edges, steps, out=out, **how)


def _sample(shape, dtype, rng):
    """Two samples, one resolved and one that needs upwind viscosity; a Robin wall, else no flux."""
    edges = make_edges(shape, [False], dtype, {(0, 0, 0): Side(alpha=0.5, gamma=0.25, value=1.5)}, batch=2)
    return dict(u=rng.uniform(-1, 1, (2, 1, *shape)).astype(dtype), speed=np.array([0.2, 0.3], dtype),
                rate=np.array([0.2, 0.01], dtype), edges=edges, steps=7)


KERNELS = [Kernel(name="burgers_1d", reference=reference, cpu=cpu, cuda=cuda, sample=_sample, ndim=1, rule=rule,
                  order=(2, 1), bytes_per_cell=2, flops_per_cell=21, tolerance=8)]
