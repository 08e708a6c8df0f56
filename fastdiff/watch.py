"""Watching a run: conditions that stop it, callbacks, and frames that go to a file while it runs."""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastdiff import dispatch
from fastdiff.kernels._threads import default_threads
from fastdiff.solution import Solution, begin_file, discard_file, publish_file

LOOKS = 100  # looks at the field, if nothing else is said
MUCH = 1 << 21  # bytes of a frame that threads share


class SteadyState:
    """Stops when the field hardly changes any more: max |du/dt| <= tol max |u|, du/dt between two looks.

    tol   per unit of time
    floor a size of u below which tol is taken of `floor` itself; default 0
    """

    def __init__(self, tol: float = 1e-6, floor: float = 0.0):
        if not (np.isfinite(tol) and tol > 0 and np.isfinite(floor) and floor >= 0):
            raise ValueError(f"tol must be positive and floor not negative, not {tol!r} and {floor!r}")
        self.tol, self.floor = float(tol), float(floor)

    def __repr__(self):
        return f"SteadyState({self.tol:g})"

    def begin(self):
        """A new run: a function (t, u, state) that says when to stop."""
        before: list = []

        def steady(t, u, state):
            if before and t > before[0][0]:
                (last, old) = before.pop()
                rate = float(abs(u - old).max()) / (t - last)
                before.append((t, u))
                return rate <= self.tol * max(float(abs(u).max()), self.floor)
            before[:] = [(t, u)]
            return False

        return steady


class WallClock:
    """Stops at the first look after so many seconds of wall-clock time, compiling included."""

    def __init__(self, seconds: float):
        if not (np.isfinite(seconds) and seconds > 0):
            raise ValueError(f"seconds must be positive, not {seconds!r}")
        self.seconds = float(seconds)

    def __repr__(self):
        return f"WallClock({self.seconds:g})"

    def begin(self):
        """A new run."""
        return lambda t, u, state: state.seconds >= self.seconds


class Plan(NamedTuple):
    """When to look and what to keep: the times of a run, and which of them are kept."""

    times: np.ndarray
    kept: np.ndarray
    watchers: tuple[tuple[str, Callable], ...]
    path: Path | None
    started: float
    fold: Any = None  # antiperiodic.Fold, if a doubled grid is solved on


def plan(times, hidden, callback, stop, look_every, save_to, fold=None) -> Plan | None:
    """The plan of a run, or None if nobody watches and frames stay in memory, as they are solved."""
    if callback is None and stop is None and look_every is None and save_to is None and fold is None:
        return None
    watchers = _watchers(callback, stop)
    if look_every is not None and not watchers:
        raise ValueError("look_every says how often callback and stop are called: give one of them")
    kept = np.ones(len(times), bool)
    kept[-1] = not hidden
    if watchers:
        times, kept = _with_looks(times, kept, look_every)
    path = None if save_to is None else Path(save_to)
    if path is not None:
        begin_file(path, check_only=True)
    return Plan(times, kept, watchers, path, perf_counter(), fold)


def _watchers(callback, stop):
    """(what it is called, function) of every watcher, stop conditions begun anew."""
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a function of t, u and a state, not {callback!r}")
    found = [] if callback is None else [("the callback", callback)]
    for condition in [] if stop is None else stop if isinstance(stop, list | tuple) else [stop]:
        begin = getattr(condition, "begin", None)
        if begin is None and not callable(condition):
            raise TypeError(f"stop is fd.SteadyState(tol), fd.WallClock(seconds), a function of t, u and a state, or a "
                            f"list of these, not {condition!r}")
        name = repr(condition) if begin is not None else getattr(condition, "__name__", "a condition")
        found.append((name, condition if begin is None else begin()))
    return tuple(found)


def _with_looks(times, kept, every):
    """The kept times and those of looks between them, equally far apart in each interval."""
    end = float(times[-1])
    every = end / LOOKS if every is None else every
    if not (isinstance(every, int | float | np.number) and np.isfinite(every) and every > 0):
        raise ValueError(f"look_every must be a positive time, not {every!r}")
    all_times, flags, last = [], [], 0.0
    for t, keep in zip(times, kept):
        between = max(1, ceil((t - last) / every * (1 - 1e-12)))
        all_times += [last + (t - last) * k / between for k in range(1, between)] + [t]
        flags += [False] * (between - 1) + [keep]
        last = t
    return np.array(all_times), np.array(flags)


