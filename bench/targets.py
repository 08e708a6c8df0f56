"""The speed goals of the project, one row each, measured on this machine beside what they are compared with.

`python -m fastdiff.bench.targets` (or `fastdiff bench targets`): in every row A, ours, and B, the baseline, take turns
in one process, one round of each thrown away; medians of at least five rounds, and their ratio. The plain loops are
those of sweeps.py. Writes targets.json and targets.md; `--tiny` only shows that everything runs.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import numpy as np

from fastdiff.bench import machine, sweeps
from fastdiff.bench.cases import seconds_of
from fastdiff.bench.kernels import use_threads
from fastdiff.kernels import gray_scott, heat
from fastdiff.kernels._edges import HOLD, Side, make_edges
from fastdiff.kernels._run import march

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Row:
    """One line of the table: what was measured, what is asked for, and all the times."""

    case: str
    ours: str
    target: str
    met: bool
    ratio: float | None = None
    baseline: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How large and how often."""

    threads: int
    rounds: int = 7
    scale: float = 1.0  # of the length of a grid's sides
    steps: float = 1.0  # of the number of steps

    def side(self, n: int) -> int:
        """A grid's side."""
        return max(8, int(n * self.scale))

    def count(self, n: int) -> int:
        """A number of steps."""
        return max(2, int(n * self.steps))


