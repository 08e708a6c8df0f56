"""RKL2: Runge-Kutta-Legendre super-time-stepping of second order, a super-step of s stages in one blocked sweep.

    Y_1 = Y_0 + b_1 w h M(Y_0),    w = 4/(s^2 + s - 2)
    Y_j = mu_j Y_{j-1} + nu_j Y_{j-2} + (1 - mu_j - nu_j) Y_0 + mu~_j h M(Y_{j-1}) + gamma~_j h M(Y_0),  j = 2 ... s
    b_0 = b_1 = b_2 = 1/3,  b_j = (j^2+j-2)/(2j(j+1)),  a_j = 1 - b_j,
    mu_j = (2j-1)/j b_j/b_{j-1},  nu_j = -(j-1)/j b_j/b_{j-2},  mu~_j = mu_j w,  gamma~_j = -a_{j-1} mu~_j

Second order in time; for real negative spectra stable for h <= (s^2+s-2)/4 times the Euler limit. s is odd: an even
one leaves the fastest mode undamped at the limit. The estimate 0.8 (Y_0 - Y_s) + 0.4 h (M(Y_0) + M(Y_s)) of the error
is that of RKC and costs a stage.

Shapes: u (B, 4, *grid), the field and three registers, zero at first; rate (B, ndim) with D h / dx^2; `steps` counts
stages. Source: Meyer, Balsara, Aslam, J. Comput. Phys. 257 (2014) 594, eqs. (15)-(22); the estimate: Sommeijer,
Shampine, Verwer, J. Comput. Appl. Math. 88 (1998) 315, section 3.
"""

from functools import lru_cache
from math import ceil, sqrt

from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._stages import LEGENDRE, Scheme, heat_family, heat_sample


def reach(stages: int) -> float:
    """The largest stable super-step, in limits of forward Euler."""
    return (stages**2 + stages - 2) / 4


def stages_for(step: float) -> int:
    """The smallest odd number of stages, at least 3, for a super-step given in limits of forward Euler."""
    s = max(3, ceil((sqrt(9 + 16 * step) - 1) / 2 * (1 - 1e-12)))
    return s + 1 - s % 2


def _b(j):
    return 1 / 3 if j < 2 else (j * j + j - 2) / (2 * j * (j + 1))


@lru_cache(maxsize=256)
def scheme(stages: int, watched: bool = False) -> Scheme:
    """The coefficients; `watched` adds the stage that estimates the error."""
    if stages < 3 or stages % 2 == 0:
        raise ValueError(f"RKL2 takes an odd number of stages, at least 3, not {stages}")
    w = 4 / (stages**2 + stages - 2)
    rows = [(1.0, 0.0, w / 3, 0.0, 0.0)]
    for j in range(2, stages + 1):
        mu, nu = (2 * j - 1) / j * _b(j) / _b(j - 1), -(j - 1) / j * _b(j) / _b(j - 2)
        rows.append((mu, nu, mu * w, -(1 - _b(j - 1)) * mu * w, 0.0))
    times = [w / 3, *((j * j + j - 2) * w / 4 for j in range(2, stages + 1))]
    if watched:
        rows.append((1.0, 0.0, 0.0, 0.0, 1.0))
    else:
        times.pop()
    tables = dict(zip(("mu", "nu", "rate", "drag", "last"), zip(*rows)))
    if not watched:
        del tables["last"]
    return Scheme(LEGENDRE, tuple(times), tables)


def _kernel(name, ndim, stages, watched=False):
    data = scheme(stages, watched)
    reference, rule, cpu, cuda = heat_family(data)
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=heat_sample(data, 0.5 * reach(stages)),
                  ndim=ndim, rule=rule, order=(2, 2), bytes_per_cell=5, flops_per_cell=14 + 4 * ndim, tolerance=16)


KERNELS = [_kernel("rkl2_1d", 1, 5), _kernel("rkl2_2d", 2, 7), _kernel("rkl2_3d", 3, 3, True)]
