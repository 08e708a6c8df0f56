"""Memory for arrays that has been an array before.

The system hands out fresh memory page by page, each of them cleared, and what is freed goes back to it as soon as it is
much: for arrays of some megabytes that takes as long as the kernels that write them. Here the memory of an array that
nobody holds any more is kept for the next one of the same size: `MOST` bytes in all, those kept longest go first. Small
arrays, and those larger than half of what may be kept, come from NumPy.
"""

import threading
from math import prod

import numpy as np

LEAST, MOST = 1 << 18, 256 << 20  # bytes: of an array that is worth it, and of all that is kept
LINE = 64  # bytes: arrays start there
_kept: list[np.ndarray] = []  # the one kept longest first
_guard = threading.RLock()  # an array may die, in this very thread, at any moment


class _Loan:
    """What an array, and all its views, hold: when the last of them is gone its block is kept."""

    def __init__(self, block, shape, dtype):
        self.block = block
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str,
                                    "data": (block.ctypes.data, False)}

    def __del__(self):
        if _guard is not None:
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
    raw = np.empty(size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size]


def empty(shape, dtype) -> np.ndarray:
    """An uninitialised C-contiguous array."""
    shape, dtype = (shape,) if isinstance(shape, int | np.integer) else tuple(map(int, shape)), np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    if not LEAST <= size <= MOST // 2:
        return np.empty(shape, dtype)
    return np.asarray(_Loan(_block(size), shape, dtype))


def empty_like(u) -> np.ndarray:
    """An uninitialised C-contiguous array of the shape and dtype of `u`."""
    return empty(u.shape, u.dtype)


def forget() -> None:
    """Give all that is kept back to the system."""
    with _guard:
        _kept.clear()


__all__ = ["empty", "empty_like", "forget"]
