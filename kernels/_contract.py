"""The kernel contract: every compiled kernel stands beside a plain NumPy reference and a way to try it.

A file of this folder without a leading underscore is a kernel family; it ends with `KERNELS = [Kernel(...), ...]`.
Tests, compiler gates and benchmarks are generated from `discover()`: a new file needs no edit elsewhere.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

BACKENDS = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One compiled kernel and everything that checks it.

    name            unique among all kernels
    reference       plain NumPy in float64, called as `reference(**inputs)`, as every implementation is
    cpu, cuda       the compiled implementations, called as `cpu(**inputs, out=out)`; they fill and return `out`
    sample          `sample(shape, dtype, rng) -> inputs`: inputs that exercise everything, the state is "u"
    ndim            number of axes of the grid
    rule            `rule(...) -> rule of kernels/_march.py`, from the inputs it names; the compiler gates use it
    adjoint         the transposed kernel, called like `cpu` with a cotangent in place of "u"; linear kernels only
    order           observed orders of accuracy in space and in time
    bytes_per_cell  bytes an unblocked sweep moves to and from memory per cell and step, for each byte of the dtype:
                    2 for one field, read once and written once
    flops_per_cell  additions and multiplications per cell and step
    tolerance       allowed difference from the reference, in eps of the dtype per step, relative to max(|reference|)
    """

    name: str
    reference: Callable[..., Any]
    sample: Callable[..., dict[str, Any]]
    cpu: Callable[..., Any] | None = None
    cuda: Callable[..., Any] | None = None
    ndim: int = 0
    rule: Callable[..., Any] | None = None
    adjoint: Callable[..., Any] | None = None
    order: tuple[int, int] = (2, 1)
    bytes_per_cell: float = 0.0
    flops_per_cell: float = 0.0
    tolerance: float = 4.0

    def implementation(self, backend: str) -> Callable[..., Any] | None:
        """The compiled function of a backend, or None."""
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
        return getattr(self, backend)


def families(folder: Path | None = None) -> list[ModuleType]:
    """The modules of all kernel families, in the order of their names."""
    files = sorted(f for f in (folder or Path(__file__).parent).glob("*.py") if not f.name.startswith("_"))
    return [_load(f, folder) for f in files]


def _load(file: Path, folder: Path | None) -> ModuleType:
    if folder is None:
        return importlib.import_module(f"{__package__}.{file.stem}")
    name = f"fastdiff_kernels_from_{abs(hash(str(folder)))}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def discover(folder: Path | None = None) -> dict[str, Kernel]:
    """All kernels of a folder (by default this one), by name.

    A family without KERNELS, an entry that is no Kernel and a name used twice are errors that name the file.
    """
    kernels: dict[str, Kernel] = {}
    for module in families(folder):
        entries = getattr(module, "KERNELS", None)
        if not entries:
            raise ImportError(f"{module.__file__} has no KERNELS: list its kernels, or begin its name with '_'")
        for kernel in entries:
            if not isinstance(kernel, Kernel):
                raise TypeError(f"{module.__file__}: KERNELS holds {kernel!r}, expected a Kernel")
            if kernel.name in kernels:
                raise ValueError(f"{module.__file__}: another kernel is called {kernel.name!r} already")
            kernels[kernel.name] = kernel
    return kernels
