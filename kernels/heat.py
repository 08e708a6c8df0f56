"""Heat equation, FTCS: forward Euler in time, second-order central differences in space.

    u_t = D_x u_xx + D_y u_yy + D_z u_zz

    u_i^{n+1} = u_i^n + sum over axes of  r (u_{i-1}^n - 2 u_i^n + u_{i+1}^n),   r = D dt / dx^2

First order in time, second in space; stable for sum of r over the axes <= 1/2. Written as an increment, so that a
field without gradients does not change by a single bit and rounding does not drift.

Shapes: u (B, 1, *grid), rate (B, ndim) with the r of each sample and axis. Units: any, r is a pure number.
Source: Strikwerda, Finite Difference Schemes and Partial Differential Equations, 2nd ed., SIAM 2004, eq. (6.3.1);
stability in several dimensions: section 7.1.
"""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._edges import Side, hold, make_edges, pad
from fastdiff.kernels._run import march


def reference(u, rate, edges, steps, out=None):
    """FTCS in plain NumPy, float64."""
    v = hold(np.array(u, np.float64), edges, 0)
    inside = (slice(None), slice(None), *[slice(1, -1)] * (u.ndim - 2))
    for n in range(steps):
        p, change = pad(v, edges, n), 0.0
        for axis in range(2, u.ndim):
            r = rate[:, axis - 2].astype(np.float64).reshape(-1, *[1] * (u.ndim - 1))
            change = change + r * (np.roll(p, 1, axis) + np.roll(p, -1, axis) - 2 * p)[inside]
        v = hold(v + change, edges, n + 1)
    if out is None:
        return v
    out[...] = v
    return out


class Heat1D(NamedTuple):
    """u_t = D u_xx."""

    r: Any
    two: Any

    @staticmethod
    def change(p, u, at):
        return p.r * ((u.m2 + u.p2) - p.two * u.c)


class Heat2D(NamedTuple):
    """The same r along both axes."""

    r: Any
    four: Any

    @staticmethod
    def change(p, u, at):
        return p.r * (((u.m0 + u.p0) + (u.m2 + u.p2)) - p.four * u.c)


class Heat2DAxes(NamedTuple):
    """An r for each axis."""

    r0: Any
    r2: Any
    two: Any

    @staticmethod
    def change(p, u, at):
        return p.r0 * ((u.m0 + u.p0) - p.two * u.c) + p.r2 * ((u.m2 + u.p2) - p.two * u.c)


class Heat3D(NamedTuple):
    """The same r along all axes."""

    r: Any
    six: Any

    @staticmethod
    def change(p, u, at):
        return p.r * ((((u.m0 + u.p0) + (u.m1 + u.p1)) + (u.m2 + u.p2)) - p.six * u.c)


class Heat3DAxes(NamedTuple):
    """An r for each axis."""

    r0: Any
    r1: Any
    r2: Any
    two: Any

    @staticmethod
    def change(p, u, at):
        x, y, z = (u.m0 + u.p0) - p.two * u.c, (u.m1 + u.p1) - p.two * u.c, (u.m2 + u.p2) - p.two * u.c
        return p.r0 * x + (p.r1 * y + p.r2 * z)


def rule(rate, dtype):
    """The rule for `rate` (B, ndim)."""
    dtype = np.dtype(dtype)
    rate = np.ascontiguousarray(np.asarray(rate, dtype).T)
    ndim = len(rate)
    if ndim == 1:
        return Heat1D(rate[0], dtype.type(2))
    if (rate == rate[0]).all():
        return (Heat2D if ndim == 2 else Heat3D)(rate[0], dtype.type(2 * ndim))
    return (Heat2DAxes if ndim == 2 else Heat3DAxes)(*rate, dtype.type(2))


def cpu(u, rate, edges, steps, out=None, **how):
    """FTCS by the blocked schedule; `how` as in `march`."""
    return march(rule(rate, u.dtype), u, edges, steps, out=out, **how)


def cuda(u, rate, edges, steps, out=None, **how):
    """FTCS on the GPU; `how` as in `march_cuda`."""
    from fastdiff.kernels._march_cuda import march_cuda

    return march_cuda(rule(rate, u.dtype), u, edges, steps, out=out, **how)


def transpose(u, rate, edges, steps, out=None, **how):
    """The gradient by the start from that by the result, `u`: a march with the transposed weights (adjoint.py)."""
    from fastdiff.kernels.adjoint import march_transposed

    weights = np.repeat(rate.T, 2, 0).reshape(2 * rate.shape[1], len(rate), *[1] * rate.shape[1])
    weights = np.broadcast_to(weights, (*weights.shape[:2], *u.shape[2:]))
    return march_transposed(weights, u, edges, steps, out=out, **how)


def _sample(weights):
    """Samples of random fields, two with their own r; ghosts as of a Robin wall on one side, no flux elsewhere."""

    def sample(shape, dtype, rng):
        ndim = len(shape)
        rate = rng.uniform(0.1, 0.45, (2, 1)) / ndim * weights
        sides = {(0, 0, 0): Side(alpha=0.5, gamma=0.25, value=1.5)}
        edges = make_edges(shape, [False] * ndim, dtype, sides, batch=2)
        return dict(u=rng.random((2, 1, *shape)).astype(dtype), rate=rate.astype(dtype), edges=edges, steps=7)

    return sample


def _kernel(name, weights, flops):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(np.array(weights)),
                  ndim=len(weights), rule=rule, adjoint=transpose, order=(2, 1), bytes_per_cell=2,
                  flops_per_cell=flops, tolerance=4)


KERNELS = [
    _kernel("heat_1d", [1.0], 4),
    _kernel("heat_2d", [1.0, 1.0], 6),
    _kernel("heat_2d_axes", [0.6, 1.0], 10),
    _kernel("heat_3d", [1.0, 1.0, 1.0], 8),
    _kernel("heat_3d_axes", [0.6, 0.8, 1.0], 14),
]
