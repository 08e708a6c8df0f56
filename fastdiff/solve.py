"""`solve`: from an equation, a field and a grid to the field later."""

from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from fastdiff import dispatch
from fastdiff.boundary import CALL, Dirichlet, as_numbers, conditions
from fastdiff.equations import Heat
from fastdiff.equations._base import check_equation, samples
from fastdiff.grid import Grid
from fastdiff.kernels._threads import check_threads
from fastdiff.solution import Solution
from fastdiff.state import State, first_bad, first_not_finite, read
from fastdiff.steppers.euler import SAFETY, Euler, chunks, steps_between

METHODS = ("auto", "euler", "spectral")


class Diverged(FloatingPointError):
    """A field became NaN or infinite."""


class _Problem(NamedTuple):
    equation: Any
    state: State
    grid: Grid
    boundary: Any
    times: np.ndarray  # of all frames, t_end last
    hidden: bool  # whether the frame at t_end was not asked for
    threads: int | None


def solve(equation, u0, grid, t_end=None, *, boundary=None, save_at=None, method="auto", dt=None, rtol=None,
          device=None, threads=None, progress=False) -> Solution:
    """Solve an equation from t = 0 to `t_end`.

    equation  fd.Heat(...), fd.ReactionDiffusion(...), fd.GrayScott(...) or another of fastdiff.equations
    u0        NumPy array or torch tensor, float32 or float64: (*grid), with several components (C, *grid), with a
              batch (batch, *grid) or (batch, C, *grid); it is not changed
    grid      fd.Grid
    boundary  fd.Dirichlet, fd.Neumann, fd.Robin, fd.Flux, per axis, side and component (see fd.boundary); default:
              no flux. Held values are imposed at t = 0 too
    save_at   times to keep, ascending, between 0 and t_end; default: the end alone. Each interval is cut into equal
              steps of at most dt
    method    "euler" (FTCS, first order in time), "spectral" (exact in time; constant coefficients and boundaries),
              "auto": spectral where it applies (with the stencil's modes if the field is too rough for exact ones),
              else euler
    dt        largest step of a fixed-step method; default: 0.9 of the stability limit (reaction included)
    rtol      asked relative error in time, with method "auto" alone: refused where no exact method applies
    device    "cpu", "cuda", or None: where u0 is. An explicit choice never falls back
    threads   CPU threads; default: all cores we may use
    progress  show a bar with speed and time left

    Returns a Solution with t (T,), u (T, [C,] *grid) or (batch, T, [C,] *grid), final (like u0), and stats: method,
    why, steps, dt, seconds, compile_seconds, cell_updates_per_second, error_estimate.

    Raises ValueError for input that cannot be solved (it says what to do), Unstable (a ValueError) for a step beyond
    the stability limit, Diverged for a field that becomes NaN or infinite.
    """
    _check_method(method, dt, rtol)
    check_threads(threads)
    if not isinstance(grid, Grid):
        raise TypeError(f"grid is an fd.Grid, not {type(grid).__name__}")
    check_equation(equation)
    state = read(u0, grid, equation.names, samples(equation, grid), device)
    problem = _Problem(equation, state, grid, boundary, *_times(t_end, save_at), threads)
    chosen, why = _choose(problem, method, rtol)
    start = perf_counter()
    run = _spectral if chosen == "spectral" else _euler
    frames, stats = run(problem, dt, progress)
    if chosen == "spectral" and method == "auto" and _overshoots(problem, frames):
        why = "constant coefficients and boundaries, a rough field: the stencil's modes, exact in time, keep its bounds"
        frames, stats = _spectral(problem, dt, progress, "discrete")
    stats = {"method": chosen, "why": why, **stats, "seconds": perf_counter() - start}
    if stats["steps"]:
        spent = max(stats["seconds"] - stats["compile_seconds"], 1e-9)
        stats["cell_updates_per_second"] = stats["steps"] * grid.size * state.batch / spent
    return _solution(problem, frames, stats)


def _check_method(method, dt, rtol):
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if dt is not None:
        if method in ("auto", "spectral"):
            raise ValueError(f'dt goes with a fixed-step method, not with "{method}": add method="euler", or leave dt '
                             'out')
        if not (isinstance(dt, int | float | np.number) and np.isfinite(dt) and dt > 0):
            raise ValueError(f"dt must be positive, not {dt!r}")
    if rtol is not None and method != "auto":
        raise ValueError(f'rtol goes with method="auto"; "{method}" is '
                         + ("exact in time" if method == "spectral" else "controlled by dt"))
    if rtol is not None and not 0 < rtol < 1:
        raise ValueError(f"rtol must lie between 0 and 1, not {rtol!r}")


