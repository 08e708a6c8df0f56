"""The FitzHugh–Nagumo model."""

from dataclasses import dataclass
from typing import Any

from fastdiff.equations._named import Named
from fastdiff.equations.reaction_diffusion import ReactionDiffusion


@dataclass(frozen=True)
class FitzHughNagumo(Named):
    """FitzHugh–Nagumo model (FitzHugh, Biophys. J. 1 (1961) 445; Nagumo, Arimoto, Yoshizawa, Proc. IRE 50 (1962) 2061).

        u_t = Du Δu + u - u³ - k - v
        v_t = Dv Δv + epsilon (u - gamma v + beta)

    u the activator (voltage), v the recovery. The defaults are PDEBench's 2-D "diff-react" (Takamoto et al., NeurIPS
    2022, arXiv:2210.07182, eqs. 13-14), on [-1, 1]² without flux. All are numbers, or arrays with one number a sample;
    Du and Dv may be tuples with one number an axis.
    """

    Du: Any = 1e-3
    Dv: Any = 5e-3
    k: Any = 5e-3
    epsilon: Any = 1.0
    gamma: Any = 1.0
    beta: Any = 0.0

    names = ("u", "v")

    def _make(self):
        return ReactionDiffusion(
            {"u": self.Du, "v": self.Dv}, {"u": "u - u**3 - k - v", "v": "epsilon*(u - gamma*v + beta)"},
            {"k": self.k, "epsilon": self.epsilon, "gamma": self.gamma, "beta": self.beta}, bounds=(-2.0, 2.0))
