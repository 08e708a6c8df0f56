"""Strang splitting: half a step of reaction, a step of diffusion, half a step of reaction; second order, any step.

    u^{n+1} = R(dt/2) D(dt) R(dt/2) u^n

R is the equation's reaction at each cell alone, by as many steps of rk4 as its rate asks for, all in one sweep; D is
Crank-Nicolson (crank_nicolson.py). For reactions faster than diffusion at the wanted step: neither limits the step,
though with a stiff reaction and a large step the order drops towards one. Held faces keep their values throughout.
The reaction of a rule is what it does to a field without gradients (kernels/_stages.py: Local).

Source: Strang, SIAM J. Numer. Anal. 5 (1968) 506, section 4; Hundsdorfer, Verwer, Numerical Solution of Time-Dependent
Advection-Diffusion-Reaction Equations, Springer 2003, section IV.1.

Without `dt` each step is as large as `rtol` allows: it is made of two halves, and their difference from the whole, a
third of it, is their error (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 2nd ed., Springer 1993,
eq. II.4.4). Steps grow from a small one, because solutions with a few steps only may agree on what is wrong: a reaction
that is left alone for long can end elsewhere. The halves are kept as they are: extrapolation would amplify the modes
that Crank-Nicolson hardly damps.
"""

from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import numpy as np

from fastdiff.equations._base import samples
from fastdiff.kernels._run import march
from fastdiff.kernels._stages import local, spread, staged, transport
from fastdiff.kernels.runge_kutta import RK4
from fastdiff.steppers import crank_nicolson
from fastdiff.steppers._base import EMBEDDED, Method, Run

RATE = 0.5  # rate times the length of a step of rk4 for the reaction


@dataclass(frozen=True)
class _Transport:
    """An equation without its reaction, as Crank-Nicolson asks for it."""

    equation: Any

    @property
    def names(self):
        return self.equation.names

    def batch(self, grid):
        return samples(self.equation, grid)

    def at_wall(self, grid, batch):
        return self.equation.at_wall(grid, batch) if hasattr(self.equation, "at_wall") else None

    def diffusivities(self, grid):
        return self.equation.diffusivities(grid)

    def euler(self, grid, dt, batch, dtype):
        return transport(self.equation.euler(grid, dt, batch, dtype))

    def stable_dt(self, grid, stiffness=None):
        return self.equation.stable_dt(grid, stiffness)

    def reaction_rate(self):
        return 0.0


class Strang(Run):
    """Reaction and diffusion in turn."""

    sums = True  # whether the estimate adds up over the steps of a march

    def __init__(self, method, equation, grid, boundary, batch, dtype, initial=None, threads=None):
        super().__init__(method, equation, grid, boundary, batch, dtype, initial, threads)
        self.diffusion = crank_nicolson.CrankNicolson(method, _Transport(equation), grid, boundary, batch, dtype,
                                                      initial, threads)
        self._reactions: dict[Any, Any] = {}

    @property
    def default_dt(self):
        return inf

    def restart(self):
        self.diffusion.restart()

    def stages(self, dt, watched=False):
        if watched:
            return self.stages(dt) + 2 * self.stages(dt / 2)
        return 8 * self._substeps(dt / 2) + self.diffusion.stages(dt)

    def estimate(self, state):
        """The error of the steps that were watched last."""
        return self._error

    def advance(self, state, t, dt, steps, out=None, work=None, initial=None, watched=False):
        u, error = state, None
        for k in range(steps):
            begin = t + k * dt
            if not watched:
                u = self._step(u, begin, dt, initial)
                continue
            whole = self._step(u, begin, dt, initial)
            u = self._step(self._step(u, begin, dt / 2, initial), begin + dt / 2, dt / 2, initial)
            whole = (u - whole) * self.dtype.type(1 / 3)
            error = whole if error is None else error + whole
        self._error = error
        if out is None:
            return u
        out[...] = u
        return out

    def _step(self, u, t, dt, initial):
        u = self._react(u, t, dt / 2, initial)
        u = self.diffusion.advance(u, t, dt, 1, initial=initial)
        return self._react(u, t + dt, dt / 2, initial)

    def _substeps(self, h):
        return max(1, ceil(h * self.rate / RATE))

    def _react(self, u, t, h, initial):
        """The reaction for a time h, with held faces as at time t."""
        count = self._substeps(h)
        if h not in self._reactions:
            rule = local(self.equation.euler(self.grid, h / count, self.batch, self.dtype))
            self._reactions = {**dict(list(self._reactions.items())[-3:]), h: staged(RK4, rule, self.dtype)}
        steps = count * RK4.stages
        edges = self.faces.edges(initial=initial, tables=True, registers=RK4.registers, times=np.full(steps + 1, t))
        new = march(self._reactions[h], spread(u, RK4.registers), edges, steps, threads=self.threads)
        return np.ascontiguousarray(new[:, : u.shape[1]])


METHOD = Method("strang", order=2, run=Strang, control=EMBEDDED, reach=inf, gpu=False,
                summary="Strang splitting of reaction and Crank-Nicolson diffusion")
