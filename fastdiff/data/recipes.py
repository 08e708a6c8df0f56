"""Recipes: what a data set is made of, as data.

A recipe says equation, grid, how parameters are drawn, initial conditions, boundaries and times. It is made of frozen
dataclasses and plain values only, so it can be compared, pickled for other processes and written into the file it
makes. A sample is drawn from `SeedSequence(seed, spawn_key=(index,))`: parameters first, then the initial condition.
"""

import dataclasses
import os
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff import equations
from fastdiff.boundary import CONDITIONS, Condition, Dirichlet, Neumann
from fastdiff.data.initial import FourierSeries, GaussianField, OneOf, Seeds, start
from fastdiff.grid import Grid
from fastdiff.steppers import METHODS
from fastdiff.steppers._base import LIMIT, SAFETY

EQUATIONS = tuple(name for name in equations.__all__ if name != "Equation")


@dataclass(frozen=True)
class Uniform:
    """Uniform distribution between two numbers."""

    low: float
    high: float

    def __call__(self, rng) -> float:
        return float(rng.uniform(self.low, self.high))

    def corners(self) -> list[float]:
        """The extreme values."""
        return [self.low, self.high]


@dataclass(frozen=True)
class LogUniform:
    """Distribution whose logarithm is uniform: every factor of ten is as likely as any other."""

    low: float
    high: float

    def __call__(self, rng) -> float:
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))

    def corners(self) -> list[float]:
        """The extreme values."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Table:
    """One row of a table, drawn with equal chances: values that belong together, and a name for them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __call__(self, rng) -> dict[str, Any]:
        return dict(zip(self.columns, self.rows[rng.integers(len(self.rows))]))

    def corners(self) -> list[dict[str, Any]]:
        """All values that can be drawn."""
        return [dict(zip(self.columns, row)) for row in self.rows]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a data set is made of.

    equation    name of an equation of fastdiff ("GrayScott"), or a callable that takes the parameters by name
    parameters  name → number, or distribution: called with a random generator, it returns a value, or several by
                name; its `corners()`, all extreme values, tell which time step is stable for every sample
    fixed       what else the equation is given, as it is, such as a formula: the same for all samples
    labels      parameters that describe a sample and are stored with it, but are not given to the equation
    initial     `initial(rng, grid)` → (components, *grid); see fastdiff.data.initial
    boundary    as in `fd.solve`; a single condition is for every side of every axis that is not periodic
    t_end       frames lie evenly in [0, t_end], the first one at 0
    method      of `fd.solve`, never "auto"; or "exact": `initial` is the solution, called with the parameters and the
                times as well, and gives (frames, components, *grid)
    dt          largest time step; with "euler" and "rk4" it is made smaller where it would be unstable for any sample
                that can be drawn: the step must not depend on which samples are solved together
    rough       (frames, largest step) of the first frames, where a rough start asks for shorter steps until it is
                smooth; for equations and walls that do not change with time
    conserved   components whose integral over the domain stays, which `verify` checks
    """

    name: str
    summary: str
    equation: str | Callable[..., Any]
    initial: Callable[..., np.ndarray]
    fields: tuple[str, ...]
    shape: tuple[int, ...]
    t_end: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    extent: Any = 1.0
    periodic: bool = False
    centering: str = "nodes"
    boundary: Any = None
    dt: float | None = None
    rough: tuple[int, float] | None = None
    method: str = "euler"
    frames: int = 21
    dtype: str = "float32"
    conserved: tuple[str, ...] = ()

    def grid(self, shape=None) -> Grid:
        """The recipe's domain at some resolution, by default its own; the number of axes may differ too."""
        return Grid(self.shape if shape is None else shape, self.extent, self.periodic, self.centering)

    def draw(self, grid: Grid, seed: int, index: int, attempt: int = 0) -> tuple[dict[str, Any], np.ndarray]:
        """Parameters and initial state (components, *grid) of one sample; another attempt draws other ones.

        With the method "exact", all states (frames, components, *grid).
        """
        rng = _generator(seed, index, attempt)
        parameters = self._parameters(rng)
        if attempt:  # what a sample is filed under stays
            first = self._parameters(_generator(seed, index, 0))
            parameters |= {key: first[key] for name, value in self.parameters.items() if isinstance(value, Table)
                           for key in value.columns}
        if self.method == "exact":
            times = np.linspace(0.0, self.t_end, self.frames)
            return parameters, np.asarray(self.initial(rng, grid, parameters, times), self.dtype)
        return parameters, np.asarray(start(self.initial, rng, grid, parameters), self.dtype)

    def parameters_of(self, seed: int, index: int) -> dict[str, Any]:
        """Parameters of one sample, as `draw` draws them first."""
        return self._parameters(_generator(seed, index, 0))

    def _parameters(self, rng):
        parameters: dict[str, Any] = {}
        for name, value in self.parameters.items():
            parameters |= _named(name, value(rng) if callable(value) else value)
        return _plain(parameters)

    def time_step(self, grid: Grid) -> float | None:
        """The largest time step of every run of this recipe on a grid; None where the method takes no steps."""
        if self.method in ("spectral", "exact"):
            return None
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r} of recipe {self.name!r}; known: "
                             f"{', '.join(METHODS)}, spectral, exact")
        method = METHODS[self.method]
        if method.control != LIMIT:
            if self.dt is None:
                raise ValueError(f"recipe {self.name!r} has the method {self.method!r}, but no dt: name one, so that "
                                 f"the step does not depend on which samples are solved together")
            return self.dt
        runs = [method.run(method, self.build(p), grid, self.sides(grid), 1, self.dtype) for p in self._corners()]
        if self.dt is None:
            return min(run.default_dt for run in runs)
        return min(self.dt, *(SAFETY * run.limit for run in runs))

    def _corners(self):
        bounds = [[_named(n, v) for v in (d.corners() if callable(d) else [d])] for n, d in self.parameters.items()]
        return [dict(ChainMap(*reversed(parts))) for parts in product(*bounds)]

    def build(self, parameters: Mapping[str, Any]) -> Any:
        """The equation with these parameters: numbers, or arrays with one entry a sample."""
        make = self.equation
        if isinstance(make, str):
            if make not in EQUATIONS:
                raise ValueError(f"unknown equation {make!r} of recipe {self.name!r}; known: {', '.join(EQUATIONS)}")
            make = getattr(equations, make)
        return make(**self.fixed, **{name: value for name, value in parameters.items() if name not in self.labels})

    def sides(self, grid: Grid) -> Any:
        """The boundary conditions as `fd.solve` takes them."""
        if not isinstance(self.boundary, Condition):
            return self.boundary
        return {name: self.boundary for name, wraps in zip(grid.names, grid.periodic) if not wraps}

    def describe(self) -> dict[str, Any]:
        """The recipe as plain values: what JSON can hold, and what tells two recipes apart."""
        return _plain(self)


