"""Work and precision: error against time, for every method of fastdiff and for peers.

`fastdiff bench work-precision`: two problems in float64, each with the truth of the same grid, so that only the error
in time is seen. Each method is run with a row of steps or tolerances; a point is the median time of warm runs and the
relative error in the Euclidean norm. Draws work_precision.png, and writes all points to work_precision.json.

    heat        128², held at 0, smooth modes, to a time that takes explicit Euler some 3000 steps
    gray-scott  128², periodic, spacing 1, a seeded square, 500 time units
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fastdiff.bench.cases import seconds_of
from fastdiff.bench.kernels import use_threads
from fastdiff.bench.peers import DU, DV, F, K, Work, _prepare, gray_scott_work, scipy_rk45
from fastdiff.bench.targets import RESULTS, Options, machine_line

LONGEST = 6.0  # seconds a single run may take: longer ones are left out, with those that would be longer still


@dataclass
class Point:
    """One run of one method."""

    problem: str
    method: str
    setting: str
    seconds: float
    error: float


@dataclass(frozen=True)
class Case:
    """A problem, the truth, and the longest step of explicit Euler."""

    name: str
    equation: Any
    grid: Any
    boundary: Any
    u0: Any
    t_end: float
    truth: Any
    unit: float

    def run(self, method, threads, **how) -> Callable[[], np.ndarray]:
        """A run by one of fastdiff's methods."""
        import fastdiff as fd

        return lambda: fd.solve(self.equation, self.u0, self.grid, t_end=self.t_end, boundary=self.boundary,
                                method=method, threads=threads, **how).final

    def error(self, found) -> float:
        """Relative, in the Euclidean norm."""
        return float(np.linalg.norm(found - self.truth) / np.linalg.norm(self.truth))


def heat_case(side=128, t_end=0.05) -> Case:
    """Modes of the unit square between cold walls; the truth is each mode's decay on this grid."""
    import fastdiff as fd

    grid = fd.Grid((side, side))
    x, y = grid.coordinates()
    dx = grid.spacing[0]

    def rate(k):
        return 4 / dx**2 * np.sin(k * np.pi * dx / 2) ** 2

    def field(t):
        return sum(a * np.exp(-(rate(p) + rate(q)) * t) * np.sin(p * np.pi * x) * np.sin(q * np.pi * y)
                   for p, q, a in ((1, 1, 1.0), (2, 3, 0.5), (5, 4, 0.25)))

    return Case("heat", fd.Heat(1.0), grid, fd.Dirichlet(0.0), field(0.0), t_end, field(t_end), dx**2 / 4)


def gray_scott_case(side=128, t_end=500.0) -> Case:
    """The truth is RK4 with dt = 1/16."""
    import fastdiff as fd

    u0 = gray_scott_work(side, 1).u0
    grid, equation = fd.Grid((side, side), extent=float(side), periodic=True), fd.GrayScott(F, K, DU, DV)
    truth = fd.solve(equation, u0, grid, t_end=t_end, method="rk4", dt=1 / 16).final
    return Case("gray-scott", equation, grid, None, u0, t_end, truth, 1.0)


def settings(case) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """Methods and what to run them with, from coarse to fine."""
    tolerances = [{"rtol": 10.0**-k} for k in range(2, 9)]
    yield "euler", [{"dt": case.unit * 0.99 / 2**k} for k in range(4)]
    yield "rk4", [{"dt": case.unit * 1.3 / 2**k} for k in range(4)]
    for method in ("rk23", "rkl2", "crank_nicolson", "strang", "etdrk4"):
        yield method, tolerances
    if case.name == "heat":
        yield "spectral", [{}]
    yield "auto", tolerances[1:6:2]


def fastdiff_runs(case, threads):
    """(method, setting, run) for all that this version of fastdiff has."""
    from fastdiff.solve import METHODS

    for method, rows in settings(case):
        for how in rows if method in METHODS else []:
            name, value = next(iter(how.items()), ("exact", 0.0))
            yield method, f"{name}={value:.2g}" if how else "exact", case.run(method, threads, **how)


def peer_runs(case, threads):
    """SciPy's solve_ivp, and Exponax where it is installed."""
    work = _as_work(case)
    for k in (2, 4, 6):
        if work is not None:
            yield "scipy RK45", f"rtol=1e-{k}", scipy_rk45(work, threads, rtol=10.0**-k)
    if case.name == "heat":
        for k in (2, 4, 6):
            yield "scipy RK45", f"rtol=1e-{k}", _held_rk45(case, 10.0**-k)
    if case.name == "gray-scott" and find_spec("jax") is not None:
        for k in range(4):
            yield "JAX euler", f"dt={0.99 / 2**k:.2g}", _jax_euler(case, 0.99 / 2**k)


