"""Forward Euler (FTCS): explicit, first order in time, run by the blocked kernels.

    u^{n+1} = u^n + dt M(u^n),   stable up to 2 / (spectral radius of M), 1 / (2 sum of D/dx^2) for diffusion
"""

from functools import partial

from fastdiff.steppers._base import LIMIT, SAFETY, Explicit, Method, Unstable, chunks, steps_between, unstable

METHOD = Method("euler", order=1, run=Explicit, control=LIMIT, reach=1.0, summary="forward Euler (FTCS)")
Euler = partial(Explicit, METHOD)

__all__ = ["METHOD", "SAFETY", "Euler", "Unstable", "chunks", "steps_between", "unstable"]
