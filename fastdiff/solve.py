"""`solve`: from an equation, a field and a grid to the field later."""

from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from fastdiff import antiperiodic, dispatch, watch
from fastdiff.boundary import Dirichlet, as_numbers, conditions
from fastdiff.equations import Heat
from fastdiff.equations._base import check_equation, samples
from fastdiff.grid import Grid
from fastdiff.kernels import _memory
from fastdiff.kernels._threads import check_threads
from fastdiff.solution import Solution
from fastdiff.state import State, first_bad, first_not_finite, read
from fastdiff.steppers import METHODS as MARCHING
from fastdiff.steppers._adapt import Controller, Richardson, Stuck
from fastdiff.steppers._base import DOUBLING, EMBEDDED, LIMIT, check_device, chunks, steps_between
from fastdiff.steppers.auto import DEFAULT_RTOL, has_lines
from fastdiff.steppers.auto import choose as cheapest

METHODS = ("auto", *MARCHING, "spectral")
MOST_STEPS = 1 << 20  # of a method that solves again with smaller steps
COARSEST, LONGEST = 3, 1024  # steps that it begins with, and up to which a field that diverges gets smaller ones


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
    rtol: float | None = None
    plan: watch.Plan | None = None
    sinks: tuple | list = ()


def solve(equation, u0, grid, t_end=None, *, boundary=None, save_at=None, method="auto", dt=None, rtol=None,
          device=None, threads=None, progress=False, callback=None, stop=None, look_every=None,
          save_to=None) -> Solution:
    """Solve an equation from t = 0 to `t_end`.

    equation  fd.Heat(...), fd.ReactionDiffusion(...), fd.GrayScott(...) or another of fastdiff.equations
    u0        NumPy array or torch tensor, float32 or float64: (*grid), with several components (C, *grid), with a
              batch (batch, *grid) or (batch, C, *grid); it is not changed
    grid      fd.Grid
    boundary  fd.Dirichlet, fd.Neumann, fd.Robin, fd.Flux, per axis, side and component (see fd.boundary); default:
              no flux. Held values are imposed at t = 0 too
    save_at   times to keep, ascending, between 0 and t_end; default: the end alone. Each interval is cut into equal
              steps of at most dt
    method    explicit: "euler" (FTCS, order 1), "rk4" (order 4), "rk23" (order 3, adaptive), "rkl2" (order 2, adaptive,
              any step by many stages); implicit: "crank_nicolson" (order 2, linear equations, alternating directions);
              "strang" (order 2, stiff reactions); "etdrk4" (order 4, in modes; constant diffusion, homogeneous walls);
              "spectral" (exact in time; constant coefficients and boundaries); "auto": spectral where it applies (with
              the stencil's modes if the field is too rough for exact ones), else what needs the least work by an
              estimate (fastdiff/steppers/auto.py)
    dt        largest step, then all steps are fixed; default: 0.9 of the stability limit for euler and rk4, else what
              rtol asks for
    rtol      asked relative error in time, in the Euclidean norm of each sample and component; default 1e-4. rk23,
              rkl2 and strang estimate it at each step; crank_nicolson and etdrk4 by solving again with smaller steps,
              from which a better solution is extrapolated
    device    "cpu", "cuda", "cuda:1", or None: where u0 is. An explicit choice never falls back. strang, etdrk4
              and spectral run on the CPU alone
    threads   CPU threads; default: all cores we may use
    progress  show a bar with speed and time left
    callback  called as callback(t, u, state) at each look, u like u0; state has seconds, looks, frames, and room for
              what you want to remember. The run stops if it returns True
    stop      fd.SteadyState(tol), fd.WallClock(seconds), a function like callback, or a list of these: the run ends
              where the first is met. stats["stopped"] says which, the last frame is the field there
    look_every  time between two looks of callback and stop, beside those at the saved times; default: t_end/100
    save_to   an HDF5 file that takes the frames as they come, so that memory holds only one; it appears when the run
              is complete. u of the Solution then is the open file's; Solution.load reads it, too

    Returns a Solution with t (T,), u (T, [C,] *grid) or (batch, T, [C,] *grid), final (like u0; if there is one frame
    alone, it shares u's memory), and stats: method, why, steps, dt, seconds, compile_seconds, cell_updates_per_second,
    error_estimate.

    Raises ValueError for input that cannot be solved (it says what to do), Unstable (a ValueError) for a step beyond
    the stability limit, Diverged for a field that becomes NaN or infinite.
    """
    _check_method(method, dt, rtol)
    check_threads(threads)
    if not isinstance(grid, Grid):
        raise TypeError(f"grid is an fd.Grid, not {type(grid).__name__}: fd.solve(equation, u0, grid, ...)")
    check_equation(equation)
    if method != "auto":
        check_device(method, method in MARCHING and MARCHING[method].gpu, u0, device)
    boundary, anti = antiperiodic.split(boundary, grid)
    fold = antiperiodic.Fold(grid, anti, type(equation).__name__) if anti else None
    if fold is not None:
        fold.check(samples, equation)
        grid = fold.whole
    state = read(u0 if fold is None else fold.opened(u0), grid, equation.names, samples(equation, grid), device)
    _check_rtol(rtol, state)
    times, hidden = _times(t_end, save_at)
    plan = watch.plan(times, hidden, callback, stop, look_every, save_to, fold)
    times = times if plan is None else plan.times
    problem = _Problem(equation, state, grid, boundary, times, hidden, threads, rtol, plan, [])
    try:
        return _solved(problem, method, dt, progress)
    finally:
        for sink in problem.sinks:
            sink.discard()


