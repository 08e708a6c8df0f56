"""Generative models whose forward process is the heat equation, or any other equation of this package.

`Blur` runs the forward process: the spectral solution of the heat equation as one small matrix for each axis (exact in
time for all boundaries that have sines and cosines), or the package's own time steps for everything else.
"""

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

import fastdiff as fd
from fastdiff.nn import functional as F
from fastdiff.nn.ddpm import SAMPLING, NoiseSource, check_same


def blur_scales(steps: int, most: float, least: float = 0.5) -> np.ndarray:
    """(steps + 1,) widths of the blur in pixels: 0, then log-spaced (Rissanen et al. 2023, section 3.2)."""
    if steps < 1 or not 0 < least <= most:
        raise ValueError(f"blur widths rise from a positive one: steps={steps}, least={least}, most={most}")
    return np.append(0.0, np.exp(np.linspace(np.log(least), np.log(most), steps)))


def pixel_grid(shape, periodic: bool = False) -> fd.Grid:
    """Cells of unit size: lengths are pixels."""
    return fd.Grid(tuple(shape), extent=tuple(float(n) for n in shape), centering="cells", periodic=periodic)


class Blur:
    """u(tau) from u(0), the forward process: u_tau = D lap u in units of pixels, or another equation.

    shape     of space, 1 to 3 axes; channels and samples are independent of each other
    boundary  as in fd.solve; default: no flux, whose modes are the DCT-II's
    symbol    "exact" (the equation), "discrete" (its stencil), or "march": the package's time steps of `dt`
    equation  with "march" any one whose terms and boundaries do not depend on the time; its components are channels
    A width sigma of a Gaussian blur is the time tau = sigma^2 / 2 with D = 1.
    """

    def __init__(self, shape, *, grid=None, boundary=None, symbol: str = "exact", equation=None,
                 dt: float | None = None, threads: int | None = None):
        if symbol not in ("exact", "discrete", "march"):
            raise ValueError(f'unknown symbol {symbol!r}; known: "exact", "discrete", "march"')
        self.grid = pixel_grid(shape) if grid is None else grid
        self.equation = fd.Heat(1.0) if equation is None else equation
        self.boundary, self.symbol, self.dt, self.threads = boundary, symbol, dt, threads
        if tuple(shape) != self.grid.shape:
            raise ValueError(f"the grid has shape {self.grid.shape}, the data {tuple(shape)}")
        if symbol != "march":
            from fastdiff.steppers import spectral

            reason = spectral.refuses(self.grid, boundary)
            if reason is not None or not isinstance(self.equation, fd.Heat):
                raise ValueError(f'{reason or "only the heat equation has modes"}: use symbol="march"')
            _homogeneous(self.grid, boundary)
        self._matrices = lru_cache(maxsize=4096)(self._matrices_at)
        self._factors = lru_cache(maxsize=4096)(self._factors_at)

    def __call__(self, u, tau):
        """u (batch, channels, *shape) at times tau: one number, or (batch,) of them."""
        tau = np.broadcast_to(np.asarray(tau, np.float64), len(u))
        if tau.size and not (np.isfinite(tau).all() and tau.min() >= 0):
            raise ValueError(f"times of the forward process are not negative, got {tau.min():g}")
        if tuple(u.shape[2:]) != self.grid.shape:
            raise ValueError(f"u has shape {tuple(u.shape)}; expected (batch, channels, "
                             f"{', '.join(map(str, self.grid.shape))})")
        return self._march(u, tau) if self.symbol == "march" else self._spectral(u, tau)

    # -- modes ---------------------------------------------------------------------------------------------------------

    def _matrices_at(self, tau: float, dtype, device):
        """The propagator of each axis as a matrix (n, n), made by our own on unit vectors, in float64."""
        return tuple(torch.from_numpy(m).to(device, dtype) for m in axis_matrices(
            self.grid, self.boundary, self.equation.diffusivity, tau, self.symbol))

    def _factors_at(self, tau: float, dtype, device):
        """Two thin matrices for each axis whose product is the propagator, or None where they would not be thin.

        A blur leaves few modes: those below a rounding error of the largest are left out.
        """
        floor, pairs = np.finfo(str(dtype).removeprefix("torch.")).eps / 8, []
        for m in axis_matrices(self.grid, self.boundary, self.equation.diffusivity, tau, self.symbol):
            left, size, right = np.linalg.svd(m)
            keep = int((size > floor * size[0]).sum())
            if 2 * keep >= len(m):
                return None
            pairs.append([torch.from_numpy(np.ascontiguousarray(part)).to(device, dtype)
                          for part in (right[:keep], left[:, :keep] * size[:keep])])
        return pairs

    def _spectral(self, u, tau):
        alike, x, axes = len(tau) > 0 and (tau == tau[0]).all(), u.contiguous(), range(self.grid.ndim)
        if alike:
            thin = self._factors(float(tau[0]), u.dtype, u.device)
            whole = None if thin else self._matrices(float(tau[0]), u.dtype, u.device)
            todo = ([(thin[a][0], a) for a in axes[::-1]] + [(thin[a][1], a) for a in axes] if thin
                    else [(whole[a], a) for a in axes])  # pyright: ignore[reportOptionalSubscript]
        else:
            found = [self._matrices(float(t), u.dtype, u.device) for t in tau]
            todo = [(torch.stack([f[a] for f in found]), a) for a in axes] if found else []
        for matrix, axis in todo:
            x = _along(x, matrix, axis, self.grid.ndim)
        return x

    # -- time steps ----------------------------------------------------------------------------------------------------

    def _march(self, u, tau):
        """The samples march together, and leave one after the other at their times."""
        out, order = torch.empty_like(u), np.argsort(tau, kind="stable")
        single, now = len(self.equation.names) == 1, 0.0
        state = u.detach()[torch.from_numpy(order)]
        while len(order):
            if tau[order[0]] > now:
                given = state.reshape(-1, *self.grid.shape) if single else state
                solution = fd.solve(self.equation, given, self.grid, float(tau[order[0]] - now), method="euler",
                                    dt=self.dt, boundary=self.boundary, threads=self.threads)
                state, now = solution.final.reshape(state.shape), tau[order[0]]
            done = int((tau[order] == now).sum())
            out[torch.from_numpy(order[:done])] = state[:done]
            order, state = order[done:], state[done:]
        return out


