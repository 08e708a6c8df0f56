"""Compile every CUDA kernel to machine code without a GPU, and read from ptxas what it needs.

NVVM makes PTX of each kernel, rule and dtype for each compute capability; ptxas of the `nvidia-cuda-nvcc` wheel
assembles it and reports registers, spills and shared memory. `python -m fastdiff.bench.ptx` prints all as JSON.

The patch of `get_current_device` below is why this runs in a process of its own: numba.cuda asks the current device
for its compute capability even when it compiles for another one.
"""

import gc
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdiff.kernels._jit import cache_root

CAPABILITIES = ((8, 0), (9, 0))
DTYPES = ("float32", "float64")
LARGE = {1: (1 << 20,), 2: (4096, 4096), 3: (256, 256, 256)}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs, from ptxas."""

    kernel: str
    schedule: str
    dtype: str
    capability: str
    components: int
    nonlinear: bool  # with a boundary that depends on the field
    depth: int
    block: tuple[int, int]
    shape: tuple[int, ...]
    registers: int
    spills: int
    stack: int
    shared: int
    float64: int  # float64 instructions in the PTX
    marched: bool  # by the schedules of _march_cuda.py
    fields: int = 0  # numbers that the rule reads for every cell


def ptxas() -> Path:
    """The assembler of the installed wheels; what may be on PATH is not looked at."""
    for name in ("nvidia-cuda-nvcc", "nvidia-cuda-nvcc-cu13", "nvidia-cuda-nvcc-cu12"):
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name in ("ptxas", "ptxas.exe"):
                return Path(str(file.locate())).resolve()
    raise FileNotFoundError("no wheel brings ptxas: install nvidia-cuda-nvcc (fastdiff-pde[test] does)")


def assemble(ptx: str, capability) -> dict[str, int]:
    """Registers, spills, stack and static shared memory of the one kernel in a PTX text."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [str(ptxas()), "-v", f"-arch=sm_{capability[0]}{capability[1]}", str(source), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True)
    report = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"ptxas failed:\n{report}")

    def number(pattern):
        found = re.search(pattern, report)
        return int(found[1]) if found else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "spills": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "stack": number(r"(\d+) bytes stack frame"),
        "shared": number(r"(\d+) bytes smem"),
    }


def float64_instructions(ptx: str) -> int:
    """Float64 arithmetic, conversions, loads and stores in a PTX text."""
    return len(re.findall(r"^\s+(?:@%p\d+\s+)?[a-z0-9_.]+\.f64\b", ptx, re.MULTILINE))


def compile_ptx(kernel, arguments) -> list[str]:
    """PTX of a CUDA kernel for the types of the given arguments, for each of CAPABILITIES, without a driver."""
    import numba.cuda.api
    import numba.cuda.compiler
    import numba.cuda.dispatcher
    from numba import void

    class Device:
        compute_capability = CAPABILITIES[0]

    for module in (numba.cuda.api, numba.cuda.compiler, numba.cuda.dispatcher):
        module.get_current_device = Device
    library, _ = numba.cuda.compiler._compile_pyfunc_with_fixup(
        kernel.py_func, void(*(_type_of(a) for a in arguments)), device=False, abi="numba", cc=CAPABILITIES[0],
        launch_bounds=kernel.targetoptions.get("launch_bounds"),
    )
    return [library.get_asm_str(cc=capability) for capability in CAPABILITIES]


def _type_of(value):
    """Numba's type of a kernel argument; arrays are taken as aligned, writable device arrays."""
    from numba import typeof, types

    if isinstance(value, np.ndarray):
        return types.Array(typeof(value).dtype, value.ndim, "C")
    if isinstance(value, tuple):
        return types.BaseTuple.from_types([_type_of(v) for v in value], type(value))
    return typeof(value)


def measure(name, rule, edges, shape, dtype, values=None) -> list[Resources]:
    """Compile the kernel that a march of `rule` on a grid of `shape` would launch, and read its needs."""
    from fastdiff.kernels import _march_cuda as march
    from fastdiff.kernels._march import components_of

    count, ndim, size = components_of(type(rule)), len(shape), np.dtype(dtype).itemsize
    space = (1, count, *{1: (1, 1, *shape), 2: (shape[0], 1, shape[-1]), 3: shape}[ndim])
    plan = march.plan_cuda(space, ndim, size, 1000, fields=march.count_fields(rule))
    fields = march.count_fields(rule) > 0
    state = np.zeros((1,) * 5, dtype)
    data = (rule, edges, march.NoValues() if values is None else values, state, state)
    if plan.schedule == "resident":
        kernel, numbers = march.resident_kernel(count, plan.cells, plan.block, dtype, fields), 3
    else:
        kernel, numbers = march.stream_kernel(count, plan.depth, ndim == 2, plan.block, dtype,
                                               values is not None or fields), 5
    found = []
    for capability, ptx in zip(CAPABILITIES, compile_ptx(kernel, (*data, *[0] * numbers))):
        needs = assemble(ptx, capability)
        needs["shared"] += march.shared_bytes(plan, space, ndim, size)
        found.append(Resources(
            kernel=name, schedule=plan.schedule, dtype=dtype, capability=f"sm_{capability[0]}{capability[1]}",
            block=plan.block, depth=plan.depth, shape=tuple(shape), components=count,
            nonlinear=values is not None, float64=float64_instructions(ptx), marched=True,
            fields=march.count_fields(rule), **needs))
    return found


