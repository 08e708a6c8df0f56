"""The SIR model of epidemics in space."""

from dataclasses import dataclass
from typing import Any

from fastdiff.equations._named import Named
from fastdiff.equations.reaction_diffusion import ReactionDiffusion


@dataclass(frozen=True)
class SIR(Named):
    """SIR with diffusion (Kermack, McKendrick, Proc. R. Soc. A 115 (1927) 700; Murray, Math. Biology II, 13.1).

        s_t = D Δs - beta s i
        i_t = D Δi + beta s i - gamma i
        r_t = D Δr + gamma i

    s, i, r the fractions that may fall ill, are ill, and have recovered: s + i + r is conserved. beta the rate of
    infection, gamma that of recovery, 1 / time; beta / gamma = 3 by default. D is one number, or a tuple with one an
    axis; all may be arrays with one number a sample.
    """

    beta: Any = 0.3
    gamma: Any = 0.1
    D: Any = 0.1

    names = ("s", "i", "r")

    def _make(self):
        reaction = {"s": "-beta*s*i", "i": "beta*s*i - gamma*i", "r": "gamma*i"}
        return ReactionDiffusion(self.D, reaction, {"beta": self.beta, "gamma": self.gamma})
