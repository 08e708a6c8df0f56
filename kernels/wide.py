"""Linear operators with weights for wider neighbourhoods, forward Euler in time.

    u_i^{n+1} = u_i^n + sum over the neighbours j of  w_j (u_j^n - u_i^n)  + decay u_i^n

The neighbours are two or three cells away along each axis (`star2`, `star3`) or the diagonal ones (`box`), see
`_wide.py`. With r = D dt / dx^2 and c = v dt / dx the weights are

    Laplacian of order 4      r (4/3, -1/12)              for 1, 2 cells away, both sides
    Laplacian of order 6      r (3/2, -3/20, 1/90)        for 1, 2, 3 cells away
    upwind of order 2, v > 0  c (2, -1/2)                 for 1, 2 cells upstream
    upwind of order 3, v > 0  c (1, -1/6; -1/3)           for 1, 2 cells upstream; 1 downstream
    mixed derivative          D_xy dt / (2 dx dy) (+, -)  for the diagonals ++, -- and +-, -+

Weights are numbers of each sample or of every cell. Stable for r (sum over axes) <= 3/8 at order 4 and 0.3309 at
order 6; the others as `fastdiff/equations` computes.

Shapes: u (B, 1, *grid); weights {name: (B,) or (B or 1, *grid)}, names as in `_wide.py`; decay (B or 1, *grid) or None.
Source: Fornberg, Math. Comp. 51 (1988) 699, table 1 (Laplacians); Leonard, Comput. Methods Appl. Mech. Eng. 19 (1979)
59, and LeVeque, Finite Difference Methods, SIAM 2007, section 10 (upwind).
"""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._contract import Kernel, Launch
from fastdiff.kernels._edges import Side, hold, make_edges
from fastdiff.kernels._fields import Cells, here, lowered
from fastdiff.kernels._run import march
from fastdiff.kernels._wide import FIELDS, REACH, pad_wide, wide_row
from fastdiff.kernels.variable import Decaying

_AXES = {1: (2,), 2: (0, 2), 3: (0, 1, 2)}


def names_of(near: str, ndim: int) -> list[str]:
    """The neighbours of a neighbourhood on a grid of `ndim` axes, in the order of the rule's fields."""
    return [name for name, offset in FIELDS[near].items()
            if name != "c" and all(o == 0 or a in _AXES[ndim] for a, o in enumerate(offset))]


def reference(u, near, weights, edges, steps, decay=None, out=None):
    """The same in plain NumPy, float64."""
    v, ndim, reach = hold(np.array(u, np.float64), edges, 0), u.ndim - 2, REACH[near]
    inside = (slice(None), slice(None), *[slice(reach, -reach)] * ndim)
    for n in range(steps):
        p, change = pad_wide(v, edges, n, reach), 0.0
        for name, w in weights.items():
            shift = [-FIELDS[near][name][a] for a in _AXES[ndim]]
            w = np.asarray(w, np.float64)
            w = w.reshape(-1, *[1] * (ndim + 1)) if w.ndim == 1 else w[:, None]
            change = change + w * (np.roll(p, shift, range(2, ndim + 2)) - p)[inside]
        v = hold(v + (change if decay is None else change + decay[:, None] * v), edges, n + 1)
    if out is None:
        return v
    out[...] = v
    return out


def _tree(terms):
    """A sum in pairs, so that additions do not wait for each other."""
    while len(terms) > 1:
        terms = [f"({a} + {b})" if b else a for a, b in zip(terms[::2], [*terms[1::2], ""])]
    return terms[0]


def _class(near, ndim):
    names = names_of(near, ndim)
    scope: dict[str, Any] = {"here": here}
    total = _tree([f"here(p.{name}, at) * (u.{name} - u.c)" for name in names])
    exec(f"def change(p, u, at):\n    return {total}", scope)
    title = f"{near.capitalize()}{ndim}D"
    base = NamedTuple(title, [(name, Any) for name in names])
    return type(title, (base,), {"near": near, "change": staticmethod(scope["change"]), "__module__": __name__,
                                 "__doc__": f"Weights of the {near} on {ndim} axes.", "__slots__": ()})


Star21D, Star22D, Star23D = (_class("star2", ndim) for ndim in (1, 2, 3))
Star31D, Star32D, Star33D = (_class("star3", ndim) for ndim in (1, 2, 3))
Box2D, Box3D = (_class("box", ndim) for ndim in (2, 3))
RULES = {("star2", 1): Star21D, ("star2", 2): Star22D, ("star2", 3): Star23D, ("star3", 1): Star31D,
         ("star3", 2): Star32D, ("star3", 3): Star33D, ("box", 2): Box2D, ("box", 3): Box3D}


