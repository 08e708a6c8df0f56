"""How a PINN is trained: Adam, L-BFGS, and Gauss-Newton (Levenberg-Marquardt) on residuals and their Jacobian."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass
class Damped:
    """State of Levenberg-Marquardt: damping, and how to change it.

    (J J^T + mu diag) step = -J r, with J (parameters, residuals). mu follows the gain ratio.
    Source: Nielsen, Damping parameter in Marquardt's method, IMM-REP-1999-05; Madsen, Nielsen and Tingleff, Methods
    for non-linear least squares problems, 2nd ed., 2004, algorithm 3.16.
    """

    mu: float = -1.0
    nu: float = 2.0


def gauss_newton_step(state: Damped, theta: np.ndarray, linearise, loss_at, tries: int = 12):
    """One accepted step: (new theta, its loss), or the old one and None if nothing lowers the loss.

    linearise  theta -> (r (M,), J (P, M))
    loss_at    theta -> sum of squares
    """
    from scipy.linalg import cho_factor, cho_solve

    r, J = linearise(theta)
    normal, slope, loss = J @ J.T, J @ r, float(r @ r)
    scale = np.diagonal(normal).copy()
    if state.mu < 0:
        state.mu = 1e-3
    top = scale.max(initial=1e-300)
    floor = np.maximum(scale, 1e-10 * top)
    for _ in range(tries):
        damped = normal.copy()
        damped[np.diag_indices_from(damped)] += state.mu * floor + 1e-15 * top
        try:
            step = -cho_solve(cho_factor(damped, lower=True, overwrite_a=True, check_finite=False), slope,
                              check_finite=False)
        except np.linalg.LinAlgError:
            state.mu, state.nu = max(state.mu, 1e-12) * 10, 2.0
            continue
        new = loss_at(theta + step)
        expected = -step @ (2 * slope + normal @ step)
        gain = (loss - new) / max(expected, 1e-300)
        if np.isfinite(new) and gain > 0:
            state.mu = max(state.mu * max(1 / 3, 1 - (2 * gain - 1) ** 3), 1e-14)
            state.nu = 2.0
            return theta + step, new
        state.mu *= state.nu
        state.nu *= 2
    return theta, None


class Balance:
    """Weights of the terms of a loss, so that their gradients are of one size; a running mean.

    Source: Wang, Sankaran, Wang and Perdikaris, An expert's guide to training physics-informed neural networks,
    arXiv 2308.08468, algorithm 1, step 5(a).
    """

    def __init__(self, names, momentum: float = 0.9):
        self.weights = dict.fromkeys(names, 1.0)
        self.momentum = momentum

    def update(self, norms: dict[str, float]):
        """From the size of each term's gradient."""
        total = sum(norms.values())
        for name, size in norms.items():
            wanted = total / max(size, 1e-12 * total + 1e-300)
            self.weights[name] = self.momentum * self.weights[name] + (1 - self.momentum) * wanted


def causal_weights(losses: np.ndarray, tolerance: float) -> np.ndarray:
    """Weight of each of a row of time slices: exp(-tolerance * sum of the losses before it).

    Source: Wang, Sankaran and Perdikaris, Respecting causality for training physics-informed neural networks,
    CMAME 421 (2024), eq. 3.4.
    """
    before = np.concatenate([[0.0], np.cumsum(losses)[:-1]])
    return np.exp(-tolerance * before)


def sobol(n: int, low, high, seed: int) -> np.ndarray:
    """n scrambled Sobol points in a box."""
    from scipy.stats import qmc

    sampler: Any = qmc.Sobol
    engine = sampler(len(low), seed=np.random.default_rng(seed))
    points = engine.random_base2(int(np.ceil(np.log2(max(n, 2)))))[:n]
    return np.asarray(low) + points * (np.asarray(high) - np.asarray(low))


def adam(parameters, lr, total):
    """Adam and a learning rate that falls along a cosine to a hundredth."""
    optimiser = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99))
    schedule: Any = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * min(k / max(total, 1), 1.0))))
    return optimiser, schedule


__all__ = ["Balance", "Damped", "adam", "causal_weights", "gauss_newton_step", "sobol"]
