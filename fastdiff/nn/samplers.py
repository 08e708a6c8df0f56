"""Samplers of diffusion models as numbers: what each step makes of the state, the network's output and noise.

Every sampler goes from a level t with (alpha_t, sigma_t) to a level s with less noise, and is linear (after the
estimate of the data is clipped): `plan` turns it into `Coefficients` of kernels/sampler.py, in float64.

    ddpm    ancestral sampling                              Ho et al., NeurIPS 2020, eq. 7; fixed small variance
    ddim    noise eta times that of ddpm, 0: none           Song et al., ICLR 2021, eq. 12 and 16
    euler   dx/dsigma = (x - D)/sigma, explicit Euler       Karras et al., NeurIPS 2022, algorithm 1 without correction
    heun    the same, Heun's method: two calls a step       Karras et al., NeurIPS 2022, algorithm 1
    dpm++   DPM-Solver++ 2M, multistep, second order        Lu et al., arXiv 2211.01095, algorithm 2

What the network says, `prediction`: "epsilon" the noise, "sample" the data, "v" alpha eps - sigma x_0, or "edm", the
preconditioned output of Karras et al., eq. 7, for the schedule "karras".
"""

from typing import NamedTuple

import numpy as np

from fastdiff.kernels.sampler import Coefficients
from fastdiff.nn.schedules import Level

METHODS = ("ddpm", "ddim", "euler", "heun", "dpm++")
PREDICTIONS = ("epsilon", "sample", "v", "edm")
SIGMA_DATA = 0.5  # of EDM (Karras et al., table 1)


class Meaning(NamedTuple):
    """What a network's output F says at a level: numbers, or arrays of them.

    data = data_state x + data_model F;  noise = noise_state x + noise_model F;  F should be p x_0 + q eps;
    the network is given scale * x.
    """

    data_state: float
    data_model: float
    noise_state: float
    noise_model: float
    p: float
    q: float
    scale: float


def meaning(prediction: str, level: Level) -> Meaning:
    """What the output of a network means; alpha or sigma may be zero where the prediction allows it."""
    a, s = level.alpha, level.sigma
    one, zero = np.ones_like(a)[()], np.zeros_like(a)[()]
    with np.errstate(divide="ignore", invalid="ignore"):
        if prediction == "epsilon":
            return Meaning(1 / a, -s / a, zero, one, zero, one, one)
        if prediction == "sample":
            return Meaning(zero, one, 1 / s, -a / s, one, zero, one)
        if prediction == "v":
            return Meaning(a, -s, s, a, -s, a, one)
        d2, both = SIGMA_DATA**2, s**2 + SIGMA_DATA**2
        skip, out = d2 / both, s * SIGMA_DATA / np.sqrt(both)
        return Meaning(skip, out, (1 - skip) / s, -out / s, (1 - skip) / out, -skip * s / out, 1 / np.sqrt(both))


class Step(NamedTuple):
    """One call of the network and what is done with it.

    level      where the network is asked, and level `to` where the step ends (the same for Heun's first half)
    old        what the step's `old` is: None, "data" (the last estimate of the data) or "state" (the state before the
               last step)
    estimate   whether the estimate of the data is kept
    """

    level: Level
    to: Level
    scale: float
    coefficients: Coefficients
    old: str | None = None
    estimate: bool = False


def plan(method: str, path: Level, prediction: str, clip: float | None = None, eta: float = 0.0,
         guidance: float = 0.0) -> list[Step]:
    """The steps of a sampler along a path of levels (see Schedule.path), the last of which is the data."""
    if method not in METHODS:
        raise ValueError(f"unknown sampler {method!r}; known: {', '.join(METHODS)}")
    if eta and method != "ddim":
        raise ValueError(f'eta is the noise of "ddim", not of {method!r}')
    if method in ("euler", "heun") and (path.alpha == 0).any():
        raise ValueError(f'{method!r} divides by the signal, which is zero at the start: use "ddim", "ddpm" or "dpm++"')
    levels = [Level(*(float(x) for x in each)) for each in zip(*path)]
    limit = np.inf if clip is None else float(clip)
    steps: list[Step] = []
    for i, (t, s) in enumerate(zip(levels[:-1], levels[1:])):
        of = meaning(prediction, t)
        k = Coefficients(data_state=of.data_state, data_model=of.data_model, clip=limit, guidance=guidance)
        if method == "ddpm":
            steps.append(Step(t, s, of.scale, k._replace(**_ancestral(t, s))))
        elif method == "ddim":
            steps.append(Step(t, s, of.scale, k._replace(**_ddim(t, s, of, eta))))
        elif method == "dpm++":
            before = levels[i - 1] if 0 < i and s.sigma > 0 else None
            steps.append(Step(t, s, of.scale, k._replace(**_multistep(before, t, s)), "data" if before else None, True))
        else:
            steps.append(Step(t, s, of.scale, k._replace(**_euler(t, s))))
            if method == "heun" and s.sigma > 0:
                then = meaning(prediction, s)
                k = k._replace(data_state=then.data_state, data_model=then.data_model, **_heun(t, s))
                steps.append(Step(s, s, then.scale, k, "state"))
    return steps


def _between(t, s):
    """What is added between two levels: the signal's ratio alpha_t / alpha_s, and the variance of the noise."""
    ratio = t.alpha / s.alpha
    return ratio, max(t.sigma**2 - (ratio * s.sigma) ** 2, 0.0)


def _ancestral(t, s):
    ratio, added = _between(t, s)
    small = added * (s.sigma / t.sigma) ** 2
    return {"data": s.alpha * added / t.sigma**2, "state": ratio * (s.sigma / t.sigma) ** 2, "noise": small**0.5}


def _ddim(t, s, of, eta):
    _, added = _between(t, s)
    noise = eta * (added**0.5) * s.sigma / t.sigma
    rest = max(s.sigma**2 - noise**2, 0.0) ** 0.5
    return {"data": s.alpha, "state": rest * of.noise_state, "model": rest * of.noise_model, "noise": noise}


def _ratios(t, s):
    return t.sigma / t.alpha, s.sigma / s.alpha


def _euler(t, s):
    high, low = _ratios(t, s)
    return {"data": s.alpha * (1 - low / high), "state": s.alpha / t.alpha * low / high}


def _heun(t, s):
    high, low = _ratios(t, s)
    rate = (low - high) / low
    return {"data": -0.5 * s.alpha * rate, "state": 0.5 * (1 + rate), "old": 0.5 * s.alpha / t.alpha}


def _multistep(before, t, s):
    fall = t.alpha * s.sigma / (s.alpha * t.sigma)  # exp(-h)
    weight, state = s.alpha * (1 - fall), s.sigma / t.sigma
    if before is None or t.alpha == 0 or before.alpha == 0:
        return {"data": weight, "state": state}
    last = np.log(t.alpha / t.sigma) - np.log(before.alpha / before.sigma)
    share = 0.5 * -np.log(fall) / last  # 1 / (2 r)
    return {"data": weight * (1 + share), "state": state, "old": -weight * share}


__all__ = ["METHODS", "PREDICTIONS", "Meaning", "Step", "meaning", "plan"]
