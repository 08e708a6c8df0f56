"""A stepper is `u -> u`; `repeat` and `rollout` run many of its steps at once, fused in one kernel call."""

import numpy as np

from fastdiff.boundary import conditions
from fastdiff.equations._base import samples
from fastdiff.grid import Grid
from fastdiff.kernels._threads import check_threads
from fastdiff.state import read
from fastdiff.steppers.euler import Euler, unstable

METHODS = ("euler",)


class Stepper:
    """One time step of an equation as a function: `step(u, t=0.0) -> u` at t + dt.

    u as in `fd.solve`, and the result is of the same kind and shape. `fd.Dirichlet()` holds the values of the u given.
    Raises Unstable for a step beyond the stability limit. Safe to call from several threads.
    """

    def __init__(self, equation, grid, *, dt, boundary=None, method="euler", threads=None):
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r} of a stepper; known: {', '.join(METHODS)}")
        if not isinstance(grid, Grid):
            raise TypeError(f"grid is an fd.Grid, not {type(grid).__name__}")
        if not (np.isfinite(dt) and dt > 0):
            raise ValueError(f"dt must be positive, not {dt!r}")
        check_threads(threads)
        self.equation, self.grid, self.dt, self.boundary, self.threads = equation, grid, float(dt), boundary, threads
        self._runs: dict = {}
        conditions(boundary, grid, equation.names)
        if dt > equation.stable_dt(grid) * (1 + 1e-9):  # the walls are looked at when the batch is known
            raise unstable(dt, equation.stable_dt(grid))

    def _run(self, batch, dtype) -> Euler:
        key = batch, str(dtype).removeprefix("torch.")
        if key not in self._runs:
            run = Euler(self.equation, self.grid, self.boundary, *key, threads=self.threads)
            run.check(self.dt)
            self._runs[key] = run
        return self._runs[key]

    def __call__(self, u, t=0.0):
        return self._many(u, 1, t)

    def _many(self, u, steps, t):
        state = read(u, self.grid, self.equation.names, samples(self.equation, self.grid))
        new = self._advance(state, state.data, steps, t, state.data)
        return state.back(new.reshape(state.shape))

    def _advance(self, state, u, steps, t, initial):
        run = self._run(state.batch, u.dtype)
        held = _host(initial) if run.faces.needs_initial else None
        return run.advance(u, t, self.dt, steps, initial=held)


def _host(u):
    return u if isinstance(u, np.ndarray) else u.detach().cpu().numpy()


def repeat(step: Stepper, n: int):
    """`n` steps as one function `u, t0=0.0 -> u`, run in one kernel call."""
    if n < 1:
        raise ValueError(f"repeat needs at least one step, got {n}")
    return lambda u, t0=0.0: step._many(u, n, t0)


def rollout(step: Stepper, n: int, every: int = 1, include_start: bool = False):
    """The trajectory of `n` frames, `every` steps apart: a function `u, t0=0.0 -> (n, *u.shape)`.

    With a batch the frames still come first: (n, batch, ...).
    """
    if n < 1 or every < 1:
        raise ValueError(f"rollout needs at least one frame and one step between frames, got {n} and {every}")

    def run(u, t0=0.0):
        state = read(u, step.grid, step.equation.names, samples(step.equation, step.grid))
        here, shape = state.data, (n + include_start, *state.data.shape)
        frames = np.empty(shape, here.dtype) if state.backend == "cpu" else here.new_empty(shape)
        if include_start:
            frames[0] = here
        for k in range(n):
            here = step._advance(state, here, every, t0 + k * every * step.dt, state.data)
            frames[k + include_start] = here
        return state.back(frames.reshape(shape[0], *state.shape))

    return run



