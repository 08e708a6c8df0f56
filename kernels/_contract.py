"""The kernel contract: every compiled kernel stands beside a plain NumPy reference and a way to try it.

A file of this folder without a leading underscore is a kernel family; it ends with `KERNELS = [Kernel(...), ...]`.
Tests, compiler gates and benchmarks are generated from `discover()`: a new file needs no edit elsewhere. `check` is
what they all mean by correct.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

BACKENDS = ("cpu", "cuda")


class Launch(NamedTuple):
    """One CUDA kernel as it would be launched: what the PTX gate compiles."""

    label: str  # which of the kernel's CUDA kernels this is
    function: Any  # made by @cuda.jit
    arguments: tuple  # NumPy arrays stand for device arrays; only types count
    block: tuple[int, int]
    shared: int = 0  # bytes of dynamic shared memory


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One compiled kernel and everything that checks it.

    name            unique among all kernels
    reference       plain NumPy in float64, called as `reference(**inputs)`, as every implementation is
    cpu, cuda       the compiled implementations, called as `cpu(**inputs, out=out)`; they fill and return `out`
    sample          `sample(shape, dtype, rng) -> inputs`: inputs that exercise everything, the state is "u"
    outputs         `outputs(**inputs) -> out`: an array of the result's shape and dtype, or a tuple of them; default:
                    one like "u". Its contents do not matter
    ndim            number of axes of the grid; 0 for a kernel that is not on a grid, which then names its `shapes`
    shapes          awkward shapes for `sample`, as {shape: reason}; default: those of every grid of `ndim` axes. Those
                    of at most 150 numbers run in the CUDA simulator: let there be some
    large           the shape that `fastdiff bench` times; default: that of every grid of `ndim` axes
    rule            `rule(...) -> rule of kernels/_march.py`, from the inputs it names and their dtype
    machine_code    `machine_code(dtype) -> [(dispatcher, signature), ...]`: the hot loops of a kernel without a rule,
                    for the gate that looks for wide vectors and accidental float64
    ptx             `ptx(dtype) -> [Launch, ...]`: the CUDA kernels of a kernel without a rule, for the PTX gate
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
    outputs: Callable[..., Any] | None = None
    ndim: int = 0
    shapes: Mapping[tuple[int, ...], str] | None = None
    large: tuple[int, ...] | None = None
    rule: Callable[..., Any] | None = None
    machine_code: Callable[..., Any] | None = None
    ptx: Callable[..., Any] | None = None
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

    def empty(self, inputs: dict[str, Any], value: float = np.nan) -> Any:
        """Somewhere to put the result: an array or a tuple of arrays, filled with `value`."""
        like = inputs["u"] if self.outputs is None else self.outputs(**inputs)
        if isinstance(like, tuple):
            return tuple(np.full_like(part, value) for part in like)
        return np.full_like(like, value)

    def rule_for(self, inputs: dict[str, Any]) -> Any:
        """The compiled rule that `inputs` ask for; None for a kernel without one."""
        if self.rule is None:
            return None
        known = {"dtype": inputs["u"].dtype, **inputs}
        wanted = inspect.signature(self.rule).parameters.items()
        return self.rule(**{name: known[name] for name, p in wanted if name in known or p.default is p.empty})


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


class WrongKernel(AssertionError):
    """A compiled kernel that does not do what its reference does."""


def check(kernel: Kernel, backend: str, shape: tuple[int, ...], dtype: Any, seed: int = 0) -> float:
    """Compare a compiled kernel with its reference on one grid; return the difference in units of the tolerance.

    Raises WrongKernel if a cell differs by more than `kernel.tolerance` eps per step, or was not written, if an input
    was changed, or if the result is not `out`.
    """
    compiled = kernel.implementation(backend)
    assert compiled is not None, f"{kernel.name} has no {backend} implementation"
    inputs = kernel.sample(shape, np.dtype(dtype), np.random.default_rng(seed))
    before = {name: _copy(value) for name, value in inputs.items()}
    expected = kernel.reference(**inputs)
    out = kernel.empty(inputs)
    result = compiled(**inputs, out=out)
    where = f"{kernel.name} ({backend}, {np.dtype(dtype)}, {' x '.join(map(str, shape))})"
    if result is not out:
        raise WrongKernel(f"{where} does not return `out`")
    for name, value in inputs.items():
        if not _same(value, before[name]):
            raise WrongKernel(f"{where} changed its input {name!r}")
    size, steps = (np.abs(inputs["u"]).max(initial=1.0) if "u" in inputs else np.inf), inputs.get("steps", 1)
    if not isinstance(out, tuple):
        return _difference(kernel, where, out, expected, steps, size)
    return max(_difference(kernel, f"output {k} of {where}", *pair, steps, size)
               for k, pair in enumerate(zip(out, expected, strict=True)))


def _difference(kernel: Kernel, where: str, out: np.ndarray, expected: np.ndarray, steps: int, size: float) -> float:
    if out.size == 0:
        return 0.0
    if steps > 1 and not np.abs(expected).max() <= 100 * size:
        raise ValueError(f"{kernel.name}: the sample's field grows without bound, which no tolerance fits; tame it")
    if np.isnan(out).sum() > np.isnan(expected).sum():
        raise WrongKernel(f"{where} left {np.isnan(out).sum()} of {out.size} cells unwritten or NaN")
    allowed = kernel.tolerance * max(steps, 1) * np.finfo(out.dtype).eps * np.abs(expected).max()
    error = np.abs(out - expected)
    worst = np.unravel_index(np.argmax(error), error.shape)
    if not error[worst] <= allowed:
        raise WrongKernel(
            f"{where} differs from its reference by {error[worst]:.3g} at {tuple(map(int, worst))}, allowed are "
            f"{allowed:.3g} ({kernel.tolerance} eps per step, {steps} steps)"
        )
    return float(error[worst] / allowed) if allowed else 0.0


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, tuple):
        parts = [_copy(v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    return bool(a == b)
