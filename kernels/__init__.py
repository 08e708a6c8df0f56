"""Compiled kernels, one family a file, each beside its NumPy reference.

Kernels know arrays and numbers: no grids, no equations, no torch.
"""

from fastdiff.kernels._contract import Kernel, discover

__all__ = ["Kernel", "discover"]
