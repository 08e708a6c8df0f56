"""Diffusion by random walks: the heat equation at single points with error bars, and clouds of particles.

The heat equation at a point is a mean over Brownian walks that begin there and run back in time (Feynman and Kac):

    u_t + v . grad u = sum of D_k u_kk        u(x, t) = E[ weight * u0(X_t)  or  weight * g(hour, X)  +  gain ]

the second where a walk meets a Dirichlet wall of value g; Neumann and Robin walls reflect it and change weight and
gain. No grid is solved on: the cost is that of the points asked for, and the error is statistical and known. The walk
beside a wall is exact (kernels/random_walk.py).
"""

from math import ceil
from typing import Any, NamedTuple

import numpy as np

from fastdiff.boundary import Dirichlet, Flux, Neumann, Robin, as_numbers, conditions
from fastdiff.grid import Grid
from fastdiff.kernels._threads import check_threads

REACH = 8.0  # standard deviations of a step between two walls: what a walk that felt both would need is never drawn
CHUNK = 1 << 18  # walkers at once


class Estimate(NamedTuple):
    """Values at the points, and the standard error of each."""

    values: np.ndarray
    errors: np.ndarray


def monte_carlo(equation, u0, grid, points, t, *, walkers=10_000, boundary=None, seed=0, steps=None, threads=None,
                device="cpu") -> Estimate:
    """Solve a heat equation at single points by random walks (Feynman and Kac).

    equation  fd.Heat, or another with constant `diffusivity` and, if it has one, constant `velocity`; one component
    u0        the field at t = 0, (*grid), between whose points cubic splines run; or a function of x, y, z
    grid      fd.Grid: the box, its periodic axes, and where the values of u0 stand
    points    (P, axes) coordinates, or (P,) in 1-D
    t         the time, or one time for each point
    walkers   walks from each point, at least 2; the error falls with the square root
    boundary  as in fd.solve. Dirichlet values may depend on t and place, or be those of u0 (fd.Dirichlet()); those of
              Neumann, Robin and Flux are numbers
    seed      the walks: the same seed gives the same numbers, whatever the threads
    steps     steps of each walk; default: the fewest that are exact
    device    "cpu" or "cuda"

    Returns an Estimate: values (P,) and standard errors (P,). Raises ValueError for points outside the grid and for
    coefficients that depend on place.

    Source: Milstein and Tretyakov, Stochastic Numerics for Mathematical Physics, Springer 2004, chapters 2 and 6.
    """
    check_threads(threads)
    if not isinstance(grid, Grid):
        raise TypeError(f"grid is an fd.Grid, not {type(grid).__name__}")
    places = _points(points, grid)
    times = np.broadcast_to(as_numbers(t, "t").reshape(-1), len(places)) if np.ndim(t) else np.full(len(places), t)
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise ValueError("t is a positive time, or one for each point")
    if not isinstance(walkers, int | np.integer) or walkers < 2:
        raise ValueError(f"walkers must be a whole number of at least 2, not {walkers!r}")
    box = _Box.of(equation, grid, boundary)
    start = _Start(u0, grid, box)
    found = np.empty((2, len(places)))
    for n, (place, time) in enumerate(zip(places, times)):
        found[:, n] = _at_point(box, start, place, float(time), int(walkers), seed, n * int(walkers), steps, threads,
                                device)
    return Estimate(*found)


def _at_point(box, start, place, t, walkers, seed, first, steps, threads, device):
    """Mean and standard error of the walks from one point."""
    count = box.steps(t) if steps is None else int(steps)
    h, sums, squares, shift = t / count, 0.0, 0.0, None
    for begin in range(0, walkers, CHUNK):
        x = np.tile(place, (min(CHUNK, walkers - begin), 1))
        ends, fate = box.walk(x, -box.velocity[None], h, count, seed, first + begin, 0, threads, device)
        values = fate[:, 0] * start(ends) + fate[:, 1]
        for side, condition in box.held.items():
            hit = fate[:, 2] == side
            if hit.any():
                values[hit] = fate[hit, 1] + fate[hit, 0] * start.wall(condition, ends[hit], t - h * fate[hit, 3])
        shift = values[0] if shift is None else shift  # sums of differences: no cancellation in the variance
        sums += (values - shift).sum()
        squares += ((values - shift) ** 2).sum()
    mean = sums / walkers
    return shift + mean, np.sqrt(max(squares / walkers - mean**2, 0.0) / (walkers - 1))


