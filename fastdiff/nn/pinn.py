"""Physics-informed networks of the problems that `fd.solve` takes.

u = B(t, x) + G(t, x) N(t, x): B carries the initial values, the walls' values where they are held, and what a wall does
that begins at odds with the initial values; G vanishes where u is known. What cannot be built in is a term of the loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fastdiff.boundary import Dirichlet
from fastdiff.expressions import Expression
from fastdiff.grid import Grid
from fastdiff.nn import _fit
from fastdiff.nn._fields import LETTERS, Sum, Symbolic, corner, initial_field, smoothed, symbols
from fastdiff.nn._physics import Physics, Residual, physics_of, value_of, wall_residual, walls
from fastdiff.nn.functional.jet import jet_jacobian, jet_mlp, jet_residual
from fastdiff.nn.jet import Channels, FourierFeatures, Jet, JetMLP

OPTIMISERS = ("gauss_newton", "lbfgs", "adam")


class NotFinite(FloatingPointError):
    """A loss became NaN or infinite."""


@dataclass
class Term:
    """One part of the loss: residuals at some points."""

    name: str
    points: torch.Tensor  # (N, 1 + axes)
    channels: Channels
    residual: Any  # (jet, places, values) -> (N, K)
    weight: float = 1.0
    weights: torch.Tensor | None = None  # of each point
    known: Any = None  # channels of B at the points, or None
    gate: Any = None
    features: Any = None


@dataclass
class Report:
    """How good a PINN is: relative L2 distance from `fd.solve` of the same problem, and the time both took.

    error     over all components, places and times
    at        the error at each time
    training  seconds of training;  solver  seconds of fd.solve, compiling left out
    """

    error: float
    at: dict[float, float]
    training: float
    solver: float
    loss: float
    unknown: dict[str, float] = field(default_factory=dict)

    def __str__(self):
        found = "".join(f", {k} = {v:.6g}" for k, v in self.unknown.items())
        return (f"relative L2 distance from fd.solve {self.error:.2e}; trained {self.training:.1f} s, fd.solve took "
                f"{self.solver:.3g} s; loss {self.loss:.2e}{found}")


class PINN(torch.nn.Module):
    """A physics-informed network of an initial-boundary-value problem.

        pinn = fd.nn.PINN(fd.Heat(1.0), grid, "sin(pi*x)", t_end=1.0, boundary={"x": fd.Dirichlet(0.0)})
        report = pinn.train_for(seconds=30)
        pinn(t, x)

    equation     fd.Heat, fd.ReactionDiffusion and the named ones, fd.Burgers, or fd.nn.Residual of your own
    grid         fd.Grid: its domain; its points are those of the comparison with fd.solve
    u0           initial values: a formula in x, y, z (exact), or an array as fd.solve takes it (splines); None: unknown
    t_end        end of the time interval from 0
    boundary     as of fd.solve; default no flux. Periodic axes are built in by Fourier features
    constraints  "auto": build in what can be: the initial values, and Dirichlet walls in one dimension; "soft": only
                 periodicity; "hard": as auto, and refuse what cannot
    width, depth, activation, harmonics, net
                 the network; or a JetMLP of your own with the right widths
    points       collocation points (Sobol), and a quarter of them on each wall
    unknown      {"diffusivity": guess}: numbers to find; they need `data`
    data         (t, x, u): measured values, x (M,) or (M, axes), u (M,) or (M, components); data_weight
    causal       tolerance of causal weights in time; None: without (and `slices` of time)
    seed, dtype  float64 for Gauss-Newton

    Raises ValueError for domains, boundaries and data that do not fit, NotFinite for a loss that is not finite (it says
    which term, when and where).
    Source: Raissi, Perdikaris and Karniadakis, J. Comput. Phys. 378 (2019).
    """

    def __init__(self, equation, grid: Grid, u0=None, t_end: float = 1.0, boundary=None, *, constraints: str = "auto",
                 width: int = 20, depth: int = 3, activation: str = "tanh", harmonics: int = 3,
                 net: JetMLP | None = None, points: int = 2000, unknown: Mapping[str, float] | None = None, data=None,
                 data_weight: float = 1.0, causal: float | None = None, slices: int = 16, seed: int = 0,
                 dtype=torch.float64):
        super().__init__()
        if not isinstance(grid, Grid):
            raise TypeError(f"grid is an fd.Grid, not {type(grid).__name__}")
        if not (np.isfinite(t_end) and t_end > 0):
            raise ValueError(f"t_end must be positive, not {t_end!r}")
        if constraints not in ("auto", "soft", "hard"):
            raise ValueError(f'unknown constraints {constraints!r}; known: "auto", "soft", "hard"')
        self.equation, self.grid, self.t_end, self.boundary, self.dtype = equation, grid, float(t_end), boundary, dtype
        self.physics: Physics = equation.physics(grid) if isinstance(equation, Residual) else physics_of(equation, grid)
        self.initial: Any = None if u0 is None else initial_field(u0, grid, self.physics.names)
        self.walls = walls(boundary, grid, self.physics.names)
        self.seed, self.causal, self.slices, self.count = seed, causal, slices, int(points)
        self.low = np.array([0.0, *grid.low])
        self.high = np.array([self.t_end, *grid.high])
        self.names = LETTERS[: 1 + grid.ndim]
        self._build_known(constraints)
        self._build_net(net, width, depth, activation, harmonics)
        self._build_unknown(unknown, data)
        self.data, self.data_weight = data, data_weight
        self.window = self.t_end
        self.history: list[tuple[float, float]] = []  # seconds, loss
        self.seconds, self.draws = 0.0, 0
        self.report: Report | None = None
        self.balance: _fit.Balance | None = None
        self.terms = self._make_terms()

    # -- what is built in ---------------------------------------------------------------------------------------------

    def _build_known(self, constraints):
        """B and G: fields of t and place, or None."""
        self.known: Any = None
        self.gate: Any = None
        self.built_in: set[Any] = set()
        if constraints == "soft":
            return
        t, wanted = symbols()["t"], self._holdable()
        gate: Any = 1
        fields: list[Any] = []
        if self.initial is not None:
            gate, fields = gate * t / self.t_end, [self.initial, *self._seam()]
            self.built_in.add("initial values")
        if wanted is not None:
            lift, bump = self._lift(wanted)
            gate = gate * bump
            fields.append(Symbolic(lift))
            self.built_in |= {(0, 0, 0), (0, 0, 1)}
        if constraints == "hard" and (self.initial is None or set(self.walls) - self.built_in):
            raise ValueError('constraints="hard" builds in initial values, and in one dimension Dirichlet walls whose '
                             'values are numbers or formulas in t, of one component: use "auto" or "soft"')
        if self.built_in:
            self.known, self.gate = (Sum(*fields) if fields else None), Symbolic(_symbolic(gate))

    def _seam(self):
        """What smooths a kink of the initial values where a periodic axis closes, as the heat equation does; in 1-D."""
        if self.grid.ndim != 1 or not self.grid.periodic[0] or len(self.physics.names) > 1:
            return []
        low, high = self.grid.extent[0]
        ends = self.initial(np.array([[0.0, low], [0.0, high]]), Channels("tx", "x"))[1, :, 0]
        kink = float(ends[0] - ends[1]) / 2
        if abs(kink) < 1e-9 * (1 + np.abs(ends).max()):
            return []
        x = symbols()["x"]
        return [Symbolic(sum(smoothed(d, kink, self.physics.diffusion[0]) for d in (x - low, high - x)))]

    def _holdable(self):
        """The two walls' values as SymPy expressions of t, if they can be built in."""
        if self.grid.ndim != 1 or self.grid.periodic[0] or len(self.physics.names) > 1:
            return None
        return _formulas([self.walls[0, 0, end] for end in (0, 1)], self.initial, self.grid)

    def _lift(self, values: Any):
        """The part of B that makes the walls right, and the factor of G that is 0 there."""
        import sympy

        known = symbols()
        t, x = known["t"], known["x"]
        low, high = self.grid.extent[0]
        share = (x - low) / (high - low)
        if self.initial is None:
            return (1 - share) * values[0] + share * values[1], 4 * share * (1 - share)
        start = self.initial(np.array([[0.0, low], [0.0, high]]), Channels("tx", "tx", "xx"))[:, :, 0]
        rates = self._start_rates(start)
        parts = []
        for end, (value, place) in enumerate(zip(values, (low, high))):
            jump = float(value.subs(t, 0)) - start[0, end]
            rate: Any = sympy.diff(value, t)
            slope = float(rate.subs(t, 0)) - rates[end]
            jump, slope = (v if abs(v) > 1e-9 else 0.0 for v in (jump, slope))
            parts.append(corner(sympy.Abs(x - place), jump, slope, self.physics.diffusion[0]).subs(
                sympy.Abs(x - place), x - low if end == 0 else high - x))
        rest = [values[0] - start[0, 0] - sum(p.subs(x, low) for p in parts),
                values[1] - start[0, 1] - sum(p.subs(x, high) for p in parts)]
        self.corners = [bool(p != 0) for p in parts]
        return sum(parts) + (1 - share) * rest[0] + share * rest[1], 4 * share * (1 - share)

    def _start_rates(self, start):
        """u_t that the equation gives at t = 0 at both ends."""
        data = torch.tensor(start[..., None])
        jet = Jet(data, Channels("tx", "tx", "xx"))
        jet.data[1] = 0.0
        places = {"t": torch.zeros(2, dtype=torch.float64), "x": torch.tensor(np.array(self.grid.extent[0]))}
        return -self.physics.residual(jet, places, dict(self.physics.values))[:, 0].numpy()

    # -- the network ---------------------------------------------------------------------------------------------------

    def _build_net(self, net, width, depth, activation, harmonics):
        periodic = {n: (length, harmonics) for n, length, wraps in
                    zip(self.grid.names, self.grid.lengths, self.grid.periodic) if wraps}
        self.features = FourierFeatures(self.names, periodic) if periodic else None
        inputs = self.features.width if self.features else len(self.names)
        outputs = len(self.physics.names)
        if net is None:
            net = JetMLP([inputs, *[width] * depth, outputs], activation, "abcdefghijklmnopqrstuvwxyz"[:inputs]
                         if self.features else self.names, seed=self.seed, dtype=self.dtype)
        elif (net.widths[0], net.widths[-1]) != (inputs, outputs) or net.theta.dtype != self.dtype:
            raise ValueError(f"the network needs {inputs} inputs and {outputs} outputs in {self.dtype}, not widths "
                             f"{net.widths} in {net.theta.dtype}")
        self.net = net
        self.scale = 2.0 / (self.high - self.low)

    def _build_unknown(self, unknown, data):
        self.unknown = torch.nn.ParameterDict()
        for name, guess in (unknown or {}).items():
            if name not in self.physics.values:
                raise ValueError(f"unknown parameter {name!r} of {type(self.equation).__name__}; it has "
                                 f"{', '.join(self.physics.values) or 'none'}")
            self.unknown[name] = torch.nn.Parameter(torch.tensor(float(guess), dtype=self.dtype))
        if unknown and data is None:
            raise ValueError("unknown numbers are found from data: give data=(t, x, u)")

    def _input(self, points, channels):
        """Points as the network takes them, scaled to (-1, 1): points and seeds, or jets of the features."""
        low, scale = (torch.as_tensor(v, dtype=self.dtype) for v in (self.low, self.scale))
        if self.features is None:
            return (points - low) * scale - 1, channels.seeds(points) * scale
        jet = self.features(points, channels.first, channels.second)
        keep = self.features.kept  # t, and axes that are not periodic
        data = jet.data.clone()
        for column, k in enumerate(keep):
            data[:, :, column] *= scale[k]
            data[0, :, column] -= low[k] * scale[k] + 1
        return data, points.new_zeros(len(channels.first), data.shape[-1])

    def _channels(self, first="", second=()):
        return Channels(self.names, first, list(second))

    def _term(self, name, points, channels, residual, **more):
        points = torch.as_tensor(points, dtype=self.dtype)
        term = Term(name, points, channels, residual, **more)
        at = points.double().numpy().copy()
        at[:, 0] = np.maximum(at[:, 0], 1e-12 * self.t_end)  # corners are functions of distance / sqrt(t)
        as_tensor = lambda f: None if f is None else torch.as_tensor(f(at, channels), dtype=self.dtype)
        term.known, term.gate = as_tensor(self.known), as_tensor(self.gate)
        term.features = self._input(points, channels)
        return term

    def _raw(self, term, theta=None):
        """Channels of the network itself."""
        data, seeds = term.features
        theta = self.net.theta if theta is None else theta
        return jet_mlp(data, theta, self.net.widths, seeds, term.channels.terms, self.net.activation)

    @staticmethod
    def _joined(term, raw):
        """B + G N."""
        jet = Jet(raw, term.channels)
        if term.gate is not None:
            jet = Jet(term.gate, term.channels) * jet
        return jet if term.known is None else Jet(jet.data + term.known, term.channels)

    def _values(self, unknown=None):
        return {**self.physics.values, **(dict(self.unknown) if unknown is None else unknown)}

    def _places(self, term):
        return {n: term.points[:, k] for k, n in enumerate(self.names)}

    def jet(self, points, first="t", second=()) -> Jet:
        """u and derivatives at points (N, 1 + axes), columns t, x, y, z."""
        channels = self._channels(first, [second] if isinstance(second, str) else second)
        term = self._term("points", points, channels, None)
        return self._joined(term, self._raw(term))

    def forward(self, t, *places):
        """u at times and places that broadcast; with several components a last axis."""
        arrays = np.broadcast_arrays(*[np.asarray(v, np.float64) for v in (t, *places)])
        if len(arrays) != len(self.names):
            raise TypeError(f"give {', '.join(self.names)}")
        with torch.no_grad():
            u = self.jet(np.stack([a.ravel() for a in arrays], 1), "").value
        out = u.double().numpy().reshape(*arrays[0].shape, -1)
        return out[..., 0] if len(self.physics.names) == 1 else out

    # -- the loss ------------------------------------------------------------------------------------------------------

    def _draw(self, n):
        """Sobol points inside the domain, in the present window of time."""
        self.draws += 1
        high = self.high.copy()
        high[0] = self.window
        return _fit.sobol(n, self.low, high, self.seed + 1000 * self.draws)

    def _make_terms(self, points=None):
        """All terms of the loss on new points."""
        channels = self._channels("t" + "".join(self.grid.names), self.physics.second)
        points = self._draw(self.count) if points is None else points
        terms = [self._term("equation", points, channels, self.physics.residual)]
        if self.initial is not None and "initial values" not in self.built_in:
            at = self._draw(max(self.count // 4, 16))
            at[:, 0] = 0.0
            wanted = torch.as_tensor(self.initial(at, self._channels())[0], dtype=self.dtype)
            terms.append(self._term("initial values", at, self._channels(),
                                    lambda jet, places, values: jet.value - wanted, weight=10.0))
        terms += [self._wall_term(key, condition) for key, condition in self.walls.items() if key not in self.built_in]
        if self.data is not None:
            terms.append(self._data_term())
        self._weigh(terms[0])
        return terms

    def _wall_term(self, key, condition):
        c, axis, end = key
        at = self._draw(max(self.count // 4, 16))
        at[:, 1 + axis] = (self.grid.low, self.grid.high)[end][axis]
        given = condition._value()
        if isinstance(condition, Dirichlet) and given is None:
            if self.initial is None:
                raise ValueError("fd.Dirichlet() holds the initial values, which are not given: write "
                                 "fd.Dirichlet(value)")
            g = self.initial(at, self._channels())[0, :, c]
        else:
            g = value_of(given, at, self.grid, axis)
        g, letter = torch.as_tensor(np.array(g), dtype=self.dtype), self.grid.names[axis]
        D = self.physics.diffusion[c]
        label = f"{self.physics.names[c]} at {'high' if end else 'low'} {letter}"
        return self._term(label, at, self._channels(letter), lambda jet, places, values: wall_residual(
            condition, jet, letter, end, g, c, D)[:, None], weight=10.0 if isinstance(condition, Dirichlet) else 1.0)

    def _data_term(self):
        given: Any = self.data
        t, x, u = (np.asarray(v, np.float64) for v in given)
        t = t.reshape(-1)
        x, u = x.reshape(len(t), -1), u.reshape(len(t), -1)
        if x.shape[1] != self.grid.ndim or u.shape[1] != len(self.physics.names):
            raise ValueError(f"data are t (M,), x (M, {self.grid.ndim}) and u (M, {len(self.physics.names)}), not "
                             f"{[np.shape(v) for v in given]}")
        at = np.column_stack([t, x])
        outside = (at < self.low - 1e-9).any(1) | (at > self.high + 1e-9).any(1)
        if outside.any() or not np.isfinite(u).all():
            raise ValueError(f"data at {at[outside][:1].tolist()} lie outside of the domain" if outside.any() else
                             "data must be finite")
        wanted = torch.as_tensor(u, dtype=self.dtype)
        return self._term("data", at, self._channels(), lambda jet, places, values: jet.value - wanted,
                          weight=float(self.data_weight))

    def _weigh(self, term):
        """Causal weights of the equation's points."""
        if self.causal is None:
            return
        with torch.no_grad():
            r = self._residual_of(term, self._raw(term)).square().mean(1).double().numpy()
        slots = np.minimum((term.points[:, 0].double().numpy() / self.t_end * self.slices).astype(int), self.slices - 1)
        losses = np.array([r[slots == k].mean() if (slots == k).any() else 0.0 for k in range(self.slices)])
        self.slice_weights = _fit.causal_weights(losses, self.causal)
        term.weights = torch.as_tensor(self.slice_weights[slots], dtype=self.dtype)

    def _residual_of(self, term, raw, values=None):
        return term.residual(self._joined(term, raw), self._places(term), self._values() if values is None else values)

    def _term_loss(self, term):
        """Mean square of one term, by the fused kernel where the equation is linear and nothing is unknown."""
        if term.name == "equation" and self.physics.linear is not None and not self.unknown and self.features is None:
            return self._fused(term)
        r = self._residual_of(term, self._raw(term)).square()
        if term.weights is not None:
            r = r * term.weights[:, None]
        return r.mean(0).sum()

    def _fused(self, term):
        """mean of (L (B + G N))^2, with L (G .) as one operator on N."""
        second = [n + n for n in self.grid.names]
        channels = self._channels("", second)
        if not hasattr(term, "operator"):
            term.operator = self._operator(term, channels, second)
        a, b, c, f = term.operator
        one = self.net.theta.new_ones(1)
        data, _ = term.features
        scale = torch.as_tensor(self.scale, dtype=self.dtype)
        seeds = channels.seeds(data) * scale
        return jet_residual(data, self.net.theta, self.net.widths, seeds, [t[1:3] for t in channels.terms], a, b, c, f,
                            one if term.weights is None else term.weights, self.net.activation)[0]

    def _operator(self, term, channels, second):
        """Coefficients of N in L (B + G N): those of G and its derivatives; and what B brings."""
        assert self.physics.linear is not None
        linear = self.physics.linear(self.physics.values)
        jets = Channels(self.names, self.names, second)
        at = term.points.double().numpy().copy()
        at[:, 0] = np.maximum(at[:, 0], 1e-12 * self.t_end)
        n = len(at)
        gate = np.zeros((len(jets.all), n))
        gate[0] = 1.0
        if self.gate is not None:
            gate = self.gate(at, jets)[..., 0]
        g = dict(zip(jets.all, gate))
        rates = {name: linear[name + name] for name in self.grid.names}
        a = [rates[name] * g[""] for name in self.grid.names]
        b = [g[""], *(2 * rates[name] * g[name] for name in self.grid.names)]
        c = g["t"] + sum(rates[name] * g[name + name] for name in self.grid.names)
        f = np.zeros(n)
        if self.known is not None:
            k = dict(zip(jets.all, self.known(at, jets)[..., 0]))
            f = -(k["t"] + sum(rates[name] * k[name + name] for name in self.grid.names))
        row = lambda v: torch.tensor(np.broadcast_to(v, n), dtype=self.dtype)
        return [row(v) for v in a], [row(v * s) for v, s in zip(b, self.scale)], row(c), row(f)

    def _weight(self, term):
        return term.weight * (self.balance.weights[term.name] if self.balance else 1.0)

    def loss(self) -> torch.Tensor:
        """The weighted loss on the present points."""
        parts = {term.name: self._term_loss(term) for term in self.terms}
        total = torch.stack([self._weight(term) * parts[term.name] for term in self.terms]).sum()
        if not torch.isfinite(total):
            self._not_finite()
        return total

    def _not_finite(self):
        """Say which term is not finite, and where."""
        for term in self.terms:
            with torch.no_grad():
                r = self._residual_of(term, self._raw(term))
            bad = torch.nonzero(~torch.isfinite(r).all(1))
            if len(bad):
                at = ", ".join(f"{n} = {float(v):.4g}" for n, v in zip(self.names, term.points[bad[0, 0]]))
                raise NotFinite(f"the residual of '{term.name}' is {float(r[bad[0, 0]].sum())} at {at}, after "
                                f"{self.seconds:.1f} s: lower the learning rate, or look at the equation there")
        raise NotFinite("the loss is not finite: lower the learning rate")

    # -- Gauss-Newton --------------------------------------------------------------------------------------------------

    def _flat(self):
        return np.concatenate([self.net.theta.detach().double().numpy(),
                               [float(v.detach()) for v in self.unknown.values()]])

    def _set(self, flat):
        size = self.net.theta.numel()
        with torch.no_grad():
            self.net.theta.copy_(torch.as_tensor(flat[:size]))
            for value, parameter in zip(flat[size:], self.unknown.values()):
                parameter.fill_(float(value))

    def _linearise(self, flat):
        """Residuals, each times the root of its weight, and their Jacobian (parameters, residuals)."""
        self._set(flat)
        rows, blocks = [], []
        for term in self.terms:
            with torch.no_grad():
                raw = self._raw(term)
            raw.requires_grad_()
            spread = {k: v.detach().expand(len(term.points)).clone().requires_grad_() for k, v in self.unknown.items()}
            r = self._residual_of(term, raw, self._values(spread))
            root = self._root(term)
            data, seeds = term.features
            for k in range(r.shape[1]):
                cot, *more = torch.autograd.grad((r[:, k] * root).sum(), [raw, *spread.values()], retain_graph=True,
                                                 allow_unused=True, materialize_grads=True)
                J = jet_jacobian(data, self.net.theta.detach(), self.net.widths, seeds, cot, term.channels.terms,
                                 self.net.activation)
                blocks.append(np.concatenate([J.numpy(), *[m[None].numpy() for m in more]]))
                rows.append((r[:, k] * root).detach().numpy())
        r = np.concatenate(rows)
        if not np.isfinite(r).all():
            self._not_finite()
        return r, np.concatenate(blocks, 1)

    def _root(self, term):
        weight = self._weight(term) / len(term.points)
        return (weight if term.weights is None else weight * term.weights) ** 0.5

    def _squares(self, flat):
        self._set(flat)
        with torch.no_grad():
            return float(sum((self._residual_of(t, self._raw(t)) * (r if isinstance(r := self._root(t), float)
                              else r[:, None])).square().sum() for t in self.terms))

    # -- training ------------------------------------------------------------------------------------------------------

    def train_for(self, optimiser: str = "gauss_newton", *, steps: int | None = None, seconds: float | None = None,
                  lr: float = 1e-3, refine: int | None = None, balance: bool = False, curriculum: int = 1,
                  tolerance: float = 0.0, progress: bool = False, checkpoint=None, compare: bool = True):
        """Train, and report the error against fd.solve and the time both took; returns the Report.

        optimiser   "gauss_newton" (small networks, the most accurate), "lbfgs" or "adam"
        steps, seconds
                    whichever ends first (compiling is not counted); default 500 steps (5000 of Adam)
        refine      draw new points every so many steps, more of them where the residual is large
        balance     weigh the terms so that their gradients are of one size (every 100 steps)
        curriculum  begin with the first of so many parts of the time interval, and add one after the other
        tolerance   stop when the loss is below it
        checkpoint  a file that is written every minute and at the end
        compare     False: no comparison at the end (None is returned)

        Source of the refinement: Wu et al., CMAME 403 (2023), RAD, eq. 2.
        """
        if optimiser not in OPTIMISERS:
            raise ValueError(f"unknown optimiser {optimiser!r}; known: {', '.join(OPTIMISERS)}")
        if optimiser == "gauss_newton":
            self._check_small()
        steps = steps if steps is not None else (5000 if optimiser == "adam" else 500) if seconds is None else 10**9
        self._prepare(optimiser)
        begin, before = perf_counter(), self.seconds
        if balance and self.balance is None:
            self.balance = _fit.Balance([t.name for t in self.terms])
        saved = begin
        with _Bar(progress, steps, seconds) as advance:
            for part in range(1, curriculum + 1):
                self._open(part / curriculum)
                share = None if seconds is None else seconds * (1 if part == curriculum else 0.5 * part / curriculum)
                step = getattr(self, f"_{optimiser}")(lr, steps)
                for n in range(steps // curriculum):
                    if refine and n and n % refine == 0:
                        self.refine()
                    elif self.causal is not None and n % 10 == 0:
                        self._weigh(self.terms[0])
                    if balance and n % 100 == 0:
                        self._rebalance()
                    value = step()
                    self.seconds = before + perf_counter() - begin
                    if value is None:
                        if refine is None or n == 0:
                            break
                        self.refine()
                        continue
                    self.history.append((self.seconds, value))
                    advance(value)
                    if checkpoint is not None and perf_counter() - saved > 60:
                        self.save(checkpoint)
                        saved = perf_counter()
                    if value < tolerance or (share is not None and self.seconds - before > share):
                        break
        if checkpoint is not None:
            self.save(checkpoint)
        return self.compare() if compare else None

    def _prepare(self, optimiser):
        """Compile the kernels, or load them from disk: not counted as training, as fd.solve does not count it."""
        if optimiser == "gauss_newton":
            self._linearise(self._flat())
        else:
            self.loss().backward()
            self.zero_grad()

    def _check_small(self):
        if self.dtype != torch.float64:
            raise ValueError("gauss_newton needs float64: make the PINN with dtype=torch.float64")
        if self.net.theta.numel() > 6000:
            raise ValueError(f"gauss_newton solves dense systems, too large for {self.net.theta.numel()} parameters "
                             "(6000 at most): use lbfgs or adam")

    def _open(self, share):
        """Let the window of time end at a share of the whole."""
        if share < 1 or self.window < self.t_end:
            self.window = share * self.t_end
            self.terms = self._make_terms()

    def _gauss_newton(self, lr, steps):
        state = _fit.Damped()

        def step():
            flat, value = _fit.gauss_newton_step(state, self._flat(), self._linearise, self._squares)
            self._set(flat)
            if value is None:
                state.mu = -1.0
            return value

        return step

    def _lbfgs(self, lr, steps):
        optimiser = torch.optim.LBFGS(self.parameters(), lr=1.0, max_iter=20, history_size=50, tolerance_grad=0,
                                      tolerance_change=0, line_search_fn="strong_wolfe")

        def closure():
            optimiser.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return lambda: float(optimiser.step(closure).detach())

    def _adam(self, lr, steps):
        optimiser, schedule = _fit.adam(self.parameters(), lr, min(steps, 10**6))

        def step():
            optimiser.zero_grad()
            loss = self.loss()
            loss.backward()
            optimiser.step()
            schedule.step()
            return float(loss.detach())

        return step

    def _rebalance(self):
        assert self.balance is not None
        norms = {}
        for term in self.terms:
            (g,) = torch.autograd.grad(self._term_loss(term), self.net.theta)
            norms[term.name] = float(g.norm())
        self.balance.update(norms)

    def refine(self):
        """New points: half of them Sobol, half drawn where the residual of the equation is large."""
        few = self.count // 2
        many = self._draw(5 * self.count)
        term = self._term("equation", many, self.terms[0].channels, self.physics.residual)
        with torch.no_grad():
            r = self._residual_of(term, self._raw(term)).abs().sum(1).double().numpy()
        chance = r / r.mean() + 1.0 if r.mean() > 0 else np.ones(len(r))
        rng = np.random.default_rng(self.seed + self.draws)
        picked = rng.choice(len(r), self.count - few, False, chance / chance.sum())
        self.terms = self._make_terms(np.concatenate([self._draw(few), many[picked]]))

    # -- results -------------------------------------------------------------------------------------------------------

    def solution(self, times=None):
        """The network on the grid as an fd.Solution."""
        from fastdiff.solution import Solution

        times = np.linspace(0, self.t_end, 11) if times is None else np.atleast_1d(np.asarray(times, np.float64))
        places = np.meshgrid(*map(self.grid.points, range(self.grid.ndim)), indexing="ij")
        frames = [self(t, *places) for t in times]
        u = np.stack(frames if len(self.physics.names) == 1 else [np.moveaxis(f, -1, 0) for f in frames])
        return Solution(times, u, u[-1].copy(), {"method": "pinn", "seconds": self.seconds}, self.grid, self.equation,
                        self.physics.names)

    def _start(self):
        """The initial values on the grid."""
        assert self.initial is not None
        places = np.meshgrid(*map(self.grid.points, range(self.grid.ndim)), indexing="ij")
        at = np.column_stack([np.zeros(self.grid.size), *[p.ravel() for p in places]])
        u = self.initial(at, self._channels())[0].T.reshape(-1, *self.grid.shape)
        return np.ascontiguousarray(u if len(self.physics.names) > 1 else u[0])

    def compare(self, times=None) -> Report | None:
        """Solve the same problem by fd.solve on the grid, and compare; None if that has no such problem."""
        from fastdiff.solve import solve

        equation = self.equation.reference if isinstance(self.equation, Residual) else self.equation
        if equation is None or self.initial is None:
            return None
        times = np.linspace(0, self.t_end, 11)[1:] if times is None else np.asarray(times, np.float64)
        solved = solve(equation, self._start(), self.grid, self.t_end, boundary=self.boundary, save_at=times)
        mine = self.solution(times)
        sizes = lambda v: np.sqrt(np.square(v).reshape(len(times), -1).sum(1))
        wrong, right = sizes(mine.u - solved.u), sizes(solved.u)
        self.report = Report(float(np.sqrt((wrong**2).sum() / max((right**2).sum(), 1e-300))),
                             dict(zip(times.tolist(), (wrong / np.maximum(right, 1e-300)).tolist())), self.seconds,
                             solved.stats["seconds"] - solved.stats["compile_seconds"],
                             self.history[-1][1] if self.history else float("nan"),
                             {k: float(v.detach()) for k, v in self.unknown.items()})
        return self.report

    def plot(self, path=None):
        """The solution, the equation's residual and the loss; in 2-D and 3-D through the middle of the other axes."""
        from fastdiff.nn._pinn_plot import draw

        return draw(self, path)

    def save(self, path):
        """Write weights, unknown numbers and history; read them into the same problem by `load`."""
        state = {"state": self.state_dict(), "history": self.history, "seconds": self.seconds, "draws": self.draws}
        temporary = Path(f"{path}.tmp")
        torch.save(state, temporary)
        temporary.replace(path)

    def load(self, path):
        """Read what `save` wrote; the PINN must be that of the same problem and network."""
        state = torch.load(path, weights_only=True)
        try:
            self.load_state_dict(state["state"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path} is not of this network: {str(error).splitlines()[-1].strip()}") from error
        self.history = [tuple(v) for v in state["history"]]
        self.seconds, self.draws = state["seconds"], state["draws"]
        return self


def _symbolic(value):
    import sympy

    return sympy.sympify(value)


def _formulas(conditions, initial, grid):
    """The values of two Dirichlet walls as SymPy expressions of t; None if one is not."""
    found = []
    for end, condition in enumerate(conditions):
        if not isinstance(condition, Dirichlet):
            return None
        value = condition.value
        if value is None:
            if initial is None:
                return None
            place = np.array([[0.0, (grid.low, grid.high)[end][0]]])
            value = float(initial(place, Channels("tx"))[0, 0, 0])
        if isinstance(value, str):
            made = Expression(value)
            if not made.uses <= {"t"}:
                return None
            found.append(made.sympy())
        elif np.size(value) == 1 and not callable(value):
            found.append(_symbolic(float(np.asarray(value).reshape(-1)[0])))
        else:
            return None
    return found


class _Bar:
    """A progress bar with the loss; a context that gives `advance(loss)`."""

    def __init__(self, shown, steps, seconds):
        self.shown, self.steps, self.seconds = shown, steps, seconds

    def __enter__(self):
        if not self.shown:
            return lambda loss: None
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.progress = Progress(TextColumn("training"), BarColumn(), TextColumn("{task.fields[state]}"),
                                 TimeElapsedColumn())
        self.progress.start()
        total = self.seconds if self.seconds is not None else self.steps
        task, begin, done = self.progress.add_task("", total=total, state=""), perf_counter(), 0

        def advance(loss):
            nonlocal done
            done += 1
            at = perf_counter() - begin if self.seconds is not None else done
            self.progress.update(task, completed=min(at, total), state=f"step {done}, loss {loss:.3e}")

        return advance

    def __exit__(self, *error):
        if self.shown:
            self.progress.stop()


__all__ = ["OPTIMISERS", "NotFinite", "PINN", "Report"]
