"""The Schnakenberg model."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdiff.equations._named import Named
from fastdiff.equations.reaction_diffusion import ReactionDiffusion


@dataclass(frozen=True)
class Schnakenberg(Named):
    """Schnakenberg model (Schnakenberg, J. Theor. Biol. 81 (1979) 389; Murray, Math. Biology II, eq. 2.10).

        u_t = Du Δu + gamma (a - u + u² v)
        v_t = Dv Δv + gamma (b - u² v)

    Its uniform state is u = a + b, v = b / (a + b)²; with the defaults it turns into spots (Turing's instability). All
    are numbers, or arrays with one number a sample; Du and Dv may be tuples with one number an axis.
    """

    a: Any = 0.1
    b: Any = 0.9
    gamma: Any = 1.0
    Du: Any = 1.0
    Dv: Any = 40.0

    names = ("u", "v")

    def _make(self):
        a, b = np.asarray(self.a, np.float64), np.asarray(self.b, np.float64)
        u = np.where(a + b > 0, a + b, 1.0)
        bounds = {"u": (0.0, 2 * float(np.max(u))), "v": (0.0, 2 * float(np.max(np.abs(b) / u**2)))}
        reaction = {"u": "gamma*(a - u + u**2*v)", "v": "gamma*(b - u**2*v)"}
        return ReactionDiffusion({"u": self.Du, "v": self.Dv}, reaction,
                                 {"a": self.a, "b": self.b, "gamma": self.gamma}, bounds=bounds)