class Cloud:
    """A cloud of particles that diffuse and drift in a box.

    equation   fd.Heat, or another with constant `diffusivity` and `velocity`; one component
    positions  (N, axes), or (N,) in 1-D
    grid       fd.Grid: the box and its periodic axes
    boundary   Neumann(0), the default, reflects; Dirichlet(0) absorbs; Robin(a, b) with a/b > 0 takes a part of the
               weight of each particle that touches it
    velocity   instead of the equation's: numbers, or a function (t, x, y, z) -> one array an axis
    seed       the walks: the same for the same seed, whatever the threads

    Attributes: positions (N, axes), time, weights (N,), absorbed (N,), None or where: -1 while a particle moves, then
    2 axis + end; absorbed_at (N,), the hour, NaN while it moves.

    The density of a cloud obeys u_t = D Laplacian u - div(v u); walls let nothing through, drift included.
    """

    def __init__(self, equation, positions, grid, *, boundary=None, velocity=None, seed=0, threads=None):
        check_threads(threads)
        self.grid, self.equation, self.seed, self.threads = grid, equation, seed, threads
        self.box = _Box.of(equation, grid, boundary)
        if self.box.walls[:, :, 2].any() or any(_value(c) not in (None, 0.0) for c in self.box.held.values()):
            raise ValueError("a cloud's walls reflect, absorb or take a part: their values must be 0")
        self.velocity = velocity
        if velocity is not None and not callable(velocity):
            self.box = self.box._replace(velocity=_per_axis(velocity, "velocity", grid.ndim))
        self.positions = _points(positions, grid)
        self.time, self.steps = 0.0, 0
        self.weights, self.absorbed = np.ones(len(self.positions)), np.full(len(self.positions), -1)
        self.absorbed_at = np.full(len(self.positions), np.nan)

    @classmethod
    def drawn(cls, equation, density, grid, count, *, seed=0, **more) -> "Cloud":
        """A cloud of `count` particles from a density (*grid) that is nowhere negative: cells by it, evenly inside."""
        weight = as_numbers(density, "the density") * np.prod(np.broadcast_arrays(*grid.weights()), axis=0)
        if weight.shape != grid.shape or (weight < 0).any() or not 0 < weight.sum() < np.inf:
            raise ValueError(f"the density has shape {grid.shape}, no negative value, and a finite sum above 0")
        random = np.random.default_rng(seed)
        cells = np.unravel_index(random.choice(weight.size, count, p=(weight / weight.sum()).ravel()), grid.shape)
        places = []
        for axis, cell in enumerate(cells):
            place = grid.origin[axis] + (cell + random.uniform(-0.5, 0.5, count)) * grid.spacing[axis]
            low, high = grid.low[axis], grid.high[axis]
            if grid.periodic[axis]:
                place = low + np.mod(place - low, high - low)
            places.append(np.abs(place - low) + low if not grid.periodic[axis] else place)
            places[-1] = np.where(places[-1] > high, 2 * high - places[-1], places[-1])  # half cells at the ends
        return cls(equation, np.stack(places, 1), grid, seed=seed, **more)

    def move(self, duration, steps=None) -> "Cloud":
        """Let time pass; returns the cloud itself. `steps` bounds the error of a velocity that changes: default 64."""
        if not (np.isfinite(duration) and duration > 0):
            raise ValueError(f"duration must be positive, not {duration!r}")
        least = self.box.steps(duration)
        count = max(int(steps or (64 if callable(self.velocity) else 1)), least)
        h = duration / count
        if callable(self.velocity):
            for k in range(count):
                now: Any = self.velocity(self.time + k * h, *self.positions.T)
                self._walk(np.stack([np.broadcast_to(v, len(self.positions)) for v in now], 1), h, 1, k * h)
        else:
            self._walk(self.box.velocity[None], h, count, 0.0)
        self.time += duration
        return self

    def _walk(self, velocity, h, count, begun):
        live = self.absorbed < 0
        ends, fate = self.box.walk(self.positions, velocity, h, count, self.seed, 0, self.steps, self.threads, "cpu")
        self.steps += count
        self.positions = np.where(live[:, None], ends, self.positions)
        self.weights = np.where(live, self.weights * fate[:, 0], self.weights)
        now = live & (fate[:, 2] >= 0)
        self.absorbed = np.where(now, fate[:, 2].astype(int), self.absorbed)
        self.absorbed_at = np.where(now, self.time + begun + h * fate[:, 3], self.absorbed_at)

    def density(self, grid=None) -> np.ndarray:
        """Weight of the moving particles per volume, at the points of a grid (default: the cloud's); they sum to 1
        while nothing is lost."""
        grid, live = grid or self.grid, self.absorbed < 0
        cells = []
        for axis in range(grid.ndim):
            n = np.rint((self.positions[live, axis] - grid.origin[axis]) / grid.spacing[axis]).astype(int)
            cells.append(n % grid.shape[axis] if grid.periodic[axis] else np.clip(n, 0, grid.shape[axis] - 1))
        sums = np.zeros(grid.shape)
        np.add.at(sums, tuple(cells), self.weights[live])
        return sums / len(self.positions) / np.prod(np.broadcast_arrays(*grid.weights()), axis=0)


