"""Networks whose derivatives come with their values, and the product rules that join them.

A `Jet` holds a field's value and chosen derivatives at N points, as channels (C, N, outputs):

    (f + g)_i = f_i + g_i
    (f g)_i   = f_i g + f g_i
    (f g)_ij  = f_ij g + f_i g_j + f_j g_i + f g_ij

so that hard constraints u = B + G N, gates, residual blocks and features are sums and products of jets.
"""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from fastdiff.nn.functional.jet import jet_jacobian, jet_mlp, jet_residual

_NAMES = {1: "x", 2: "tx", 3: "txy", 4: "txyz"}


class Channels:
    """Which derivatives are carried: names of inputs for first ones, and sums such as "xx" or "xx+yy" for second ones.

    first, second  as given to `JetMLP.jet`; a second derivative brings the first ones it needs along
    """

    def __init__(self, names: str, first: str | Iterable[str] = (), second: str | Iterable[str] = ()):
        self.names = names
        wanted = [second] if isinstance(second, str) and second else list(second)
        wanted = [w for part in wanted for w in part.replace(",", " ").split()]
        self.second = tuple(wanted)
        pairs = [self._pairs(s) for s in self.second]
        first = list(first)
        for name in first:
            if name not in names:
                raise ValueError(f"no first derivative by {name!r}: the inputs are {', '.join(names)}")
        needed = [n for part in pairs for pair in part for n in pair]
        self.first = tuple(n for n in names if n in first or n in needed)
        self.terms = tuple((s, self.first.index(i), self.first.index(j), 1.0)
                           for s, part in enumerate(pairs) for i, j in part)
        self.all = ("", *self.first, *self.second)

    def _pairs(self, text):
        pairs = text.replace("laplacian", "+".join(n + n for n in self.names if n != "t")).split("+")
        for pair in pairs:
            if len(pair) != 2 or not set(pair) <= set(self.names):
                known = [a + b for k, a in enumerate(self.names) for b in self.names[k:]]
                raise ValueError(f"no derivative {pair!r}: there are first derivatives {', '.join(self.names)}, second "
                                 f"ones {', '.join(known)}, and sums of these such as 'xx+yy'; higher orders are not")
        return pairs

    def seeds(self, like):
        """Directions of the first derivatives, (F, d)."""
        rows = [[float(n == name) for n in self.names] for name in self.first]
        return torch.tensor(rows, dtype=like.dtype, device=like.device).reshape(len(rows), len(self.names))

    def __eq__(self, other):
        return isinstance(other, Channels) and (self.names, self.all) == (other.names, other.all)

    def __hash__(self):
        return hash((self.names, self.all))

    def __repr__(self):
        return f"Channels({', '.join(self.all[1:]) or 'value'})"


class Jet:
    """A field's value and derivatives: `jet["xx"]` or `jet.xx`, `jet.value`; sums and products by the product rule.

    data      (C, N, outputs)
    channels  their names
    """

    def __init__(self, data, channels: Channels):
        self.data, self.channels = data, channels

    def __getitem__(self, name: str):
        if name not in self.channels.all:
            raise KeyError(f"no derivative {name!r} was asked for; there are {', '.join(self.channels.all[1:])}")
        return self.data[self.channels.all.index(name)]

    def __getattr__(self, name: str):
        if name.startswith("_") or "channels" not in self.__dict__:
            raise AttributeError(name)
        try:
            return self["" if name == "value" else name.removeprefix("u_")]
        except KeyError as error:
            raise AttributeError(str(error)) from None

    def __add__(self, other):
        if not isinstance(other, Jet):
            return Jet(torch.cat([self.data[:1] + other, self.data[1:]]), self.channels)
        self._same(other)
        return Jet(self.data + other.data, self.channels)

    __radd__ = __add__

    def __neg__(self):
        return Jet(-self.data, self.channels)

    def __sub__(self, other):
        return self + (-other)

    def __rsub__(self, other):
        return (-self) + other

    def __mul__(self, other):
        """The product rule; a number or a tensor of constants scales."""
        if not isinstance(other, Jet):
            return Jet(self.data * other, self.channels)
        self._same(other)
        f, g, first = self.data, other.data, len(self.channels.first)
        crossed = _crossed(f, g, self.channels)
        product = f[1:] * g[0] + f[0] * g[1:]
        return Jet(torch.cat([f[:1] * g[:1], product[:first], product[first:] + crossed]), self.channels)

    __rmul__ = __mul__

    def sin(self):
        """The sine of a jet."""
        s, c = self.data[0].sin(), self.data[0].cos()
        return self._through(s, c, -s)

    def cos(self):
        """The cosine of a jet."""
        s, c = self.data[0].sin(), self.data[0].cos()
        return self._through(c, -s, -c)

    def _through(self, value, d1, d2):
        z, first = self.data, len(self.channels.first)
        moved = d1 * z[1:]
        bent = d2 * _crossed(z, z, self.channels) / 2
        return Jet(torch.cat([value[None], moved[:first], moved[first:] + bent]), self.channels)

    def linear(self, weight, bias=None):
        """W h + b."""
        data = self.data @ weight.T
        return Jet(data if bias is None else torch.cat([data[:1] + bias, data[1:]]), self.channels)

    @staticmethod
    def of(x, channels: Channels):
        """The coordinates themselves, x (N, d), as a jet."""
        data = x.new_zeros(len(channels.all), *x.shape)
        data[0] = x
        data[1 : 1 + len(channels.first)] = channels.seeds(x)[:, None]
        return Jet(data, channels)

    @staticmethod
    def cat(jets):
        """Jets side by side."""
        return Jet(torch.cat([j.data for j in jets], -1), jets[0].channels)

    def _same(self, other):
        if self.channels != other.channels:
            raise ValueError(f"jets of different derivatives: {self.channels} and {other.channels}")


