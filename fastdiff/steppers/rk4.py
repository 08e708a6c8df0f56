"""Kutta's classical fourth-order Runge-Kutta method; each step in one blocked sweep (kernels/runge_kutta.py).

Stable up to 1.39 limits of forward Euler for diffusion. Held and ghost values are those of each stage's own time.
Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, 2nd ed., Springer 1993, table II.1.2.
"""

from fastdiff.kernels.runge_kutta import RK4, RK4_REACH
from fastdiff.steppers._base import LIMIT, Explicit, Method


class RungeKutta4(Explicit):
    """Four stages; the field, the old field and a sum are kept."""

    registers = RK4.registers

    def scheme(self, dt, watched=False):
        """The same for every step."""
        return RK4


METHOD = Method("rk4", order=4, run=RungeKutta4, control=LIMIT, reach=RK4_REACH, summary="classical Runge-Kutta")