def _as_work(case):
    if case.name != "gray-scott":
        return None
    return Work("gray-scott", case.u0.shape[-1], round(case.t_end), 1.0, 1.0, case.u0)


def _held_rk45(case, rtol):
    """RK45 on the inner points between cold walls."""
    from scipy import sparse
    from scipy.integrate import solve_ivp

    n = case.u0.shape[0] - 2
    line = sparse.diags_array([np.ones(n - 1), -2 * np.ones(n), np.ones(n - 1)], offsets=[-1, 0, 1])
    line, one = line / case.grid.spacing[0] ** 2, sparse.eye_array(n)
    A = (sparse.kron(line, one) + sparse.kron(one, line)).tocsr()

    def run():
        found = np.zeros_like(case.u0)
        inner = solve_ivp(lambda t, u: A @ u, (0, case.t_end), case.u0[1:-1, 1:-1].ravel(), rtol=rtol, atol=rtol * 1e-3,
                          t_eval=[case.t_end])
        found[1:-1, 1:-1] = inner.y[:, -1].reshape(n, n)
        return found

    return run


def _jax_euler(case, dt):
    from fastdiff.bench.peers import jax_jit

    steps = int(np.ceil(case.t_end / dt))
    return jax_jit(Work("gray-scott", case.u0.shape[-1], steps, case.t_end / steps, 1.0, case.u0), 1)


def points(case, options) -> Iterator[Point]:
    """Every method on one problem; a method ends where a run takes too long or is refused."""
    over: set[str] = set()
    for make in (fastdiff_runs, peer_runs):
        for method, setting, run in make(case, options.threads):
            if method in over:
                continue
            try:
                found, first = run(), seconds_of(run)
            except Exception as error:  # a tolerance that it does not meet, a problem it is not for: say so, go on
                print(f"{case.name:11} {method:15} {setting:12} left out: {' '.join(str(error).split())[:90]}")
                over.add(method)
                continue
            spent = [first] + [seconds_of(run) for _ in range(options.rounds if first < 0.5 else 1)]
            yield Point(case.name, method, setting, median(spent), case.error(found))
            if first > LONGEST * options.scale:
                over.add(method)


def draw(found, path, about):
    """Error against time, a panel a problem, a line a method."""
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(p.problem for p in found))
    figure = Figure(figsize=(6.4 * len(problems), 5), layout="constrained")
    for axes, problem in zip(np.atleast_1d(figure.subplots(1, len(problems))), problems):
        for k, method in enumerate(dict.fromkeys(p.method for p in found if p.problem == problem)):
            mine = [p for p in found if (p.problem, p.method) == (problem, method)]
            style = "--" if " " in method else "-"
            axes.loglog([p.seconds for p in mine], [max(p.error, 1e-16) for p in mine], style, label=method,
                        marker="osv^DPX<>*h"[k % 11], color=f"C{k % 10}")
        axes.set(title=problem, xlabel="seconds", ylabel="relative error in time")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.suptitle(about, fontsize=7)
    figure.savefig(path, dpi=110)


def main(args: list[str]) -> int:
    """Measure, print, draw, write."""
    parser = argparse.ArgumentParser(prog="fastdiff bench work-precision", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="problems: heat, gray-scott (default: both)")
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, help="folder of work_precision.json and .png")
    given = parser.parse_args(args)
    options = Options(use_threads(given.threads), 1 if given.tiny else given.rounds, 0.05 if given.tiny else 1.0)
    _prepare(options.threads)
    cases = {"heat": lambda: heat_case(24, 0.01) if given.tiny else heat_case(),
             "gray-scott": lambda: gray_scott_case(24, 10.0) if given.tiny else gray_scott_case()}
    stray = [name for name in given.only if name not in cases]
    if stray:
        parser.error(f"unknown problem {stray[0]!r}; known: {', '.join(cases)}")
    out, found = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS), []
    out.mkdir(parents=True, exist_ok=True)
    if given.only and (out / "work_precision.json").exists():
        old = json.loads((out / "work_precision.json").read_text())["points"]
        found = [Point(**p) for p in old if p["problem"] not in given.only]
    for name in given.only or cases:
        for point in points(cases[name](), options):
            found.append(point)
            print(f"{name:11} {point.method:15} {point.setting:12} {point.seconds * 1e3:10.2f} ms  error "
                  f"{point.error:.2e}", flush=True)
    about = machine_line(options)
    text = json.dumps({"about": about, "points": [asdict(p) for p in found]}, indent=1)
    (out / "work_precision.json").write_text(text)
    draw(found, out / "work_precision.png", about)
    print(f"written to {out}")
    return 0


__all__ = ["Case", "Point", "gray_scott_case", "heat_case", "main", "points"]