def _crossed(f, g, channels):
    """sum of f_i g_j + f_j g_i of each second channel."""
    shape = torch.broadcast_shapes(f.shape[1:], g.shape[1:])
    sums: list[Any] = [0.0] * len(channels.second)
    for s, i, j, a in channels.terms:
        sums[s] = sums[s] + a * (f[1 + i] * g[1 + j] + f[1 + j] * g[1 + i])
    return torch.stack([v.expand(shape) for v in sums]) if sums else f.new_zeros(0, *shape)


class JetMLP(nn.Module):
    """A multilayer perceptron u = W sigma(... sigma(W x + b)) + b whose derivatives come in the same pass.

    widths      inputs, hidden layers, outputs: [2, 64, 64, 1]
    activation  tanh, sin, silu or gelu (exact, by erf): two derivatives are needed, so no relu
    names       a letter for each input; default: x, tx, txy, txyz
    seed        of the initial weights (Glorot); default: torch's generator

    net(x) is the value; net.jet(x, first="tx", second="xx") a Jet; net.residual_loss(x, {"t": 1, "xx": -D}) a weighted
    mean square of a linear operator with its gradient formed in the forward pass. All parameters are one flat tensor,
    `theta`; `net.matrices()` gives views. Layers up to 128 wide run fused, tile by tile; wider ones by BLAS.
    Accuracy: the derivatives are exact to rounding. Errors: ValueError for what cannot be.
    Source: `fastdiff.nn.functional.jet.jet_mlp`.
    """

    def __init__(self, widths: Iterable[int], activation: str = "tanh", names: str | None = None, *,
                 seed: int | None = None, dtype=None, device=None):
        super().__init__()
        self.widths = tuple(int(w) for w in widths)
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"widths are those of inputs, hidden layers and outputs, such as [2, 64, 64, 1], not "
                             f"{list(self.widths)}")
        self.names = _NAMES.get(self.widths[0], "abcdefghijklmnop"[: self.widths[0]]) if names is None else names
        if len(self.names) != self.widths[0] or len(set(self.names)) != len(self.names):
            raise ValueError(f"{self.widths[0]} inputs need as many different letters, not names={self.names!r}")
        self.activation = activation
        sizes = sum(h * (d + 1) for d, h in pairwise(self.widths))
        self.theta = nn.Parameter(torch.empty(sizes, dtype=dtype, device=device))
        self._check_activation()
        self.reset_parameters(seed)

    def _check_activation(self):
        from fastdiff.nn.functional.jet import _check

        _check(self.theta.new_empty(1, self.widths[0]), self.theta, self.widths, self.activation)

    def reset_parameters(self, seed: int | None = None):
        """Glorot's uniform weights, biases 0."""
        generator = None if seed is None else torch.Generator(self.theta.device).manual_seed(seed)
        with torch.no_grad():
            for weight, bias in self.matrices():
                bound = math.sqrt(6 / sum(weight.shape))
                weight.uniform_(-bound, bound, generator=generator)
                bias.zero_()

    def matrices(self):
        """(W, b) of each layer, views of theta."""
        found, at = [], 0
        for d, h in pairwise(self.widths):
            end = at + h * d
            found.append((self.theta[at:end].view(h, d), self.theta[end : end + h]))
            at = end + h
        return found

    def extra_repr(self):
        return f"{list(self.widths)}, activation={self.activation!r}, names={self.names!r}"

    def forward(self, x):
        """u (N, outputs) at points x (N, inputs); leading axes may be more than one."""
        flat = x.reshape(-1, x.shape[-1])
        out = jet_mlp(flat, self.theta, self.widths, flat.new_zeros(0, self.widths[0]), (), self.activation)
        return out[0].reshape(*x.shape[:-1], self.widths[-1])

    def jet(self, x, first: str | Iterable[str] = "", second: str | Iterable[str] = "") -> Jet:
        """Value and derivatives at points x (N, inputs); or of a Jet, through it (its derivatives are then carried).

        first   letters: "tx" gives u_t and u_x
        second  "xx", several as "xx yy", sums as "xx+yy" or "laplacian", mixed as "tx"
        """
        if isinstance(x, Jet):
            channels, data = x.channels, x.data
        else:
            channels, data = Channels(self.names, first, second), x
        return Jet(jet_mlp(data, self.theta, self.widths, _seeds(channels, data), channels.terms, self.activation),
                   channels)

    def residual_loss(self, x, operator: Mapping[str, Any], source: Any = 0.0, weight: Any = 1.0):
        """Mean of weight (L u - source)^2 over points x (N, inputs), for a linear operator.

        operator  coefficient of each term: {"t": 1, "xx": -D, "u": c}; numbers or one a point, as are source and weight

        The gradient by theta is formed in the same pass: one channel for all of L, nothing saved. x and coefficients
        get no gradient: for those use `jet`. A source may have any origin.
        """
        return self._operate(x, operator, source, weight)[0]

    def residual(self, x, operator: Mapping[str, Any], source: Any = 0.0):
        """L u - source at points x, without gradient."""
        with torch.no_grad():
            return self._operate(x, operator, source, 1.0)[1]

    def _operate(self, x, operator, source, weight):
        if self.widths[-1] != 1:
            raise ValueError(f"residual_loss is for networks with one output, not {self.widths[-1]}: use jet")
        second = [k for k in operator if len(k) == 2]
        channels = _channels(self.names, "", " ".join(second))
        for key in operator:
            if len(key) != 2 and key not in ("u", *self.names):
                raise ValueError(f"unknown term {key!r} of an operator; known: u, {', '.join(self.names)}, and pairs "
                                 f"such as {self.names[-1] * 2!r}")
        row = lambda v: _row(v, x)
        a = [row(operator[k]) for k in second]
        b = [row(operator.get(k, 0.0)) for k in self.names]
        return jet_residual(x, self.theta, self.widths, channels.seeds(x), [t[1:3] for t in channels.terms], a, b,
                            row(operator.get("u", 0.0)), row(source), row(weight), self.activation)

    def jacobian(self, x, cotangent, channels: Channels):
        """d/dtheta of each point's sum of cotangent * channels, (N, parameters); for Gauss-Newton methods.

        x  points (N, inputs) or a Jet;  cotangent  (C, N, outputs)
        """
        data = x.data if isinstance(x, Jet) else x
        found = jet_jacobian(data, self.theta, self.widths, _seeds(channels, data), cotangent, channels.terms,
                             self.activation)
        return found.T


