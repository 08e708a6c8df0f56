"""One differentiable function per kernel family: autograd Functions around the kernels, no mathematics of their own."""

from importlib import import_module

_WHERE: dict[str, str] = {
    **dict.fromkeys(("jet_jacobian", "jet_mlp", "jet_residual"), "jet"),
}  # public name: module of fastdiff.nn.functional


def __getattr__(name):
    if name in _WHERE:
        return getattr(import_module(f"fastdiff.nn.functional.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'fastdiff.nn.functional' has no attribute {name!r}; known: {', '.join(__dir__())}")


def __dir__():
    return list(_WHERE)
