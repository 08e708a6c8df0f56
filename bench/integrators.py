"""The speed goals of the integrators, one row each, with the error beside each time.

`fastdiff bench integrators`: A, ours, and B, the baseline, take turns in one process; medians, and their ratio. Every
row checks its answers first. Writes integrators.json and integrators.md; `--tiny` only shows that everything runs.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np

from fastdiff.bench.kernels import use_threads
from fastdiff.bench.targets import RESULTS, Options, Row, alternate, machine_line, markdown


def relative(a, b) -> float:
    """Relative error in the Euclidean norm."""
    return float(np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b))


def _modes(grid, *modes):
    x, y = grid.coordinates()
    return sum(a * np.sin(j * np.pi * x) * np.sin(k * np.pi * y) for j, k, a in modes)


START = (1, 1, 1.0), (2, 3, 0.5), (5, 4, 0.25)


# -- few modes alive -------------------------------------------------------------------------------------------------


def constant_row(options):
    """Constant D, held at 0, to the time of 20 000 FTCS steps: the modes that are alive against DST and back."""
    from scipy import fft

    import fastdiff as fd
    from fastdiff.steppers.spectral import propagate

    n = options.side(512)
    grid, equation = fd.Grid((n, n)), fd.Heat(1.0)
    t = 20_000 * equation.stable_dt(fd.Grid((512, 512)))
    u0 = np.ascontiguousarray(_modes(grid, *START))
    k = np.arange(1, n - 1) * np.pi
    decay = np.exp(-t * (k[:, None] ** 2 + k**2))

    def by_hand():
        out = np.zeros_like(u0)
        modes = fft.dstn(u0[1:-1, 1:-1], type=1, workers=options.threads)
        modes *= decay
        out[1:-1, 1:-1] = fft.idstn(modes, type=1, workers=options.threads)
        return out

    runs = {"ours": lambda: propagate(u0[None, None], grid, fd.Dirichlet(0.0), 1.0, t, threads=options.threads,
                                      rtol=1e-4),
            "solve": lambda: fd.solve(equation, u0, grid, t, boundary=fd.Dirichlet(0.0), rtol=1e-3,
                                      threads=options.threads).final,
            "dst": by_hand}
    exact = _modes(grid, *((j, m, a * np.exp(-(j * j + m * m) * np.pi**2 * t)) for j, m, a in START))
    errors = {name: relative(np.reshape(run(), exact.shape), exact) for name, run in runs.items()}
    seconds = alternate(max(options.rounds, 15), **runs)
    ours, solve, dst = (median(seconds[name]) for name in runs)
    return Row(f"constant D, {n}², time of 20 000 FTCS steps", f"{ours * 1e3:.2f} ms (fd.solve {solve * 1e3:.2f} ms), "
               f"error {errors['ours']:.1e}", "<= 1/5 of dstn + idstn, error < 1e-3",
               dst / ours >= 5 and max(errors.values()) < 1e-3, dst / ours,
               f"{dst * 1e3:.2f} ms, error {errors['dst']:.1e}", seconds)


# -- D that varies ---------------------------------------------------------------------------------------------------


def variable_rows(options):
    """D(x, y) smooth with contrast 5, to the same time: FTCS against RKL2 and what `auto` takes."""
    import fastdiff as fd

    n = options.side(512)
    grid = fd.Grid((n, n))
    x, y = grid.coordinates()
    equation = fd.Heat(1.0 + (2 / 3) * np.sin(2 * np.pi * x) * np.cos(2 * np.pi * y))
    u0, walls = np.ascontiguousarray(_modes(grid, *START)), fd.Dirichlet(0.0)
    steps = options.count(20_000)
    dt = equation.stable_dt(grid) * (1 - 1e-9)
    t = steps * dt

    def solve(**how):
        return fd.solve(equation, u0, grid, t, boundary=walls, threads=options.threads, **how)

    want = solve(method="crank_nicolson", rtol=1e-7).final
    runs = {"ftcs": lambda: solve(method="euler", dt=dt), "rkl2": lambda: solve(method="rkl2", dt=t / 10),
            "auto": lambda: solve(rtol=1e-3)}
    found = {name: run() for name, run in runs.items()}
    errors = {name: relative(sol.final, want) for name, sol in found.items()}
    seconds = alternate(3, **runs)
    spent = {name: median(times) for name, times in seconds.items()}
    for name, goal in (("rkl2", 6), ("auto", 20)):
        stats, ratio = found[name].stats, spent["ftcs"] / spent[name]
        yield Row(f"variable D, {n}², {steps} FTCS steps: {name}",
                  f"{spent[name] * 1e3:.0f} ms, {stats['method']}, {stats['evaluations']} evaluations, error "
                  f"{errors[name]:.1e}", f">= {goal}x FTCS, error < 1e-3", ratio >= goal and errors[name] < 1e-3, ratio,
                  f"{spent['ftcs'] * 1e3:.0f} ms, error {errors['ftcs']:.1e}", {name: seconds[name]})


# -- FitzHugh-Nagumo -------------------------------------------------------------------------------------------------


def fitzhugh_nagumo_rows(options):
    """PDEBench's diffusion-reaction set: 128², t = 5, 101 frames, in batches against `solve_ivp` as they call it.

    As much memory as a batch of solutions takes is written once before each run: a virtual machine that has to get it
    back from its host waits longer for it than the solution takes (measured: 1.8 s for 0.85 GB, 0.05 s otherwise).
    """
    from scipy.integrate import solve_ivp

    import fastdiff as fd
    from fastdiff.equations import FitzHughNagumo

    n, batch = options.side(128), 32 if options.scale == 1 else 2
    grid = fd.Grid((n, n), extent=((-1, 1), (-1, 1)), centering="cells")
    times, u0 = np.linspace(0, 5, 101), np.random.default_rng(0).standard_normal((batch, 2, n, n))
    rhs = _sparse(n)

    def peer(**how):
        return solve_ivp(rhs, (0, 5), u0[0].ravel(), t_eval=times, **how).y.T.reshape(-1, 2, n, n)

    def ours(dtype):
        u = u0.astype(dtype)
        return lambda: fd.solve(FitzHughNagumo(), u, grid, save_at=times, method="rk23", rtol=0.2,
                                threads=options.threads)

    want = peer(method="DOP853", rtol=1e-10, atol=1e-10)
    allowed = relative(peer(), want)
    runs = {"float32": ours(np.float32), "float64": ours(np.float64), "peer": peer}
    errors = {name: relative(runs[name]().u[0], want) for name in ("float32", "float64")}
    room = batch * len(times) * u0[0].nbytes
    seconds = alternate(min(options.rounds, 3), before=lambda: np.empty(room, np.uint8).fill(0), **runs)
    spent = {name: median(times) / (1 if name == "peer" else batch) for name, times in seconds.items()}
    for name in ("float32", "float64"):
        ratio = spent["peer"] / spent[name]
        yield Row(f"FitzHugh-Nagumo {n}², t = 5, 101 frames, batch {batch}, {name}",
                  f"{1 / spent[name]:.1f} samples/s, error {errors[name]:.1e}",
                  ">= 60x solve_ivp RK45, error no larger",
                  ratio >= 60 and errors[name] <= allowed, ratio,
                  f"{1 / spent['peer']:.2f} samples/s, error {allowed:.1e}",
                  {name: seconds[name], "peer": seconds["peer"]})


def _sparse(n):
    """PDEBench's right-hand side: a sparse Laplacian without flux, and the reaction."""
    import scipy.sparse as sp

    main = np.full(n, -2.0)
    main[[0, -1]] = -1.0
    line = sp.diags([np.ones(n - 1), main, np.ones(n - 1)], [-1, 0, 1]) / (2 / n) ** 2  # type: ignore[list-item]
    laplace = sp.csr_matrix(sp.kron(line, sp.eye(n)) + sp.kron(sp.eye(n), line))

    def rhs(t, y):
        u, v = y[: n * n], y[n * n :]
        return np.concatenate((1e-3 * (laplace @ u) + u - u**3 - 5e-3 - v, 5e-3 * (laplace @ v) + u - v))

    return rhs