def _seeds(channels, data):
    """Directions of the first derivatives; for a Jet, whose derivatives are carried along, only their number counts."""
    if data.ndim == 2:
        return channels.seeds(data)
    return data.new_zeros(len(channels.first), data.shape[-1])


def _row(value, x):
    """A coefficient as a number, or as a flat tensor of one number or of one a point."""
    if not isinstance(value, torch.Tensor):
        return float(value)
    if value.requires_grad:
        raise ValueError("residual_loss gives no gradient by its coefficients: use net.jet(...) for unknown ones")
    value = value.to(x).reshape(-1)
    if value.numel() not in (1, len(x)):
        raise ValueError(f"a coefficient has one number or one for each of {len(x)} points, not {value.numel()}")
    return value


@lru_cache(maxsize=256)
def _kept_channels(names, first, second):
    return Channels(names, first, second)


def _channels(names, first, second):
    """`Channels` of strings, made once; torch.compile makes them while it traces."""
    return (Channels if torch.compiler.is_compiling() else _kept_channels)(names, first, second)


class _Layer(nn.Module):
    """One fused layer sigma(W h + b) of jets."""

    def __init__(self, inputs, outputs, activation, generator, dtype, activate=True):
        super().__init__()
        bound = math.sqrt(6 / (inputs + outputs))
        weight = torch.empty(outputs * inputs, dtype=dtype).uniform_(-bound, bound, generator=generator)
        self.theta = nn.Parameter(torch.cat([weight, torch.zeros(outputs, dtype=dtype)]))
        self.widths, self.activation, self.activate = (inputs, outputs), activation, activate

    def forward(self, jet: Jet) -> Jet:
        channels = jet.channels
        return Jet(jet_mlp(jet.data, self.theta, self.widths, _seeds(channels, jet.data), channels.terms,
                           self.activation, self.activate), channels)