# -- the box -----------------------------------------------------------------------------------------------------------


class _Box(NamedTuple):
    """Diffusion, drift and walls, as the kernel wants them."""

    diffusivity: np.ndarray  # (axes,)
    velocity: np.ndarray  # (axes,)
    walls: np.ndarray  # (axes, 2, 3)
    kinds: np.ndarray  # (axes, 2)
    held: dict[int, Any]  # 2 axis + end: a Dirichlet condition
    grid: Grid

    @classmethod
    def of(cls, equation, grid, boundary) -> "_Box":
        from fastdiff.kernels.random_walk import ABSORB, REFLECT

        D, velocity = _coefficients(equation, grid)
        walls, kinds, held = np.zeros((grid.ndim, 2, 3)), np.zeros((grid.ndim, 2), np.int64), {}
        walls[:, 0, 0], walls[:, 1, 0] = grid.low, grid.high
        given = conditions(boundary, grid, ("u",))
        for axis in (a for a in range(grid.ndim) if not grid.periodic[a]):
            for end in range(2):
                condition = given.get((0, axis, end), Neumann(0.0))
                kinds[axis, end] = ABSORB if isinstance(condition, Dirichlet) else REFLECT
                if isinstance(condition, Dirichlet):
                    held[2 * axis + end] = condition
                else:
                    walls[axis, end, 1:] = _soft(condition, D[axis])
        return cls(D, velocity, walls, kinds, held, grid)

    def steps(self, t) -> int:
        """The fewest steps of a walk over a time t of which none reaches from wall to wall."""
        length = np.where([not p for p in self.grid.periodic], self.grid.lengths, np.inf)
        spread = REACH**2 * 2 * self.diffusivity * t / length**2
        drift = REACH * np.abs(self.velocity) * t / length
        return max(1, ceil(spread.max()), ceil(drift.max()))

    def walk(self, x, velocity, h, count, seed, first, step, threads, device):
        """`count` steps of length h; periodic axes come back wrapped."""
        from fastdiff.kernels import random_walk

        given: dict[str, Any] = dict(x=np.ascontiguousarray(x, np.float64), spread=np.sqrt(2 * self.diffusivity * h),
                     drift=np.ascontiguousarray(velocity * h, np.float64), walls=self.walls, kinds=self.kinds,
                     steps=count, seed=seed, first=first, step=step)
        if device == "cuda":
            ends, fate = random_walk.cuda(**given)
        elif device == "cpu":
            ends, fate = random_walk.cpu(**given, threads=threads)
        else:
            raise ValueError(f'device is "cpu" or "cuda", not {device!r}')
        for axis in (a for a in range(x.shape[1]) if self.grid.periodic[a]):
            ends[:, axis] = self.grid.low[axis] + np.mod(ends[:, axis] - self.grid.low[axis], self.grid.lengths[axis])
        return ends, fate


def _coefficients(equation, grid):
    """D and velocity of each axis; refuses what is not constant."""
    names = getattr(equation, "names", None)
    if names is None or not hasattr(equation, "diffusivity") or len(names) != 1 or hasattr(equation, "reaction"):
        raise TypeError(f"random walks solve fd.Heat(diffusivity=...) and the like, not {type(equation).__name__}")
    D = equation.diffusivity
    if isinstance(D, str) or callable(D) or np.ndim(D) > 1 or (np.ndim(D) == 1 and np.size(D) not in (1, grid.ndim)):
        raise ValueError("random walks need a constant diffusivity: a number, or one for each axis")
    return (_per_axis(D, "diffusivity", grid.ndim, low=0.0),
            _per_axis(getattr(equation, "velocity", 0.0), "velocity", grid.ndim))


