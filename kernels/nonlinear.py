"""Nonlinear diffusion, forward Euler in time, second-order finite volumes in space.

    R(u) u_t = div(D(u) grad u)

    u_i^{n+1} = u_i^n + 1/R(u_i) sum over the neighbours j of  r (D(u_i) + D(u_j)) (u_j - u_i),   r = dt / (2 dx^2)

The arithmetic mean of D at both sides of a face lets a front move into cells where D(u) = 0 (porous medium); the
harmonic mean would hold it. With R = 1 what leaves a cell enters its neighbour. First order in time, second in space;
stable for max(D/R) dt (sum over axes of 1/dx^2) <= 1/2, and then the field keeps its range.

D and R are *laws*: NamedTuple classes with a static method `value(p, u)`, compiled in by their type. On curved and
graded grids, and where D depends on the place too, each neighbour has a weight w_ij, as in kernels/variable.py for
D = 1, and D(u) is taken at the place of the face:

    u_i^{n+1} = u_i^n + 1/R(u_i) sum over j of  w_ij (D_f(u_i) + D_f(u_j))/2 (u_j - u_i)

A law that depends on the place has methods `below(p, u, at)` and `above0`, `above1`, `above2`, its values at the low
and the high face of a cell along an axis; for each axis there is a law of its own, with numbers of that axis' faces. A
capacity has `inside(p, u, at)`, its value at the cell itself.

Shapes: u (B, 1, *grid); rate (B, ndim) with the r of each sample and axis, or weights (2*ndim, B or 1, *grid).
Source: Vazquez, The Porous Medium Equation, Oxford 2007, section 1.1; PDEBench (Takamoto et al., NeurIPS 2022),
appendix D, for R(u) of diffusion and sorption.
"""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._edges import Side, hold, make_edges, pad
from fastdiff.kernels._fields import Cells, here, next0, next1, next2
from fastdiff.kernels._jit import FASTMATH
from fastdiff.kernels._march import change
from fastdiff.kernels._part import overload_part
from fastdiff.kernels._run import march


def law(p, u):
    """The value of a law at u: the `value` of the parameters' class."""
    return type(p).value(p, u)


@overload_part(law, fastmath=FASTMATH, error_model="numpy")
def _law(p, u):
    return p.instance_class.value


def _at_face(name):
    """A law at a face or a cell: its method of that name, or `value` where it is the same everywhere."""

    def at_face(p, u, at) -> Any:
        return getattr(type(p), name)(p, u, at) if hasattr(type(p), name) else law(p, u)

    @overload_part(at_face, fastmath=FASTMATH, error_model="numpy")
    def _compiled(p, u, at):
        if hasattr(p.instance_class, name):
            return getattr(p.instance_class, name)
        return lambda p, u, at: law(p, u)

    return at_face


below, above0, above1, above2, inside = map(_at_face, ("below", "above0", "above1", "above2", "inside"))


def reference(u, rate, diffusivity, edges, steps, capacity=None, out=None):
    """The same in plain NumPy, float64; the laws run as they are."""
    v = hold(np.array(u, np.float64), edges, 0)
    within = (slice(None), slice(None), *[slice(1, -1)] * (u.ndim - 2))
    D = type(diffusivity)(*(np.asarray(f, np.float64).reshape(-1, *[1] * (u.ndim - 1)) for f in diffusivity))
    for n in range(steps):
        p, change = pad(v, edges, n), 0.0
        for axis in range(2, u.ndim):
            r = rate[:, axis - 2].astype(np.float64).reshape(-1, *[1] * (u.ndim - 1))
            for side in (1, -1):
                near = np.roll(p, side, axis)
                change = change + r * ((law(D, p) + law(D, near)) * (near - p))[within]
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


class Placed1D(NamedTuple):
    """One axis; weights of both neighbours, halved, and a law that may depend on the place."""

    m2: Any
    p2: Any
    d2: Any

    @staticmethod
    def change(p, u, at):
        low = here(p.m2, at) * (below(p.d2, u.c, at) + below(p.d2, u.m2, at))
        high = here(p.p2, at) * (above2(p.d2, u.c, at) + above2(p.d2, u.p2, at))
        return low * (u.m2 - u.c) + high * (u.p2 - u.c)


class Placed2D(NamedTuple):
    """Two axes."""

    m0: Any
    p0: Any
    m2: Any
    p2: Any
    d0: Any
    d2: Any

    @staticmethod
    def change(p, u, at):
        low = here(p.m0, at) * (below(p.d0, u.c, at) + below(p.d0, u.m0, at))
        high = here(p.p0, at) * (above0(p.d0, u.c, at) + above0(p.d0, u.p0, at))
        across = low * (u.m0 - u.c) + high * (u.p0 - u.c)
        low = here(p.m2, at) * (below(p.d2, u.c, at) + below(p.d2, u.m2, at))
        high = here(p.p2, at) * (above2(p.d2, u.c, at) + above2(p.d2, u.p2, at))
        return across + (low * (u.m2 - u.c) + high * (u.p2 - u.c))