def _generator(seed, index, attempt):
    key = (index, attempt) if attempt else (index,)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _named(name, value):
    return dict(value) if isinstance(value, Mapping) else {name: value}


def _plain(value) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in
                                                 dataclasses.fields(value)}}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value


def _types() -> dict[str, type]:
    """What a description may be made of, by name."""
    from fastdiff.data import initial

    modules = [vars(initial), globals(), {c.__name__: c for c in CONDITIONS}]
    return {name: value for names in modules for name, value in names.items()
            if isinstance(value, type) and dataclasses.is_dataclass(value)}


def from_description(value: Any) -> Recipe:
    """A recipe from plain values, such as `describe` gives and a YAML file holds."""
    if not isinstance(value, Mapping):
        raise ValueError(f"a recipe is described by names and values, not by {type(value).__name__}")
    built = _built({"type": "Recipe", **value}, "recipe")
    if not isinstance(built, Recipe):
        raise ValueError(f"this describes a {type(built).__name__}, not a Recipe")
    if isinstance(built.equation, str) and "." in built.equation:
        raise ValueError(f"the equation {built.equation} is a function of yours: pass the recipe itself")
    return built


def _built(value, where):
    if isinstance(value, list | tuple):
        return tuple(_built(v, f"{where}[{k}]") for k, v in enumerate(value))
    if not isinstance(value, Mapping):
        return value
    parts = {key: _built(v, f"{where}.{key}") for key, v in value.items() if key != "type"}
    if "type" not in value:
        return parts
    known = _types()
    if value["type"] not in known:
        raise ValueError(f"{where}: unknown type {value['type']!r}; known: {', '.join(sorted(known))}")
    kind = known[value["type"]]
    fields = {f.name: f for f in dataclasses.fields(kind)}
    stray, absent = [k for k in parts if k not in fields], [
        n for n, f in fields.items() if n not in parts and f.default is f.default_factory is dataclasses.MISSING]
    if stray or absent:
        what = f"unknown entries {', '.join(stray)}" if stray else f"missing entries {', '.join(absent)}"
        raise ValueError(f"{where}: {what}; a {value['type']} has {', '.join(fields)}")
    return kind(**parts)