def alternate(rounds: int, before=None, **runs) -> dict[str, list[float]]:
    """Seconds of each function, taking turns; a first round of all is thrown away. `before` is called before each.

    A short rest before each lets OpenMP's threads, which spin for a while after their work is done, fall asleep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds + 1):
        for name, run in runs.items():
            if before:
                before()
            sleep(0.02)
            spent = seconds_of(run)
            if k:
                seconds[name].append(spent)
    return seconds


def rate(cells: int, steps: int, seconds) -> float:
    """Million cell updates per second, at the median."""
    return cells * steps / median(seconds) / 1e6


# -- fields and boundaries -------------------------------------------------------------------------------------------


def field_of(shape, dtype):
    """A state (B, 1, *grid) that stays far from zero, so that no number is denormal."""
    return np.random.default_rng(0).uniform(0.5, 1.5, (shape[0], 1, *shape[1:])).astype(dtype)


def held(u, value: float | np.ndarray = 1.0):
    """All sides of a state held at a value, as the plain loops do."""
    ndim = u.ndim - 2
    sides = {(0, axis, end): Side(kind=HOLD, value=value) for axis in range(ndim) for end in range(2)}
    return make_edges(u.shape[2:], [False] * ndim, u.dtype, sides, batch=len(u))


def rule_of(u, r=0.15):
    """Heat, the same r along every axis."""
    return heat.rule(np.full((len(u), u.ndim - 2), r), u.dtype)


# -- against the plain loop ------------------------------------------------------------------------------------------


def against_sweep(case, shape, steps, dtype, goal, options, aim=None, **more):
    """Heat on a batch of grids: ours against the plain loop, and the same numbers from both."""
    u = field_of(shape, dtype)
    steps, out, work, edges, rule = options.count(steps), np.empty_like(u), np.empty_like(u), held(u), rule_of(u)
    runs = {
        "ours": lambda: march(rule, u, edges, steps, out=out, work=work, threads=options.threads),
        "sweep": _then(sweeps.heat(_with_edges(u), 0.15), steps),
        **{name: _then(sweeps.heat(_with_edges(u), 0.15, by_sample=True), steps) for name in more.get("also", ())},
    }
    _same(case, u, steps, edges, rule)
    seconds = alternate(options.rounds, **runs)
    cells, ratio = u.size, median(seconds["sweep"]) / median(seconds["ours"])
    target = f">= {goal}x sweep" + (f", aim {aim:,} M/s" if aim else "")
    rest = "".join(f"; {name} {rate(cells, steps, seconds[name]):,.0f} M/s" for name in more.get("also", ()))
    return Row(case, f"{rate(cells, steps, seconds['ours']):,.0f} M/s", target, ratio >= goal, ratio,
               f"{rate(cells, steps, seconds['sweep']):,.0f} M/s{rest}", seconds)


def _then(run, steps):
    return lambda: run(steps)


def _with_edges(u):
    """The state with 1 on all edges, which the plain loops leave alone."""
    v = u.copy()
    for axis in range(2, u.ndim):
        for end in (0, -1):
            v[(slice(None),) * axis + (end,)] = 1
    return v


def _same(case, u, steps, edges, rule):
    """A faster loop that computes something else proves nothing."""
    few = min(steps, 5)
    ours, plain = march(rule, u, edges, few), sweeps.heat(_with_edges(u), 0.15)(few)
    worst = max(np.abs(a - np.asarray(b).reshape(a.shape)).max() for a, b in zip(ours, plain))
    if not worst <= 8 * few * np.finfo(u.dtype).eps:
        raise AssertionError(f"{case}: ours and the plain loop differ by {worst:.3g}")


def sweeps_rows(options):
    """The rows against the plain loop."""
    n = options.side
    for dtype, goal in (("float32", 2.2), ("float64", 2.4)):
        side = n(4096)
        yield lambda d=dtype, g=goal, s=side: against_sweep(f"2-D {s}², 100 steps, {d}", (1, s, s), 100, d, g, options)
    for dtype, goal in (("float32", 1.6), ("float64", 2.4)):
        side = n(2048)
        yield lambda d=dtype, g=goal, s=side: against_sweep(f"2-D {s}², 200 steps, {d}", (1, s, s), 200, d, g, options)
    yield lambda: against_sweep(f"3-D {n(256)}³, 50 steps, float32", (1, *[n(256)] * 3), 50, "float32", 1.6, options)
    yield lambda: against_sweep(f"1-D {n(1_000_000):,}, 1000 steps, float64", (1, n(1_000_000)), 1000, "float64", 1.8,
                                options, aim=10_000)
    yield lambda: against_sweep(f"batch 64 x {n(128)}², 500 steps, float32", (64, n(128), n(128)), 500, "float32", 1.3,
                                options, also=("by sample",))


# -- the others ------------------------------------------------------------------------------------------------------


def gray_scott_row(options):
    """Gray-Scott on a periodic square against its own rule in the first-level cache."""
    side, steps = options.side(512), options.count(1000)
    u = np.random.default_rng(0).uniform(0.2, 0.5, (1, 2, side, side)).astype(np.float32)
    one = np.ones(1)
    rule = gray_scott.rule(np.array([[[0.16, 0.16], [0.08, 0.08]]]), 0.04 * one, 0.06 * one, one, u.dtype)
    edges = make_edges((side, side), [True, True], u.dtype, components=2)
    out, work = np.empty_like(u), np.empty_like(u)
    cells, roofs = u.size // 2, []
    runs = {
        "ours": lambda: march(rule, u, edges, steps, out=out, work=work, threads=options.threads),
        "roof": lambda: roofs.append(machine.in_cache(rule, u.dtype, 2, options.threads, seconds=0.1, rounds=1)),
        "sweep": _then(sweeps.gray_scott(u, (0.16, 0.08), 0.04, 0.06, 1.0), steps),
    }
    seconds = alternate(options.rounds, **runs)
    ours, roof = rate(cells, steps, seconds["ours"]), median(roofs) / 1e6
    sweep = rate(cells, steps, seconds["sweep"])
    return Row(f"Gray-Scott {side}² periodic, 1000 steps, float32", f"{ours:,.0f} M/s, {ours / roof:.0%} of roof",
               ">= 5,000 M/s and >= 60 % of the in-cache roof", ours >= 5000 and ours / roof >= 0.6, ours / sweep,
               f"roof {roof:,.0f} M/s; sweep {sweep:,.0f} M/s", seconds)


def rod_rows(options):
    """The rod of 100 points, 1000 steps: kernel, and the whole of fd.solve, warm."""
    import fastdiff as fd

    u0 = np.zeros(100)
    u0[0] = 100.0
    u, grid, rod = u0[None, None], fd.Grid(100, extent=10.0), fd.Heat(0.1)
    boundary = {"x": (fd.Dirichlet(100.0), fd.Dirichlet(0.0))}
    edges, rule, out = held(u), rule_of(u), np.empty_like(u)
    calls = 200  # a round: a single call would mostly measure how the processor wakes up
    runs = {
        "kernel": lambda: [march(rule, u, edges, 1000, out=out, threads=1) for _ in range(calls)],
        "solve": lambda: [fd.solve(rod, u0, grid, t_end=1.0, dt=1e-3, method="euler", boundary=boundary)
                          for _ in range(calls)],
    }
    seconds = {name: [s / calls for s in spent] for name, spent in alternate(max(options.rounds, 15), **runs).items()}
    kernel, solve = (median(seconds[name]) * 1e6 for name in ("kernel", "solve"))
    yield Row("rod, 100 points, 1000 steps: kernel", f"{kernel:.0f} µs", "<= 40 µs", kernel <= 40,
              seconds={"ours": seconds["kernel"]})
    yield Row("rod, 100 points, 1000 steps: fd.solve, warm", f"{solve:.0f} µs", "<= 300 µs", solve <= 300,
              seconds={"ours": seconds["solve"]})


def moving_boundary_rows(options):
    """Held sides that change with time, as a table and as a formula, against constant ones."""
    import fastdiff as fd

    side, steps = options.side(2048), options.count(200)
    u = field_of((1, side, side), np.float32)
    rule, out, work = rule_of(u), np.empty_like(u), np.empty_like(u)
    moving = held(u, np.sin(np.linspace(0, 6, steps + 1)).reshape(1, -1, 1) + 1.5)
    still = held(u)
    pairs = {"a table": [lambda e=e: march(rule, u, e, steps, out=out, work=work, threads=options.threads)
                         for e in (moving, still)]}
    grid, equation = fd.Grid((side, side), extent=(1.0, 1.0)), fd.Heat(1.0)
    dt = equation.stable_dt(grid) / 2
    walks = [fd.repeat(fd.Stepper(equation, grid, dt=dt, boundary={"x": b, "y": b}, threads=options.threads), steps)
             for b in (fd.Dirichlet(f"1.5 + sin({6 / (steps * dt):g}*t)"), fd.Dirichlet(1.5))]
    pairs["a formula"] = [lambda w=w: w(u[0, 0]) for w in walks]
    for how, (a, b) in pairs.items():
        seconds = alternate(options.rounds, ours=a, constant=b)
        ratio = median(seconds["constant"]) / median(seconds["ours"])
        speeds = [rate(u.size, steps, seconds[name]) for name in ("ours", "constant")]
        yield Row(f"2-D {side}², Dirichlet in time by {how}", f"{speeds[0]:,.0f} M/s", ">= 90 % of constant",
                  ratio >= 0.9, ratio, f"{speeds[1]:,.0f} M/s", seconds)


IMPORT = """
from time import perf_counter
start = perf_counter()
import fastdiff
print(perf_counter() - start)
import sys
print(*[name for name in ("torch", "matplotlib", "sympy") if name in sys.modules])
"""

FIRST = """
import numpy as np, fastdiff as fd
u0 = np.zeros(100); u0[0] = 100.0
fd.solve(fd.Heat(0.1), u0, fd.Grid(100, extent=10.0), t_end=1.0, dt=1e-3, method="euler",
         boundary={"x": (fd.Dirichlet(100.0), fd.Dirichlet(0.0))})