def _homogeneous(grid, boundary):
    from fastdiff.boundary import conditions

    for (_, axis, end), condition in conditions(boundary, grid, ("u",)).items():
        value = condition._value()
        if value is None or callable(value) or isinstance(value, str) or np.any(np.asarray(value) != 0):
            side = f"{grid.names[axis]} {('low', 'high')[end]}"
            raise ValueError(f'the spectral blur is linear: the boundary value at {side} must be 0; use symbol="march"')


def axis_matrices(grid, boundary, diffusivity, tau, symbol="exact") -> list[np.ndarray]:
    """The propagator's factor of each axis as an (n, n) matrix in float64: what it makes of unit vectors."""
    from fastdiff.steppers.spectral import propagate

    matrices = []
    for axis, name in enumerate(grid.names):
        n = grid.shape[axis]
        line = fd.Grid((n,), extent=(grid.extent[axis],), periodic=grid.periodic[axis], centering=grid.centering)
        sides = boundary.get(name) if isinstance(boundary, dict) else None if grid.periodic[axis] else boundary
        D = np.atleast_1d(np.asarray(diffusivity, np.float64))
        found = propagate(np.eye(n)[:, None], line, None if sides is None else {"x": sides},
                          float(D[axis] if len(D) == grid.ndim else D[0]), tau, symbol)
        matrices.append(np.ascontiguousarray(found[:, 0].T))
    return matrices


def _along(x, matrix, axis, ndim):
    """A matrix (m, n), or one for each sample, times the lines of x along one axis of n points, then m."""
    batch, channels, *space = x.shape
    n, m = space[axis], matrix.shape[-2]
    outer, inner = prod(space[:axis]), prod(space[axis + 1:])
    shape, one = (batch, channels, *space[:axis], m, *space[axis + 1:]), matrix.ndim == 2
    if inner == 1:  # the last axis: lines lie one after the other
        if one:
            return (x.reshape(-1, n) @ matrix.T).reshape(shape)
        return torch.bmm(x.reshape(batch, -1, n), matrix.transpose(1, 2)).reshape(shape)
    lines = x.reshape(batch, channels * outer, n, inner)
    return torch.matmul(matrix if one else matrix[:, None], lines).reshape(shape)