def _times(t_end, save_at) -> tuple[np.ndarray, bool]:
    if t_end is None and save_at is None:
        raise ValueError("say how far to solve: give t_end, or save_at")
    if t_end is not None and not (isinstance(t_end, int | float | np.number) and np.isfinite(t_end) and t_end > 0):
        raise ValueError(f"t_end must be positive, not {t_end!r}")
    if save_at is None:
        return np.array([t_end], np.float64), False
    times = np.atleast_1d(np.asarray(save_at, np.float64))
    if times.ndim != 1 or not times.size or not np.isfinite(times).all() or (np.diff(times) <= 0).any() or times[0] < 0:
        raise ValueError("save_at is a list of ascending times, none before 0")
    if t_end is None or abs(times[-1] - t_end) <= 1e-12 * t_end:
        return times, False
    if times[-1] > t_end:
        raise ValueError(f"save_at goes to {times[-1]:g}, beyond t_end = {t_end:g}")
    return np.append(times, float(t_end)), True


def _choose(problem, method, rtol):
    if method != "auto":
        return method, "asked for"
    if not isinstance(problem.equation, Heat):
        return _explicit("the equation is nonlinear", rtol)
    if not problem.equation.constant(problem.grid):
        return _explicit("coefficients, spacing or a source vary in space", rtol)
    from fastdiff.steppers import spectral

    reason = spectral.refuses(problem.grid, problem.boundary)
    if reason is None and problem.state.backend == "cpu":
        return "spectral", "constant coefficients and boundaries: exact in time, one transform a frame"
    return _explicit(reason or "the field is on the GPU", rtol)


def _explicit(reason, rtol):
    if rtol is not None:
        raise ValueError(f'no method here meets a given rtol for this problem ({reason}): leave rtol out, or choose '
                         f'method="euler" with your own dt')
    return "euler", f"{reason}: explicit steps at {SAFETY} of the stability limit"


# -- methods ---------------------------------------------------------------------------------------------------------


def _frames(problem):
    data = problem.state.data
    shape = (data.shape[0], len(problem.times), *data.shape[1:])
    return np.empty(shape, data.dtype) if problem.state.backend == "cpu" else data.new_empty(shape)


def _overshoots(problem, frames) -> bool:
    """Whether a field leaves the range of its start and walls, which heat alone never does: it is not smooth here."""
    walls = []
    for condition in conditions(problem.boundary, problem.grid, problem.equation.names).values():
        value = condition._value()
        if value is not None and not isinstance(value, str) and not callable(value):
            values = as_numbers(value, "a value")
            if isinstance(condition, Dirichlet):
                walls.append(values)
                continue
            if not values.any():
                continue
        elif isinstance(condition, Dirichlet) and value is None:
            continue
        return False  # a flux, or a formula: the range is not known
    fields = [problem.state.data, *walls]
    low, high = min(float(f.min()) for f in fields), max(float(f.max()) for f in fields)
    slack = 1e3 * np.finfo(frames.dtype).eps * max(abs(low), abs(high))
    return float(frames.min()) < low - slack or float(frames.max()) > high + slack


def _spectral(problem, dt, progress, symbol="exact"):
    from fastdiff.steppers import spectral

    if problem.state.backend != "cpu":
        raise ValueError('method="spectral" runs on the CPU: pass u0.cpu()')
    if not isinstance(problem.equation, Heat) or not problem.equation.constant(problem.grid):
        why = (f"{type(problem.equation).__name__} is nonlinear" if not isinstance(problem.equation, Heat) else
               "a coefficient, the spacing or a source varies in space")
        raise ValueError(f'method="spectral" needs constant coefficients: {why}, use method="euler"')
    frames = _frames(problem)
    modes = spectral.Propagator(problem.state.data, problem.grid, problem.boundary,
                                problem.equation.diffusivities(problem.grid), symbol, threads=problem.threads)
    for n, t in enumerate(problem.times):
        modes.at(float(t), out=frames[:, n])
    return frames, {"steps": 0, "dt": None, "compile_seconds": 0.0, "error_estimate": None}


def _euler(problem, dt, progress):
    state, grid, times = problem.state, problem.grid, problem.times
    euler = Euler(problem.equation, grid, problem.boundary, state.batch, str(state.data.dtype).removeprefix("torch."),
                  _host(state.data), problem.threads)
    if dt is None:
        dt = euler.default_dt if np.isfinite(euler.default_dt) else times[-1] / 100
    euler.check(dt)
    counts = [steps_between(a, b, dt) if b > a else 0 for a, b in zip([0.0, *times[:-1]], times)]
    compiling = _compile(euler, dt, state)
    frames, total = _frames(problem), sum(counts)
    with _bar(progress, total, grid.size * state.batch) as advance:
        _run(euler, problem, counts, frames, advance)
    return frames, {"steps": total, "dt": float(dt), "compile_seconds": compiling, "error_estimate": None}