# -- tridiagonal systems ---------------------------------------------------------------------------------------------


def thomas_rows(options):
    """4096 lines of 1024 unknowns, float64, against one LAPACK call with all right-hand sides, and a copy."""
    import scipy.linalg

    from fastdiff.kernels.tridiagonal import Systems

    n, lines = options.side(1024), options.side(4096)
    rng = np.random.default_rng(0)
    r, out, other = rng.random((n, lines)), np.empty((n, lines)), np.empty((n, lines))
    for label, form, arrays in (("constant", (n,), 2), ("per-line", (n, lines), 5)):
        lower, upper = -rng.random(form), -rng.random(form)
        diag = 1.2 - lower - upper
        systems = Systems(lower, diag, upper, r.shape, 0, r.dtype, threads=options.threads)
        first = [b if b.ndim == 1 else b[:, 0] for b in (lower, diag, upper)]
        band = np.zeros((3, n))
        band[0, 1:], band[1], band[2, :-1] = first[2][:-1], first[1], first[0][1:]
        want = scipy.linalg.solve_banded((1, 1), band, r)
        columns = slice(None) if label == "constant" else slice(0, 1)
        worst = np.abs(systems.solve(r) - want)[:, columns].max()
        if not worst < 1e-12:
            raise AssertionError(f"batched Thomas and LAPACK differ by {worst:.3g}")
        seconds = alternate(options.rounds, ours=lambda s=systems: s.solve(r, out),
                            lapack=lambda b=band: scipy.linalg.solve_banded((1, 1), b, r),
                            copy=lambda: _copy(other, r, options.threads))
        ours, lapack, copy = (median(seconds[name]) for name in ("ours", "lapack", "copy"))
        share = arrays / 2 * copy / ours
        yield Row(f"Thomas, {lines} lines x {n}, float64, {label} coefficients",
                  f"{ours * 1e3:.2f} ms, {share:.0%} of copy bandwidth",
                  ">= 3x solve_banded, >= 70 % of copy bandwidth", lapack / ours >= 3 and share >= 0.7, lapack / ours,
                  f"{lapack * 1e3:.1f} ms; copy {copy * 1e3:.2f} ms", seconds)


