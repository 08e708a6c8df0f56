"""Memory for large results on the CPU that has been a result before.

The system hands out fresh memory page by page, each of them cleared: for a large result that takes as long as a kernel
does, and what torch frees goes back to the system as soon as it is much. Here the memory of a result whose last tensor
is gone is kept for the next one of the same size: `MOST` bytes in all, those kept longest go first. Small results come
from torch.
"""

import threading

import numpy as np
import torch

LEAST, MOST = 1 << 20, 256 << 20  # bytes: of a result that is worth it, and of all that is kept
_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_PLAIN = torch.Tensor, torch.nn.Parameter
_kept: list[np.ndarray] = []  # the one kept longest first
_guard = threading.RLock()  # a tensor may die, in this very thread, at any moment


class _Lent(np.ndarray):
    """Numbers in a block; only a tensor holds it, and when that is gone the block is kept."""

    block: np.ndarray | None = None

    def __del__(self):
        if self.block is not None and _guard is not None:
            _keep(self.block)


def _keep(block):
    with _guard:
        _kept.append(block)
        total = sum(b.nbytes for b in _kept)
        while total > MOST:
            total -= _kept.pop(0).nbytes


def _block(size):
    """A kept block of a size, the last one of them, or a new one that begins at a cache line."""
    with _guard:
        for k in range(len(_kept) - 1, -1, -1):
            if _kept[k].nbytes == size:
                return _kept.pop(k)
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def empty_like(u):
    """An uninitialised contiguous tensor of the shape, dtype and device of `u`."""
    if type(u) not in _PLAIN or not u.is_cpu or u.dtype not in _DTYPES or u.nbytes < LEAST:
        return torch.empty_like(u, memory_format=torch.contiguous_format)
    block = _block(u.nbytes)
    lent = _Lent(tuple(u.shape), _DTYPES[u.dtype], block)
    lent.block = block
    return torch.from_numpy(lent)


def forget() -> None:
    """Give all that is kept back to the system."""
    with _guard:
        _kept.clear()


__all__ = ["empty_like", "forget"]
