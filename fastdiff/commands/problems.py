"""What `fastdiff solve` starts from: a domain, an initial field and a time that show what an equation does.

Every equation of `fastdiff.equations` can be solved by its name; one that is not listed here starts from noise on the
unit square.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from fastdiff import equations
from fastdiff.boundary import Dirichlet
from fastdiff.grid import Grid

# -- initial fields: (grid, random generator, equation) -> (*grid) or (C, *grid) -------------------------------------


def _blob(grid, at=0.5, width=0.08):
    """A Gaussian of height 1 around a place, as parts of the domain."""
    r2: Any = 0.0
    for x, (low, high) in zip(grid.coordinates(), grid.extent):
        r2 = r2 + ((x - low) / (high - low) - at) ** 2
    return np.broadcast_to(np.exp(-r2 / (2 * width**2)), grid.shape)


def _boxes(grid, rng, count=6, width=0.06):
    """Boxes of ones at random places, zero elsewhere."""
    found = np.zeros(grid.shape)
    for _ in range(count):
        inside: Any = True
        for x, (low, high) in zip(grid.coordinates(), grid.extent):
            inside = inside & (np.abs((x - low) / (high - low) - rng.uniform(0.15, 0.85)) < width)
        found[np.broadcast_to(inside, grid.shape)] = 1
    return found


def _noise(*means, size=0.05):
    """Normal noise around a mean for each component."""
    def make(grid, rng, equation):
        fields = [m + size * rng.standard_normal(grid.shape) for m in (means or [0.0] * len(equation.names))]
        return fields[0] if len(fields) == 1 else np.stack(fields)

    return make


def _hot_blocks(grid, rng, equation):
    return _boxes(grid, rng, count=5, width=0.1)


def _blocks_of_each(grid, rng, equation):
    """Blocks of each component at places of its own."""
    fields = [_hot_blocks(grid, rng, equation) for _ in equation.names]
    return fields[0] if len(fields) == 1 else np.stack(fields)


def _one_blob(grid, rng, equation):
    return _blob(grid, at=0.35)


def _colonies(grid, rng, equation):
    return _boxes(grid, rng, count=3, width=0.02)


def _seeds(grid, rng, equation):
    """Gray-Scott's (1, 0) with seeds of (1/2, 1/4), and a little noise."""
    v = _boxes(grid, rng, count=8, width=0.04)
    noise = 0.01 * rng.standard_normal((2, *grid.shape))
    return np.stack([1 - 0.5 * v, 0.25 * v]) + noise


def _brusselator(grid, rng, equation):
    return _noise(equation.A, equation.B / equation.A, size=0.1)(grid, rng, equation)


def _schnakenberg(grid, rng, equation):
    total = equation.a + equation.b
    return _noise(total, equation.b / total**2, size=0.02)(grid, rng, equation)


def _outbreak(grid, rng, equation):
    ill = 0.1 * _boxes(grid, rng, count=2, width=0.03)
    return np.stack([1 - ill, ill, 0 * ill])


def _wave(grid, rng, equation):
    x = grid.coordinates()[0]
    one = np.broadcast_to(np.sin(2 * np.pi * (x - grid.low[0]) / grid.lengths[0]), grid.shape)
    return one if len(equation.names) == 1 else np.stack([one] * len(equation.names))


def _little(grid, rng, equation):
    return np.full(grid.shape, 0.05)


def _drop(grid, rng, equation):
    return _blob(grid, width=0.1)


# -- the catalogue -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Where an equation starts."""

    initial: Callable[..., np.ndarray] = field(default=_noise())
    t_end: float = 1.0
    extent: Any = 1.0  # of each axis
    shape: tuple[int, ...] = (192, 192)
    periodic: bool = False
    boundary: Any = None
    parameters: Callable[[int], Mapping[str, Any]] = lambda ndim: {}  # where the class has no default, or a dull one


