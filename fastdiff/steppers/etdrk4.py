"""ETDRK4: exponential time differencing, fourth order; diffusion exact in the modes of the box, reaction on the grid.

    a = e^{Lh/2} u + Q N(u),  b = e^{Lh/2} u + Q N(a),  c = e^{Lh/2} a + Q (2 N(b) - N(u)),
    u^{n+1} = e^{Lh} u + f1 N(u) + 2 f2 (N(a) + N(b)) + f3 N(c)

    Q = h (e^{z/2} - 1)/z,  z = L h,  f1 = h (-4 - z + e^z (4 - 3z + z^2))/z^3,
    f2 = h (2 + z + e^z (z - 2))/z^3,  f3 = h (-4 - 3z - z^2 + e^z (4 - z))/z^3

L = -D k^2 in Fourier, sine or cosine modes, as the walls ask for (spectral.py); the walls must be homogeneous. The
coefficients are means over 32 points of a circle around z, without which they lose all digits near z = 0. Modes of the
reaction above 2/3 of the largest wave number are left out (dealiasing). Spectral in space for smooth fields: it solves
the equation, not its stencil.

Source: Cox, Matthews, J. Comput. Phys. 176 (2002) 430, eqs. (26)-(29); Kassam, Trefethen, SIAM J. Sci. Comput. 26
(2005) 1214, section 3; Orszag, J. Atmos. Sci. 28 (1971) 1074, for the 2/3 rule.
"""

from math import inf
from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._edges import NONE, Side, make_edges
from fastdiff.kernels._run import march
from fastdiff.kernels._stages import local, slope
from fastdiff.steppers import spectral
from fastdiff.steppers._base import DOUBLING, Method, Run

POINTS = 32  # of the circle


class Coefficients(NamedTuple):
    """Of one step length, an array over the modes each."""

    half: Any  # e^{z/2}
    whole: Any  # e^z
    Q: Any
    f1: Any
    f2: Any
    f3: Any


def coefficients(z, h) -> Coefficients:
    """For an array z = L h of real numbers."""
    r = np.exp(1j * np.pi * (np.arange(POINTS // 2) + 0.5) / (POINTS // 2))  # the upper half: the rest is conjugate
    total = [np.zeros_like(z) for _ in range(4)]
    for point in r:
        x = z + point
        e = np.exp(x)
        for part, value in zip(total, ((np.exp(x / 2) - 1) / x, (-4 - x + e * (4 - 3 * x + x * x)) / x**3,
                                       (2 + x + e * (x - 2)) / x**3, (-4 - 3 * x - x * x + e * (4 - x)) / x**3)):
            part += value.real
    return Coefficients(np.exp(z / 2), np.exp(z), *(h * part / len(r) for part in total))


class Exponential(Run):
    """Transforms of each component, and the coefficients of each step length."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.components = len(self.equation.names)
        reason = self._refuses(args[3] if len(args) > 3 else kwargs["boundary"])
        if reason is not None:
            raise ValueError(f'method="etdrk4" does not apply: {reason}; use method="rkl2" or "strang"')
        D = spectral._diffusivity(self.equation.diffusivities(self.grid), (self.batch, self.components, self.grid.ndim))
        self.modes = [self._modes(c) for c in range(self.components)]
        self.rates = [-sum(spectral._along(D[:, c, a, None] * line, a, self.grid.ndim)
                           for a, line in enumerate(modes.eigenvalues("exact"))) for c, modes in enumerate(self.modes)]
        self.masks = [self._mask(modes) for modes in self.modes]
        self._tables: dict[float, list[Coefficients]] = {}
        self.reaction = slope(local(self.equation.euler(self.grid, 1.0, self.batch, self.dtype)))
        sides = {key: Side(kind=NONE) for key in self.faces.walls}
        self.edges = make_edges(self.grid.shape, self.grid.periodic, self.dtype, sides, components=self.components,
                                batch=self.batch)

    def _refuses(self, boundary):
        if not getattr(self.equation, "even", lambda grid: False)(self.grid):
            return f"{type(self.equation).__name__} does more here than diffuse evenly and react"
        reason = spectral.refuses(self.grid, boundary, self.equation.names)
        if reason is None and any(np.any(np.asarray(wall.side.value)) for wall in self.faces.walls.values()):
            return "a boundary value is not zero"
        return reason

    def _modes(self, c):
        held = {key[1:] for key, wall in self.faces.walls.items() if key[0] == c and spectral._is_dirichlet(wall)}
        return spectral.Modes(self.grid, held, self.threads)

    def _mask(self, modes):
        """0 for the modes that the reaction must not feed."""
        mask: Any = 1.0
        for a, axis in enumerate(modes.shown()):
            keep = np.abs(axis.k) <= 2 / 3 * np.pi / self.grid.spacing[a] * (1 + 1e-12)
            mask = mask * spectral._along(keep.astype(self.dtype)[None], a, self.grid.ndim)
        return mask

    @property
    def default_dt(self):
        return inf

    def stages(self, dt, watched=False):
        return 4

    def advance(self, state, t, dt, steps, out=None, work=None, initial=None):
        if not isinstance(state, np.ndarray):
            raise ValueError('method="etdrk4" runs on the CPU: pass u0.cpu()')
        tables = self._coefficients(dt)
        v = self._forward(state)
        for k in range(steps):
            v = self._step(v, tables, t + k * dt, dt)
        u = self._backward(v)
        if out is None:
            return u
        out[...] = u
        return out

    def _coefficients(self, h):
        if h not in self._tables:
            new = [Coefficients(*(table.astype(self.dtype) for table in coefficients(rate * h, h)))
                   for rate in self.rates]
            self._tables = {**dict(list(self._tables.items())[-1:]), h: new}
        return self._tables[h]

    def _step(self, v, tables, t, h):
        components = range(self.components)
        n0 = self._reaction(v, t)
        a = [T.half * v[c] + T.Q * n0[c] for c, T in zip(components, tables)]
        n1 = self._reaction(a, t + h / 2)
        b = [T.half * v[c] + T.Q * n1[c] for c, T in zip(components, tables)]
        n2 = self._reaction(b, t + h / 2)
        d = [T.half * a[c] + T.Q * (2 * n2[c] - n0[c]) for c, T in zip(components, tables)]
        n3 = self._reaction(d, t + h)
        return [T.whole * v[c] + T.f1 * n0[c] + 2 * T.f2 * (n1[c] + n2[c]) + T.f3 * n3[c]
                for c, T in zip(components, tables)]

    def _reaction(self, v, t):
        edges = self.edges._replace(clock=np.concatenate([[t], self.edges.clock[1:]]))
        change = march(self.reaction, self._backward(v), edges, 1, threads=self.threads)
        return [n * mask for n, mask in zip(self._forward(change), self.masks)]

    def _forward(self, u):
        return [modes.forward(u[:, c][modes.free]) for c, modes in enumerate(self.modes)]

    def _backward(self, v):
        u = np.zeros((self.batch, self.components, *self.grid.shape), self.dtype)
        for c, modes in enumerate(self.modes):
            u[:, c][modes.free] = modes.backward(v[c])
        return u


METHOD = Method("etdrk4", order=4, run=Exponential, control=DOUBLING, reach=inf, gpu=False,
                summary="exponential Runge-Kutta in the modes of the box")
__all__ = ["METHOD", "Coefficients", "Exponential", "coefficients"]