class _Blocks(nn.Module):
    """What gated and residual networks share."""

    names: str

    def forward(self, x):
        """u (N, outputs) at points x (N, inputs)."""
        return self.jet(x).value

    def jet(self, x, first="", second="") -> Jet:
        """Value and derivatives, as `JetMLP.jet`."""
        return self._run(x if isinstance(x, Jet) else Jet.of(x, Channels(self.names, first, second)))

    def _run(self, jet: Jet) -> Jet:
        raise NotImplementedError


class ModifiedMLP(_Blocks):
    """Modified MLP: two encoders U and V gate every layer, h <- sigma(W h + b) U + (1 - sigma(W h + b)) V.

    Arguments as of JetMLP; all hidden layers have one width. Derivatives by the product rule.
    Source: Wang, Teng and Perdikaris, SIAM J. Sci. Comput. 43 (2021), eqs. 2.41 to 2.45.
    """

    def __init__(self, widths, activation="tanh", names=None, *, seed=None, dtype=None):
        super().__init__()
        d, *hidden, outputs = widths
        if len(set(hidden)) != 1:
            raise ValueError(f"a modified MLP has hidden layers of one width, not {hidden}")
        self.names = _NAMES.get(d, "abcdefgh"[:d]) if names is None else names
        made = lambda i, o, activate=True: _Layer(i, o, activation, generator, dtype, activate)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.u, self.v = made(d, hidden[0]), made(d, hidden[0])
        self.layers = nn.ModuleList(made(i, o) for i, o in pairwise([d, *hidden]))
        self.out = made(hidden[-1], outputs, False)

    def _run(self, jet):
        u, v = self.u(jet), self.v(jet)
        gap = u - v
        for layer in self.layers:
            jet = layer(jet) * gap + v
        return self.out(jet)


class ResidualMLP(_Blocks):
    """Residual blocks h <- h + sigma(W sigma(W h + b) + b).

    Arguments as of JetMLP; hidden layers of one width: the first, and then pairs.

    Source: He et al., CVPR 2016, eq. 1, with smooth activations.
    """

    def __init__(self, widths, activation="tanh", names=None, *, seed=None, dtype=None):
        super().__init__()
        d, *hidden, outputs = widths
        if len(set(hidden)) != 1 or len(hidden) % 2 == 0:
            raise ValueError(f"a residual MLP has one hidden layer and then pairs, all of one width: not {hidden}")
        self.names = _NAMES.get(d, "abcdefgh"[:d]) if names is None else names
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        made = lambda i, o, activate=True: _Layer(i, o, activation, generator, dtype, activate)
        self.first, self.out = made(d, hidden[0]), made(hidden[-1], outputs, False)
        self.layers = nn.ModuleList(made(w, w) for w in hidden[1:])

    def _run(self, jet):
        jet = self.first(jet)
        for k in range(0, len(self.layers), 2):
            jet = jet + self.layers[k + 1](self.layers[k](jet))
        return self.out(jet)


class FourierFeatures(nn.Module):
    """x -> [rest, cos(w k x), sin(w k x)]: exact periodicity, or random frequencies.

    names       letters of the inputs
    periodic    {"x": (period, number of harmonics)}; the other inputs pass through unchanged
    """

    def __init__(self, names: str, periodic: Mapping[str, tuple[float, int]]):
        super().__init__()
        self.names, self.periodic = names, dict(periodic)
        if not set(periodic) <= set(names):
            raise ValueError(f"features of {', '.join(periodic)}, but the inputs are {', '.join(names)}")
        rows, kept = [], [k for k, n in enumerate(names) if n not in periodic]
        for name, (period, harmonics) in self.periodic.items():
            for k in range(1, harmonics + 1):
                row = torch.zeros(len(names), dtype=torch.float64)
                row[names.index(name)] = 2 * math.pi * k / period
                rows.append(row)
        self.register_buffer("waves", torch.stack(rows))
        self.kept = kept
        self.width = len(kept) + 2 * len(rows)

    def forward(self, x, first="", second="") -> Jet:
        """The features of points x (N, inputs), as a Jet."""
        jet = x if isinstance(x, Jet) else Jet.of(x, Channels(self.names, first, second))
        phase = jet.linear(self.waves.to(jet.data))
        return Jet.cat([Jet(jet.data[..., self.kept], jet.channels), phase.cos(), phase.sin()])


__all__ = ["Channels", "FourierFeatures", "Jet", "JetMLP", "ModifiedMLP", "ResidualMLP"]
