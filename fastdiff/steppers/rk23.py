"""Bogacki and Shampine's embedded pair of orders 3 and 2, with steps that follow the error (kernels/runge_kutta.py).

Without `dt` each step is as large as `rtol` allows; with it, steps are fixed. Stable up to 1.26 limits of forward Euler
for diffusion. Source: Bogacki, Shampine, Appl. Math. Lett. 2 (1989) 321.
"""

from fastdiff.kernels.runge_kutta import RK23, RK23_REACH
from fastdiff.steppers._base import EMBEDDED, Explicit, Method


class BogackiShampine(Explicit):
    """Four stages; the last one only estimates the error."""

    sums = True  # whether the estimate adds up over the steps of a march
    registers = RK23.registers

    def scheme(self, dt, watched=False):
        """The same for every step."""
        return RK23


METHOD = Method("rk23", order=3, run=BogackiShampine, control=EMBEDDED, reach=RK23_REACH,
                summary="Bogacki-Shampine pair, adaptive steps")
