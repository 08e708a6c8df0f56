"""`method="auto"`: the cheapest method for the asked accuracy, by a model of the work and never by timing.

The work is counted in cell updates of forward Euler through the blocked kernels. With L limits of forward Euler in the
whole run, rtol the asked error, and n = 0.6 (K / rtol)^(1/2) steps of a second-order method (at least 8, and one a
frame), K how often diffusion crosses 1/16 of the shortest side in the run, at most 8:

    spectral         0                         constant coefficients and boundaries that sines or cosines fit
    crank_nicolson   f (3 + m) (2 + 12 axes)   linear, nearest neighbours; f steps at first (3, or one a frame), then
                                               2 f, m f until what is extrapolated from them agrees: of fourth order,
                                               m = 0.4 (K / rtol)^(1/4) / f, at least 3
    rkl2             2 n s                     s = 2 (L/n)^(1/2) stages of a step, each about two updates
    rk23             6 L                       four stages to a step of 1.26 limits, with more to keep

A reaction of rate k limits the steps, too: with x = k t_end / 32, as it is rarely as fast as its bound, at least
x (x / rtol)^(1/2) of rkl2, and x (x / rtol)^(1/3) of rk23, whose steps then cost 8 updates.

The numbers are rough ratios, the same on every machine. strang, rk4 and etdrk4 are never chosen: they are for those
who know that their reaction is stiff, or their field smooth.
"""

from math import ceil, sqrt
from typing import NamedTuple

import numpy as np

from fastdiff.kernels.rkl2 import stages_for

DEFAULT_RTOL = 1e-4
SWEEP, SOLVE, STAGE = 2.0, 12.0, 2.0  # an unblocked right-hand side, the lines of an axis, a stage of rkl2 or rk23


class Choice(NamedTuple):
    """A method, and why."""

    name: str
    why: str


def choose(run, linear: bool, times, rtol: float) -> Choice:
    """The method for a problem; `run` is made for forward Euler, `linear` says that Crank-Nicolson applies."""
    span = float(times[-1])
    if not run.euler_limit < np.inf:
        return Choice("rk23", "nothing diffuses: an explicit method with steps that follow the error")
    frames = len(times)
    costs = _costs(run, span, frames, rtol, linear)
    name = min(costs, key=costs.__getitem__)
    others = ", ".join(f"{other} {cost / costs[name]:.2g}x" for other, cost in sorted(costs.items()) if other != name)
    what = "linear, not for sines and cosines" if linear else "nonlinear or of wider stencil"
    return Choice(name, f"{what}; {span / run.euler_limit:.3g} limits of forward Euler at rtol {rtol:g}: least work, "
                        f"estimated ({others})")


def _costs(run, span, frames, rtol, linear):
    limits, react = span / run.euler_limit, run.rate * span / 32
    crossings = min(_crossings(run, limits, min(run.grid.lengths) / 16), 8.0)
    n = max(frames, 8, ceil(0.6 * sqrt(crossings / rtol)), ceil(react * sqrt(react / rtol)))
    costs = {"rkl2": STAGE * n * stages_for(limits / n),
             "rk23": 4 * STAGE * max(frames, 0.75 * limits, react * (react / rtol) ** (1 / 3))}
    if linear:
        first = max(frames, 3)
        more = max(3.0, 0.4 * (crossings / rtol) ** 0.25 / first)
        costs["crank_nicolson"] = first * (3 + more) * (SWEEP + SOLVE * run.grid.ndim)
    return costs


def has_lines(equation, grid) -> bool:
    """Whether an equation is linear and of nearest neighbours, so that Crank-Nicolson applies."""
    return bool(equation.linear(grid)) if hasattr(equation, "linear") else False


def _crossings(run, limits, length):
    """How often diffusion crosses a length in the run."""
    dx = min(run.grid.mean_spacing)
    return limits * dx**2 / (2 * run.grid.ndim * length**2)
