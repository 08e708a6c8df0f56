"""`fastdiff bench`: time every kernel, after checking it, and say how that compares.

For each kernel and dtype: seconds, million cell updates per second (all components of a cell are one update), the
share of the memory roof (a triad, for an unblocked sweep's bytes: a kernel blocked in time can pass 100 %), the share
of the in-cache roof (the same compiled rule over rows in the first-level cache), and how many times faster it is than
its NumPy reference and than a plain Numba loop with one sweep per step. All with the same threads, in one process.
"""

import argparse
import contextlib
import io
import json
import os
from functools import lru_cache
from pathlib import Path

SHAPES = {1: (1_000_000,), 2: (2048, 2048), 3: (192, 192, 192)}
QUICK = {1: (20_000,), 2: (192, 256), 3: (32, 40, 48)}


class Session:
    """A pytest plugin: says what to time and how, and shows how far it is."""

    def __init__(self, kernels, dtypes, options, show):
        self.kernels, self.dtypes, self.threads, self.show = kernels, dtypes, options.threads, show
        self.shapes = QUICK if options.quick else SHAPES
        self.seconds, self.rounds = (0.02, 3) if options.quick else (0.4, 5)
        self.quick = options.quick
        self.failures: dict[str, str] = {}

    def shape_of(self, kernel):
        """The shape to time a kernel on."""
        if self.quick and kernel.shapes:
            return list(kernel.shapes)[-1]
        return kernel.large if kernel.large and not self.quick else self.shapes[kernel.ndim]

    @lru_cache(maxsize=2)  # noqa: B019 - there is one session a process
    def triad(self, dtype):
        """Bytes per second of the triad, with the threads of this session."""
        from fastdiff.bench import machine

        return machine.triad(self.threads, dtype, 1 << (24 if self.quick else 28))

    def pytest_configure(self, config):
        config.fastdiff_bench = self

    def pytest_generate_tests(self, metafunc):
        metafunc.parametrize("dtype", self.dtypes)
        metafunc.parametrize("kernel", self.kernels, ids=[kernel.name for kernel in self.kernels])

    def pytest_runtest_logstart(self, nodeid, location):
        self.show(f"  {nodeid.partition('[')[2].rstrip(']').replace('-', '  ')} ...")

    def pytest_runtest_logreport(self, report):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash else str(report.longrepr)
            self.failures[report.nodeid.partition("[")[2].rstrip("]")] = message.splitlines()[0]


