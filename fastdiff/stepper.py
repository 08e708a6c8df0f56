"""A stepper is `u -> u`; `repeat` and `rollout` run many of its steps at once, fused in one kernel call."""

import numpy as np

from fastdiff import antiperiodic
from fastdiff.boundary import conditions
from fastdiff.equations._base import samples
from fastdiff.grid import Grid
from fastdiff.kernels._threads import check_threads
from fastdiff.state import read
from fastdiff.steppers import METHODS
from fastdiff.steppers._base import Run, unstable


class Stepper:
    """One time step of an equation as a function: `step(u, t=0.0) -> u` at t + dt.

    u as in `fd.solve`, and the result is of the same kind and shape. `fd.Dirichlet()` holds the values of the u given.
    method  "euler", "rk4", "rk23", "rkl2", "crank_nicolson", "strang" or "etdrk4", see `fd.solve`. Crank-Nicolson has
            no damped start here: a step knows nothing of the one before.

    Raises Unstable for a step beyond the stability limit. Safe to call from several threads.
    """

    def __init__(self, equation, grid, *, dt, boundary=None, method="euler", threads=None):
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r} of a stepper; known: {', '.join(METHODS)}")
        self.method = METHODS[method]
        if not isinstance(grid, Grid):
            raise TypeError(f"grid is an fd.Grid, not {type(grid).__name__}")
        if not (np.isfinite(dt) and dt > 0):
            raise ValueError(f"dt must be positive, not {dt!r}")
        check_threads(threads)
        boundary, anti = antiperiodic.split(boundary, grid)
        self.equation, self.grid, self.dt, self.boundary, self.threads = equation, grid, float(dt), boundary, threads
        self._fold = antiperiodic.Fold(grid, anti, type(equation).__name__) if anti else None
        self._whole = grid if self._fold is None else self._fold.whole
        if self._fold is not None:
            self._fold.check(samples, equation)
        self._runs: dict = {}
        conditions(boundary, grid, equation.names)
        limit = equation.stable_dt(self._whole) * self.method.reach
        if dt > limit * (1 + 1e-9):  # the walls are looked at when the batch is known
            raise unstable(dt, limit, method)

    def _run(self, batch, dtype) -> Run:
        key = batch, str(dtype).removeprefix("torch.")
        if key not in self._runs:
            run = self.method.run(self.method, self.equation, self._whole, self.boundary, *key, threads=self.threads)
            run.check(self.dt)
            self._runs[key] = run
        return self._runs[key]

    def __call__(self, u, t=0.0):
        return self._many(u, 1, t)

    def _many(self, u, steps, t):
        self.method.check_device(u)
        state = read(u, self.grid, self.equation.names, samples(self.equation, self.grid))
        new = self._advance(state, state.data, steps, t, state.data)
        return state.back(new.reshape(state.shape))

    def _advance(self, state, u, steps, t, initial):
        run, fold = self._run(state.batch, u.dtype), self._fold
        if fold is not None:
            u, initial = fold.opened(u), fold.opened(initial)
        held = _host(initial) if run.faces.needs_initial else None
        new = run.newest(run.advance(run.load(u), t, self.dt, steps, initial=held))
        return new if fold is None else fold.closed(new)


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



