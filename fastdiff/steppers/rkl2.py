"""RKL2 super-time-stepping: explicit, second order, stable for any step (kernels/rkl2.py).

A step of s stages covers (s^2 + s - 2)/4 limits of forward Euler, so the cost grows with the square root of the step.
s is chosen from the step and `equation.stable_dt`, whose bound on the spectral radius must be safe: 5 % beyond, and
many stages diverge. Without `dt` each step is as large as `rtol` allows.
Source: Meyer, Balsara, Aslam, J. Comput. Phys. 257 (2014) 594.
"""

import numpy as np

from fastdiff.kernels import rkl2
from fastdiff.steppers._base import EMBEDDED, Explicit, Method

MOST_STAGES = 999


class SuperStep(Explicit):
    """As many stages as a step needs; the last two, the old field and its slope are kept."""

    sums = False  # whether the estimate adds up over the steps of a march
    registers = 4

    def scheme(self, dt, watched=False):
        """The stages of a step."""
        fastest = (2 / self.euler_limit + self.rate) / 2  # in limits of forward Euler, per time
        return rkl2.scheme(rkl2.stages_for(dt * fastest), watched)

    def check(self, dt):
        """Any step is stable, but one of very many stages loses digits."""
        most = rkl2.reach(MOST_STAGES) * self.euler_limit
        if dt > most:
            raise ValueError(f"dt = {dt:g} would take rkl2 more than {MOST_STAGES} stages; the largest step is {most:g}")


METHOD = Method("rkl2", order=2, run=SuperStep, control=EMBEDDED, reach=np.inf,
                summary="Runge-Kutta-Legendre super-time-stepping")