def _solved(problem, method, dt, progress):
    grid, state, start = problem.grid, problem.state, perf_counter()
    chosen, why = _choose(problem, method)
    frames, stats = _chosen(problem, chosen, method, dt, progress)
    if chosen == "spectral" and method == "auto" and _overshoots(problem, frames):
        why = "constant coefficients and boundaries, a rough field: the stencil's modes, exact in time, keep its bounds"
        frames, stats = _spectral(problem, "discrete")
    stats = {"method": chosen, "why": why, **stats, "seconds": perf_counter() - start}
    if stats["steps"]:
        spent = max(stats["seconds"] - stats["compile_seconds"], 1e-9)
        stats["cell_updates_per_second"] = stats["steps"] * grid.size * state.batch / spent
    return _solution(problem, frames, stats)


def _chosen(problem, chosen, method, dt, progress):
    """Run a method. Watchers see a run once: whether exact modes overshoot is then tried at the first look alone."""
    if chosen != "spectral":
        return _march(problem, MARCHING[chosen], dt, progress)
    watched = problem.plan is not None and problem.plan.watchers
    if not (watched and method == "auto"):
        return _spectral(problem)
    first = problem._replace(times=problem.times[problem.times > 0][:1], plan=None)
    return _spectral(problem, "discrete" if _overshoots(first, _spectral(first)[0]) else "exact")


def _check_method(method, dt, rtol):
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if dt is not None:
        if method in ("auto", "spectral"):
            raise ValueError(f'dt goes with a fixed-step method, not with "{method}": add method="euler", or leave dt '
                             'out')
        if not (isinstance(dt, int | float | np.number) and np.isfinite(dt) and dt > 0):
            raise ValueError(f"dt must be positive, not {dt!r}")
        if rtol is not None:
            raise ValueError("give dt for fixed steps or rtol for steps that follow the error, not both")
    if rtol is not None and method not in ("auto", *(m.name for m in MARCHING.values() if m.control != LIMIT)):
        raise ValueError(f'rtol goes with method="auto"; "{method}" is '
                         + ("exact in time" if method == "spectral" else "controlled by dt"))
    if rtol is not None and not (isinstance(rtol, int | float | np.number) and 0 < rtol < 1):
        raise ValueError(f"rtol must lie between 0 and 1, not {rtol!r}")


def _check_rtol(rtol, state):
    """Refuse an accuracy that the numbers of the state cannot hold."""
    kind = str(state.data.dtype).removeprefix("torch.")
    least = 50 * float(np.finfo(kind).eps)
    if rtol is not None and rtol < least:
        raise ValueError(f"no method meets rtol = {rtol:g} with {kind}, whose rounding alone is about {least:.1g}: "
                         + ("pass float64, or " if kind == "float32" else "") + "choose a larger rtol")


