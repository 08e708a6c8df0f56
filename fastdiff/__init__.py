"""fastdiff: compiled diffusion solvers for CPU and GPU, and the training data they make."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from fastdiff.boundary import Dirichlet, Flux, Neumann, Robin
from fastdiff.equations import (
    SIR,
    AdvectionDiffusion,
    AllenCahn,
    Brusselator,
    FisherKPP,
    FitzHughNagumo,
    GrayScott,
    Heat,
    ReactionDiffusion,
    Schnakenberg,
)
from fastdiff.grid import Grid
from fastdiff.kernels._threads import set_threads
from fastdiff.solution import Solution
from fastdiff.solve import Diverged, solve
from fastdiff.stepper import Stepper, repeat, rollout
from fastdiff.steppers.euler import Unstable

if TYPE_CHECKING:
    from fastdiff import bench, data, nn

try:
    __version__ = version("fastdiff-pde")
except PackageNotFoundError:  # used from a checkout that is not installed
    __version__ = "0.0.0"

_LATER = ("bench", "data", "nn")  # imported when first used


def __getattr__(name):
    if name in _LATER:
        return import_module(f"fastdiff.{name}")
    raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")


__all__ = ["AdvectionDiffusion", "AllenCahn", "Brusselator", "Dirichlet", "Diverged", "FisherKPP", "FitzHughNagumo",
           "Flux", "GrayScott", "Grid", "Heat", "Neumann", "ReactionDiffusion", "Robin", "SIR", "Schnakenberg",
           "Solution", "Stepper", "Unstable", "bench", "data", "nn", "repeat", "rollout", "set_threads", "solve"]