CATALOGUE: dict[str, Problem] = {
    "Heat": Problem(initial=_hot_blocks, t_end=0.02),
    "AdvectionDiffusion": Problem(
        initial=_one_blob, t_end=0.6, periodic=True,
        parameters=lambda ndim: {"diffusivity": 1e-3, "velocity": 1.0 if ndim == 1 else (1.0, 0.6, 0.3)[:ndim]}),
    "ReactionDiffusion": Problem(initial=_blocks_of_each, t_end=10.0, extent=20.0),
    "AllenCahn": Problem(initial=_noise(size=0.3), t_end=40.0, extent=96.0, periodic=True),
    "Brusselator": Problem(initial=_brusselator, t_end=40.0, extent=64.0, periodic=True),
    "Burgers": Problem(initial=_wave, t_end=0.3, periodic=True, shape=(512,)),
    "CahnHilliard": Problem(initial=_noise(size=0.05), t_end=200.0, extent=96.0, periodic=True, shape=(128, 128)),
    "DiffusionSorption": Problem(initial=_little, t_end=500.0, shape=(256,), boundary=(Dirichlet(1.0), None)),
    "FisherKPP": Problem(initial=_colonies, t_end=20.0, extent=100.0),
    "FitzHughNagumo": Problem(initial=_noise(size=1.0), t_end=8.0, extent=((-1.0, 1.0),), shape=(128, 128)),
    "GrayScott": Problem(initial=_seeds, t_end=4000.0, extent=2.5, periodic=True),
    "PorousMedium": Problem(initial=_drop, t_end=0.02),
    "SIR": Problem(initial=_outbreak, t_end=60.0, extent=40.0),
    "Schnakenberg": Problem(initial=_schnakenberg, t_end=20.0, extent=50.0, periodic=True, shape=(128, 128)),
    "SwiftHohenberg": Problem(initial=_noise(size=0.1), t_end=60.0, extent=100.0, periodic=True, shape=(128, 128)),
}


def command_name(name: str) -> str:
    """GrayScott as gray-scott, FisherKPP as fisher-kpp, SIR as sir."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.replace("FitzHugh", "Fitzhugh")).lower()


def known() -> dict[str, str]:
    """Class names of the equations of this package, by the names of the command line."""
    return {command_name(n): n for n in equations.__all__ if n != "Equation"}


def value_of(text: str) -> Any:
    """A parameter from the command line: a number, JSON such as [1, 2] or {"u": "..."}, or a text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return tuple(value) if isinstance(value, list) else value


def settings(pairs) -> dict[str, Any]:
    """`NAME=VALUE` pairs as a dictionary."""
    found = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"--set takes NAME=VALUE, such as F=0.04, not {pair!r}")
        found[name] = value_of(text)
    return found


def make(name: str, given: Mapping[str, Any], shape=None, extent=None, periodic=None, seed=0, dtype="float32"):
    """Equation, initial field, grid, boundary and usual time of a problem."""
    names = known()
    if name not in names:
        raise ValueError(f"unknown problem {name!r}; known: rod, {', '.join(sorted(names))}")
    cls, problem = getattr(equations, names[name]), CATALOGUE.get(names[name], Problem(periodic=True))
    shape = problem.shape if shape is None else shape
    parameters = [f.name for f in fields(cls)]
    stray = [key for key in given if key not in parameters]
    if stray:
        raise ValueError(f"{names[name]} has no parameter {stray[0]!r}; known: {', '.join(parameters)}")
    usual = {k: v for k, v in problem.parameters(len(shape)).items() if k in parameters}
    try:
        equation = cls(**{**usual, **given})
    except TypeError as error:
        lacking = re.findall(r"'(\w+)'", str(error))
        raise ValueError(f"{names[name]} needs {' and '.join(lacking)}: --set {lacking[0]}=..." if lacking
                         else str(error)) from None
    extent = _extent(problem.extent if extent is None else extent, len(shape))
    grid = Grid(shape, extent, problem.periodic if periodic is None else periodic)
    boundary = problem.boundary
    if isinstance(boundary, tuple):
        boundary = None if grid.periodic[0] else {"x": tuple(b or _no_flux() for b in boundary)}
    u0 = np.asarray(problem.initial(grid, np.random.default_rng(seed), equation), dtype)
    return equation, np.ascontiguousarray(u0), grid, boundary, problem.t_end


def _no_flux():
    from fastdiff.boundary import Neumann

    return Neumann(0.0)


def _extent(extent, ndim):
    return tuple(extent) * ndim if isinstance(extent, tuple) and len(extent) == 1 else extent


__all__ = ["CATALOGUE", "Problem", "command_name", "known", "make", "settings", "value_of"]
