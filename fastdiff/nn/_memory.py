"""Memory for large results on the CPU that has been a result before: that of kernels/_memory.py, for tensors."""

import numpy as np
import torch

from fastdiff.kernels import _memory
from fastdiff.kernels._memory import forget

LEAST = 1 << 20  # bytes of a result that is worth it
_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_PLAIN = torch.Tensor, torch.nn.Parameter


def empty_like(u):
    """An uninitialised contiguous tensor of the shape, dtype and device of `u`."""
    if type(u) not in _PLAIN or not u.is_cpu or u.dtype not in _DTYPES or u.nbytes < LEAST:
        return torch.empty_like(u, memory_format=torch.contiguous_format)
    return torch.from_numpy(_memory.empty(tuple(u.shape), _DTYPES[u.dtype]))


__all__ = ["empty_like", "forget"]
