"""Physics inside sampling: guidance by observations and by the residual of an equation, and refined rollouts.

Observations and the residual of an equation at every denoising step, as in Huang et al. (DiffusionPDE), NeurIPS 2024,
section 3.3; but the steps' lengths are those of moment matching (Rozet et al., NeurIPS 2024, section 4) and of the
residual itself, so that there is no weight to be found for each equation.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import fastdiff as fd
from fastdiff.nn import functional as F
from fastdiff.nn.ddpm import NoiseSource


class StencilResidual:
    """How far a steady field is from solving  D lap u + source = 0  by the stencil of this package: (batch, 1, *space).

    The stencil is linear and, with the walls given, the change of one FTCS step over its time: r = (step(u) - u) / dt.
    Its gradient runs the same stencil transposed, which for equal spacing and no-flux, periodic or Dirichlet cells is
    the stencil itself.
    """

    def __init__(self, grid: fd.Grid, *, diffusivity: float = 1.0, boundary=None, source=None):
        if grid.centering != "cells" and not all(grid.periodic):
            raise ValueError('the residual\'s stencil is its own transpose on cells only: use fd.Grid(..., '
                             'centering="cells"), or a periodic grid')
        equation = fd.Heat(diffusivity)
        self.grid, self.dt = grid, 0.5 * equation.stable_dt(grid)
        self.step = fd.Stepper(equation, grid, dt=self.dt, boundary=boundary)
        zero = torch.zeros(1, *grid.shape, dtype=torch.float64)
        self.offset = (self.step(zero) - zero) / self.dt  # what the walls add
        self.source = source

    def laplacian(self, u):
        """D lap u with the walls' values, differentiable."""
        return _Stencil.apply(u, self)

    def __call__(self, u):
        """The residual of fields u (batch, 1, *space)."""
        found = self.laplacian(u)
        return found if self.source is None else found + self.source

    def apply(self, u, linear: bool):
        """D lap u of plain fields; `linear`: with walls at zero."""
        fields = u.detach().reshape(-1, *self.grid.shape)
        found = (self.step(fields) - fields) / self.dt
        return (found - self.offset.to(found) if linear else found).reshape(u.shape)


class _Stencil(torch.autograd.Function):
    @staticmethod
    def forward(u, residual):  # pyright: ignore[reportIncompatibleMethodOverride]
        return residual.apply(u, False)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.residual = inputs[1]

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _StencilTransposed.apply(g, ctx.residual), None


class _StencilTransposed(torch.autograd.Function):
    @staticmethod
    def forward(g, residual):  # pyright: ignore[reportIncompatibleMethodOverride]
        return residual.apply(g, True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.residual = inputs[1]

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _StencilTransposed.apply(g, ctx.residual), None


class EquationResidual:
    """How far fields are from being steady states of an equation: du/dt by one explicit step, r = (S(u) - u) / dt.

    x (batch, components, *space) is in a model's scale: u = low + half (x + 1), as fastdiff.nn.runs.Data has them, and
    r is in units of half over time. Differentiable, by the step's adjoint; in float64 inside, for r is small beside u.

    equation, grid, boundary, dt  as in fd.nn.Solver; dt: by default a safe step
    parameters  by name, of every sample or of all, such as F=torch.tensor([0.03, 0.04])
    """

    def __init__(self, equation, grid: fd.Grid, *, boundary=None, dt=None, low=0.0, half=None, **parameters):
        from fastdiff.nn.solver import Solver

        self.solver = Solver(equation, grid, boundary=boundary, dt=dt, steps=1)
        self.parameters = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in parameters.items()}
        self.low, self.half = (None if half is None else torch.as_tensor(np.asarray(v, np.float64)).reshape(
            -1, *[1] * grid.ndim) for v in (low, half))

    def __call__(self, x):
        """The residual, like x in float64."""
        u = x.double()
        if self.half is not None:
            u = self.low.to(u) + self.half.to(u) * (u + 1)  # pyright: ignore[reportOptionalMemberAccess]
        single = len(self.solver.problem.equation.names) == 1
        field = u[:, 0] if single else u
        found = (self.solver(field, **self.parameters) - field) / self.solver.dt
        found = found[:, None] if single else found
        return found if self.half is None else found / self.half.to(found)


