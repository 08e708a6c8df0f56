"""torch layers on the kernels: differentiable solvers, convolutions, physics-informed and generative models.

Importing this package imports torch. Every name is imported from its module when it is first used.
"""

from importlib import import_module

_WHERE: dict[str, str] = {
    **dict.fromkeys(("FourierFeatures", "Jet", "JetMLP", "ModifiedMLP", "ResidualMLP"), "jet"),
    **dict.fromkeys(("PINN", "NotFinite"), "pinn"), "Residual": "_physics",
}  # public name: module of fastdiff.nn


def __getattr__(name):
    if name == "functional":
        return import_module("fastdiff.nn.functional")
    if name in _WHERE:
        return getattr(import_module(f"fastdiff.nn.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'fastdiff.nn' has no attribute {name!r}; known: {', '.join(__dir__())}")


def __dir__():
    return ["functional", *_WHERE]
