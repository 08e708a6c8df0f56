"""Gray–Scott reaction–diffusion, FTCS: forward Euler in time, second-order central differences in space.

    u_t = D_u Δu - u v² + F (1 - u)
    v_t = D_v Δv + u v² - (F + k) v

First order in time, second in space; stable for D dt (sum over axes of 1/dx²) <= 1/2 and dt well below 1/(F + k).

Shapes: u (B, 2, *grid), the two species one after the other; rate (B, 2, ndim) with D dt / dx² of each sample,
species and axis; feed = F dt, kill = (F + k) dt and dt, each (B,). The reaction has no parameter but these.
Source: Pearson, "Complex patterns in a simple system", Science 261 (1993) 189, eq. (1) and its numerical scheme.
"""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._edges import hold, make_edges, pad
from fastdiff.kernels._run import march


def reference(u, rate, feed, kill, dt, edges, steps, out=None):
    """FTCS in plain NumPy, float64."""
    w = hold(np.array(u, np.float64), edges, 0)
    inside = (slice(None), slice(None), *[slice(1, -1)] * (u.ndim - 2))
    feed, kill, dt = (np.asarray(p, np.float64).reshape(-1, *[1] * (u.ndim - 2)) for p in (feed, kill, dt))
    for n in range(steps):
        p, change = pad(w, edges, n), np.zeros_like(w)
        for axis in range(2, u.ndim):
            r = rate[:, :, axis - 2].astype(np.float64).reshape(*rate.shape[:2], *[1] * (u.ndim - 2))
            change += r * (np.roll(p, 1, axis) + np.roll(p, -1, axis) - 2 * p)[inside]
        eaten = dt * w[:, 0] * w[:, 1] ** 2
        change[:, 0] += feed * (1 - w[:, 0]) - eaten
        change[:, 1] += eaten - kill * w[:, 1]
        w = hold(w + change, edges, n + 1)
    if out is None:
        return w
    out[...] = w
    return out


class GrayScott1D(NamedTuple):
    """One axis."""

    du: Any
    dv: Any
    feed: Any
    kill: Any
    dt: Any
    one: Any
    two: Any
    components = 2

    @staticmethod
    def change(p, u, at):
        u, v = u
        eaten = p.dt * ((u.c * v.c) * v.c)
        spread_u, spread_v = (u.m2 + u.p2) - p.two * u.c, (v.m2 + v.p2) - p.two * v.c
        return p.du * spread_u + (p.feed * (p.one - u.c) - eaten), p.dv * spread_v + (eaten - p.kill * v.c)


class GrayScott2D(NamedTuple):
    """Two axes with the same spacing."""

    du: Any
    dv: Any
    feed: Any
    kill: Any
    dt: Any
    one: Any
    four: Any
    components = 2

    @staticmethod
    def change(p, u, at):
        u, v = u
        eaten = p.dt * ((u.c * v.c) * v.c)
        spread_u = ((u.m0 + u.p0) + (u.m2 + u.p2)) - p.four * u.c
        spread_v = ((v.m0 + v.p0) + (v.m2 + v.p2)) - p.four * v.c
        return p.du * spread_u + (p.feed * (p.one - u.c) - eaten), p.dv * spread_v + (eaten - p.kill * v.c)


class GrayScottAxes(NamedTuple):
    """Two or three axes, each with its own spacing; on two axes the rates along axis 1 are zero."""

    du0: Any
    du1: Any
    du2: Any
    dv0: Any
    dv1: Any
    dv2: Any
    feed: Any
    kill: Any
    dt: Any
    one: Any
    two: Any
    components = 2

    @staticmethod
    def change(p, u, at):
        u, v = u
        eaten = p.dt * ((u.c * v.c) * v.c)
        two_u, two_v = p.two * u.c, p.two * v.c
        spread_u = p.du0 * ((u.m0 + u.p0) - two_u) + (p.du1 * ((u.m1 + u.p1) - two_u) + p.du2 * ((u.m2 + u.p2) - two_u))
        spread_v = p.dv0 * ((v.m0 + v.p0) - two_v) + (p.dv1 * ((v.m1 + v.p1) - two_v) + p.dv2 * ((v.m2 + v.p2) - two_v))
        return spread_u + (p.feed * (p.one - u.c) - eaten), spread_v + (eaten - p.kill * v.c)


def rule(rate, feed, kill, dt, dtype):
    """The rule for rates (B, 2, ndim) and reaction parameters (B,)."""
    dtype = np.dtype(dtype)
    rate = np.asarray(rate, dtype)
    common = [np.ascontiguousarray(np.broadcast_to(np.asarray(p, dtype), len(rate))) for p in (feed, kill, dt)]
    axes = [np.ascontiguousarray(rate[:, c, k]) for c in range(2) for k in range(rate.shape[2])]
    ndim, one, two, four = rate.shape[2], dtype.type(1), dtype.type(2), dtype.type(4)
    if ndim == 1:
        return GrayScott1D(*axes, *common, one, two)
    if ndim == 2 and (rate[..., 0] == rate[..., 1]).all():
        return GrayScott2D(axes[0], axes[2], *common, one, four)
    if ndim == 2:
        none = np.zeros_like(common[0])
        axes = [axes[0], none, axes[1], axes[2], none, axes[3]]
    return GrayScottAxes(*axes, *common, one, two)


def cpu(u, rate, feed, kill, dt, edges, steps, out=None, **how):
    """FTCS by the blocked schedule; `how` as in `march`."""
    return march(rule(rate, feed, kill, dt, u.dtype), u, edges, steps, out=out, **how)


def cuda(u, rate, feed, kill, dt, edges, steps, out=None, **how):
    """FTCS on the GPU; `how` as in `march_cuda`."""
    from fastdiff.kernels._march_cuda import march_cuda

    return march_cuda(rule(rate, feed, kill, dt, u.dtype), u, edges, steps, out=out, **how)


def _sample(weights):
    """Samples of two random fields with different parameters on a periodic grid."""

    def sample(shape, dtype, rng):
        dt = np.array([1.0, 0.5])
        feed, kill = np.array([0.04, 0.03]) * dt, np.array([0.1, 0.092]) * dt
        rate = np.array([0.16, 0.08]).reshape(1, 2, 1) * dt.reshape(2, 1, 1) * weights
        edges = make_edges(shape, [True] * len(shape), dtype, components=2, batch=2)
        u = rng.random((2, 2, *shape)) * np.array([0.5, 0.3]).reshape(1, 2, *[1] * len(shape))  # both bounded
        return dict(u=u.astype(dtype), rate=rate.astype(dtype), feed=feed.astype(dtype), kill=kill.astype(dtype),
                    dt=dt.astype(dtype), edges=edges, steps=7)

    return sample


def _kernel(name, weights, flops):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(np.array(weights)),
                  ndim=len(weights), rule=rule, order=(2, 1), bytes_per_cell=4, flops_per_cell=flops, tolerance=8)


KERNELS = [
    _kernel("gray_scott_1d", [1.0], 20),
    _kernel("gray_scott_2d", [1.0, 1.0], 22),
    _kernel("gray_scott_2d_axes", [0.8, 1.0], 34),
    _kernel("gray_scott_3d", [0.8, 0.9, 1.0], 34),
]
