"""Linear operators with coefficients of every cell, forward Euler in time: diffusion in D(x), advection, sources.

    u_i^{n+1} = u_i^n + sum over the neighbours j of  w_ij (u_j^n - u_i^n)  + decay_i u_i^n + source_i

w_ij (times dt) are numbers of every cell, two for each axis. The finite-volume form of u_t = div(D grad u) has

    w_ij = dt A_ij D_ij / (d_ij V_i),   D_ij = 2 D_i D_j / (D_i + D_j)

with A the area of the face between two cells, d the distance of their points, V the cell's volume and D_ij the harmonic
mean (weighted by distance where the spacing varies). What leaves a cell enters its neighbour, and the flux is right
where D jumps. Spacing, curved coordinates and the walls' half cells are all in the w: `fastdiff/equations/_linear.py`
makes them. An increment again: a constant field without decay and source does not change by a single bit.

First order in time, second in space. If all w >= 0, stable for sum of w <= 1 at every cell (Gershgorin), and then it
keeps the field's range.

Shapes: u (B, 1, *grid); weights (2*ndim, B or 1, *grid), the low and the high neighbour of each axis in turn; decay and
source (B or 1, *grid), or None. Units: all are pure numbers, `source` is an amount of u.
Source: Patankar, Numerical Heat Transfer and Fluid Flow, Hemisphere 1980, eq. (4.9) for the harmonic mean and
(3.31) for the general form; LeVeque, Finite Volume Methods for Hyperbolic Problems, Cambridge 2002, section 4.1.
"""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._edges import Side, hold, make_edges, pad
from fastdiff.kernels._fields import Cells, here, next0, next1, next2
from fastdiff.kernels._march import change
from fastdiff.kernels._memory import empty
from fastdiff.kernels._run import march