"""


def _python(program, **environment):
    return subprocess.run([sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True,
                          text=True, check=True).stdout.split("\n")


def start_rows(options):
    """Import, and the first result of the rod in a new process, with a cold and with a warm disk cache."""
    seen = [_python(IMPORT) for _ in range(options.rounds + 1)][1:]
    times, loaded = [float(lines[0]) for lines in seen], seen[0][1]
    yield Row("import fastdiff", f"{median(times):.2f} s, loads {loaded or 'neither torch nor matplotlib'}",
              "<= 0.7 s, neither torch nor matplotlib", median(times) <= 0.7 and not loaded, seconds={"ours": times})
    cold, warm = [], []
    for _ in range(1 if options.scale < 1 else 3):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(seconds_of(_python, FIRST, FASTDIFF_CACHE_DIR=folder))
            warm += [seconds_of(_python, FIRST, FASTDIFF_CACHE_DIR=folder) for _ in range(3)]
    yield Row("first result in a new process, warm cache", f"{median(warm):.2f} s", "<= 1.5 s", median(warm) <= 1.5,
              seconds={"ours": warm})
    yield Row("first result in a new process, cold cache, the rod", f"{median(cold):.1f} s", "<= 15 s",
              median(cold) <= 15, seconds={"ours": cold})


def busy_rows(options):
    """Parallel against serial while another process keeps one core busy; long runs and many short ones."""
    side = options.side(1024)
    u, small = field_of((1, side, side), np.float32), field_of((1, 256, 256), np.float32)
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        long, short = (f"{side}², 200 steps", u, options.count(200), 1), ("256², 100 x 8 steps", small, 8, 100)
        for case, v, steps, calls in (long, short):
            edges, rule, out = held(v), rule_of(v), np.empty_like(v)

            def run(threads, v=v, steps=steps, calls=calls, edges=edges, rule=rule, out=out):
                for _ in range(calls):
                    march(rule, v, edges, steps, out=out, threads=threads)

            seconds = alternate(options.rounds, ours=lambda r=run: r(options.threads), serial=lambda r=run: r(1))
            ratio = median(seconds["ours"]) / median(seconds["serial"])
            work = v.size * steps * calls
            yield Row(f"one busy core beside it: {case}", f"{rate(work, 1, seconds['ours']):,.0f} M/s",
                      "time <= 1.3x serial", ratio <= 1.3, ratio, f"{rate(work, 1, seconds['serial']):,.0f} M/s",
                      seconds)
    finally:
        spin.kill()
        spin.wait()


# -- all of them -----------------------------------------------------------------------------------------------------


def rows(options, only=()):
    """All rows whose group was asked for, one after the other."""
    groups = {
        "sweep": lambda: (make() for make in sweeps_rows(options)),
        "gray-scott": lambda: [gray_scott_row(options)],
        "rod": lambda: rod_rows(options),
        "boundary": lambda: moving_boundary_rows(options),
        "start": lambda: start_rows(options),
        "busy": lambda: busy_rows(options),
    }
    for name, make in groups.items():
        if not only or name in only:
            yield from make()


def markdown(found, about) -> str:
    """The table, and the machine it was measured on."""
    lines = ["# Speed goals, measured", "", about, "",
             "Ratio: baseline time over ours (for the busy core: ours over serial). Medians; A and B take turns.", "",
             "| case | ours | baseline | ratio | target | met |", "|---|---|---|---|---|---|"]
    lines += [f"| {r.case} | {r.ours} | {r.baseline or '-'} | {f'{r.ratio:.2f}' if r.ratio else '-'} | {r.target} | "
              f"{'yes' if r.met else '**no**'} |" for r in found]
    return "\n".join(lines) + "\n"


def machine_line(options) -> str:
    """Processor, threads, versions, and the memory roof."""
    import llvmlite
    import numba

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    bandwidth = machine.triad(options.threads, size_bytes=1 << (28 if options.scale == 1 else 22))
    return (f"{name}, {options.threads} threads, triad {bandwidth / 1e9:.1f} GB/s (write-allocate not counted), "
            f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}, "
            f"llvmlite {llvmlite.__version__}, load {os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0:.1f}.")


def main(args: list[str]) -> int:
    """Measure, print, write; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="fastdiff bench targets", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="groups: sweep, gray-scott, rod, boundary, start, busy (default: all)")
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, help="folder of targets.json and targets.md")
    given = parser.parse_args(args)
    size = {"rounds": 2, "scale": 1 / 32, "steps": 1 / 20} if given.tiny else {"rounds": given.rounds}
    options = Options(use_threads(given.threads), **size)
    out = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS)
    start, about, found = perf_counter(), machine_line(options), []
    print(about)
    for row in rows(options, given.only):
        found.append(row)
        ratio = f"{row.ratio:6.2f}" if row.ratio else "     -"
        met = "met   " if row.met else "MISSED"
        print(f"{met} {row.case:52} {row.ours:30} {ratio}  {row.target}  [{row.baseline}]", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "targets.md").write_text(markdown(found, about))
    (out / "targets.json").write_text(json.dumps({"about": about, "rows": [asdict(r) for r in found]}, indent=1))
    print(f"{perf_counter() - start:.0f} s; written to {out}")
    return 0 if all(row.met for row in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