def _times(t_end, save_at) -> tuple[np.ndarray, bool]:
    if t_end is None and save_at is None:
        raise ValueError("say how far to solve: give t_end, or save_at")
    if t_end is not None and not (isinstance(t_end, int | float | np.number) and np.isfinite(t_end) and t_end > 0):
        raise ValueError(f"t_end must be positive, not {t_end!r}")
    if save_at is None:
        return np.array([t_end], np.float64), False
    try:
        times = np.atleast_1d(np.asarray(save_at, np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"save_at is a list of ascending times, not {save_at!r}") from None
    if times.ndim != 1 or not times.size or not np.isfinite(times).all() or (np.diff(times) <= 0).any() or times[0] < 0:
        raise ValueError("save_at is a list of ascending times, none before 0")
    if t_end is None or abs(times[-1] - t_end) <= 1e-12 * t_end:
        return times, False
    if times[-1] > t_end:
        raise ValueError(f"save_at goes to {times[-1]:g}, beyond t_end = {t_end:g}")
    return np.append(times, float(t_end)), True


def _choose(problem, method):
    if method != "auto":
        return method, "asked for"
    reason = _not_spectral(problem)
    if reason is None:
        return "spectral", "constant coefficients and boundaries: exact in time, one transform a frame"
    rtol = DEFAULT_RTOL if problem.rtol is None else problem.rtol
    run = _run(problem, MARCHING["euler"])
    plain = problem.state.backend == "cpu" and not run.faces.nonlinear and not run.faces.seeing
    linear = plain and has_lines(problem.equation, problem.grid)
    name, why = cheapest(run, linear, problem.times, rtol)
    if problem.plan is not None and problem.plan.watchers and MARCHING[name].control == DOUBLING:
        name, why = "rkl2", "callback and stop see a run that goes through time once"
    return name, f"{reason}: {why}"


def _not_spectral(problem):
    """Why the spectral method does not apply, or None."""
    if not isinstance(problem.equation, Heat):
        return "there is more than diffusion"
    if not problem.equation.constant(problem.grid):
        return "a coefficient, the spacing or a source varies in space"
    from fastdiff.steppers import spectral

    return spectral.refuses(problem.grid, problem.boundary) or (None if problem.state.backend == "cpu" else
                                                                "the field is on the GPU")


# -- methods ---------------------------------------------------------------------------------------------------------


def _frames(problem):
    data = problem.state.data
    if problem.plan is not None:
        problem.sinks.append(watch.Sink(problem.plan, problem.state, problem.equation.names, problem.grid))
        return problem.sinks[-1]
    shape = (data.shape[0], len(problem.times), *data.shape[1:])
    return _memory.empty(shape, data.dtype) if problem.state.backend == "cpu" else data.new_empty(shape)


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


def _spectral(problem, symbol="exact"):
    from fastdiff.steppers import spectral

    if problem.state.backend != "cpu":
        raise ValueError('method="spectral" runs on the CPU: pass u0.cpu()')
    if not isinstance(problem.equation, Heat) or not problem.equation.constant(problem.grid):
        name = type(problem.equation).__name__
        why = (f"{name} is more than diffusion" if not isinstance(problem.equation, Heat) else
               "a coefficient, the spacing or a source varies in space")
        raise ValueError(f'method="spectral" needs constant coefficients: {why}, use method="euler"')
    frames = _frames(problem)
    modes = spectral.Propagator(problem.state.data, problem.grid, problem.boundary,
                                problem.equation.diffusivities(problem.grid), symbol, threads=problem.threads,
                                rtol=problem.rtol)
    for n, t in enumerate(problem.times):
        if isinstance(frames, np.ndarray):
            modes.at(float(t), out=frames[:, n])
        elif frames.put(n, modes.at(float(t))):
            break
    return frames, {"steps": 0, "dt": None, "compile_seconds": 0.0, "error_estimate": None}


def _run(problem, method):
    state = problem.state
    return method.run(method, problem.equation, problem.grid, problem.boundary, state.batch,
                      str(state.data.dtype).removeprefix("torch."), _host(state.data), problem.threads)


def _march(problem, method, dt, progress):
    """By steps: fixed ones, or such as keep the error below rtol."""
    run = _run(problem, method)
    rtol = DEFAULT_RTOL if problem.rtol is None else problem.rtol
    if dt is None and method.control == DOUBLING and problem.plan is not None and problem.plan.watchers:
        raise ValueError(f"{method.name} without dt solves again and again, but callback and stop see a run that goes "
                         "through time once: give dt, or another method")
    if dt is None and method.control == EMBEDDED:
        frames, stats = _adapted(problem, run, rtol, progress)
    elif dt is None and method.control == DOUBLING:
        frames, stats = _doubled(problem, run, rtol, progress)
    else:
        if dt is None:
            dt = run.default_dt if np.isfinite(run.default_dt) else problem.times[-1] / 100
        run.check(dt)
        counts = [steps_between(a, b, dt) if b > a else 0 for a, b in _intervals(problem)]
        frames, stats = _fixed(problem, run, counts, progress)
        stats |= {"dt": float(dt), "error_estimate": None}
    return frames, {"compile_seconds": run.compile_seconds, **stats}


def _intervals(problem):
    return list(zip([0.0, *problem.times[:-1]], problem.times))


def _fixed(problem, run, counts, progress):
    """March with a number of equal steps in each interval between frames."""
    steps = [(b - a) / max(count, 1) for (a, b), count in zip(_intervals(problem), counts)]
    _compile(run, steps[int(np.argmax(counts))], run.load(problem.state.data))
    frames, total = _frames(problem), sum(counts)
    with _bar(progress, total, problem.grid.size * problem.state.batch) as advance:
        done = _advance(run, problem, counts, frames, advance)
    evaluations = sum(count * run.stages(h) for count, h in zip(counts[:done], steps))
    return frames, {"steps": sum(counts[:done]), "evaluations": evaluations}


def _adapted(problem, run, rtol, progress):
    """March with steps that follow the error that each of them estimates."""
    u = run.load(_imposed(run, problem.state.data))
    controller, frames = Controller(run, float(problem.times[-1]), rtol), _frames(problem)
    _compile(run, controller.h, u)
    with _bar(progress, None, problem.grid.size * problem.state.batch, float(problem.times[-1])) as advance:

        def check(field, t, h, steps):
            bad = None if steps else first_not_finite(field)  # an error that was accepted is a finite number
            if bad is not None:
                _diverged(problem, field, bad, t - h, t, h)
            advance(steps, t)

        for n, (begin, end) in enumerate(_intervals(problem)):
            if end > begin:
                try:
                    u = controller.advance(u, begin, end, check)
                except Stuck as stuck:
                    _grown(problem, stuck)
                    raise
            if watch.put(frames, n, run.newest(u), problem.threads):
                break
    return frames, {"steps": controller.steps, "rejected": controller.rejected, "evaluations": controller.evaluations,
                    "dt": controller.h, "error_estimate": controller.error}


def _grown(problem, stuck):
    """Raise Diverged if a field that no step is small enough for becomes singular, or has grown out of proportion."""
    field, start = abs(_host(stuck.field)), abs(_host(problem.state.data)).max()
    bad = np.unravel_index(np.argmax(abs(_host(stuck.error)) if stuck.approached else field), field.shape)
    if stuck.approached or field[bad] > 1e3 * start > 0:
        where = f" of sample {bad[0]}" if problem.state.batched else ""
        raise Diverged(f"{problem.equation.names[bad[1]]} "
                       f"{'grows without bound' if field[bad] > start else 'changes faster and faster'}: it was "
                       f"{field[bad]:.3g} in size at "
                       f"{tuple(map(int, bad[2:]))}{where} at t = {stuck.t:.8g}, and no step was small enough to go on"
                       ) from stuck


def _doubled(problem, run, rtol, progress):
    """Solve with more and more steps until the error that they show is below rtol."""
    span = float(problem.times[-1])
    begin = lambda: Richardson(run.method.order, len(problem.times), lambda: _frames(problem))
    series = begin()
    counts = np.array([steps_between(a, b, span / COARSEST) if b > a else 0 for a, b in _intervals(problem)])
    times, total, evaluations = 1, 0, 0
    while True:
        try:
            frames, stats = _fixed(problem, run, counts * times, progress)
        except Diverged:  # the first steps are long
            if times >= LONGEST // COARSEST:
                raise
            times, series = times * 4, begin()
            for sink in problem.sinks:
                sink.discard()
            continue
        total, evaluations = total + stats["steps"], evaluations + stats["evaluations"]
        best, spent = series.add(times, frames)
        if series.error <= rtol:
            return best, {"steps": total, "evaluations": evaluations, "error_estimate": series.error,
                          "dt": span / max(1, int((counts * times).sum()))}
        worse = np.isfinite(series.before) and not (series.error < series.before or times < 64)
        if worse or counts.sum() * times > MOST_STEPS:
            raise ValueError(f"{run.method.name} does not meet rtol = {rtol:g}: with {stats['steps']} steps the "
                             f"estimated error is {series.error:.2g}; try a larger rtol, float64 or another method")
        for sink in spent:
            if isinstance(sink, watch.Sink):
                sink.discard()
        times = series.next(rtol)


def _advance(run, problem, counts, frames, advance):
    """March from frame to frame, in chunks, between two buffers; returns how many intervals were marched."""
    u, t = run.load(problem.state.data), 0.0
    buffers = [dispatch.empty_like(u), dispatch.empty_like(u)]
    work = dispatch.empty_like(u) if max(counts) > 16 or run.stages(problem.times[-1]) > 1 else None
    run.restart()
    for n, (count, end) in enumerate(zip(counts, problem.times)):
        if count == 0:  # the start: only the held values are imposed
            u = run.load(_imposed(run, run.newest(u)))
        h, begin, done = (end - t) / max(count, 1), t, 0
        for size in chunks(count, problem.grid.size * run.stages(h)):
            new = run.advance(u, begin + done * h, h, size, out=buffers[0], work=work)
            buffers.reverse()
            field = run.newest(new)
            bad = first_not_finite(field)
            if bad is not None:
                begin += done * h
                field, k = first_bad(lambda v, n, s, t=begin, h=h: run.advance(v, t + n * h, h, s), u, size, run.newest)
                _diverged(problem, field, first_not_finite(field), begin + (k - 1) * h, begin + k * h, h)
            u, done = new, done + size
            advance(size)
        t = end
        if watch.put(frames, n, run.newest(u), problem.threads):
            return n + 1
    return len(counts)


def _imposed(run, u):
    """A field with the held values of t = 0."""
    from fastdiff.kernels._edges import hold

    held = hold(_host(u).copy(), run.faces.edges(0.0, 1.0, 1), 0)
    return held if isinstance(u, np.ndarray) else u.new_tensor(held)


def _diverged(problem, u, bad, before, after, h):
    names, batched = problem.equation.names, problem.state.batched
    what = f"{names[bad[1]]} became {float(u[bad])} at {tuple(map(int, bad[2:]))}"
    where = f" of sample {bad[0]}" if batched else ""
    raise Diverged(f"{what}{where} between t = {before:g} and t = {after:g} (dt = {h:g}): the reaction or a boundary "
                   f"value grows faster than this step can follow; try a smaller dt")


def _host(u):
    return u if isinstance(u, np.ndarray) else u.detach().cpu().numpy()


def _compile(run, dt, state):
    """Have the kernels ready: compiled, or loaded from disk; `run` remembers how long that took."""
    start = perf_counter()
    run.compile(dt, state)
    spent = perf_counter() - start
    run.compile_seconds += spent if spent > 1e-3 else 0.0


class _bar:
    """A progress bar with the speed in cell updates, over `total` steps, or up to the time `until` if none is known.

    A context that gives `advance(steps, t)`.
    """

    def __init__(self, shown, total, cells, until=None):
        self.shown, self.total, self.cells, self.until = shown, total, cells, until

    def __enter__(self):
        if not self.shown:
            return lambda steps, t=0.0: None
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(TextColumn("solving"), BarColumn(), TextColumn("{task.fields[state]}"),
                                 TimeRemainingColumn(), console=Console(stderr=True))
        self.progress.start()
        task = self.progress.add_task("", total=self.total if self.until is None else self.until, state="")
        begin, done = perf_counter(), 0

        def advance(steps, t=0.0):
            nonlocal done
            done += steps
            rate = f"{done * self.cells / max(perf_counter() - begin, 1e-9) / 1e6:,.0f} million cell updates/s"
            if self.until is None:
                self.progress.update(task, completed=done, state=f"{done}/{self.total} steps {rate}")
            else:
                self.progress.update(task, completed=t, state=f"t = {t:.3g} of {self.until:.3g}, {done} steps {rate}")

        return advance

    def __exit__(self, *error):
        if self.shown:
            self.progress.stop()


def _solution(problem, frames, stats):
    if isinstance(frames, watch.Sink):
        return frames.solution(stats, problem.equation)
    state = problem.state
    C, final, times = len(problem.equation.names), frames[:, -1], problem.times
    final = final if len(times) == 1 else dispatch.copy(final)  # a single frame is both: a copy costs as much as a step
    if problem.hidden:
        frames, times = dispatch.copy(frames[:, :-1]), times[:-1]
    u = frames if state.batched else frames[0]
    if C == 1 and len(state.shape) < problem.grid.ndim + 2:
        u = u[:, :, 0] if state.batched else u[:, 0]
    return Solution(t=times, u=state.back(u), final=state.back(final.reshape(state.shape)), stats=stats,
                    grid=problem.grid, equation=problem.equation, names=problem.equation.names)
