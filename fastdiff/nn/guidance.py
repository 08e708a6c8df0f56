"""Physics inside sampling: guidance by observations and by the residual of an equation, and refined rollouts.

Residual-guided sampling after Huang et al. (DiffusionPDE), NeurIPS 2024, section 3.3: after each step the state moves
against the gradient of how far the estimate of the data is from what was observed, and from solving the equation.
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


class Guide:
    """For `DDPM.sample(guide=...)`: move towards observations and towards solving an equation.

        x' <- x' - alpha_s * (w_o grad |mask (x0 - observed)|^2 + w_r grad mean |R(x0)|^2),  x0 the estimate of the data

    observed, mask  (channels, *space) or (batch, ...): values, and 1 where they are known
    residual        function of data in the model's scale, such as a StencilResidual; differentiable
    observation_weight, residual_weight  w_o, w_r: 0.5 puts the estimate onto the observations
    network         the gradient goes through the estimate alone (the network's Jacobian taken as the identity), which
                    costs no second evaluation of the network
    """

    def __init__(self, *, observed=None, mask=None, residual: Callable[..., Any] | None = None,
                 observation_weight: float = 0.5, residual_weight: float = 0.0):
        if (observed is None) != (mask is None):
            raise ValueError("observations need both: observed, the values, and mask, 1 where they are known")
        self.observed, self.mask, self.residual = observed, mask, residual
        self.observation_weight, self.residual_weight = observation_weight, residual_weight

    def __call__(self, x, step, data):
        """What is added to the state after a step."""
        with torch.enable_grad():
            data = data.detach().requires_grad_()
            total = data.sum() * 0
            if self.mask is not None:
                total = total + self.observation_weight * (self.mask * (data - self.observed)).square().sum()
            if self.residual is not None and self.residual_weight:
                total = total + self.residual_weight * self.residual(data).square().sum()
            (gradient,) = torch.autograd.grad(total, data)
        return -step.to.alpha * gradient


class Refiner(nn.Module):
    """PDE-Refiner (Lippe et al., NeurIPS 2023): the next state of a field by a prediction and a few refinements.

        k = 0: u(t+1) <- network(0, u(t), 0);   k = 1..K: v = u + sigma_k eps,  u <- v - sigma_k network(v, u(t), k)
        sigma_k = least^(k/K)                                       (algorithms 1 and 2)

    network  (x, k, condition) -> like x, such as fd.nn.UNet(ndim, channels, conditions=channels)
    """

    def __init__(self, network, *, refinements: int = 3, least: float = 1e-3, seed: int = 0):
        super().__init__()
        if refinements < 1 or not 0 < least < 1:
            raise ValueError(f"at least one refinement, and least between 0 and 1, got {refinements} and {least}")
        self.network, self.refinements, self.noise = network, refinements, NoiseSource(seed)
        self.sigmas = np.append(1.0, least ** (np.arange(1, refinements + 1) / refinements))

    def loss(self, now, after):
        """The loss of pairs of states (batch, channels, *space), each at a stage of its own."""
        if now.shape != after.shape:
            raise ValueError(f"both states have the same shape, not {tuple(now.shape)} and {tuple(after.shape)}")
        draw, rng = self.noise.next(), self.noise.generator()
        k = rng.integers(0, self.refinements + 1, size=len(now))
        first, sigma = k == 0, self.sigmas[k]
        # a, s, p, q: at stage 0 nothing is shown and the state is asked for, later the noise
        numbers = np.stack([~first, np.where(first, 0, sigma), first, ~first], 1).astype(np.float64)
        shown, target = F.draw_noise(after, torch.from_numpy(numbers).to(after.device, after.dtype), draw)
        found = self.network(shown, self._label(k, now), now)
        return F.weighted_mse(found, target).mean()

    forward = loss

    @torch.no_grad()
    def step(self, now):
        """The next state."""
        u = self.network(torch.zeros_like(now), self._label(np.zeros(len(now)), now), now)
        for k in range(1, self.refinements + 1):
            size = float(self.sigmas[k])
            numbers = u.new_tensor([[1.0, size, 0.0, 1.0]]).expand(len(u), 4)
            v, _ = F.draw_noise(u, numbers, self.noise.next())
            u = v - size * self.network(v, self._label(np.full(len(u), k), now), now)
        return u

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
        return torch.from_numpy(np.asarray(k, np.float64) * (1000 / self.refinements)).to(like.device, like.dtype)


__all__ = ["Guide", "Refiner", "StencilResidual"]
