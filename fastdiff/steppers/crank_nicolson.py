"""Crank-Nicolson: implicit, second order, stable for any step; tridiagonal lines in 1-D, alternating directions above.

    (1 - dt/2 A_x) (1 - dt/2 A_y) (1 - dt/2 A_z) (u^{n+1} - u^n) = dt (A u^n + b^{n+1/2}),   A = A_x + A_y + A_z

In 2-D this is the method of Peaceman and Rachford, in 3-D that of Douglas and Gunn: they are this one with u* written
out. The right-hand side is the equation's own compiled rule, so every operator of nearest neighbours and every
boundary is in it; `_lines.py` finds the A. Of what changes in time, b has walls as the mean of both ends of a step, and
a source as in its middle; A does not change. At a held face the increment is given, and on the way there (1 - dt/2 A_b)
of it for every axis b along the face.

The fastest modes are hardly damped by large steps. A solution therefore starts with four half steps of backward Euler
(Rannacher), which damps them; a single `fd.Stepper` step does not.

Source: Peaceman, Rachford, J. SIAM 3 (1955) 28, eqs. (10)-(11); Douglas, Gunn, Numer. Math. 6 (1964) 428, section 4;
Rannacher, Numer. Math. 43 (1984) 309; for the increments: Beam, Warming, J. Comput. Phys. 22 (1976) 87, section 3.
"""

from contextlib import contextmanager
from itertools import cycle
from math import inf
from typing import Any

import numpy as np

from fastdiff import dispatch
from fastdiff.boundary import CALL, TABLE
from fastdiff.kernels._edges import _SPACE, HEAD, HOLD, ITEMS, VALUE, Edges, Side, make_edges
from fastdiff.kernels._stages import slope
from fastdiff.steppers._base import DOUBLING, Method, Run, kind_of
from fastdiff.steppers._lines import Line, NoLines, apply, lines_of

_compiled: set[tuple] = set()
START = 2  # steps that Rannacher's start replaces, by twice as many half as long