class HeatDissipation(nn.Module):
    """Inverse heat dissipation model (Rissanen, Heinonen & Solin, ICLR 2023).

        u_k = forward(u_0, tau_k),  tau_k = sigma_k^2 / 2
        loss  |u_{k-1} - (v + network(v, k))|^2,  v = u_k + noise eps          (eq. 10, mean over the points)
        sample  u <- u + network(u, k) + delta z, from u_K of training data     (algorithm 2)

    network   module or function (x, k[, condition]) -> like x
    shape     of one sample, (channels, *space)
    steps     K; `most` the last width of the blur in pixels, by default half of the longest side
    noise     the training noise; delta: the sampling noise, by default 1.25 of it
    forward_process  a Blur, or any function (u, tau) -> u; default: the heat equation without flux, exact
    """

    def __init__(self, network, shape, *, steps: int = 100, most: float | None = None, least: float = 0.5,
                 noise: float = 0.01, delta: float | None = None, forward_process: Any = None, scales=None,
                 seed: int = 0):
        super().__init__()
        self.network, self.shape = network, tuple(map(int, shape))
        if len(self.shape) < 2:
            raise ValueError(f"shape is (channels, *space), not {self.shape}")
        self.scales = blur_scales(steps, most or max(self.shape[1:]) / 2, least) if scales is None else np.array(
            scales, np.float64)
        if self.scales.ndim != 1 or self.scales[0] != 0 or (np.diff(self.scales) <= 0).any():
            raise ValueError("scales are widths of the blur: 0 first, then rising")
        self.level, self.delta = noise, 1.25 * noise if delta is None else delta
        self.blur = Blur(self.shape[1:]) if forward_process is None else forward_process
        self.noise = NoiseSource(seed)

    @property
    def steps(self) -> int:
        """The number of levels K."""
        return len(self.scales) - 1

    def at(self, u, k):
        """u_k, for one level or one for each sample."""
        k = np.broadcast_to(np.asarray(k), len(u))
        if k.size and not (k.min() >= 0 and k.max() <= self.steps):
            raise ValueError(f"levels lie between 0 and {self.steps}, got {k.min()} to {k.max()}")
        return self.blur(u, self.scales[k] ** 2 / 2)

    def loss(self, u, condition=None):
        """The mean loss of samples u (batch, *shape), each at a level of its own."""
        self._check(u)
        draw, rng = self.noise.next(), self.noise.generator()
        k = rng.integers(1, self.steps + 1, size=len(u))
        now, target = self.at(u, k), self.at(u, k - 1)
        v = self._noisy(now, self.level, draw)
        found = v + self._call(v, k, condition)
        return F.weighted_mse(found, target).mean()

    forward = loss

    @torch.no_grad()
    def sample(self, start, *, condition=None, delta: float | None = None, seed: int | None = None,
               trajectory: bool = False):
        """Samples from blurred data `start` (count, *shape), such as `at(training data, steps)`."""
        self._check(start)
        source = self.noise if seed is None else NoiseSource(seed, SAMPLING)
        delta = self.delta if delta is None else delta
        u, states = self._noisy(start, self.level, source.next()), [start]
        for k in range(self.steps, 0, -1):
            u = u + self._call(u, np.full(len(u), k), condition)
            if k > 1 and delta:
                u = self._noisy(u, delta, source.next())
            if trajectory:
                states.append(u)
        return torch.stack(states) if trajectory else u

    def _noisy(self, u, size, draw):
        k = u.new_tensor([[1.0, size, 0.0, 1.0]]).expand(len(u), 4)
        return F.draw_noise(u, k, draw)[0]

    def _call(self, x, k, condition):
        t = torch.from_numpy(np.asarray(k, np.float64)).to(x.device, x.dtype)
        return self.network(x, t) if condition is None else self.network(x, t, condition)

    def _check(self, u):
        if tuple(u.shape[1:]) != self.shape:
            raise ValueError(f"data has shape {tuple(u.shape)}; expected (batch, {', '.join(map(str, self.shape))})")

    def describe(self) -> dict[str, Any]:
        """What makes this model another one than others."""
        return {"kind": type(self).__name__, "shape": list(self.shape), "scales": [float(s) for s in self.scales]}

    def get_extra_state(self):
        """Beside the weights: what the model is, and how much noise was used."""
        return {"about": self.describe(), "seed": self.noise.seed, "stream": self.noise.stream}

    def set_extra_state(self, state):
        """Refuse the state of another model."""
        check_same(state["about"], self.describe())
        self.noise = NoiseSource(state["seed"], state["stream"])


