"""torch layers on the kernels: differentiable solvers, convolutions, physics-informed and generative models.

Importing this package imports torch. Every name is imported from its module when it is first used.
"""

from importlib import import_module

_WHERE: dict[str, str] = {  # public name: module of fastdiff.nn
    "DDPM": "ddpm",
    "EMA": "ddpm",
    "Blur": "heat_dissipation",
    "BlurringDiffusion": "heat_dissipation",
    "DiffusionVAE": "vae",
    "EquationResidual": "guidance",
    "Guide": "guidance",
    "HeatDissipation": "heat_dissipation",
    "Refiner": "guidance",
    "StencilResidual": "guidance",
    "UNet": "unet",
    "Bounded": "surrogates",
    "Conv1d": "surrogates",
    "Conv2d": "surrogates",
    "Conv3d": "surrogates",
    "DilatedResNet": "surrogates",
    "FusedAdam": "training",
    "Hybrid": "surrogates",
    "LearnableStencil": "surrogates",
    "Solver": "solver",
    "SurrogateCNN": "surrogates",
    "SurrogateUNet": "surrogates",
    "at_equal_time": "compare",
    "fit": "training",
    "plot_rollout": "compare",
    "predict": "training",
    "rollout": "surrogates",
    "FourierFeatures": "jet",
    "Jet": "jet",
    "JetMLP": "jet",
    "ModifiedMLP": "jet",
    "ResidualMLP": "jet",
    "NotFinite": "pinn",
    "PINN": "pinn",
    "Residual": "_physics",
}


def __getattr__(name):
    if name in ("functional", "metrics"):
        return import_module(f"fastdiff.nn.{name}")
    if name in _WHERE:
        return getattr(import_module(f"fastdiff.nn.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'fastdiff.nn' has no attribute {name!r}; known: {', '.join(__dir__())}")


def __dir__():
    return ["functional", "metrics", *_WHERE]