def measure_launch(name, dtype, launch) -> list[Resources]:
    """Compile a CUDA kernel that is no march, and read its needs."""
    found = []
    for capability, ptx in zip(CAPABILITIES, compile_ptx(launch.function, launch.arguments)):
        needs = assemble(ptx, capability)
        needs["shared"] += launch.shared
        found.append(Resources(
            kernel=name, schedule=launch.label, dtype=dtype, capability=f"sm_{capability[0]}{capability[1]}",
            block=launch.block, depth=1, shape=(), components=1, nonlinear=False, float64=float64_instructions(ptx),
            marched=False, **needs))
    return found


class Wall(NamedTuple):
    """A boundary that depends on the field: the only float64 arithmetic a float32 kernel may have."""

    scale: float

    @staticmethod
    def value(p, c, side, t, x, y, z, u):
        return p.scale * (t + u * u)


def measure_case(case) -> list[Resources]:
    """Resources of one case: name of a kernel, dtype, shape of the grid, whether a boundary depends on the field."""
    from fastdiff.kernels import discover
    from fastdiff.kernels._edges import ABSENT
    from fastdiff.kernels._fields import lowered

    name, dtype, shape, nonlinear = case
    kernel = discover()[name]
    if kernel.rule is None:
        return [found for launch in kernel.ptx(np.dtype(dtype)) for found in measure_launch(name, dtype, launch)]
    inputs = kernel.sample((4,) * kernel.ndim, np.dtype(dtype), np.random.default_rng(0))
    rule = lowered(kernel.rule_for(inputs), (ABSENT,) * 3, (4,) * 3, 0)
    return measure(name, rule, inputs["edges"], shape, dtype, Wall(1.0) if nonlinear else None)


def cases():
    """Every kernel that runs on CUDA, in every schedule and dtype; and both with a boundary that depends on u."""
    from fastdiff.kernels import discover

    kernels = [k for k in discover().values() if k.cuda and k.rule]
    found = [(k.name, dtype, LARGE[k.ndim], False) for k in kernels for dtype in DTYPES]
    found += [(k.name, dtype, (), False) for k in discover().values() if k.cuda and not k.rule for dtype in DTYPES]
    found += [(k.name, dtype, largest_resident(k, dtype), False) for k in kernels if k.ndim > 1 for dtype in DTYPES]
    heat = discover()["heat_2d"]
    return found + [("heat_2d", "float32", shape, True) for shape in (LARGE[2], largest_resident(heat, "float32"))]


def largest_resident(kernel, dtype) -> tuple[int, ...]:
    """The largest square or cube that fits into shared memory: most cells for each thread."""
    from fastdiff.kernels._cuda import SHARED_BYTES
    from fastdiff.kernels._march_cuda import MANY_FIELDS, count_fields

    inputs = kernel.sample((4,) * kernel.ndim, np.dtype(dtype), np.random.default_rng(0))
    most = SHARED_BYTES // (2 if count_fields(kernel.rule_for(inputs)) > MANY_FIELDS else 1)
    cells = most // (inputs["u"].shape[1] * inputs["u"].itemsize)
    return (int(cells ** (1 / kernel.ndim) + 1e-9) - 2,) * kernel.ndim


def collect() -> list[Resources]:
    """Resources of all cases. Kept in the cache folder for as long as no source changes: compiling takes minutes."""
    kept = cache_root() / "ptx" / f"{_stamp()}.json"
    if kept.exists():
        return [Resources(**entry) for entry in json.loads(kept.read_text())]
    few = dict(initializer=gc.set_threshold, initargs=(100_000, 20, 20))  # collections: a seventh of the time
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 4), mp_context=get_context("spawn"), **few) as pool:
        found = [entry for entries in pool.map(measure_case, cases()) for entry in entries]
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps([asdict(entry) for entry in found]))
        partial.replace(kept)
    except OSError:
        pass  # nowhere to write: compiled again next time
    return found


def _stamp() -> str:
    """Hash of this file, of every source that a CUDA kernel is made of, and of the compiler."""
    from fastdiff import kernels

    files = [Path(__file__)]
    for file in sorted(Path(kernels.__file__).parent.glob("*.py")):
        if file.name not in ("_contract.py", "_jit.py", "_run.py", "_threads.py"):  # the CPU's alone
            files.append(file)
    versions = [metadata.version(name) for name in ("numba", "numba-cuda")] + [str(ptxas().stat().st_size)]
    content = b"".join(file.name.encode() + file.read_bytes() for file in files) + " ".join(versions).encode()
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    json.dump([asdict(entry) for entry in collect()], sys.stdout, indent=1)
