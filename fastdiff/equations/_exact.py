"""Closed forms of linear and nonlinear diffusion, for `equation.exact(...)`."""

import numpy as np


def gaussian(places, t, D, velocity, width, start):
    """A Gaussian of standard deviation `width` at first, height 1, that travels and spreads; an axis a place.

        u = prod over axes of  width / s exp(-(x - start - v t)² / (2 s²)),   s² = width² + 2 D t

    Crank, The Mathematics of Diffusion, 2nd ed., Oxford 1975, eq. (2.6), started at t = width²/(2 D).
    """
    s2, value = width**2 + 2 * D * t, 1.0
    for x, v, x0 in zip(places, velocity, start):
        value = value * (width / np.sqrt(s2) * np.exp(-((np.asarray(x, np.float64) - x0 - v * t) ** 2) / (2 * s2)))
    return value


def ogata_banks(x, t, D, v):
    """What flows and diffuses into an empty half line x >= 0 from u = 1 at x = 0.

        u = [erfc((x - v t) / (2 sqrt(D t))) + exp(v x/D) erfc((x + v t) / (2 sqrt(D t)))] / 2

    Ogata and Banks, US Geological Survey Professional Paper 411-A (1961), eq. (8). 0 at t = 0, but 1 at x = 0.
    """
    from scipy.special import erfc, erfcx

    x = np.asarray(x, np.float64)
    if t <= 0:
        return np.where(x <= 0, 1.0, 0.0)
    a, b = ((x - sign * v * t) / (2 * np.sqrt(D * t)) for sign in (1, -1))
    return (erfc(a) + np.exp(-(a**2)) * erfcx(b)) / 2  # exp(v x/D - b²) = exp(-a²)


def cylinder_mode(r, t, D, radius, mode):
    """A mode in a cylinder whose wall is held at 0, J_0(j r/R) exp(-D (j/R)² t) with j the mode-th zero of J_0.

    Crank, The Mathematics of Diffusion, section 5.3.
    """
    from scipy.special import j0, jn_zeros

    zero = jn_zeros(0, mode)[-1]
    return j0(zero * np.asarray(r, np.float64) / radius) * np.exp(-D * (zero / radius) ** 2 * t)


def barenblatt(places, t, m, D, total):
    """The spreading of a point source by u_t = D Δ(u^m), m > 1, after time t > 0; `total` scales its size.

        u = s^-alpha max(0, total - k (|x| / s^(alpha/d))²)^(1/(m-1)),   s = D t,
        alpha = d / (d (m - 1) + 2),   k = alpha (m - 1) / (2 m d)

    with d axes. Barenblatt (1952); Vazquez, The Porous Medium Equation, Oxford 2007, eq. (1.8).
    """
    d, s = len(places), D * t
    alpha = d / (d * (m - 1) + 2)
    r2 = sum(np.square(np.asarray(x, np.float64)) for x in places) * s ** (-2 * alpha / d)
    return s**-alpha * np.maximum(0.0, total - alpha * (m - 1) / (2 * m * d) * r2) ** (1 / (m - 1))


def axes_of(x) -> tuple:
    """Coordinates as a tuple with one array an axis."""
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def single(value, what: str) -> float:
    """A parameter that a closed form needs as one number."""
    if isinstance(value, str) or callable(value):
        raise ValueError(f"exact(...) is for numbers: {what} is {value!r}")
    numbers = np.asarray(value, np.float64)
    if numbers.size != 1:
        raise ValueError(f"exact(...) is for one sample: {what} has {numbers.size} numbers")
    return float(numbers.reshape(()))
