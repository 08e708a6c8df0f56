"""Forward Euler (FTCS): explicit, first order in time, run by the blocked kernels."""

from math import ceil

import numpy as np

from fastdiff import dispatch
from fastdiff.boundary import lower

SAFETY = 0.9  # of the stability limit, where the user gives no step
CHUNK_UPDATES = 1 << 26  # cell updates of a sample between looks at the field and the keyboard


class Unstable(ValueError):
    """A step beyond the stability limit."""


def unstable(dt, limit):
    """The error of a step beyond the limit."""
    return Unstable(f"dt = {dt:g} is unstable for euler on this grid; the largest stable step is {limit:g}")


class Euler:
    """One problem, ready to march: equation, grid and boundaries for a batch of samples of one dtype."""

    def __init__(self, equation, grid, boundary, batch, dtype, initial=None, threads=None):
        self.equation, self.grid, self.batch, self.dtype, self.threads = equation, grid, batch, np.dtype(dtype), threads
        at_wall = equation.at_wall(grid, batch) if hasattr(equation, "at_wall") else None
        self.faces = lower(boundary, grid, equation.names, batch, dtype, initial, equation.diffusivities(grid), at_wall)
        if hasattr(equation, "for_walls"):
            self.equation = equation = equation.for_walls(self.faces)
        self.limit = equation.stable_dt(grid, self.faces.stiffness)
        fastest = 2 / self.limit + equation.reaction_rate()
        self.default_dt = SAFETY * 2 / fastest if fastest > 0 else np.inf
        self._rules = {}

    def check(self, dt):
        """Refuse a step beyond the stability limit."""
        if dt > self.limit * (1 + 1e-9):
            raise unstable(dt, self.limit)

    def rule(self, dt):
        """The compiled rule of a step."""
        if dt not in self._rules:
            self._rules = {dt: self.equation.euler(self.grid, dt, self.batch, self.dtype)}
        return self._rules[dt]

    def advance(self, u, t, dt, steps, out=None, work=None, initial=None):
        """March `u` (B, C, *grid) by `steps` steps from time t; return a new array, or `out`."""
        if isinstance(u, np.ndarray):
            how = {"threads": self.threads}
        else:
            how = {"values": self.faces.values()}  # the GPU cannot call the CPU's functions
        edges = self.faces.edges(t, dt, steps, initial=initial, tables="values" in how)
        return dispatch.march(self.rule(dt), u, edges, steps, out=out, work=work, **how)


def steps_between(start: float, end: float, dt: float) -> int:
    """The number of equal steps, each at most dt, from start to end."""
    return max(1, ceil((end - start) / dt * (1 - 1e-12)))


def chunks(steps: int, cells: int):
    """Cut a march over a grid of `cells` into chunks, the same ones whatever the machine and the batch."""
    size = max(16, CHUNK_UPDATES // max(cells, 1) // 16 * 16)
    for done in range(0, steps, size):
        yield min(size, steps - done)