class BlurringDiffusion(HeatDissipation):
    """Blurring diffusion model (Hoogeboom & Salimans, ICLR 2023): blur and noise, in the modes of the DCT-II.

        u_t = alpha_t u_x + sigma_t eps for each mode,  alpha_t = a_t d_t
        d_t = (1 - d_min) exp(-lambda tau_t) + d_min,  tau_t = sigma_B^2 sin^4(pi t/2) / 2,  d_min = 0.001

    a_t, sigma_t by the cosine log-SNR within [-10, 10]. The network predicts eps in space; training and sampling are
    theirs (algorithms 1 and 2), times t = k / steps, the network is given 1000 t.
    """

    D_MIN = 0.001

    def __init__(self, network, shape, *, steps: int = 100, most: float = 20.0, boundary=None, seed: int = 0):
        super().__init__(network, shape, steps=steps, most=most, seed=seed)
        from scipy.fft import dct

        self.most = most
        rates, self.bases = 0.0, []
        for axis, n in enumerate(self.shape[1:]):
            line = (np.pi * np.arange(n) / n) ** 2
            rates = rates + line.reshape([-1 if a == axis else 1 for a in range(len(self.shape) - 1)])
            self.bases.append(dct(np.eye(n), norm="ortho", axis=0))
        self.rates = np.asarray(rates)

    def signal(self, t):
        """alpha (batch, 1, *space) and sigma (batch,), in float64, at times in [0, 1]."""
        from fastdiff.nn.schedules import make_schedule

        t = np.atleast_1d(np.asarray(t, np.float64))
        level = make_schedule("continuous").at(t)
        tau = (self.most * np.sin(np.pi * t / 2) ** 2) ** 2 / 2
        shape = (-1, 1, *[1] * (len(self.shape) - 1))
        decay = (1 - self.D_MIN) * np.exp(-self.rates[None, None] * tau.reshape(shape)) + self.D_MIN
        return level.alpha.reshape(shape) * decay, level.sigma

    def modes(self, u, inverse: bool = False):
        """The orthonormal DCT-II of each axis, or back."""
        for axis, basis in enumerate(self.bases):
            m = torch.from_numpy(np.ascontiguousarray(basis.T if inverse else basis)).to(u.device, u.dtype)
            u = _along(u.contiguous(), m, axis, len(self.bases))
        return u

    def loss(self, u, condition=None):
        """The mean square of eps - network(z_t, t)."""
        self._check(u)
        draw, rng = self.noise.next(), self.noise.generator()
        t = (rng.permutation(len(u)) + rng.random(len(u))) / max(len(u), 1)
        alpha, sigma = self.signal(t)
        mean = self.modes(torch.from_numpy(alpha).to(u.device, u.dtype) * self.modes(u), inverse=True)
        k = np.stack([np.ones_like(sigma), sigma, np.zeros_like(sigma), np.ones_like(sigma)], 1)
        z, eps = F.draw_noise(mean, torch.from_numpy(k).to(u.device, u.dtype), draw)
        return F.weighted_mse(self._call(z, 1000 * t, condition), eps).mean()

    forward = loss

    @torch.no_grad()
    def sample(self, count: int, *, condition=None, seed: int | None = None, trajectory: bool = False,
               device=None, dtype=torch.float32):
        """Samples (count, *shape), from noise."""
        source = self.noise if seed is None else NoiseSource(seed, SAMPLING)
        z = F.normal(torch.empty(count, *self.shape, device=device, dtype=dtype), source.next())
        states = [z]
        for k in range(self.steps, 0, -1):
            numbers = self.posterior(k / self.steps, (k - 1) / self.steps)
            a, b, deviation = (torch.from_numpy(x).to(z.device, z.dtype) for x in numbers)
            eps = self._call(z, np.full(len(z), 1000 * k / self.steps), condition)
            mean = a * self.modes(z) + b * self.modes(eps)
            if k > 1:
                mean = mean + deviation * F.normal(z, source.next())  # modes of white noise are white noise
            z = self.modes(mean, inverse=True)
            if trajectory:
                states.append(z)
        return torch.stack(states) if trajectory else z

    def posterior(self, t: float, s: float):
        """For each mode: the mean's factors of z_t and of the network's noise, and the deviation (their eq. 15-20)."""
        (alpha, sigma), (alpha_s, sigma_s) = self.signal(t), self.signal(s)
        sigma, sigma_s = float(sigma[0]), float(sigma_s[0])
        ratio = alpha / alpha_s
        added = np.maximum(sigma**2 - ratio**2 * sigma_s**2, 1e-8)
        variance = 1 / (1 / sigma_s**2 + ratio**2 / added)
        state = variance * (ratio / added + alpha_s / (sigma_s**2 * alpha))
        return state, -variance * alpha_s * sigma / (sigma_s**2 * alpha), np.sqrt(variance)

    def describe(self) -> dict[str, Any]:
        """What makes this model another one than others."""
        return {"kind": type(self).__name__, "shape": list(self.shape), "steps": self.steps, "most": self.most}


__all__ = ["Blur", "BlurringDiffusion", "HeatDissipation", "axis_matrices", "blur_scales", "pixel_grid"]
