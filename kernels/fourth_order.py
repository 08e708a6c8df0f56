"""Equations of fourth order, forward Euler in time, second-order central differences in space.

    Cahn-Hilliard     u_t = M Δ(u³ - u - kappa Δu)
    Swift-Hohenberg   u_t = r u - (q² + Δ)² u + g u² - u³ = (r - q⁴) u - 2 q² Δu - Δ²u + g u² - u³

Δ² is the square of the star of Δ: 5, 13 or 25 points on one, two or three axes. Both in one form,

    u_i^{n+1} = u_i^n + sum over axes a of [in_a δ_a² f(u) - k_aa δ_a⁴ u]
                      - sum over pairs a < b of k_ab δ_a² δ_b² u + local(u)

with f(u) = u³ - u or u, and coefficients times dt: in_a = M/dx_a² or -2 q²/dx_a², k_aa = K/dx_a⁴ and k_ab =
2 K/(dx_a² dx_b²), where K = M kappa or 1. First order in time, second in space. With lambda = sum of 4/dx_a²
Cahn-Hilliard is stable about a uniform u for M lambda (3u² - 1 + kappa lambda) dt <= 2, Swift-Hohenberg about 0 for
((lambda - q²)² - r) dt <= 2. What leaves a cell by Cahn-Hilliard enters another.

Shapes: u (B, 1, *grid); inside (B, ndim), cross (B, ndim (ndim + 1)/2) with k_aa, then k_ab; local (B, 3) with the
factors of u, u², -u³, or None for Cahn-Hilliard.
Source: Cahn and Hilliard, J. Chem. Phys. 28 (1958) 258; Swift and Hohenberg, Phys. Rev. A 15 (1977) 319, eq. (15).
"""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._contract import Kernel, Launch
from fastdiff.kernels._edges import Side, hold, make_edges
from fastdiff.kernels._fields import lowered
from fastdiff.kernels._run import march
from fastdiff.kernels._wide import pad_wide, wide_row

_AXES = {1: (2,), 2: (0, 2), 3: (0, 1, 2)}


def _pairs(ndim):
    return [(a, b) for a in range(ndim) for b in range(a + 1, ndim)]


def reference(u, inside, cross, edges, steps, local=None, out=None):
    """The same in plain NumPy, float64."""
    v, ndim = hold(np.array(u, np.float64), edges, 0), u.ndim - 2
    middle = (slice(None), slice(None), *[slice(2, -2)] * ndim)
    line = (-1, *[1] * (ndim + 1))

    def second(p, axis):
        return np.roll(p, 1, axis + 2) + np.roll(p, -1, axis + 2) - 2 * p

    for n in range(steps):
        p = pad_wide(v, edges, n, 2)
        f, change = p if local is not None else p**3 - p, np.zeros_like(p)
        for a in range(ndim):
            change = change + inside[:, a].astype(np.float64).reshape(line) * second(f, a)
            change = change - cross[:, a].astype(np.float64).reshape(line) * second(second(p, a), a)
        for k, (a, b) in enumerate(_pairs(ndim)):
            change = change - cross[:, ndim + k].astype(np.float64).reshape(line) * second(second(p, a), b)
        change = change[middle]
        if local is not None:
            linear, square, cube = (local[:, k].astype(np.float64).reshape(line) for k in range(3))
            change = change + v * (linear + v * (square - cube * v))
        v = hold(v + change, edges, n + 1)
    if out is None:
        return v
    out[...] = v
    return out


def _source(ndim, local):
    """`change` for a number of axes: second differences e, those two cells wide w, those of diagonals d."""
    axes, lines = _AXES[ndim], ["c, two, four = u.c, p.two, p.four"]
    lines += [f"e{a} = (u.m{a} + u.p{a}) - two * c" for a in axes]
    lines += [f"w{a} = ((u.mm{a} + u.pp{a}) - two * c) - four * e{a}" for a in axes]
    stiff = [f"p.k{a}{a} * w{a}" for a in axes]
    for a, b in ((axes[i], axes[j]) for i, j in _pairs(ndim)):
        corners = f"(u.m{a}m{b} + u.p{a}p{b}) + (u.m{a}p{b} + u.p{a}m{b})"
        lines.append(f"d{a}{b} = (({corners}) - four * c) - two * (e{a} + e{b})")
        stiff.append(f"p.k{a}{b} * d{a}{b}")
    if local:
        soft = [f"p.i{a} * e{a}" for a in axes] + ["c * (p.linear + c * (p.square - p.cube * c))"]
    else:
        lines.append("f = two * (c * (c * c - p.one))")
        for a in axes:
            lines += [f"m{a}, p{a} = u.m{a}, u.p{a}",
                      f"f{a} = (m{a} * (m{a} * m{a} - p.one) + p{a} * (p{a} * p{a} - p.one)) - f"]
        soft = [f"p.i{a} * f{a}" for a in axes]
    return [*lines, f"return ({' + '.join(soft)}) - ({' + '.join(stiff)})"]


