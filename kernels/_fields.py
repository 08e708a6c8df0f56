"""What a rule may read besides the field itself: numbers of every cell, and the time.

    class Decaying(NamedTuple):
        k: Any        # Cells: a number of every cell, shared by all samples or one array a sample
        clock: Any    # Clock(): filled in by the march

        @staticmethod
        def change(p, u, at):
            return -here(p.k, at) * u.c       # and now(p.clock, at, u.c) is the time of this step

A rule is built with `Cells`, which hold plain arrays over the grid. Before a march, `lowered` turns them into `Field`s,
which compiled code reads: flat memory with room around the grid. The schedules recompute halos beyond the grid's ends
and fill vectors beyond the ends of rows; there a field repeats along a periodic axis and keeps its edge value along a
bounded one, so that an index needs no test and rows stay contiguous. Offsets are unsigned: Numba adds a wraparound for
negative indices to signed ones, which costs the vectors.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from fastdiff.kernels._edges import CLOCK, PERIODIC
from fastdiff.kernels._jit import FASTMATH
from fastdiff.kernels._memory import empty
from fastdiff.kernels._part import overload_part

ROOM = 32  # cells around a row: whole vectors at both ends


class Field(NamedTuple):
    """Numbers of every cell: those of cell (i0, i1, i2) of sample b stand at start + b*batch + i0*s0 + i1*s1 + i2."""

    data: Any
    start: Any
    batch: Any
    s0: Any
    s1: Any


class FaceField(Field):
    """A `Field` of numbers of faces along axis 2: a cell's low face is the high face of the cell before.

    A schedule that goes along axis 2 may hand them on, with `at` an `AtFaces`: then they are read once.
    """


class AtFaces(NamedTuple):
    """When and where a cell is, as `At` of _march.py, and the numbers of its faces of the rule's one `FaceField`."""

    step: Any
    i0: Any
    i1: Any
    i2: Any
    low: Any
    high: Any


class Clock(NamedTuple):
    """The times of the steps, as the `clock` of `Edges` has them; `march` takes it from there."""

    times: Any = None


class Cells:
    """A number of every cell of a grid: an array (*grid), or (samples, *grid), of the state's dtype.

    One cell more along an axis makes it a number of every face: number i is that of the low face of cell i, and the
    last that of the high face of the last cell (on a periodic axis the first one again).
    `handed` says that they are numbers of faces along the last axis, to be handed on from cell to cell.
    The array must not be changed afterwards: what is made of it for a march is kept.
    """

    def __init__(self, values, ndim: int, dtype, handed: bool = False):
        values = np.ascontiguousarray(values, dtype)
        values = values[None] if values.ndim == ndim else values
        if values.ndim != ndim + 1:
            raise ValueError(f"numbers of every cell have the shape (*grid) or (samples, *grid) of a grid of {ndim} "
                             f"axes, not {values.shape}")
        self.values, self.ndim, self.handed, self._made = values, ndim, handed, {}

    def check(self, name: str, u):
        """Refuse a state that does not fit."""
        fits = all(n in (m, m + 1) for n, m in zip(self.values.shape[1:], u.shape[2:]))
        if len(self.values) not in (1, len(u)) or not fits:
            raise ValueError(f"{name} has numbers for {len(self.values)} samples of a grid {self.values.shape[1:]}, "
                             f"but u has shape {tuple(u.shape)}")
        if self.values.dtype != str(u.dtype).removeprefix("torch."):
            raise ValueError(f"{name} has numbers in {self.values.dtype}, but u is {u.dtype}")

    def field(self, kinds, space, depth: int, device=None) -> Field:
        """The numbers with room for halos `depth` cells wide of a grid (n0, n1, n2).

        `device` moves them to a GPU, whose number is `device.place`.
        """
        key = (tuple(kinds), tuple(space), depth, None if device is None else device.place)
        if key not in self._made:
            data, *rest = self._padded(kinds, space, depth if device is None else 0, 0 if device else ROOM)
            kind = FaceField if self.handed and device is None else Field
            self._made[key] = kind(data if device is None else device(data), *map(np.uint64, rest))
        return self._made[key]

    def _padded(self, kinds, space, depth, room):
        samples, *grid = self.values.shape
        n0, n1, n2 = {1: (1, 1, *grid), 2: (grid[0], 1, grid[-1]), 3: grid}[self.ndim]
        halo1, halo2 = (depth if kind == PERIODIC else 0 for kind in kinds[1:])
        left = (halo2 + room + 15) // 16 * 16
        pitch = left + (n2 + halo2 + room + 15) // 16 * 16
        rows = n1 + 2 * halo1
        memory = empty(samples * n0 * rows * pitch, self.values.dtype)
        place = memory.reshape(samples, n0, rows, pitch)
        along1, along2 = (_images(n, space[k], before, after, kinds[k]) for k, n, before, after in (
            (1, n1, halo1, halo1), (2, n2, left, pitch - left - n2)))
        given = self.values.reshape(samples, n0, n1, n2)
        given = given.take(along1, 2) if halo1 else given
        for part in (slice(0, left), slice(left + n2, pitch)):
            place[..., part] = given[..., along2[part]]
        place[..., left : left + n2] = given
        return memory, halo1 * pitch + left, n0 * rows * pitch if samples > 1 else 0, rows * pitch, pitch