def reference(u, weights, edges, steps, decay=None, source=None, out=None):
    """The same in plain NumPy, float64."""
    v = hold(np.array(u, np.float64), edges, 0)
    inside = (slice(None), slice(None), *[slice(1, -1)] * (u.ndim - 2))
    w = np.asarray(weights, np.float64)[:, :, None]
    for n in range(steps):
        p, change = pad(v, edges, n), 0.0
        for k in range(len(w)):
            change = change + w[k] * (np.roll(p, -1 if k & 1 else 1, 2 + k // 2) - p)[inside]
        if decay is not None:
            change = change + decay[:, None] * v
        if source is not None:
            change = change + source[:, None]
        v = hold(v + change, edges, n + 1)
    if out is None:
        return v
    out[...] = v
    return out


class Variable1D(NamedTuple):
    """One axis."""

    m2: Any
    p2: Any

    @staticmethod
    def change(p, u, at):
        return here(p.m2, at) * (u.m2 - u.c) + here(p.p2, at) * (u.p2 - u.c)


class Variable2D(NamedTuple):
    """Two axes."""

    m0: Any
    p0: Any
    m2: Any
    p2: Any

    @staticmethod
    def change(p, u, at):
        across = here(p.m0, at) * (u.m0 - u.c) + here(p.p0, at) * (u.p0 - u.c)
        return across + (here(p.m2, at) * (u.m2 - u.c) + here(p.p2, at) * (u.p2 - u.c))


class Variable3D(NamedTuple):
    """Three axes."""

    m0: Any
    p0: Any
    m1: Any
    p1: Any
    m2: Any
    p2: Any

    @staticmethod
    def change(p, u, at):
        x = here(p.m0, at) * (u.m0 - u.c) + here(p.p0, at) * (u.p0 - u.c)
        y = here(p.m1, at) * (u.m1 - u.c) + here(p.p1, at) * (u.p1 - u.c)
        return x + (y + (here(p.m2, at) * (u.m2 - u.c) + here(p.p2, at) * (u.p2 - u.c)))


class Faces1D(NamedTuple):
    """One axis; a weight belongs to a face and serves the cells on both sides of it."""

    a2: Any

    @staticmethod
    def change(p, u, at):
        return here(p.a2, at) * (u.m2 - u.c) + next2(p.a2, at) * (u.p2 - u.c)


class Faces2D(NamedTuple):
    """Two axes, weights of faces: half of the memory."""

    a0: Any
    a2: Any

    @staticmethod
    def change(p, u, at):
        across = here(p.a0, at) * (u.m0 - u.c) + next0(p.a0, at) * (u.p0 - u.c)
        return across + (here(p.a2, at) * (u.m2 - u.c) + next2(p.a2, at) * (u.p2 - u.c))


class Faces3D(NamedTuple):
    """Three axes, weights of faces."""

    a0: Any
    a1: Any
    a2: Any

    @staticmethod
    def change(p, u, at):
        x = here(p.a0, at) * (u.m0 - u.c) + next0(p.a0, at) * (u.p0 - u.c)
        y = here(p.a1, at) * (u.m1 - u.c) + next1(p.a1, at) * (u.p1 - u.c)
        return x + (y + (here(p.a2, at) * (u.m2 - u.c) + next2(p.a2, at) * (u.p2 - u.c)))


class Decaying(NamedTuple):
    """Another rule, and decay * u."""

    rule: Any
    decay: Any

    @staticmethod
    def change(p, u, at):
        return change(p.rule, u, at) + here(p.decay, at) * u.c


class Fed(NamedTuple):
    """Another rule, and a source."""

    rule: Any
    source: Any

    @staticmethod
    def change(p, u, at):
        return change(p.rule, u, at) + here(p.source, at)


def shared_faces(weights):
    """For each axis the weights of its faces, (B or 1, *grid) and one more along it; None if two cells differ."""
    faces = []
    for k in range(len(weights) // 2):
        low, high = weights[2 * k], weights[2 * k + 1]
        first, rest = [slice(None)] * low.ndim, [slice(None)] * low.ndim
        first[k + 1], rest[k + 1] = slice(None, -1), slice(1, None)
        if not np.array_equal(low[tuple(rest)], high[tuple(first)]):
            return None
        last = high.take([-1], k + 1)
        shape = [n + (axis == k + 1) for axis, n in enumerate(low.shape)]
        faces.append(np.concatenate([low, last], k + 1, out=empty(shape, low.dtype)))
    return faces


def rule(weights, dtype, decay=None, source=None):
    """The rule for arrays as in this file's head, with weights of faces where both sides have the same."""
    ndim = len(weights) // 2
    faces = shared_faces(weights)
    rules = (Variable1D, Variable2D, Variable3D) if faces is None else (Faces1D, Faces2D, Faces3D)
    made = rules[ndim - 1](*(Cells(w, ndim, dtype, handed=faces is not None and k == ndim - 1)
                             for k, w in enumerate(weights if faces is None else faces)))
    if decay is not None:
        made = Decaying(made, Cells(decay, ndim, dtype))
    return made if source is None else Fed(made, Cells(source, ndim, dtype))


def cpu(u, weights, edges, steps, decay=None, source=None, out=None, **how):
    """Forward Euler by the blocked schedule; `how` as in `march`."""
    return march(rule(weights, u.dtype, decay, source), u, edges, steps, out=out, **how)


def cuda(u, weights, edges, steps, decay=None, source=None, out=None, **how):
    """Forward Euler on the GPU; `how` as in `march_cuda`."""
    from fastdiff.kernels._march_cuda import march_cuda

    return march_cuda(rule(weights, u.dtype, decay, source), u, edges, steps, out=out, **how)


def transpose(u, weights, edges, steps, decay=None, source=None, out=None, **how):
    """The gradient by the start from that by the result, `u`: a march with the transposed weights (adjoint.py)."""
    from fastdiff.kernels.adjoint import march_transposed

    return march_transposed(weights, u, edges, steps, decay, out=out, **how)


def _sample(more, faces):
    """Two samples of random fields with their own weights, or shared ones; the first axis periodic, one Robin wall."""

    def sample(shape, dtype, rng):
        ndim, batch = len(shape), 1 if more else 2
        weights = rng.uniform(0.02, 0.98 / (2 * ndim), (2 * ndim, batch, *shape)).astype(dtype)
        if faces:  # the high face of a cell is the low face of the next, around the periodic axis too
            for k in range(ndim):
                weights[2 * k + 1] = np.roll(weights[2 * k], -1, k + 1)
        sides = {(0, ndim - 1, 0): Side(alpha=0.5, gamma=0.25, value=1.5)}
        edges = make_edges(shape, [ndim > 1, *[False] * (ndim - 1)], dtype, sides, batch=2)
        extra = {name: (rng.random((batch, *shape)) * 0.1 * sign).astype(dtype) for name, sign in more.items()}
        return dict(u=rng.random((2, 1, *shape)).astype(dtype), weights=weights, edges=edges, steps=7, **extra)

    return sample


def _kernel(name, ndim, faces=False, **more):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(more, faces), ndim=ndim, rule=rule,
                  adjoint=transpose, order=(2, 1), bytes_per_cell=2 + (1 if faces else 2) * ndim + len(more),
                  flops_per_cell=6 * ndim + 2 * len(more), tolerance=6)


KERNELS = [
    _kernel("variable_1d", 1),
    _kernel("variable_2d", 2),
    _kernel("variable_3d", 3),
    _kernel("variable_1d_faces", 1, True),
    _kernel("variable_2d_faces", 2, True),
    _kernel("variable_3d_faces", 3, True),
    _kernel("variable_2d_fed", 2, decay=-1, source=1),
]
