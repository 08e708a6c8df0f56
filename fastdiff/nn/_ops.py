"""How a kernel becomes a torch operator.

The route that composes with everything (autograd, torch.func, torch.compile with fullgraph, opcheck): raw operators of
`torch.library`, one for the forward and one for the backward, and outside them an `autograd.Function` with
`setup_context` and `vmap`; a second Function around the backward operator either differentiates it or refuses. Without
a `jvp` torch refuses forward mode by itself; a custom_op would return a zero tangent in silence.
"""

from typing import Any

import torch

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
        _LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"fastdiff::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.fastdiff, name).default


def arrays(*tensors):
    """NumPy views of CPU tensors (copies of those that are not contiguous); None stays None."""
    return tuple(None if t is None else t.detach().contiguous().numpy() for t in tensors)