class Guide:
    """For `DDPM.sample(guide=...)`: samples that agree with observations and solve an equation.

    At each step the estimate of the data x0(x) moves to what was seen, as the covariance V of the data given the state
    has it, which the network implies (Rozet et al., NeurIPS 2024, "moment matching"; H picks the observed points):

        x0 <- x0 + V H^T (H V H^T + noise^2)^-1 (observed - H x0),   V = sigma^2/alpha d x0/d x

    by conjugate gradients, each iteration a backward pass of the network. No step size: what is seen at a few points
    moves the others as far as they go with it. Then the residual R of an equation, where there is one, falls by
    gradient steps; with w = 1 their length would solve |R|^2 = 0, were it linear:

        x0 <- x0 - w |R|^2 g / |g|^2,   g = grad |R(x0)|^2

    observed, mask  (channels, *space) or (batch, ...): values, and 1 where they are known
    noise           standard deviation of the observations, in the model's scale
    iterations      of conjugate gradients; 0: the observed points alone are moved, without a backward pass
    residual        function of data in the model's scale, such as EquationResidual or StencilResidual; differentiable
    residual_weight, residual_steps  w, and how many such steps
    residual_from   the noise / signal ratio of a step from which on the residual is used: earlier the estimate is a
                    mean of many fields, which solves no nonlinear equation
    """

    def __init__(self, *, observed=None, mask=None, noise: float = 0.02, iterations: int = 3,
                 residual: Callable[..., Any] | None = None, residual_weight: float = 0.5, residual_steps: int = 5,
                 residual_from: float = 0.1):
        if (observed is None) != (mask is None):
            raise ValueError("observations need both: observed, the values, and mask, 1 where they are known")
        if not noise > 0 or iterations < 0:
            raise ValueError(f"the observations' noise is positive and iterations are not negative, got {noise} and "
                             f"{iterations}")
        self.observed, self.mask, self.noise, self.iterations = observed, mask, noise, iterations
        self.residual, self.residual_weight, self.residual_steps = residual, residual_weight, residual_steps
        self.residual_from = residual_from

    @property
    def through(self) -> bool:
        """Whether the network is differentiated."""
        return self.mask is not None and self.iterations > 0

    def estimate(self, x, level, data):
        """What becomes of the estimate `data` of the data, made from the state x at a level; plain numbers."""
        found = data.detach()
        if self.mask is not None:
            found = found + self._towards(x, level, data)
        if self.residual is not None and level.sigma <= self.residual_from * level.alpha:
            for _ in range(self.residual_steps):
                found = self._solved(found)
        return found

    def _towards(self, x, level, data):
        mask = self.mask.to(data)  # pyright: ignore[reportOptionalMemberAccess]
        gap = (mask * (self.observed.to(data) - data)).detach()  # pyright: ignore[reportOptionalMemberAccess]
        if not self.iterations:
            return gap
        scale, moved = level.sigma**2 / level.alpha, torch.zeros_like(gap)
        rest, way, size = gap, gap, _dot(gap, gap)
        for _ in range(self.iterations):
            (spread,) = torch.autograd.grad(data, x, scale * way, retain_graph=True)
            image = mask * spread + self.noise**2 * way
            curve = _dot(way, image)
            step = torch.where(curve > 0, size / curve.clamp_min(1e-30), torch.zeros_like(curve))
            moved, rest = moved + step * spread, rest - step * image
            new = _dot(rest, rest)
            way, size = rest + new / size.clamp_min(1e-30) * way, new
        return moved

    def _solved(self, data):
        with torch.enable_grad():
            data = data.detach().requires_grad_()
            wrong = self.residual(data).square().flatten(1).sum(1)  # pyright: ignore[reportOptionalCall]
            (g,) = torch.autograd.grad(wrong.sum(), data)
        length = wrong.detach().to(g).reshape(-1, *[1] * (g.ndim - 1)) / _dot(g, g).clamp_min(1e-30)
        return (data - self.residual_weight * length * g).detach()