def _run(euler, problem, counts, frames, advance):
    """March from frame to frame, in chunks, between two buffers."""
    u, t = problem.state.data, 0.0
    buffers = [dispatch.empty_like(u), dispatch.empty_like(u)]
    work = dispatch.empty_like(u) if max(counts) > 16 else None
    for n, (count, end) in enumerate(zip(counts, problem.times)):
        if count == 0:  # the start: only the held values are imposed
            u = _imposed(euler, u)
        h, begin, done = (end - t) / max(count, 1), t, 0
        for size in chunks(count, problem.grid.size):
            new = euler.advance(u, begin + done * h, h, size, out=buffers[0], work=work)
            buffers.reverse()
            bad = first_not_finite(new)
            if bad is not None:
                begin += done * h
                new, k = first_bad(lambda v, n, s, t=begin, h=h: euler.advance(v, t + n * h, h, s), u, size)
                _diverged(problem, new, first_not_finite(new), begin + (k - 1) * h, begin + k * h, h)
            u, done = new, done + size
            advance(size)
        t = end
        frames[:, n] = u


def _imposed(euler, u):
    """A field with the held values of t = 0."""
    from fastdiff.kernels._edges import hold

    held = hold(_host(u).copy(), euler.faces.edges(0.0, 1.0, 1), 0)
    return held if isinstance(u, np.ndarray) else u.new_tensor(held)


def _diverged(problem, u, bad, before, after, h):
    names, batched = problem.equation.names, problem.state.batched
    what = f"{names[bad[1]]} became {float(u[bad])} at {tuple(map(int, bad[2:]))}"
    where = f" of sample {bad[0]}" if batched else ""
    raise Diverged(f"{what}{where} between t = {before:g} and t = {after:g} (dt = {h:g}): the reaction or a boundary "
                   f"value grows faster than this step can follow; try a smaller dt")


def _host(u):
    return u if isinstance(u, np.ndarray) else u.detach().cpu().numpy()


_compiled: dict[Any, float] = {}


def _compile(euler, dt, state) -> float:
    """Seconds it took to have the kernels ready: compiled, or loaded from disk. 0 when they were."""
    if state.backend != "cpu":
        return 0.0
    from fastdiff.kernels import _run

    start = perf_counter()
    for wall in euler.faces.walls.values():
        if wall.how == CALL:
            wall.formula.address()
    walls = perf_counter() - start
    rule, data = euler.rule(dt), state.data
    schedule = _run.schedule_of(data.shape, data.itemsize, euler.threads)
    key = (type(rule), data.dtype, schedule)
    if key in _compiled:
        return walls if walls > 1e-3 else 0.0
    start = perf_counter()
    _run.prepare(rule, data.dtype, len(euler.equation.names), euler.grid.ndim, schedule)
    _compiled[key] = perf_counter() - start
    return walls + _compiled[key]


class _bar:
    """A progress bar over steps with the speed in cell updates; a context that gives `advance(steps)`."""

    def __init__(self, shown, total, cells):
        self.shown, self.total, self.cells = shown, total, cells

    def __enter__(self):
        if not self.shown:
            return lambda steps: None
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(TextColumn("solving"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"),
                                 TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        self.progress.start()
        task, begin, done = self.progress.add_task("", total=self.total, rate=""), perf_counter(), 0

        def advance(steps):
            nonlocal done
            done += steps
            rate = done * self.cells / max(perf_counter() - begin, 1e-9) / 1e6
            self.progress.update(task, advance=steps, rate=f"{rate:,.0f} million cell updates/s")

        return advance

    def __exit__(self, *error):
        if self.shown:
            self.progress.stop()


def _solution(problem, frames, stats):
    state = problem.state
    C, final, times = len(problem.equation.names), dispatch.copy(frames[:, -1]), problem.times
    if problem.hidden:
        frames, times = dispatch.copy(frames[:, :-1]), times[:-1]
    u = frames if state.batched else frames[0]
    if C == 1 and len(state.shape) < problem.grid.ndim + 2:
        u = u[:, :, 0] if state.batched else u[:, 0]
    return Solution(t=times, u=state.back(u), final=state.back(final.reshape(state.shape)), stats=stats,
                    grid=problem.grid, equation=problem.equation, names=problem.equation.names)
