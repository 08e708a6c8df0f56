"""Nonlinear diffusion, forward Euler in time, second-order finite volumes in space.

    R(u) u_t = div(D(u) grad u)

    u_i^{n+1} = u_i^n + 1/R(u_i) sum over the neighbours j of  r (D(u_i) + D(u_j)) (u_j - u_i),   r = dt / (2 dx^2)

The arithmetic mean of D at both sides of a face lets a front move into cells where D(u) = 0 (porous medium); the
harmonic mean would hold it. With R = 1 what leaves a cell enters its neighbour. First order in time, second in space;
stable for max(D/R) dt (sum over axes of 1/dx^2) <= 1/2, and then the field keeps its range.

D and R are *laws*: NamedTuple classes with a static method `value(p, u)`, compiled in by their type.

Shapes: u (B, 1, *grid); rate (B, ndim) with the r of each sample and axis.
Source: Vazquez, The Porous Medium Equation, Oxford 2007, section 1.1; PDEBench (Takamoto et al., NeurIPS 2022),
appendix D, for R(u) of diffusion and sorption.
"""

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._edges import Side, hold, make_edges, pad
from fastdiff.kernels._jit import FASTMATH
from fastdiff.kernels._march import change
from fastdiff.kernels._run import march


def law(p, u):
    """The value of a law at u: the `value` of the parameters' class."""
    return type(p).value(p, u)


@overload(law, jit_options={"fastmath": FASTMATH, "error_model": "numpy"})
def _law(p, u):
    return p.instance_class.value


def reference(u, rate, diffusivity, edges, steps, capacity=None, out=None):
    """The same in plain NumPy, float64; the laws run as they are."""
    v = hold(np.array(u, np.float64), edges, 0)
    inside = (slice(None), slice(None), *[slice(1, -1)] * (u.ndim - 2))
    D = type(diffusivity)(*(np.asarray(f, np.float64).reshape(-1, *[1] * (u.ndim - 1)) for f in diffusivity))
    for n in range(steps):
        p, change = pad(v, edges, n), 0.0
        for axis in range(2, u.ndim):
            r = rate[:, axis - 2].astype(np.float64).reshape(-1, *[1] * (u.ndim - 1))
            for side in (1, -1):
                near = np.roll(p, side, axis)
                change = change + r * ((law(D, p) + law(D, near)) * (near - p))[inside]
        v = hold(v + (change if capacity is None else change / law(capacity, v)), edges, n + 1)
    if out is None:
        return v
    out[...] = v
    return out


class Nonlinear1D(NamedTuple):
    """One axis."""

    r2: Any
    diffusivity: Any

    @staticmethod
    def change(p, u, at):
        d, c = law(p.diffusivity, u.c), u.c
        low, high = law(p.diffusivity, u.m2), law(p.diffusivity, u.p2)
        return p.r2 * ((d + low) * (u.m2 - c) + (d + high) * (u.p2 - c))


class Nonlinear2D(NamedTuple):
    """Two axes."""

    r0: Any
    r2: Any
    diffusivity: Any

    @staticmethod
    def change(p, u, at):
        d, c = law(p.diffusivity, u.c), u.c
        low, high = law(p.diffusivity, u.m0), law(p.diffusivity, u.p0)
        across = (d + low) * (u.m0 - c) + (d + high) * (u.p0 - c)
        low, high = law(p.diffusivity, u.m2), law(p.diffusivity, u.p2)
        return p.r0 * across + p.r2 * ((d + low) * (u.m2 - c) + (d + high) * (u.p2 - c))


class Nonlinear3D(NamedTuple):
    """Three axes."""

    r0: Any
    r1: Any
    r2: Any
    diffusivity: Any

    @staticmethod
    def change(p, u, at):
        d, c = law(p.diffusivity, u.c), u.c
        low, high = law(p.diffusivity, u.m0), law(p.diffusivity, u.p0)
        x = (d + low) * (u.m0 - c) + (d + high) * (u.p0 - c)
        low, high = law(p.diffusivity, u.m1), law(p.diffusivity, u.p1)
        y = (d + low) * (u.m1 - c) + (d + high) * (u.p1 - c)
        low, high = law(p.diffusivity, u.m2), law(p.diffusivity, u.p2)
        return p.r0 * x + (p.r1 * y + p.r2 * ((d + low) * (u.m2 - c) + (d + high) * (u.p2 - c)))


class Stored(NamedTuple):
    """Another rule, slowed down by a capacity R(u)."""

    rule: Any
    capacity: Any

    @staticmethod
    def change(p, u, at):
        return change(p.rule, u, at) / law(p.capacity, u.c)


class Both(NamedTuple):
    """The sum of two rules."""

    rule: Any
    other: Any

    @staticmethod
    def change(p, u, at):
        return change(p.rule, u, at) + change(p.other, u, at)


class Square(NamedTuple):
    """The law a + b u²."""

    a: Any
    b: Any

    @staticmethod
    def value(p, u):
        return p.a + p.b * (u * u)


def rule(rate, diffusivity, dtype, capacity=None):
    """The rule for `rate` (B, ndim) and laws."""
    rate = np.ascontiguousarray(np.asarray(rate, np.dtype(dtype)).T)
    made = (Nonlinear1D, Nonlinear2D, Nonlinear3D)[len(rate) - 1](*rate, diffusivity)
    return made if capacity is None else Stored(made, capacity)


def cpu(u, rate, diffusivity, edges, steps, capacity=None, out=None, **how):
    """Forward Euler by the blocked schedule; `how` as in `march`."""
    return march(rule(rate, diffusivity, u.dtype, capacity), u, edges, steps, out=out, **how)


def cuda(u, rate, diffusivity, edges, steps, capacity=None, out=None, **how):
    """Forward Euler on the GPU; `how` as in `march_cuda`."""
    from fastdiff.kernels._march_cuda import march_cuda

    return march_cuda(rule(rate, diffusivity, u.dtype, capacity), u, edges, steps, out=out, **how)


def _sample(capacity):
    """Two samples of random fields with their own D(u) = a + b u², zero in places; a Robin wall, else no flux."""

    def sample(shape, dtype, rng):
        ndim = len(shape)
        rate = rng.uniform(0.1, 0.2, (2, ndim)) / ndim
        edges = make_edges(shape, [False] * ndim, dtype, {(0, 0, 0): Side(alpha=0.5, gamma=0.25, value=1.5)}, batch=2)
        D = Square(np.array([0.0, 0.3], dtype), np.array([1.0, 0.7], dtype))
        more = {"capacity": Square(dtype.type(1), dtype.type(0.5))} if capacity else {}
        return dict(u=rng.random((2, 1, *shape)).astype(dtype), rate=rate.astype(dtype), diffusivity=D, edges=edges,
                    steps=7, **more)

    return sample


def _kernel(name, ndim, capacity=False):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(capacity), ndim=ndim, rule=rule,
                  order=(2, 1), bytes_per_cell=2, flops_per_cell=15 * ndim + 4 + 4 * capacity, tolerance=8)


KERNELS = [
    _kernel("nonlinear_1d", 1),
    _kernel("nonlinear_2d", 2),
    _kernel("nonlinear_3d", 3),
    _kernel("nonlinear_2d_stored", 2, capacity=True),
]