def _class(title, ndim, local):
    axes = _AXES[ndim]
    names = [f"i{a}" for a in axes] + [f"k{a}{a}" for a in axes] + [f"k{axes[a]}{axes[b]}" for a, b in _pairs(ndim)]
    names += (["linear", "square", "cube"] if local else ["one"]) + ["two", "four"]
    scope: dict[str, Any] = {}
    exec("def change(p, u, at):\n    " + "\n    ".join(_source(ndim, local)), scope)
    base = NamedTuple(f"{title}{ndim}D", [(name, Any) for name in names])
    return type(f"{title}{ndim}D", (base,), {"near": "star2" if ndim == 1 else "disc", "__module__": __name__,
                                             "change": staticmethod(scope["change"]), "__slots__": (),
                                             "__doc__": f"{title} on {ndim} axes."})


CahnHilliard1D, CahnHilliard2D, CahnHilliard3D = (_class("CahnHilliard", ndim, False) for ndim in (1, 2, 3))
SwiftHohenberg1D, SwiftHohenberg2D, SwiftHohenberg3D = (_class("SwiftHohenberg", ndim, True) for ndim in (1, 2, 3))
_RULES = {(False, 1): CahnHilliard1D, (False, 2): CahnHilliard2D, (False, 3): CahnHilliard3D,
          (True, 1): SwiftHohenberg1D, (True, 2): SwiftHohenberg2D, (True, 3): SwiftHohenberg3D}


def coefficients(first, second, spacing):
    """`inside` and `cross` for the factors of Δf and -Δ²u, (B,) each, times dt."""
    r = 1 / np.square(np.asarray(spacing, np.float64))
    first, second = (np.atleast_1d(np.asarray(v, np.float64))[:, None] for v in (first, second))
    return first * r, second * np.concatenate([r * r, [2 * r[a] * r[b] for a, b in _pairs(len(r))]])


def rule(inside, cross, dtype, local=None):
    """The rule for coefficients as in this file's head."""
    dtype = np.dtype(dtype)
    columns = [*np.asarray(inside).T, *np.asarray(cross).T, *([] if local is None else np.asarray(local).T)]
    numbers = [dtype.type(1)] * (local is None) + [dtype.type(2), dtype.type(4)]
    made = _RULES[local is not None, np.shape(inside)[1]]
    return made(*(np.ascontiguousarray(column, dtype) for column in columns), *numbers)


def cpu(u, inside, cross, edges, steps, local=None, out=None, **how):
    """Forward Euler, a sweep a step; `how` as in `march`."""
    return march(rule(inside, cross, u.dtype, local), u, edges, steps, out=out, **how)


def cuda(u, inside, cross, edges, steps, local=None, out=None, **how):
    """Forward Euler on the GPU; `how` as in `march_cuda`."""
    from fastdiff.kernels._march_cuda import march_cuda

    return march_cuda(rule(inside, cross, u.dtype, local), u, edges, steps, out=out, **how)


def _sample(local):
    """Two samples with their own parameters; the last axis between a Robin wall and one without flux, else periodic."""

    def sample(shape, dtype, rng):
        ndim = len(shape)
        inside, cross = coefficients(np.array([0.02, 0.015]), np.array([0.004, 0.003]), np.linspace(1.0, 1.2, ndim))
        edges = make_edges(shape, [k < ndim - 1 for k in range(ndim)], dtype,
                           {(0, ndim - 1, 0): Side(1, 0.7, 0.0, 0.2, 1.0)}, batch=2)
        more = {"local": np.array([[0.1, 0.2, 0.1], [-0.1, 0.1, 0.1]], dtype)} if local else {}
        return dict(u=rng.uniform(-1, 1, (2, 1, *shape)).astype(dtype), inside=inside.astype(dtype),
                    cross=cross.astype(dtype), edges=edges, steps=5, **more)

    return sample


def _made(ndim, local, dtype):
    inputs = _sample(local)((4,) * ndim, dtype, np.random.default_rng(0))
    return inputs, rule(inputs["inside"], inputs["cross"], dtype, inputs.get("local"))


def _machine_code(ndim, local):
    return lambda dtype: [wide_row(lowered(_made(ndim, local, dtype)[1], (2, 2, 2), (4, 4, 4), 0), dtype)]


def _ptx(ndim, local):
    def launched(dtype) -> list[Launch]:
        from fastdiff.kernels._wide_cuda import launches

        inputs, made = _made(ndim, local, dtype)
        return launches(lowered(made, (2, 2, 2), (4, 4, 4), 0), inputs["edges"], dtype)

    return launched


_SHAPES = {1: {(1,): "one cell", (2,): "fewer cells than a ghost is deep", (17,): "prime", (6551,): "several slabs"},
           2: {(1, 13): "one row", (13, 1): "one column", (7, 19): "primes", (61, 131): "several slabs"},
           3: {(1, 5, 4): "one plane", (3, 5, 7): "primes", (19, 17, 33): "several slabs"}}


def _kernel(name, ndim, local):
    return Kernel(name=f"{name}_{ndim}d", reference=reference, cpu=cpu, cuda=cuda, sample=_sample(local), ndim=ndim,
                  shapes=_SHAPES[ndim], machine_code=_machine_code(ndim, local), ptx=_ptx(ndim, local), order=(2, 1),
                  bytes_per_cell=2, flops_per_cell={1: 20, 2: 45, 3: 80}[ndim], tolerance=12)


KERNELS = [_kernel(name, ndim, local) for name, local in (("cahn_hilliard", False), ("swift_hohenberg", True))
           for ndim in (1, 2, 3)]