def parser() -> argparse.ArgumentParser:
    """The options of `fastdiff bench`."""
    made = argparse.ArgumentParser(prog="fastdiff bench", description=__doc__, epilog="'fastdiff bench targets' "
                                   "measures the goals of the project.",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("kernels", nargs="*", help="kernels to time, or beginnings of their names (default: all)")
    made.add_argument("--dtype", choices=["float32", "float64"], help="default: both")
    made.add_argument("--threads", type=int, help="default: all cores we may use")
    made.add_argument("--quick", action="store_true", help="small grids, a few seconds: to see that it works")
    made.add_argument("--out", type=Path, default=Path("bench.json"), help="file for all numbers (default: bench.json)")
    made.add_argument("--plot", type=Path, help="roofline picture (default: like --out, .png)")
    made.add_argument("--verbose", action="store_true", help="show pytest's own output")
    return made


def chosen(names):
    """The kernels asked for."""
    from fastdiff.kernels import discover

    known = discover()
    wanted = [k for name, k in known.items() if not names or any(name.startswith(n) for n in names)]
    unknown = [n for n in names if not any(name.startswith(n) for name in known)]
    if unknown:
        from fastdiff.bench import SUITES

        raise ValueError(f"{unknown[0]!r} is neither a suite ({', '.join(SUITES)}) nor the start of a kernel's name: "
                         f"{', '.join(known)}")
    return [k for k in wanted if k.cpu]


def main(args: list[str]) -> int:
    """Run `fastdiff bench`; 1 if a kernel is wrong or a benchmark broke."""
    from rich.console import Console

    options, console = parser().parse_args(args), Console(highlight=False)
    console.width = max(console.width, 112)  # a table in a log is better wide than cut
    options.threads = use_threads(options.threads)
    session = Session(chosen(options.kernels), [options.dtype] if options.dtype else ["float32", "float64"], options,
                      Console(stderr=True, highlight=False).print)
    run(session, options)
    results = [b["extra_info"] | {"seconds": b["stats"]["median"]} for b in read(options.out)]
    if results:
        console.print(table(results))
        plot(results, picture := options.plot or options.out.with_suffix(".png"))
        console.print(f"{options.threads} threads; numbers in {options.out}, roofline in {picture}")
    for name, message in session.failures.items():
        console.print(f"no number for {name}: {message}", style="bold red", markup=False, soft_wrap=True)
    return 1 if session.failures or not results else 0


def use_threads(threads: int | None) -> int:
    """Give kernels and plain loops the same threads."""
    import numba
    from numba.core import config

    from fastdiff.kernels import _threads

    threads = threads or _threads.default_threads()
    most = config.NUMBA_NUM_THREADS
    if not 1 <= threads <= most:
        raise ValueError(f"threads must be between 1 and {most}, got {threads}")
    _threads.set_threads(threads)
    numba.set_num_threads(threads)
    return threads


def run(session, options):
    """Run cases.py under pytest-benchmark; the numbers go to `options.out`."""
    import pytest

    options.out.unlink(missing_ok=True)
    cases = Path(__file__).resolve().with_name("cases.py")
    arguments = [cases, "-c", os.devnull, "--rootdir", cases.parent, "-q", "--import-mode=importlib",
                 "-p", "no:cacheprovider", "-p", "no:xdist", "--benchmark-only", f"--benchmark-json={options.out}"]
    quiet = contextlib.nullcontext() if options.verbose else contextlib.redirect_stdout(io.StringIO())
    with quiet:
        pytest.main([str(a) for a in arguments], plugins=[session])


def read(file: Path) -> list[dict]:
    """The benchmarks in pytest-benchmark's file; none if it was not written."""
    return json.loads(file.read_text())["benchmarks"] if file.exists() and file.stat().st_size else []


def table(results):
    """A rich table of all results."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE)
    for name in ("kernel", "dtype", "grid", "steps", "seconds", "M updates/s", "memory roof", "cache roof", "NumPy",
                 "sweep"):
        made.add_column(name, justify="left" if name in ("kernel", "dtype", "grid") else "right", no_wrap=True)
    for r in results:
        rate = r["updates_per_second"]
        made.add_row(r["kernel"], r["dtype"], " x ".join(map(str, r["shape"])), str(r["steps"]),
                     f"{r['seconds']:.3f}", f"{rate / 1e6:,.0f}", _ratio(rate, r["memory_roof"], "{:.0%}"),
                     _ratio(rate, r["cache_roof"], "{:.0%}"), _ratio(rate, r["reference"], "{:.0f}x"),
                     _ratio(rate, r["sweep"], "{:.2f}x"))
    return made


def _ratio(rate, other, form):
    return form.format(rate / other) if other else "-"


def plot(results, file: Path):
    """Roofline: floating-point operations per second over operations per byte of an unblocked sweep.

    The slope is the triad, a short bar above a point is that rule's own limit in cache, a hollow point the plain loop.
    Williams, Waterman and Patterson, "Roofline", CACM 52 (2009).
    """
    from matplotlib.figure import Figure

    results = [r for r in results if r["flops_per_cell"] and r["bytes_per_cell"]]
    if not results:
        return
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for k, dtype in enumerate(sorted({r["dtype"] for r in results})):
        mine = [r for r in results if r["dtype"] == dtype]
        bandwidth, color = mine[0]["triad_bytes_per_second"], f"C{k}"
        slope = [min(r["flops_per_cell"] / r["bytes_per_cell"] for r in mine) / 2,
                 max(r["flops_per_cell"] / r["bytes_per_cell"] for r in mine) * 2]
        axes.plot(slope, [x * bandwidth / 1e9 for x in slope], color=color, lw=1,
                  label=f"{dtype}: triad {bandwidth / 1e9:.1f} GB/s")
        for r in mine:
            _draw(axes, r, color)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte of an unblocked sweep",
             ylabel="Gflop/s (useful operations)", title=f"Roofline, {results[0]['threads']} threads")
    axes.grid(True, which="both", lw=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=150)


def _draw(axes, r, color):
    x, scale = r["flops_per_cell"] / r["bytes_per_cell"], r["flops_per_cell"] / 1e9
    y = r["updates_per_second"] * scale
    axes.plot(x, y, "o", color=color)
    axes.annotate(r["kernel"], (x, y), xytext=(6, -3), textcoords="offset points", fontsize="x-small")
    if r["cache_roof"]:
        axes.plot(x, r["cache_roof"] * scale, "_", color=color, ms=14, mew=2)
    if r["sweep"]:
        axes.plot(x, r["sweep"] * scale, "o", color=color, fillstyle="none")


__all__ = ["main"]