def _copy(target, source, threads):
    """Copy on all threads, by the processor's own memcpy."""
    from fastdiff.kernels._threads import together

    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads)))

    def task():
        while parts:
            try:
                a, b = parts.pop()
            except IndexError:
                return
            np.copyto(a, b)

    together(task, threads)


def rows(options, only=()):
    """All rows whose group was asked for."""
    groups = {"constant": lambda: [constant_row(options)], "variable": lambda: variable_rows(options),
              "fhn": lambda: fitzhugh_nagumo_rows(options), "thomas": lambda: thomas_rows(options)}
    for name, make in groups.items():
        if not only or name in only:
            yield from make()


def main(args: list[str]) -> int:
    """Measure, print, write; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="fastdiff bench integrators", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="groups: constant, variable, fhn, thomas (default: all)")
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--out", type=Path, help="folder of integrators.json and integrators.md")
    given = parser.parse_args(args)
    size = {"rounds": 2, "scale": 1 / 16, "steps": 1 / 100} if given.tiny else {"rounds": given.rounds}
    options = Options(use_threads(given.threads), **size)
    out = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS)
    about, found = machine_line(options), []
    print(about)
    for row in rows(options, given.only):
        found.append(row)
        ratio = f"{row.ratio:6.2f}" if row.ratio else "     -"
        print(f"{'met   ' if row.met else 'MISSED'} {row.case:60} {row.ours}  {ratio}  {row.target}  [{row.baseline}]",
              flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "integrators.md").write_text(markdown(found, about))
    (out / "integrators.json").write_text(json.dumps({"about": about, "rows": [asdict(r) for r in found]}, indent=1))
    return 0 if all(row.met for row in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
