"""One differentiable function per kernel family: autograd Functions around the kernels, no mathematics of their own."""

from importlib import import_module

_WHERE: dict[str, str] = {  # public name: module of fastdiff.nn.functional
    "add_noise": "generative",
    "add_noise_target": "generative",
    "draw_noise": "generative",
    "group_norm": "generative",
    "normal": "generative",
    "reverse_step": "generative",
    "time_embedding": "generative",
    "weighted_mse": "generative",
    "conv": "convolution",
    "conv_block": "convolution",
    "jet_jacobian": "jet",
    "jet_mlp": "jet",
    "jet_residual": "jet",
    "march": "solver",
}


def __getattr__(name):
    if name in _WHERE:
        return getattr(import_module(f"fastdiff.nn.functional.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'fastdiff.nn.functional' has no attribute {name!r}; known: {', '.join(__dir__())}")


def __dir__():
    return list(_WHERE)
