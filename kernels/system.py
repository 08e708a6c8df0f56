"""Several components, each with a transport of its own, that react with each other; forward Euler.

    u_c^{n+1} = u_c^n + sum over the neighbours j of  w_cij (u_cj - u_ci) + dt R_c(u_1, ..., u_C)

A transport is any rule of one component: kernels/heat.py where D is constant, kernels/variable.py where it varies, on
curved and graded grids and with a flow. The reaction is a rule with a method `react` (kernels/_reaction.py), such as
those that `fd.ReactionDiffusion` writes. First order in time, of the order of the transports in space; stable where
each transport and the reaction are, their rates added.

Walls may see more than their own cells (kernels/_edges.py: Side.sees): other components at the same wall, as where
species react on a surface, and the wall opposite, as where what flows out is fed back.

Shapes: u (B, C, *grid); weights (C, 2*ndim, B or 1, *grid), as in kernels/variable.py for each component.
Source: Hundsdorfer, Verwer, Numerical Solution of Time-Dependent Advection-Diffusion-Reaction Equations, Springer 2003,
section I.1.
"""

from collections import namedtuple
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels import variable
from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._edges import HOLD, Side, hold, make_edges, pad
from fastdiff.kernels._march import change
from fastdiff.kernels._reaction import jacobian, react
from fastdiff.kernels._run import march

MOST = 8  # components


def reference(u, weights, rate, edges, steps, values=None, out=None):
    """The same in plain NumPy, float64, with the reaction of `Exchange`."""
    v = hold(np.array(u, np.float64), edges, 0)
    inside = (slice(None), slice(None), *[slice(1, -1)] * (u.ndim - 2))
    w = np.moveaxis(np.asarray(weights, np.float64), 0, 2)  # neighbours, batch, components, *grid
    k = rate.astype(np.float64).reshape(-1, *[1] * (u.ndim - 2))
    for n in range(steps):
        p, spread = pad(v, edges, n), 0.0
        for side in range(len(w)):
            spread = spread + w[side] * (np.roll(p, -1 if side & 1 else 1, 2 + side // 2) - p)[inside]
        eaten = k * v[:, 0] * v[:, 1]
        v = hold(v + spread + np.stack([-eaten, eaten], 1), edges, n + 1)
    if out is None:
        return v
    out[...] = v
    return out


class Exchange(NamedTuple):
    """The reaction u + v -> 2 v: -k u v and k u v, dt times."""

    k: Any

    @staticmethod
    def react(p, u, at):
        eaten = p.k * (u[0].c * u[1].c)
        return -eaten, eaten


class Still(NamedTuple):
    """No transport."""

    @staticmethod
    def change(p, u, at):
        return u.c - u.c


def _class(count):
    scope: dict[str, Any] = {"change": change, "of": react, "derivatives": jacobian}
    sums = ", ".join(f"change(p.t{c}, u[{c}], at) + r[{c}]" if count > 1 else "change(p.t0, u, at) + r[0]"
                     for c in range(count))
    exec("def change_(p, u, at):\n    r = of(p.reaction, u, at)\n    return " + sums, scope)
    exec("def react_(p, u, at):\n    return of(p.reaction, u, at)", scope)
    exec("def jacobian_(p, u, at):\n    return derivatives(p.reaction, u, at)", scope)
    name = f"System{count}"
    base = namedtuple(name, [*(f"t{c}" for c in range(count)), "reaction"])
    return type(name, (base,), {"components": count, "change": staticmethod(scope["change_"]),
                                "react": staticmethod(scope["react_"]), "jacobian": staticmethod(scope["jacobian_"]),
                                "__module__": __name__, "__slots__": (), "__doc__": f"{count} components."})


_CLASSES = {f"System{count}": _class(count) for count in range(1, MOST + 1)}
globals().update(_CLASSES)  # Numba's disk cache finds a class again by its name


def system(transports, reaction):
    """The rule of some components: the rule of each one's transport, and that of their reaction."""
    if len(transports) > MOST:
        raise ValueError(f"diffusivities that vary, flows, and curved or graded grids go with up to {MOST} components, "
                         f"not {len(transports)}")
    return _CLASSES[f"System{len(transports)}"](*transports, reaction)


def rule(weights, rate, dtype):
    """The rule for arrays as in this file's head, with the reaction of `Exchange`."""
    return system([variable.rule(w, dtype) for w in weights], Exchange(np.asarray(rate, dtype)))


def cpu(u, weights, rate, edges, steps, values=None, out=None, **how):
    """Forward Euler on the CPU; `how` as in `march`. `values` are for the GPU."""
    return march(rule(weights, rate, u.dtype), u, edges, steps, out=out, **how)


def cuda(u, weights, rate, edges, steps, values=None, out=None, **how):
    """Forward Euler on the GPU; `how` as in `march_cuda`."""
    from fastdiff.kernels._march_cuda import march_cuda

    return march_cuda(rule(weights, rate, u.dtype), u, edges, steps, out=out, values=values, **how)


def feedback(t, x, y, z, u, w0, w1, w2, w3, w4, w5, w6, w7):
    """What a wall may do with what it sees."""
    return 0.5 * w0 - 0.25 * u * w1 + 0.1 * t


class Feedback(NamedTuple):
    """The same for a GPU."""

    @staticmethod
    def value(p, c, side, t, x, y, z, u):
        return 0.0

    @staticmethod
    def seen(p, c, side, t, x, y, z, u, w0, w1, w2, w3, w4, w5, w6, w7):
        return 0.5 * w0 - 0.25 * u * w1 + 0.1 * t


@lru_cache(maxsize=1)
def _feedback() -> Any:
    from numba import cfunc, float64

    return cfunc(float64(*[float64] * 13), cache=True, error_model="numpy")(feedback)


def _sample(seeing):
    """Two samples of random fields; the first axis periodic if there are two; walls that see, or a Robin wall."""

    def sample(shape, dtype, rng):
        ndim = len(shape)
        weights = rng.uniform(0.02, 0.9 / (2 * ndim), (2, 2 * ndim, 2, *shape)).astype(dtype)
        sides, more, last = {(0, ndim - 1, 0): Side(alpha=0.5, gamma=0.25, value=1.5)}, {}, ndim - 1
        periodic = [ndim > 1 and not seeing, *[False] * (ndim - 1)]
        if seeing:
            address = _feedback().address
            held = HOLD if shape[0] > 1 else 1  # one cell is no two walls
            sides = {(0, 0, 0): Side(held, 0.0, 0.0, 1.0, call=address, sees=((0, True), (1, True))),
                     (1, last, 1): Side(alpha=0.5, gamma=0.25, call=address, sees=((0, False), (1, True))),
                     (1, 0, 0): Side(alpha=-1.0, gamma=2.0, call=address, sees=((0, False), (1, False)))}
            more = {"values": Feedback()}
        edges = make_edges(shape, periodic, dtype, sides, components=2, batch=2, start=0.25, dt=0.5)
        rate = rng.uniform(0.1, 0.2, 2).astype(dtype)
        return dict(u=rng.random((2, 2, *shape)).astype(dtype), weights=weights, rate=rate, edges=edges, steps=5,
                    **more)

    return sample


def _kernel(name, ndim, seeing=False):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(seeing), ndim=ndim, rule=rule,
                  order=(2, 1), bytes_per_cell=4 + 4 * ndim, flops_per_cell=12 * ndim + 6, tolerance=6)


KERNELS = [
    _kernel("system_1d", 1),
    _kernel("system_2d", 2),
    _kernel("system_seeing_1d", 1, seeing=True),
    _kernel("system_seeing_2d", 2, seeing=True),
]