class Placed3D(NamedTuple):
    """Three axes."""

    m0: Any
    p0: Any
    m1: Any
    p1: Any
    m2: Any
    p2: Any
    d0: Any
    d1: Any
    d2: Any

    @staticmethod
    def change(p, u, at):
        low = here(p.m0, at) * (below(p.d0, u.c, at) + below(p.d0, u.m0, at))
        high = here(p.p0, at) * (above0(p.d0, u.c, at) + above0(p.d0, u.p0, at))
        x = low * (u.m0 - u.c) + high * (u.p0 - u.c)
        low = here(p.m1, at) * (below(p.d1, u.c, at) + below(p.d1, u.m1, at))
        high = here(p.p1, at) * (above1(p.d1, u.c, at) + above1(p.d1, u.p1, at))
        y = low * (u.m1 - u.c) + high * (u.p1 - u.c)
        low = here(p.m2, at) * (below(p.d2, u.c, at) + below(p.d2, u.m2, at))
        high = here(p.p2, at) * (above2(p.d2, u.c, at) + above2(p.d2, u.p2, at))
        return x + (y + (low * (u.m2 - u.c) + high * (u.p2 - u.c)))


class Stored(NamedTuple):
    """Another rule, slowed down by a capacity R(u)."""

    rule: Any
    capacity: Any

    @staticmethod
    def change(p, u, at):
        return change(p.rule, u, at) / inside(p.capacity, u.c, at)


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


class Sheared(NamedTuple):
    """The law (a + b u²) f with a number f of every face, for the tests."""

    a: Any
    b: Any
    f: Any

    @staticmethod
    def below(p, u, at):
        return (p.a + p.b * (u * u)) * here(p.f, at)

    @staticmethod
    def above0(p, u, at):
        return (p.a + p.b * (u * u)) * next0(p.f, at)

    @staticmethod
    def above1(p, u, at):
        return (p.a + p.b * (u * u)) * next1(p.f, at)

    @staticmethod
    def above2(p, u, at):
        return (p.a + p.b * (u * u)) * next2(p.f, at)


def placed(weights, laws, dtype):
    """The rule for halved weights, 2*ndim arrays (B or 1, *grid), or (B,) where they do not vary, and a law an axis."""
    ndim = len(laws)
    fields = [Cells(w, ndim, dtype) if np.ndim(w) > 1 else np.ascontiguousarray(w, dtype) for w in weights]
    return (Placed1D, Placed2D, Placed3D)[ndim - 1](*fields, *laws)


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


def placed_reference(u, weights, a, b, faces, edges, steps, out=None):
    """The rule `placed` with the law `Sheared` in plain NumPy, float64."""
    v, ndim = hold(np.array(u, np.float64), edges, 0), u.ndim - 2
    within = (slice(None), slice(None), *[slice(1, -1)] * ndim)
    a, b = (np.asarray(n, np.float64).reshape(-1, *[1] * (ndim + 1)) for n in (a, b))
    for n in range(steps):
        p, change = pad(v, edges, n), 0.0
        for side in range(2 * ndim):
            axis, f = side // 2, faces[side // 2].astype(np.float64)
            f = np.take(f, np.arange(v.shape[axis + 2]) + (side & 1), axis + 1)[:, None]
            near = np.roll(p, -1 if side & 1 else 1, axis + 2)[within]
            change = change + weights[side].astype(np.float64)[:, None] * f * (
                (a + b * v * v) + (a + b * near * near)) * (near - v)
        v = hold(v + change, edges, n + 1)
    if out is None:
        return v
    out[...] = v
    return out


def placed_rule(weights, a, b, faces, dtype):
    """The rule `placed` with the law `Sheared`."""
    ndim = len(faces)
    return placed(weights, [Sheared(a, b, Cells(f, ndim, dtype)) for f in faces], dtype)


def placed_cpu(u, weights, a, b, faces, edges, steps, out=None, **how):
    """Forward Euler by the blocked schedule; `how` as in `march`."""
    return march(placed_rule(weights, a, b, faces, u.dtype), u, edges, steps, out=out, **how)


def placed_cuda(u, weights, a, b, faces, edges, steps, out=None, **how):
    """Forward Euler on the GPU; `how` as in `march_cuda`."""
    from fastdiff.kernels._march_cuda import march_cuda

    return march_cuda(placed_rule(weights, a, b, faces, u.dtype), u, edges, steps, out=out, **how)


def _placed_sample(shape, dtype, rng):
    """Two samples of random fields with their own weights and laws, the first axis periodic if there are two."""
    ndim = len(shape)
    weights = (rng.uniform(0.1, 0.2, (2 * ndim, 2, *shape)) / ndim).astype(dtype)
    faces = []
    for k in range(ndim):
        f = rng.uniform(0.5, 1.0, (1, *(n + (j == k) for j, n in enumerate(shape)))).astype(dtype)
        if k == 0 and ndim > 1:
            f[:, -1] = f[:, 0]
        faces.append(f)
    edges = make_edges(shape, [ndim > 1, *[False] * (ndim - 1)], dtype,
                       {(0, ndim - 1, 0): Side(alpha=0.5, gamma=0.25, value=1.5)}, batch=2)
    a, b = np.array([0.0, 0.3], dtype), np.array([1.0, 0.7], dtype)
    return dict(u=rng.random((2, 1, *shape)).astype(dtype), weights=weights, a=a, b=b, faces=tuple(faces), edges=edges,
                steps=7)


def _placed_kernel(name, ndim):
    return Kernel(name=name, reference=placed_reference, cpu=placed_cpu, cuda=placed_cuda, sample=_placed_sample,
                  ndim=ndim, rule=placed_rule, order=(2, 1), bytes_per_cell=2 + 3 * ndim, flops_per_cell=22 * ndim,
                  tolerance=8)


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
    _placed_kernel("nonlinear_2d_placed", 2),
    _placed_kernel("nonlinear_3d_placed", 3),
]
