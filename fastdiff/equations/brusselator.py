"""The Brusselator."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdiff.equations._named import Named
from fastdiff.equations.reaction_diffusion import ReactionDiffusion


@dataclass(frozen=True)
class Brusselator(Named):
    """Brusselator (Prigogine and Lefever, J. Chem. Phys. 48 (1968) 1695).

        u_t = Du Δu + A - (B + 1) u + u² v
        v_t = Dv Δv + B u - u² v

    Its uniform state (A, B/A) oscillates for B > 1 + A², as with the defaults. All are numbers, or arrays with one
    number a sample; Du and Dv may be tuples with one number an axis.
    """

    A: Any = 1.0
    B: Any = 3.0
    Du: Any = 1.0
    Dv: Any = 0.1

    names = ("u", "v")

    def _make(self):
        A, B = np.asarray(self.A, np.float64), np.asarray(self.B, np.float64)
        high = max(float(np.max(A)), float(np.max(B)), 1e-300)
        return ReactionDiffusion({"u": self.Du, "v": self.Dv}, {"u": "A - (B + 1)*u + u**2*v", "v": "B*u - u**2*v"},
                                 {"A": self.A, "B": self.B}, bounds={"u": (0.0, high), "v": (0.0, 1.5 * high)})
