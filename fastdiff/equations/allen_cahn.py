"""The Allen–Cahn equation."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdiff.equations._named import Named, single
from fastdiff.equations.reaction_diffusion import ReactionDiffusion


@dataclass(frozen=True)
class AllenCahn(Named):
    """Allen–Cahn equation (Allen and Cahn, Acta Metall. 27 (1979) 1085, eq. 11, for a quartic free energy).

        u_t = M (kappa Δu + u - u³)

    M mobility, 1 / time; kappa the square of the width of interfaces, length². Numbers, or arrays with one number a
    sample.
    """

    kappa: Any = 1.0
    M: Any = 1.0

    names = ("u",)

    def _make(self):
        D = np.asarray(self.M, np.float64) * np.asarray(self.kappa, np.float64)
        return ReactionDiffusion({"u": D}, {"u": "M*(u - u**3)"}, {"M": self.M}, bounds=(-1.0, 1.0))

    def exact(self, x, t, start: float = 0.0, moving: bool = True):
        """A front along x, from 1 on the left; one axis.

        Into the unstable state 0, at speed 3 M sqrt(kappa/2):  u = 1 / (1 + exp((x - start - c t) / sqrt(2 kappa))).
        With moving=False the standing wall between 1 and -1:  u = -tanh((x - start) / sqrt(2 kappa)).
        By insertion; see Murray, Mathematical Biology I, 3rd ed., Springer 2002, section 13.5.
        """
        kappa, M = single(self.kappa, "kappa"), single(self.M, "M")
        z = (np.asarray(x, np.float64) - start) / np.sqrt(2 * kappa)
        return 0.5 * (1 - np.tanh((z - 1.5 * M * t) / 2)) if moving else -np.tanh(z)