def _per_axis(value, what, ndim, low=-np.inf):
    if isinstance(value, str) or callable(value):
        raise ValueError(f"random walks need a constant {what}: a number, or one for each axis")
    numbers = as_numbers(value, what)
    if numbers.ndim > 1 or numbers.size not in (1, ndim):
        raise ValueError(f"{what} is a number or {ndim} of them, one an axis, not an array of shape {numbers.shape}")
    if not np.isfinite(numbers).all() or (numbers < low).any():
        raise ValueError(f"{what} must be finite" + (f" and at least {low:g}" if np.isfinite(low) else ""))
    return np.broadcast_to(numbers.reshape(-1), ndim).astype(np.float64)


def _soft(condition, D):
    """Decay and gain of a wall that reflects."""
    if isinstance(condition, Robin):
        b = _number(condition.b, "b of a Robin condition")
        return _number(condition.a, "a of a Robin condition") / b, _number(condition.g, "g of a Robin condition") / b
    value = _number(_value(condition), f"the value of a {type(condition).__name__} condition")
    return 0.0, (-value / D if isinstance(condition, Flux) else value)


def _value(condition):
    value = condition._value()
    return value if value is None or isinstance(value, str) or callable(value) else as_numbers(value, "a value")


def _number(value, what):
    if isinstance(value, str) or callable(value) or np.size(value) != 1:
        raise ValueError(f"for random walks {what} is a number; only Dirichlet values may depend on time and place")
    return float(as_numbers(value, what).reshape(()))


def _points(points, grid):
    """Coordinates (P, axes), all inside the box; on periodic axes anywhere."""
    places = as_numbers(points, "points")
    if grid.ndim == 1 and places.ndim < 2:
        places = places.reshape(-1, 1)
    if places.ndim == 1 and len(places) == grid.ndim:
        places = places[None]
    if places.ndim != 2 or places.shape[1] != grid.ndim:
        raise ValueError(f"points have shape {places.shape}; expected (points, {grid.ndim})")
    bounded = [a for a in range(grid.ndim) if not grid.periodic[a]]
    low, high = np.array(grid.low)[bounded], np.array(grid.high)[bounded]
    out = ~((places[:, bounded] >= low) & (places[:, bounded] <= high)).all(1) | ~np.isfinite(places).all(1)
    if out.any():
        raise ValueError(f"the point {tuple(places[out][0])} lies outside the grid")
    return np.ascontiguousarray(places)


# -- values at the ends of walks ---------------------------------------------------------------------------------------

_PAD = 12  # cells that a spline's end is not felt beyond


class _Start:
    """u0 anywhere, and the values of Dirichlet walls."""

    def __init__(self, u0, grid, box):
        self.grid, self.function = grid, u0 if callable(u0) else None
        if self.function is None:
            field = as_numbers(u0, "u0")
            if field.shape != grid.shape:
                raise ValueError(f"u0 has shape {field.shape}; expected {grid.shape}, or a function of "
                                 f"{', '.join(grid.names)}")
            self.spline = _spline(field, grid, box)

    def __call__(self, x):
        if self.function is not None:
            return np.broadcast_to(np.asarray(self.function(*x.T), np.float64), len(x))
        from scipy.ndimage import map_coordinates

        index = [(x[:, a] - self.grid.origin[a]) / self.grid.spacing[a] + _PAD for a in range(self.grid.ndim)]
        return map_coordinates(self.spline, index, order=3, prefilter=False, mode="nearest")

    def wall(self, condition, x, t):
        """Values of a Dirichlet wall at places and times."""
        value = condition._value()
        if value is None:
            return self(x)
        if not (isinstance(value, str) or callable(value)):
            return _number(value, "a Dirichlet value")
        from fastdiff.expressions import formula

        f = formula(value, ("t", *self.grid.names))
        known = {"t": t, **{name: x[:, a] for a, name in enumerate(self.grid.names)}}
        return f.host(**{name: known[name] for name in f.uses})


def _spline(field, grid, box):
    """Coefficients of a cubic spline through the field, carried on beyond each wall as its condition asks."""
    from scipy.ndimage import spline_filter

    for axis in range(grid.ndim):
        pad = [(0, 0)] * grid.ndim
        for end in range(2):
            pad[axis] = (_PAD, 0) if end == 0 else (0, _PAD)
            odd = "odd" if 2 * axis + end in box.held else "even"
            if grid.periodic[axis]:
                if end == 0:
                    pad[axis] = (_PAD, _PAD)
                    field = np.pad(field, pad, mode="wrap")
            else:
                field = np.pad(field, pad, mode="reflect" if grid.centering == "nodes" else "symmetric",
                               reflect_type=odd if grid.centering == "nodes" else "even")
    return spline_filter(field, order=3, mode="mirror")


__all__ = ["Cloud", "Estimate", "monte_carlo"]
