"""Noise schedules of diffusion models, in float64: how much signal and how much noise there is at each time.

    x_t = alpha_t x_0 + sigma_t eps

Discrete schedules are tables of T levels, variance preserving (alpha^2 + sigma^2 = 1), made from betas with
alpha_bar_t = prod (1 - beta), alpha = sqrt(alpha_bar):

    linear         linspace(1e-4, 0.02, T)                                        Ho et al., NeurIPS 2020, section 4
    scaled_linear  linspace(sqrt(0.00085), sqrt(0.012), T)^2                      Rombach et al., CVPR 2022 (code)
    cosine         alpha_bar = cos^2((t + 0.008)/1.008 pi/2), beta <= 0.999       Nichol & Dhariwal, ICML 2021, eq. 17
    sigmoid        alpha_bar from a sigmoid of linspace(-3, 3), beta <= 0.999     Jabri et al., ICML 2023, algorithm 1
    sigmoid_beta   beta = sigmoid(linspace(-6, 6)) (0.02 - 1e-4) + 1e-4           Xu et al. (GeoDiff), ICLR 2022

Continuous ones take any time in [0, 1]:

    continuous     log-SNR -2 log tan(pi t / 2), kept within [-10, 10]            Kingma & Gao, NeurIPS 2023, table 1
    vp             alpha_bar = exp(-19.9/2 t^2 - 0.1 t)                           Song et al., ICLR 2021, eq. 33
    karras         alpha = 1, sigma from 0.002 to 80, its 1/7 power linear in t   Karras et al., NeurIPS 2022, eq. 5
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

DISCRETE = ("linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_beta")
CONTINUOUS = ("continuous", "vp", "karras")
SPACINGS = ("leading", "linspace", "trailing", "karras")
P_MEAN, P_STD = -1.2, 1.2  # training noise levels of EDM: log sigma is normal (Karras et al., table 1)


class Level(NamedTuple):
    """Times, and the signal and noise there: numbers, or float64 arrays."""

    t: Any
    alpha: Any
    sigma: Any


def betas(name: str, steps: int, **ends) -> np.ndarray:
    """The betas of a discrete schedule. `start` and `end` change the ends of linear, scaled_linear, sigmoid_beta."""
    if name not in DISCRETE:
        raise ValueError(f"unknown discrete schedule {name!r}; known: {', '.join(DISCRETE)}")
    if steps < 1:
        raise ValueError(f"a schedule has at least one step, got {steps}")
    low, high = {"scaled_linear": (0.00085, 0.012)}.get(name, (1e-4, 0.02))
    start, end = ends.pop("start", low), ends.pop("end", high)
    if ends or not 0 < start < 1 or not 0 < end <= 1:
        raise ValueError(f"schedule {name!r} takes start and end, between 0 and 1, got {ends or (start, end)}")
    if name == "linear":
        return np.linspace(start, end, steps)
    if name == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    if name == "sigmoid_beta":
        return _sigmoid(np.linspace(-6, 6, steps)) * (end - start) + start
    t = np.linspace(0, 1, steps + 1)
    if name == "cosine":
        signal = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    else:
        low, high = _sigmoid(-3.0), _sigmoid(3.0)
        signal = (high - _sigmoid(6 * t - 3)) / (high - low)
    return np.clip(1 - signal[1:] / signal[:-1], 0, 0.999)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def zero_terminal(alpha_bar: np.ndarray) -> np.ndarray:
    """A table rescaled so that nothing of the signal is left at its end (Lin et al., WACV 2024, algorithm 1)."""
    root = np.sqrt(alpha_bar)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def karras_sigmas(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> np.ndarray:
    """Noise levels of a sampler of so many steps, descending (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


@dataclass(frozen=True)
class Schedule:
    """A noise schedule: a table `alpha_bar` (T,) of its own, or a named one.

    name       "linear", "scaled_linear", "cosine", "sigmoid", "sigmoid_beta", "continuous", "vp", "karras"; "table"
    alpha_bar  the table of a discrete schedule, descending, within [0, 1]; None for a continuous one
    """

    name: str
    alpha_bar: Any = None

    @property
    def steps(self) -> int | None:
        """Number of levels; None for a continuous schedule."""
        return None if self.alpha_bar is None else len(self.alpha_bar)

    @property
    def preserving(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1."""
        return self.name != "karras"

    def at(self, t) -> Level:
        """Signal and noise at times: whole numbers from 0 to T - 1, or for a continuous schedule numbers in [0, 1].

        Between two levels of a table sigma / alpha is linear in t. ValueError for times out of range.
        """
        t = np.asarray(t, np.float64)
        table = self.alpha_bar
        last = 1.0 if table is None else len(table) - 1.0
        if t.size and not (t.min() >= 0 and t.max() <= last):
            raise ValueError(f"timesteps must lie between 0 and {last:g}, got {t.min():g} to {t.max():g}")
        if self.name == "karras":
            return Level(t, np.ones_like(t), (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7)
        if self.name == "continuous":
            snr = np.exp(-2 * np.log(np.tan(np.pi / 2 * np.clip(t, 4.289e-3, 1 - 4.289e-3))).clip(-5, 5))
            return _preserving(t, snr / (1 + snr))
        if self.name == "vp":
            return _preserving(t, np.exp(-19.9 / 2 * t**2 - 0.1 * t))
        assert table is not None  # the others have none
        low = np.minimum(t.astype(np.int64), len(table) - 1)
        if (low == t).all():
            return _preserving(t, table[low])
        sigma = np.interp(t, np.arange(len(table)), np.sqrt(1 / table - 1))
        return _preserving(t, 1 / (1 + sigma**2))

    def time_of(self, ratio) -> np.ndarray:
        """The times at which noise / signal is `ratio`: between levels of a table, linear in its logarithm."""
        ratio = np.asarray(ratio, np.float64)
        grid = np.linspace(0, 1, 100_001) if self.alpha_bar is None else np.arange(len(self.alpha_bar), dtype=float)
        if self.name == "karras":
            return np.clip((ratio ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7)), 0, 1)
        level = self.at(grid)
        seen = (level.alpha > 0) & (level.sigma > 0)
        return np.interp(np.log(ratio), np.log(level.sigma[seen] / level.alpha[seen]), grid[seen])

    def path(self, steps: int, spacing: str = "leading", low: float | None = None) -> Level:
        """The levels that a sampler of so many steps visits, descending, and behind them the data (t = -1).

        spacing  of a table: "leading", "linspace" or "trailing", as in Hugging Face diffusers; "karras": noise levels
                 by Karras et al. 2022, eq. 5, at times between those of the table
        """
        t = self._times(steps, spacing, low)
        level = self.at(t)
        return Level(np.append(t, -1.0), np.append(level.alpha, 1.0), np.append(level.sigma, 0.0))

    def _times(self, steps, spacing, low):
        T = self.steps
        if spacing not in SPACINGS:
            raise ValueError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}")
        if steps < 1 or (T is not None and steps > T):
            raise ValueError(f"a sampler takes between 1 and {T or 'any number of'} steps, got {steps}")
        if self.name == "karras":
            return np.linspace(1, 0, steps) if steps > 1 else np.ones(1)
        if spacing == "karras":
            ends = self.at(np.array([0.0 if T else 1e-3, 1.0 if T is None else T - 1.0]))
            if (ends.alpha == 0).any():
                raise ValueError("Karras spacing needs signal at every level: this schedule reaches zero signal")
            return self.time_of(karras_sigmas(steps, *(ends.sigma / ends.alpha)))
        if T is None:
            return np.linspace(1, 1e-3 if low is None else low, steps) if steps > 1 else np.ones(1)
        if spacing == "leading":
            return (np.arange(steps) * (T // steps))[::-1].astype(float)
        if spacing == "linspace":
            return np.linspace(0, T - 1, steps).round()[::-1].copy()
        return np.round(np.arange(T, 0, -T / steps))[:steps] - 1

    def check_signal(self, prediction: str) -> None:
        """Refuse to predict the noise where no signal is left: the data could not be had from it."""
        if prediction != "epsilon":
            return
        level = self.at(np.arange(self.steps) if self.steps else np.linspace(0, 1, 1001))
        if (level.alpha <= 0).any():
            where = level.t[np.argmax(level.alpha <= 0)]
            raise ValueError(f'the schedule reaches zero signal at t = {where:g}, where the noise says nothing of the '
                             'data: use prediction="v" or "sample"')


def _preserving(t, alpha_bar):
    return Level(t, np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))


def make_schedule(schedule="cosine", steps: int = 1000, rescale: bool = False, **ends) -> Schedule:
    """A Schedule from a name, a table of alpha_bar, or a Schedule.

    steps    levels of a named discrete schedule
    rescale  to zero signal at the end (Lin et al. 2024)
    """
    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, str):
        return Schedule("table", _checked(np.array(schedule, np.float64)))
    if schedule in CONTINUOUS:
        return Schedule(schedule)
    if schedule not in DISCRETE:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(DISCRETE + CONTINUOUS)}, or a table of "
                         "alpha_bar")
    table = np.cumprod(1 - betas(schedule, steps, **ends))
    return Schedule(schedule, zero_terminal(table) if rescale else table)


def _checked(table):
    if table.ndim != 1 or not len(table) or not ((table >= 0) & (table <= 1)).all() or (np.diff(table) > 0).any():
        raise ValueError("a table of alpha_bar is one line of numbers within [0, 1] that never rise")
    return table


def min_snr_weight(level: Level, prediction: str, gamma: float = 5.0) -> np.ndarray:
    """Weights of the loss by Hang et al., ICCV 2023, section 3.4: min(SNR, gamma), over what the prediction implies."""
    with np.errstate(divide="ignore"):
        snr = level.alpha**2 / level.sigma**2
    kept = np.minimum(snr, gamma)
    return {"epsilon": kept / np.maximum(snr, 1e-300), "v": kept / (snr + 1), "sample": kept}[prediction]


__all__ = ["CONTINUOUS", "DISCRETE", "SPACINGS", "Level", "Schedule", "betas", "karras_sigmas", "make_schedule",
           "min_snr_weight", "zero_terminal"]
