"""How a kernel becomes a torch operator.

The route that composes with everything (autograd, torch.func, torch.compile with fullgraph, opcheck): raw operators of
`torch.library`, one for the forward and one for the backward, and outside them an `autograd.Function` with
`setup_context` and `vmap`; a second Function around the backward operator either differentiates it or refuses. Without
a `jvp` torch refuses forward mode by itself; a custom_op would return a zero tangent in silence.
"""

import inspect
from typing import Any

import torch

from fastdiff.kernels._cuda import on

_LIBRARY = torch.library.Library("fastdiff", "DEF")


def op(schema: str, cpu, fake, cuda=None) -> Any:
    """Register `fastdiff::name` from its schema; return the operator.

    cpu, cuda  functions of tensors, called with plain ones (they may come with requires_grad: detach)
    fake       a function of fake tensors that returns empty ones of the right shape
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, cpu, "CPU")
    if cuda is not None:
        _LIBRARY.impl(name, _on_its_gpu(cuda), "CUDA")
    torch.library.register_fake(f"fastdiff::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.fastdiff, name).default


def _on_its_gpu(function):
    """`function` with the GPU of its first tensor there as the current one, for torch and for the kernels."""

    def run(*args):
        first = next(t for a in args for t in (a if isinstance(a, list | tuple) else [a])
                     if isinstance(t, torch.Tensor) and t.is_cuda)
        with torch.cuda.device(first.device), on(first):
            return function(*args)

    return run


def array(t) -> Any:
    """The NumPy view of a CPU tensor, a copy if it is not contiguous; None stays None."""
    if t is None:
        return None
    return t.numpy() if t.is_contiguous() and not t.requires_grad else t.detach().contiguous().numpy()


def arrays(*tensors):
    """NumPy views of CPU tensors (copies of those that are not contiguous); None stays None."""
    return tuple(map(array, tensors))


def into(function, empty):
    """An implementation for the CPU: `function(*arrays, out=...)` fills the tensors that `empty(*tensors)` makes.

    Memory comes from torch: it begins at a cache line, as wide vectors like it, and is handed out again.
    """

    def run(*args):
        given = [array(a) if isinstance(a, torch.Tensor) else a for a in args]
        out = empty(*args)
        function(*given, out=tuple(map(array, out)) if isinstance(out, tuple) else array(out))
        return out

    return run


def quick(function):
    """A class of `Function` whose signature is found once: torch looks for it in every call."""
    function.forward.__signature__ = inspect.signature(function.forward)
    return function


def plain(*tensors) -> bool:
    """Whether a CPU kernel may take these tensors at once: nothing is traced, transformed or differentiated.

    An operator and an `autograd.Function` around it cost as much as a small kernel.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    grad = torch.is_grad_enabled()
    for t in tensors:
        if type(t) is not torch.Tensor or not t.is_cpu or (grad and t.requires_grad):
            return False
    return True