class CrankNicolson(Run):
    """The lines are found once, and factored for each step length."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        try:
            self.lines = lines_of(self.equation, self.grid, self.faces, self.batch, self.threads)
        except NoLines as reason:
            other = '"rkl2"' if self.method.name == "strang" else '"rkl2" or "strang"'
            raise ValueError(f'method="{self.method.name}" does not apply: {reason}; use method={other}') from None
        self._systems: dict[tuple[str, float], list[Any]] = {}
        self._plain: dict[tuple[str, int], Any] = {}  # A along an axis where every line has its own, for all h
        self._slope: Any = slope(self.rule(1.0))
        self._start = 0

    @property
    def default_dt(self):
        return inf

    def compile(self, dt, data):
        if not isinstance(data, np.ndarray):
            return
        key = kind_of(self._slope), str(self.dtype), self.grid.ndim
        if key not in _compiled:  # by a step that nobody sees
            _compiled.add(key)
            self._step(data.copy(), 0.0, dt, 0.5, np.empty_like(data), data)

    def restart(self):
        """The next steps start from a field that may be rough."""
        self._start = START

    def stages(self, dt, watched=False):
        return 1 + self.grid.ndim

    def advance(self, state, t, dt, steps, out=None, work=None, initial=None):
        u = dispatch.assign(dispatch.empty_like(state) if out is None else out, state)
        work = dispatch.empty_like(u) if work is None else work
        dispatch.hold(u, self.faces.edges(t, dt, 1, initial=initial, tables=True))
        done = min(self._start, steps)
        self._start -= done
        for k in range(2 * done):
            self._step(u, t + k * dt / 2, dt / 2, 1.0, work, initial)
        for k in range(done, steps):
            self._step(u, t + k * dt, dt, 0.5, work, initial)
        return u

    def _step(self, u, t, h, theta, work, initial):
        edges, rises = self._walls(t, h, theta, initial)
        how: dict[str, Any] = {"threads": self.threads} if isinstance(u, np.ndarray) else {}
        dispatch.march(self._slope, u, edges, 1, out=work, **how)
        self._set_held(work, {key: rise / h for key, rise in rises.items()}, theta * h)
        for system, scale in self._solvers(theta * h, u):
            dispatch.solve_lines(system, work, scale)
        dispatch.accumulate(u, work, h, self.threads)

    def _walls(self, t, h, theta, initial):
        """Boundaries of the right-hand side, and by how much held faces rise."""
        faces = self.faces
        edges = faces.edges(t, h, 1, initial=initial, tables=True)
        clock = edges.clock.copy()
        clock[0] += theta * h  # walls are in tables: only a source looks at the time
        edges, rises = edges._replace(clock=clock), {}
        if faces.constant:
            return edges, {key: 0.0 for key, wall in faces.walls.items() if wall.side.kind == HOLD}
        reals = edges.reals.copy()
        for key, wall in faces.walls.items():
            c, axis, end = key
            rise = 0.0
            if wall.how in (TABLE, CALL):
                face = [n for k, n in enumerate(self.grid.shape) if k != axis]
                at = edges.ints[HEAD + (c * 6 + 2 * _SPACE[self.grid.ndim][axis] + end) * ITEMS + VALUE]
                cells = 1 if wall.how == TABLE else int(np.prod(face))
                samples = 1 if wall.scale is None else len(wall.scale)
                values = reals[at : at + samples * 2 * cells].reshape(samples, 2, cells)
                rise = (values[:, 1] - values[:, 0]).astype(np.float64)
                rise = rise.reshape(samples, *(face if cells > 1 else [1] * len(face)))
                if wall.side.kind != HOLD:
                    values[:, 0] = (1 - theta) * values[:, 0] + theta * values[:, 1]
            if wall.side.kind == HOLD:
                rises[key] = rise
        return Edges(edges.ints, reals, edges.clock), rises

    def _set_held(self, rhs, rises, h):
        """The right-hand side at held faces, the earlier axis last so that it wins at a corner."""
        if isinstance(rhs, np.ndarray) and self.faces.constant:
            for c, axis, end in rises:
                rhs[(slice(None), c) + (slice(None),) * axis + (-end,)] = 0.0
            return
        values = {key: self._at_face(key, rise, h) for key, rise in sorted(rises.items(), reverse=True)}
        if isinstance(rhs, np.ndarray):
            for (c, axis, end), value in values.items():
                rhs[(slice(None), c) + (slice(None),) * axis + (-end,)] = value
        elif values:
            sides = {key: Side(HOLD, value=np.reshape(value, (np.shape(value)[0], 1, -1)) if np.ndim(value) else value)
                     for key, value in values.items()}
            dispatch.hold(rhs, make_edges(self.grid.shape, self.grid.periodic, self.dtype, sides,
                                          components=len(self.equation.names), batch=self.batch))

    def _at_face(self, key, rise, h):
        """The right-hand side at one held face, (samples or 1, *face), or 0 for all of it."""
        c, axis, end = key
        if not np.any(rise):
            return 0.0
        along = [k for k in range(self.grid.ndim) if k != axis]
        size = len(rise) if np.ndim(rise) else 1
        value = np.array(np.broadcast_to(rise, (size, *(self.grid.shape[k] for k in along))))[:, None]
        for place, k in enumerate(along):
            value = value - h * apply(self._on_face(k, c, axis, end, place), value, place)
        return value[:, 0]

    def _on_face(self, k, c, axis, end, place):
        """The lines along axis k within a face."""
        line = self.lines[k]
        if line.shared:
            bands = [b[:, c : c + 1].reshape(len(b), 1, *[-1 if j == place else 1 for j in range(self.grid.ndim - 1)])
                     for b in line[:3]]
        else:
            bands = [np.take(b[:, c : c + 1], -end, axis + 2) for b in line[:3]]
        return Line(*bands, shared=False)

    def _solvers(self, h, like):
        """Systems 1 - h A along each axis, with held cells of that axis given, and their scales, for states like u."""
        key = dispatch.place_of(like), h
        if key not in self._systems:
            found = [self._solver(h, axis, line, like) for axis, line in enumerate(self.lines)]
            self._systems = {**dict(list(self._systems.items())[-3:]), key: found}
        return self._systems[key]

    def _solver(self, h, axis, line, like):
        if line.shared or (self.grid.periodic[axis] and self.grid.shape[axis] > 1):
            return self._system(h, axis, line, like), None
        key = dispatch.place_of(like), axis
        if key not in self._plain:
            self._plain[key] = self._system(None, axis, line, like)
        return self._plain[key], -h

    def _system(self, h, axis, line, like):
        """1 - h A along an axis; h None: A itself, with zeros where 1 - h A has a held cell's 1."""
        if h is None:
            ends = self._held_ends(line[:3], axis)
            with _replaced(ends, 0.0):  # the systems have a copy of their own, in another order
                return self._systems_of(line[:3], axis, line, like)
        bands = [-h * line.lower, 1 - h * line.diag, -h * line.upper]
        for (band, place), value in zip(self._held_ends(bands, axis), cycle((0.0, 1.0, 0.0))):
            band[place] = value
        return self._systems_of(bands, axis, line, like)

    def _held_ends(self, bands, axis):
        """The places in each of the bands along an axis, lower, diag and upper in turn, that belong to held cells."""
        before = [slice(None)] * (1 if bands[0].ndim == 3 else axis + 1)
        found = []
        for (c, a, end), wall in self.faces.walls.items():
            if a == axis and wall.side.kind == HOLD:
                place = (slice(None), slice(c, c + 1), *before[1:], -end)
                found += [(band, place) for band in bands]
        return found

    def _systems_of(self, bands, axis, line, like):
        shape = (self.batch, len(self.equation.names), *self.grid.shape)
        if line.shared:
            bands = [np.broadcast_to(b, (self.batch, *b.shape[1:])).reshape(-1, b.shape[-1]) for b in bands]
            bands = [b[:1] if (b == b[:1]).all() else b for b in bands]
        return dispatch.systems(like)(*bands, shape, axis + 2, self.dtype, cyclic=self.grid.periodic[axis],
                                      threads=self.threads)


@contextmanager
def _replaced(places, value):
    """Put a value at places of arrays, pairs of both, for a while."""
    kept = [band[place].copy() for band, place in places]
    for band, place in places:
        band[place] = value
    try:
        yield
    finally:
        for (band, place), old in zip(places, kept):
            band[place] = old


METHOD = Method("crank_nicolson", order=2, run=CrankNicolson, control=DOUBLING, reach=inf,
                summary="Crank-Nicolson, alternating directions")