def rule(near, weights, ndim, dtype, decay=None):
    """The rule for weights as in this file's head; neighbours without one get 0."""
    zero = np.zeros(1)
    given = [np.asarray(weights.get(name, zero)) for name in names_of(near, ndim)]
    made = RULES[near, ndim](*(np.ascontiguousarray(w, dtype) if w.ndim == 1 else Cells(w, ndim, dtype) for w in given))
    return made if decay is None else Decaying(made, Cells(decay, ndim, dtype))


def cpu(u, near, weights, edges, steps, decay=None, out=None, **how):
    """Forward Euler, a sweep a step; `how` as in `march`."""
    return march(rule(near, weights, u.ndim - 2, u.dtype, decay), u, edges, steps, out=out, **how)


def cuda(u, near, weights, edges, steps, decay=None, out=None, **how):
    """Forward Euler on the GPU; `how` as in `march_cuda`."""
    from fastdiff.kernels._march_cuda import march_cuda

    return march_cuda(rule(near, weights, u.ndim - 2, u.dtype, decay), u, edges, steps, out=out, **how)


def _sample(near, ndim, fields):
    """Random weights, of each sample or of every cell; a periodic axis where there are several, walls of each kind."""

    def sample(shape, dtype, rng):
        names, sides = names_of(near, ndim), {}
        size = (1, *shape) if fields else (2,)
        weights = {n: (rng.uniform(0.1, 0.7, size) / len(names)).astype(dtype) for n in names}
        for k, walls in enumerate([(Side(1, 0.0, 1.0, 0.3, 0.4), Side(2, value=0.5)),
                                   (Side(1, -1.0, 0.0, 2.0, 0.6), Side(1, 0.7, 0.0, 0.2, 1.0))][: ndim]):
            for end in range(2):
                sides[0, ndim - 1 - k, end] = walls[end]
        edges = make_edges(shape, [k < ndim - 2 for k in range(ndim)], dtype, sides, batch=2)
        decay = {"decay": -rng.uniform(0, 0.1, size).astype(dtype)} if fields else {}
        return dict(u=rng.random((2, 1, *shape)).astype(dtype), near=near, weights=weights, edges=edges, steps=5, **decay)

    return sample


def _machine_code(near, ndim, fields):
    def rows(dtype):
        inputs = _sample(near, ndim, fields)((4,) * ndim, dtype, np.random.default_rng(0))
        made = rule(near, inputs["weights"], ndim, dtype, inputs.get("decay"))
        return [wide_row(lowered(made, (2, 2, 2), (4, 4, 4), 0), dtype)]

    return rows


def _ptx(near, ndim, fields):
    def launches(dtype) -> list[Launch]:
        from fastdiff.kernels._wide_cuda import launches

        inputs = _sample(near, ndim, fields)((4,) * ndim, dtype, np.random.default_rng(0))
        made = rule(near, inputs["weights"], ndim, dtype, inputs.get("decay"))
        return launches(lowered(made, (2, 2, 2), (4, 4, 4), 0), inputs["edges"], dtype)

    return launches


SMALL = {1: {(1,): "one cell", (2,): "fewer cells than a ghost is deep", (3,): "as many", (17,): "prime",
             (6551,): "several slabs"},
         2: {(1, 1): "one cell", (1, 13): "one row", (13, 1): "one column", (2, 3): "fewer than ghosts", (7, 19): "primes",
             (61, 131): "several slabs"},
         3: {(1, 1, 1): "one cell", (1, 5, 4): "one plane", (4, 1, 5): "one row", (3, 5, 7): "primes",
             (19, 17, 33): "several slabs"}}


def _kernel(near, ndim, fields=False):
    count = len(names_of(near, ndim))
    return Kernel(name=f"wide_{near}_{ndim}d" + "_fields" * fields, reference=reference, cpu=cpu, cuda=cuda,
                  sample=_sample(near, ndim, fields), ndim=ndim, shapes=SMALL[ndim],
                  machine_code=_machine_code(near, ndim, fields), ptx=_ptx(near, ndim, fields), order=(4, 1),
                  bytes_per_cell=2 + (count + 1 if fields else 0), flops_per_cell=3 * count, tolerance=12)


KERNELS = [_kernel(*kind) for kind in [("star2", 1), ("star2", 2), ("star2", 3), ("star3", 1), ("star3", 2), ("box", 2),
                                       ("box", 3), ("box", 2, True)]]