def _dot(a, b):
    """Of each sample, with axes to be broadcast."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


class Refiner(nn.Module):
    """PDE-Refiner (Lippe et al., NeurIPS 2023): the next state of a field by a prediction and a few refinements.

        k = 0: y <- network(0, u(t), 0);   k = 1..K: v = y + sigma_k eps,  y <- v - sigma_k network(v, u(t), k)
        u(t+1) = u(t) + change y,   sigma_k = least^(k/K)                      (algorithms 1 and 2)

    network      (x, k, condition) -> like x, such as fd.nn.UNet(ndim, channels, conditions=channels)
    refinements  K; 0: the network alone, trained by the mean square error
    least        the smallest noise; the paper's is sqrt(2e-7) = 4.5e-4 for Kuramoto-Sivashinsky
    change       size of the change of one step, such as its root mean square over the data: y is what changes, in this
                 unit; None: y is u(t+1) itself
    """

    def __init__(self, network, *, refinements: int = 3, least: float = 4.5e-4, change: float | None = None,
                 seed: int = 0):
        super().__init__()
        if refinements < 0 or not 0 < least < 1 or not (change is None or change > 0):
            raise ValueError(f"refinements are not negative, least lies between 0 and 1, change is positive or None; "
                             f"got {refinements}, {least} and {change}")
        self.network, self.refinements, self.noise = network, refinements, NoiseSource(seed)
        self.change = change
        self.sigmas = np.append(1.0, least ** (np.arange(1, refinements + 1) / max(refinements, 1)))

    def loss(self, now, after):
        """The loss of pairs of states (batch, channels, *space), each at a stage of its own."""
        if now.shape != after.shape:
            raise ValueError(f"both states have the same shape, not {tuple(now.shape)} and {tuple(after.shape)}")
        draw, rng = self.noise.next(), self.noise.generator()
        k = rng.integers(0, self.refinements + 1, size=len(now))
        first, sigma = k == 0, self.sigmas[k]
        y = after if self.change is None else (after - now) / self.change
        # a, s, p, q: at stage 0 nothing is shown and the state is asked for, later the noise
        numbers = np.stack([~first, np.where(first, 0, sigma), first, ~first], 1).astype(np.float64)
        shown, target = F.draw_noise(y, torch.from_numpy(numbers).to(after.device, after.dtype), draw)
        found = self.network(shown, self._label(k, now), now)
        return F.weighted_mse(found, target).mean()

    forward = loss

    @torch.no_grad()
    def step(self, now):
        """The next state."""
        y = self.network(torch.zeros_like(now), self._label(np.zeros(len(now)), now), now)
        for k in range(1, self.refinements + 1):
            size = float(self.sigmas[k])
            numbers = y.new_tensor([[1.0, size, 0.0, 1.0]]).expand(len(y), 4)
            v, _ = F.draw_noise(y, numbers, self.noise.next())
            y = v - size * self.network(v, self._label(np.full(len(y), k), now), now)
        return y if self.change is None else now + self.change * y

    def rollout(self, start, steps: int):
        """The states of so many steps: (steps, batch, channels, *space)."""
        if steps < 1:
            raise ValueError(f"a rollout has at least one step, not {steps}")
        states, now = [], start
        for _ in range(steps):
            now = self.step(now)
            states.append(now)
        return torch.stack(states)

    def _label(self, k, like):
        times = np.asarray(k, np.float64) * (1000 / max(self.refinements, 1))
        return torch.from_numpy(times).to(like.device, like.dtype)


__all__ = ["EquationResidual", "Guide", "Refiner", "StencilResidual"]