def _images(n, period, before, after, kind):
    """Which of n numbers stands in for each index from -before to n + after: a periodic image, or the edge."""
    places = np.arange(-before, n + after)
    return places % period if kind == PERIODIC else np.clip(places, 0, n - 1)


def lowered(rule, kinds, space, depth: int, clock=(0.0, 1.0), device=None):
    """A rule as compiled code wants it, with the rules inside of it: Cells as Fields, a Clock that is set.

    To Numba an array that must not be written is of another type, and a schedule for it another one to compile, of
    which a rule of many parameters could have very many: such arrays, of a number or a few for each sample, are copied.
    """

    def lower(field):
        if isinstance(field, np.ndarray):
            return field if field.flags.writeable else field.copy()
        if isinstance(field, Cells):
            return field.field(kinds, space, depth, device)
        if isinstance(field, Clock):
            return Clock(np.asarray(clock, np.float64) if device is None else device(np.asarray(clock, np.float64)))
        return type(field)(*map(lower, field)) if hasattr(field, "_fields") else field

    return lower(rule)


# -- reading, by type ------------------------------------------------------------------------------------------------


def here(f, at):
    """The number of the cell `at`; a plain number stands for itself."""
    if not isinstance(f, Field):
        return f
    i0, i1, i2 = (np.uint64(int(i) % 2**64) for i in at[1:4])
    return f.data[f.start + f.s0 * i0 + f.s1 * i1 + i2]


@overload_part(here, fastmath=FASTMATH, error_model="numpy")
def _here(f, at):
    if not isinstance(f, types.BaseNamedTuple):
        return lambda f, at: f
    if f.instance_class is FaceField and at.instance_class is AtFaces:
        return lambda f, at: at.low

    def read(f, at):
        return f.data[f.start + f.s0 * np.uint64(at.i0) + f.s1 * np.uint64(at.i1) + np.uint64(at.i2)]

    return read


def next0(f, at):
    """The number of the next cell along axis 0: of numbers of faces, that of the high face."""
    return here(f._replace(start=f.start + f.s0), at) if isinstance(f, Field) else f


def next1(f, at):
    """The number of the next cell along axis 1."""
    return here(f._replace(start=f.start + f.s1), at) if isinstance(f, Field) else f


def next2(f, at):
    """The number of the next cell along axis 2."""
    return here(f._replace(start=f.start + np.uint64(1)), at) if isinstance(f, Field) else f


def _compiled_next(function, further):
    lines = ["def read(f, at):", "    return f.data[(f.start + f.s0 * np.uint64(at.i0) + f.s1 * np.uint64(at.i1)"
             f" + np.uint64(at.i2)) + {further}]"]
    scope = {"np": np}
    exec("\n".join(lines), scope)

    @overload_part(function, fastmath=FASTMATH, error_model="numpy")
    def _next(f, at):
        if not isinstance(f, types.BaseNamedTuple):
            return lambda f, at: f
        handed = function is next2 and f.instance_class is FaceField and at.instance_class is AtFaces
        return (lambda f, at: at.high) if handed else scope["read"]


_compiled_next(next0, "f.s0")
_compiled_next(next1, "f.s1")
_compiled_next(next2, "np.uint64(1)")


def now(clock, at, like):
    """The time of a step, computed in float64, in the precision of `like`."""
    times = clock.times
    unequal = len(times) > CLOCK
    return np.asarray(like).dtype.type(times[CLOCK + at.step] if unequal else times[0] + times[1] * at.step)


@overload_part(now, fastmath=FASTMATH, error_model="numpy")
def _now(clock, at, like):
    kind = np.float32 if like == types.float32 else np.float64

    def time(clock, at, like):
        times = clock.times
        return kind(times[CLOCK + at.step] if len(times) > CLOCK else times[0] + times[1] * at.step)

    return time


__all__ = ["ROOM", "AtFaces", "Cells", "Clock", "FaceField", "Field", "here", "lowered", "next0", "next1", "next2",
           "now"]
