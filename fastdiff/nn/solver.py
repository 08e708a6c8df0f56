"""A solver as a layer: fixed steps of an equation, differentiable by everything that goes in."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdiff.nn._problem import Problem
from fastdiff.nn.functional.solver import PROBLEMS, advance


class Solver(nn.Module):
    """Time steps of an equation as a torch module: u -> u after `steps` steps of dt.

        solver = fd.nn.Solver(fd.Heat(1.0), grid, dt=1e-4, steps=100, learn=("diffusivity",))
        u = solver(u0)                       # the gradient reaches u0 and solver.value("diffusivity")
        u = solver(u0, diffusivity=D)        # or give a tensor at each call: a number, (B,), (*grid) or (B, *grid)

    equation, grid, boundary   as in `fd.solve`; every equation of fastdiff, but no reactions with D(x) or on curved
                grids, and no diffusivity that depends on u and on the place
    dt, steps   the step, by default a safe one, and how many of them a call marches
    method      "euler", "rk4" or "rkl2"; "euler" alone for orders 4 and 6, a matrix as diffusivity, "upwind2" and
                "upwind3", fd.CahnHilliard and fd.SwiftHohenberg
    learn       names of parameters that become nn.Parameters, starting from what the equation says; or a mapping from
                names to tensors, parameters or modules without arguments, such as fd.nn.Bounded
    memory      bytes for states that the backward pass needs; default: about 2 sqrt(steps) states
    shortcut    whether many linear steps that are all the same are summed as one polynomial: `march` says when

    Parameters by name: "diffusivity" (of a matrix all of it), "velocity", "source", those of a reaction, such as "F"
    and "k" (`known` lists them); where the equation has a tuple or a mapping, "velocity.x", "diffusivity.u". Values at
    walls are "x low", "y high", and of several components "u, x low"; a Robin condition's a and b are "x low.a" and
    "x low.b".

    A field on a GPU is marched there; its walls may not depend on u. Parameters may be on the CPU or the GPU.

    u as in `fd.nn.functional.march`, which says what is raised; so it is a step of `fd.nn.Hybrid`, too.
    """

    def __init__(self, equation, grid, *, dt=None, steps: int = 1, boundary=None, method: str = "euler",
                 learn: Iterable[str] | Mapping[str, Any] = (), memory: int | None = None, shortcut: bool = True,
                 threads: int | None = None, dtype=None):
        super().__init__()
        if not isinstance(steps, int | np.integer) or steps < 0:
            raise ValueError(f"steps is a whole number from 0 on, not {steps!r}")
        self.problem = Problem(equation, grid, dt=dt, boundary=boundary, method=method, memory=memory,
                               shortcut=shortcut, threads=threads)
        self.steps = int(steps)
        PROBLEMS.setdefault(self.problem.digest, self.problem)
        learn = [learn] if isinstance(learn, str) else learn
        given = dict(learn) if isinstance(learn, Mapping) else {name: self._start(name, dtype) for name in learn}
        self.problem.check_names(given)
        self.learned, self.modules_of = nn.ParameterDict(), nn.ModuleDict()
        self._names = list(given)
        for name, value in given.items():
            self._take(name, value)

    def _start(self, name, dtype):
        self.problem.check_names([name])
        value = torch.as_tensor(self.problem.start(name), dtype=dtype or torch.get_default_dtype())
        return nn.Parameter(value)

    def _take(self, name, value):
        if isinstance(value, nn.Module):
            self.modules_of[_key(name)] = value
        elif isinstance(value, torch.Tensor):
            self.learned[_key(name)] = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
        else:
            raise TypeError(f"learn maps {name!r} to a tensor or a module, not to {type(value).__name__}")

    @property
    def dt(self) -> float:
        """The time step."""
        return self.problem.dt

    @property
    def known(self) -> list[str]:
        """Names of all parameters."""
        return list(self.problem.defaults)

    def value(self, name: str) -> torch.Tensor:
        """A learned parameter as it enters the march."""
        key = _key(name)
        return self.modules_of[key]() if key in self.modules_of else self.learned[key]

    def forward(self, u, t: float = 0.0, *, steps: int | None = None, parameters: Mapping[str, Any] | None = None,
                **more):
        """The field `steps` steps after time t; tensors by name replace parameters of this call."""
        given = {name: self.value(name) for name in self._names}
        for name, value in {**(parameters or {}), **more}.items():
            self.problem.check_names([name])
            given[name] = torch.as_tensor(value)
        return advance(self.problem, u, t, self.steps if steps is None else steps, given)

    def rollout(self, u, frames: int, t: float = 0.0, **given) -> torch.Tensor:
        """The fields after each of so many calls, stacked in a new axis before the grid's and components': the first
        without a batch, the second with one, as `fd.nn.rollout` has it."""
        made = []
        for k in range(frames):
            u = self(u, t + k * self.steps * self.dt, **given)
            made.append(u)
        lead = u.ndim - self.problem.grid.ndim
        batched = lead > (1 if len(self.problem.equation.names) > 1 else 0)
        return torch.stack(made, 1 if batched else 0)

    def extra_repr(self):
        return f"{type(self.problem.equation).__name__}, dt={self.dt:g}, steps={self.steps}, {self.problem.method}"

    def __getstate__(self):
        return self.__dict__

    def __setstate__(self, state):
        super().__setstate__(state)
        PROBLEMS.setdefault(self.problem.digest, self.problem)


def _key(name: str) -> str:
    """A name that ParameterDict takes: no dots."""
    return name.replace(".", "_at_").replace(", ", "_").replace(" ", "_")


__all__ = ["Solver"]
