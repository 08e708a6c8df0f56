"""Equations: one physics a file."""

from fastdiff.equations._base import Equation
from fastdiff.equations.advection import AdvectionDiffusion
from fastdiff.equations.gray_scott import GrayScott
from fastdiff.equations.heat import Heat

__all__ = ["AdvectionDiffusion", "Equation", "GrayScott", "Heat"]
