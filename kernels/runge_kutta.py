"""Explicit Runge-Kutta methods whose stages need only the slope before them, a step in one blocked sweep.

    y_{j+1} = u + a_j k_j,   k_j = h M(y_j),   u(t + h) = u + sum of b_j k_j

rk4     Kutta's classical method, of fourth order; stable on the negative real axis to 2.7853, 1.39 Euler limits
rk23    Bogacki and Shampine's pair: third order, stable to 2.5127, with the difference to an embedded method of second
        order as an estimate of the error; its fourth stage is the first slope of the next step

Shapes: u (B, 3, *grid) for rk4, (B, 4, *grid) for rk23: the field and its registers, zero at first; rate (B, ndim)
with D h / dx^2; `steps` counts stages. Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I,
2nd ed., Springer 1993, table II.1.2; Bogacki, Shampine, Appl. Math. Lett. 2 (1989) 321, eqs. (2)-(5).
"""

from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._stages import CHAIN, Scheme, heat_family, heat_sample

RK4 = Scheme(CHAIN, (0.5, 0.5, 1.0), {"a": (0.5, 0.5, 1.0, 0.0), "b": (1 / 6, 1 / 3, 1 / 3, 1 / 6),
                                      "last": (0.0, 0.0, 0.0, 1.0)})
RK4_REACH = 2.785293563405282 / 2  # limits of forward Euler
RK23 = Scheme(CHAIN, (0.5, 0.75, 1.0), {"a": (0.5, 0.75, 0.0, 0.0), "b": (2 / 9, 1 / 3, 4 / 9, 0.0),
                                        "last": (0.0, 0.0, 1.0, 1.0), "e": (-5 / 72, 1 / 12, 1 / 9, -1 / 8)})
RK23_REACH = 2.5127453266183286 / 2


def _kernel(name, ndim, data):
    reference, rule, cpu, cuda = heat_family(data)
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=heat_sample(data, 0.5), ndim=ndim,
                  rule=rule, order=(2, 4 if data is RK4 else 3), bytes_per_cell=4, flops_per_cell=8 + 4 * ndim,
                  tolerance=8)


KERNELS = [_kernel("rk4_2d", 2, RK4), _kernel("rk23_2d", 2, RK23)]
