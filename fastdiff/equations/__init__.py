"""Equations: one physics a file."""

from fastdiff.equations._base import Equation
from fastdiff.equations.advection import AdvectionDiffusion
from fastdiff.equations.allen_cahn import AllenCahn
from fastdiff.equations.brusselator import Brusselator
from fastdiff.equations.fisher import FisherKPP
from fastdiff.equations.fitzhugh_nagumo import FitzHughNagumo
from fastdiff.equations.gray_scott import GrayScott
from fastdiff.equations.heat import Heat
from fastdiff.equations.reaction_diffusion import ReactionDiffusion
from fastdiff.equations.schnakenberg import Schnakenberg
from fastdiff.equations.sir import SIR

__all__ = ["AdvectionDiffusion", "AllenCahn", "Brusselator", "Equation", "FisherKPP", "FitzHughNagumo", "GrayScott",
           "Heat", "ReactionDiffusion", "SIR", "Schnakenberg"]