class Sink:
    """Takes frames as an array (batch, times, components, *grid) does, shows them to the watchers, keeps some.

    With a path, frames go to a temporary file beside it as they come, and nothing but the last stays in memory.
    """

    def __init__(self, plan: Plan, state, names, grid):
        if plan.fold is not None:
            grid, half = plan.fold.grid, plan.fold.closed(state.data)
            shape = (*state.shape[: len(state.shape) - grid.ndim], *grid.shape)
            state = state._replace(data=half, shape=shape)
        self.plan, self.state, self.names, self.grid = plan, state, names, grid
        self.view = SimpleNamespace(seconds=0.0, looks=0, frames=0)
        self.t: list[float] = []
        self.places: dict[int, int] = {}
        self.stopped: str | None = None
        self.last, self.temporary = None, None
        self.file: Any = None
        self.low, self.high = np.inf, -np.inf
        if plan.path is not None:
            import h5py

            self.temporary = begin_file(plan.path)
            self.file = h5py.File(self.temporary, "w")
        self.data: Any = self._dataset() if self.file is not None else self._memory()
        self.dtype = state.data.dtype

    def _room(self):
        """Frames there may be: those to keep, and one where the run is stopped."""
        return int(self.plan.kept.sum()) + bool(self.plan.watchers)

    def _memory(self):
        data = self.state.data
        shape = (data.shape[0], self._room(), *data.shape[1:])
        return np.empty(shape, data.dtype) if self.state.backend == "cpu" else data.new_empty(shape)

    def _single(self):
        """Whether a frame has no axis for its one component."""
        return len(self.names) == 1 and len(self.state.shape) < self.grid.ndim + 2

    def _dataset(self):
        data, batch = self.state.data, self.state.batched
        frame = tuple(data.shape[2:]) if self._single() else tuple(data.shape[1:])
        lead = (data.shape[0],) if batch else ()
        kind = str(data.dtype).removeprefix("torch.")
        return self.file.create_dataset("u", (*lead, self._room(), *frame), kind,
                                        maxshape=(*lead, None, *frame), chunks=(*(1 for _ in lead), 1, *frame))

    def put(self, n: int, u) -> bool:
        """Take frame `n`; whether to stop."""
        return self.put_closed(n, u if self.plan.fold is None else self.plan.fold.closed(u))

    def put_closed(self, n: int, u) -> bool:
        """Take frame `n` as it is kept: half of an antiperiodic one, as a sink gives it back."""
        t = float(self.plan.times[n])
        self.last = u
        if self.plan.kept[n]:
            self._keep(n, t, u)
        self._look(t, u)
        if self.stopped is not None:
            self.last = dispatch.copy(u)
            if not self.plan.kept[n]:
                self._keep(n, t, u)
        return self.stopped is not None

    def _look(self, t, u):
        if not self.plan.watchers:
            return
        self.view.seconds, self.view.looks = perf_counter() - self.plan.started, self.view.looks + 1
        shown = self.state.back(dispatch.copy(u).reshape(self.state.shape))
        for name, watcher in self.plan.watchers:
            if watcher(t, shown, self.view):
                self.stopped = self.stopped or f"{name} at t = {t:g}"

    def _keep(self, n, t, u):
        k = self.places.setdefault(n, len(self.places))
        self.t[k:] = [t]
        self.view.frames = len(self.t)
        if self.file is None:
            self.data[:, k] = u
            return
        frame = u if isinstance(u, np.ndarray) else u.detach().cpu().numpy()
        self.low, self.high = min(self.low, float(frame.min())), max(self.high, float(frame.max()))
        frame = frame[:, 0] if self._single() else frame
        if self.state.batched:
            self.data[:, k] = frame
        else:
            self.data[k] = frame[0]

    def __getitem__(self, key):
        """Frame `n` (batch, components, *grid), for `sink[:, n]`."""
        n = range(len(self.plan.times))[key[1]]
        if n not in self.places:
            return self.last
        k = self.places[n]
        if self.file is None:
            return self.data[:, k]
        frame = self.data[:, k] if self.state.batched else self.data[k][None]
        frame = frame[:, None] if self._single() else frame
        return frame if self.state.backend == "cpu" else self.state.data.new_tensor(frame)

    def min(self):
        """Least value of the kept frames."""
        return self.data[:, : len(self.t)].min() if self.file is None else self.low

    def max(self):
        """Largest value of the kept frames."""
        return self.data[:, : len(self.t)].max() if self.file is None else self.high

    def solution(self, stats, equation) -> Solution:
        """The kept frames as a Solution; those of a file stay there, and are read when they are used."""
        stats = {**stats, "stopped": self.stopped}
        final = self.state.back(dispatch.copy(self.last).reshape(self.state.shape))
        found = Solution(t=np.array(self.t), u=None, final=final, stats=stats, grid=self.grid, equation=equation,
                         names=self.names)
        if self.file is None:
            u = self.data[:, : len(self.t)]
            u = u if u.shape[1] == self.data.shape[1] else dispatch.copy(u)
            u = u if self.state.batched else u[0]
            if self._single():
                u = u[:, :, 0] if self.state.batched else u[:, 0]
            found.u = self.state.back(u)
            return found
        self.data.resize(len(self.t), axis=1 if self.state.batched else 0)
        found._describe(self.file)
        self.file.close()
        assert self.plan.path is not None
        publish_file(self.temporary, self.plan.path)
        self.file = self.temporary = None
        import h5py

        found.u = h5py.File(self.plan.path, "r")["u"]
        return found

    def discard(self):
        """Leave nothing behind."""
        if self.file is not None:
            self.file.close()
        if self.temporary is not None:
            discard_file(self.temporary)
        self.file = self.temporary = None


def put(frames: Any, n: int, u, threads=None) -> bool:
    """Put frame `n` into an array or a sink; whether to stop."""
    if isinstance(frames, Sink):
        return frames.put(n, u)
    target = frames[:, n]
    if isinstance(target, np.ndarray) and target.nbytes >= MUCH and len(target) > 1:
        _shared_out(target, u, threads)
    else:
        target[...] = u
    return False


def _shared_out(target, u, threads):
    """Copy by samples on all threads: most of the time goes into new memory, cleared by the system page by page."""
    dispatch.for_each(lambda k: np.copyto(target[k], u[k]), range(len(target)),
                      default_threads() if threads is None else threads)


__all__ = ["LOOKS", "Plan", "Sink", "SteadyState", "WallClock", "plan", "put"]
