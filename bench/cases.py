"""The benchmark of one kernel, run by pytest-benchmark; `fastdiff bench` (kernels.py) starts it and prints the results.

Correctness comes first: `check` compares the kernel with its reference on the very grid that is timed, and a wrong
kernel gets no number.
"""

from statistics import median
from time import perf_counter

import numpy as np
import pytest

from fastdiff.bench import machine, sweeps
from fastdiff.kernels._contract import check


def seconds_of(function, *args, **kwargs) -> float:
    """Wall-clock seconds of one call."""
    start = perf_counter()
    function(*args, **kwargs)
    return perf_counter() - start


def steps_for(run, seconds: float) -> int:
    """The number of steps that make `run(steps)` last at least `seconds`; it has been run once before."""
    run(2)
    steps = 2
    while (spent := seconds_of(run, steps)) < seconds / 4 and steps < 1 << 24:
        steps = min(4 * steps, max(steps + 1, int(steps * seconds / max(spent, 1e-7))))
    return max(1, int(np.ceil(steps * seconds / spent)))


def measure_sweep(name, u, seconds, rounds):
    """Cell updates per second of the plain loop, or None."""
    run = sweeps.sweep_for(name, u)
    if run is None:
        return None
    steps = steps_for(run, seconds)
    return updates(u, steps) / median(seconds_of(run, steps) for _ in range(rounds))


def updates(u, steps: int) -> int:
    """Cell updates of a number of steps: all components of a cell are one update."""
    return u.size // u.shape[1] * steps


@pytest.fixture
def bench(request):
    """What `fastdiff bench` asks for."""
    return request.config.fastdiff_bench


def test_kernel(benchmark, bench, kernel, dtype):
    """Check a kernel against its reference, then time it beside a plain loop."""
    shape = bench.shape_of(kernel)
    margin = check(kernel, "cpu", shape, dtype)
    inputs = kernel.sample(shape, np.dtype(dtype), np.random.default_rng(0))
    out = kernel.empty(inputs)
    few, more = ({**inputs, "steps": 2}, dict(inputs)) if "steps" in inputs else (inputs, inputs)
    reference = seconds_of(kernel.reference, **few)
    if "steps" in inputs:
        more["steps"] = steps_for(lambda n: kernel.cpu(**{**inputs, "steps": n}, out=out), bench.seconds)
    benchmark.pedantic(kernel.cpu, kwargs={**more, "out": out}, rounds=bench.rounds, warmup_rounds=1)
    first = out[0] if isinstance(out, tuple) else out
    cells = first.size // first.shape[1] if kernel.ndim else first.size  # of a state (B, C, *grid), or all results
    rate = cells * more.get("steps", 1) / benchmark.stats.stats.median
    rule = kernel.rule_for(inputs)
    bandwidth = bench.triad(dtype)
    moved = kernel.bytes_per_cell * first.itemsize
    benchmark.extra_info |= {
        "kernel": kernel.name,
        "dtype": dtype,
        "shape": list(shape),
        "threads": bench.threads,
        "steps": more.get("steps", 1),
        "share_of_tolerance": margin,
        "updates_per_second": rate,
        "memory_roof": bandwidth / moved if moved else None,
        "triad_bytes_per_second": bandwidth,
        "cache_roof": machine.in_cache(rule, dtype, kernel.ndim, bench.threads) if rule is not None else None,
        "reference": cells * few.get("steps", 1) / reference,
        "sweep": measure_sweep(kernel.name, inputs.get("u"), bench.seconds, bench.rounds),
        "flops_per_cell": kernel.flops_per_cell,
        "bytes_per_cell": moved,
    }
