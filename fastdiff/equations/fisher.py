"""The Fisher–KPP equation."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdiff.equations._named import Named, single
from fastdiff.equations.reaction_diffusion import ReactionDiffusion


@dataclass(frozen=True)
class FisherKPP(Named):
    """Fisher–KPP equation (Fisher, Ann. Eugenics 7 (1937) 355; Kolmogorov, Petrovsky, Piskunov 1937).

        u_t = D Δu + r u (1 - u)

    D diffusivity, length² / time; r growth rate, 1 / time. Numbers, or arrays with one number a sample; D may be a
    tuple with one number an axis. The default is the equation in units of its own. PDEBench's 1-D "ReacDiff" is
    D = nu, r = rho on a periodic axis.
    """

    D: Any = 1.0
    r: Any = 1.0

    names = ("u",)

    def _make(self):
        return ReactionDiffusion({"u": self.D}, {"u": "r*u*(1 - u)"}, {"r": self.r})

    def exact(self, x, t, start: float = 0.0):
        """A front that moves to the right at speed 5/sqrt(6) sqrt(r D), from x = `start`, where u = 1/4.

        u = 1 / (1 + exp((x - start - c t) sqrt(r / (6 D))))², Ablowitz and Zeppetella, Bull. Math. Biol. 41 (1979) 835,
        eq. (11). One axis.
        """
        D, r = single(self.D, "D"), single(self.r, "r")
        z = (np.asarray(x, np.float64) - start) * np.sqrt(r / D) - 5 / np.sqrt(6) * r * t
        return 0.25 * (1 - np.tanh(z / np.sqrt(24))) ** 2