def from_yaml(path) -> Recipe:
    """A recipe from a YAML file: the entries of `Recipe`; what is not a plain value names its `type`.

        name: my-heat
        summary: Heat from random fields
        equation: Heat
        parameters: {diffusivity: {type: LogUniform, low: 0.001, high: 0.02}}
        initial: {type: GaussianField, length: 0.1}
        boundary: {type: Dirichlet, value: 0.0}
        fields: [u]
        shape: [128, 128]
        t_end: 1.0
    """
    import yaml

    try:
        return from_description(yaml.safe_load(Path(path).read_text()))
    except FileNotFoundError:
        names = ", ".join(known())
        raise FileNotFoundError(f"the recipe {path} does not exist; recipes with a name: {names}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


_recipes: dict[str, Recipe] = {}


def register(recipe: Recipe) -> Recipe:
    """Make a recipe known by its name."""
    _recipes[recipe.name] = recipe
    return recipe


def known() -> tuple[str, ...]:
    """Names of all recipes."""
    return tuple(sorted(_recipes))


def get(recipe: str | Recipe | os.PathLike, **changes) -> Recipe:
    """The recipe of a name, of a YAML file, or the recipe itself, with some of its entries changed."""
    if isinstance(recipe, os.PathLike) or isinstance(recipe, str) and recipe.endswith((".yaml", ".yml")):
        recipe = from_yaml(recipe)
    if isinstance(recipe, str):
        if recipe not in _recipes:
            raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(known())}")
        recipe = _recipes[recipe]
    if not isinstance(recipe, Recipe):
        raise TypeError(f"a recipe is a fd.data.Recipe or one of the names {', '.join(known())}, not {recipe!r}")
    return dataclasses.replace(recipe, **changes)


# At 128 x 128 the spacing is that of Pearson (Science 261, 189, 1993): 2.5/256, with D = 2e-5 and 1e-5 and dt = 1.
# The names and pairs of The Well, without its "bubbles", which need another initial state, and three classes more.
PATTERNS = Table(
    ("pattern", "F", "k"),
    (
        ("coral", 0.0545, 0.062),
        ("gliders", 0.014, 0.054),
        ("holes", 0.039, 0.058),
        ("maze", 0.029, 0.057),
        ("mitosis", 0.0367, 0.0649),
        ("spirals", 0.018, 0.051),
        ("spots", 0.03, 0.062),
        ("worms", 0.058, 0.065),
    ),
)

GRAY_SCOTT = register(Recipe(
    name="gray-scott",
    summary="Gray–Scott patterns of eight classes from random seeds, periodic, 2-D",
    equation="GrayScott",
    parameters={"pattern": PATTERNS},
    labels=("pattern",),
    initial=Seeds(),
    fields=("u", "v"),
    shape=(128, 128),
    extent=1.25,
    periodic=True,
    t_end=5000.0,
    dt=1.0,
))

HEAT = register(Recipe(
    name="heat",
    summary="Heat spreading from random fields between walls held at zero",
    equation="Heat",
    parameters={"diffusivity": LogUniform(1e-3, 2e-2)},
    initial=OneOf((FourierSeries(modes=5), GaussianField(length=0.1))),
    boundary=Dirichlet(0.0),
    fields=("u",),
    shape=(128, 128),
    t_end=1.0,
))

HEAT_INSULATED = register(dataclasses.replace(
    HEAT,
    name="heat-insulated",
    summary="Heat spreading from random fields between insulated walls",
    initial=OneOf((FourierSeries(modes=5, basis="cosine"), GaussianField(length=0.1, basis="cosine"))),
    boundary=Neumann(0.0),
    conserved=("u",),
))

__all__ = ["GRAY_SCOTT", "HEAT", "HEAT_INSULATED", "PATTERNS", "LogUniform", "Recipe", "Table", "Uniform",
           "from_description", "from_yaml", "get", "known", "register"]
