"""A small pool of threads for kernels that hold no interpreter lock.

The caller is always worker 0 and does all the work if nobody comes to help: a busy machine costs nothing but the
help. Safe from several threads at once, after a fork (the child starts its own helpers), and at exit.
"""

import ctypes
import os
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

import numpy as np

_state = threading.local()
_helpers: list[threading.Thread] = []
_queue: SimpleQueue = SimpleQueue()
_lock = threading.Lock()
_default: int | None = None
_known_to_openmp = False
_avoided: int | None = None  # the core that all helpers keep away from
_where = getattr(ctypes.PyDLL(None), "sched_getcpu", None) if hasattr(os, "sched_setaffinity") else None


def default_threads() -> int:
    """Threads used unless a call says otherwise: `set_threads`, FASTDIFF_NUM_THREADS, or the cores we may use."""
    global _default
    if _default is None:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        asked = os.environ.get("FASTDIFF_NUM_THREADS", str(allowed))
        if not asked.isdigit() or int(asked) < 1:
            raise ValueError(f"FASTDIFF_NUM_THREADS must be a whole number from 1 on, not {asked!r}")
        _default = int(asked)
    return _default


def set_threads(count: int) -> None:
    """Set the number of threads that kernels use from now on in this process."""
    global _default
    check_threads(count)
    _default = int(count)


def check_threads(count) -> None:
    """Refuse what is no number of threads; None is the default."""
    if count is not None and (not isinstance(count, int | np.integer) or count < 1):
        raise ValueError(f"threads must be a whole number of at least 1, got {count!r}")


def scratch(size: int, dtype) -> np.ndarray:
    """This thread's scratch memory for a dtype: `size` elements from the start of a cache line.

    It holds zeros or what an earlier kernel of the same dtype left: kernels compute on cells that nobody reads, to
    fill vectors, and arbitrary bits there may be denormal numbers, which are slow.
    """
    dtype = np.dtype(dtype)
    memories = _state.__dict__.setdefault("memories", {})
    memory = memories.get(dtype)
    if memory is None or memory.size < size:
        raw = np.zeros(size * dtype.itemsize + 64, np.uint8)
        start = -raw.ctypes.data % 64
        memory = memories[dtype] = raw[start : start + size * dtype.itemsize].view(dtype)
    return memory[:size]


class _Job:
    def __init__(self, task):
        self.task, self.condition = task, threading.Condition()
        self.active, self.closed, self.error = 0, False, None

    def help(self):
        with self.condition:
            if self.closed:
                return
            self.active += 1
        try:
            self.task()
        except BaseException as error:  # handed to the caller
            self.error = error
        with self.condition:
            self.active -= 1
            self.condition.notify()

    def finish(self):
        with self.condition:
            self.closed = True
            while self.active:
                self.condition.wait()
        if self.error is not None:
            raise self.error


def _meet_openmp():
    """Let torch's OpenMP library (GNU's) know that there are more threads than cores, by a team of this thread's own.

    Its threads spin for some milliseconds after each of torch's operations, on the core that a helper wants; when it
    manages more threads than there are cores it has them sleep after some microseconds (gomp_managed_threads in
    libgomp's wait.h). Nothing is done if the user says how OpenMP shall wait.
    """
    global _known_to_openmp
    if _known_to_openmp or "torch._C" not in sys.modules:
        return
    _known_to_openmp = True
    if not _KEPT_BY_USER.isdisjoint(os.environ) or not _MAPS.exists():
        return
    nothing = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p)
    for path in {line.split()[-1] for line in _MAPS.read_text().splitlines() if "libgomp" in line}:
        team = ctypes.CDLL(path).GOMP_parallel
        team.argtypes, team.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
        team(nothing, None, 2, 0)


_KEPT_BY_USER = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
_MAPS = Path("/proc/self/maps")


def _serve(queue):
    while True:
        job = queue.get()
        try:
            _meet_openmp()
        except (OSError, AttributeError):
            pass  # another OpenMP library: it spins on
        job.help()


def _start(count):
    global _avoided
    with _lock:
        _avoided = None if len(_helpers) < count else _avoided
        while len(_helpers) < count:
            thread = threading.Thread(target=_serve, args=(_queue,), daemon=True, name=f"fastdiff-{len(_helpers) + 1}")
            thread.start()
            _helpers.append(thread)


def _keep_away():
    """Keep helpers from the core that the caller is on.

    After a pause Linux tends to wake a helper right there, where one of the two then waits for a tick of the scheduler,
    some milliseconds, before it moves to another core.
    """
    global _avoided
    if _where is None or (here := _where()) == _avoided:
        return
    others = os.sched_getaffinity(0) - {here}
    if here < 0 or not others:
        return
    _avoided = here
    for helper in list(_helpers):
        try:
            os.sched_setaffinity(helper.native_id or 0, others)
        except OSError:
            pass  # not allowed, or the thread is gone


def _forget():
    """In a forked child no helper thread exists: begin again."""
    global _queue, _lock, _avoided
    _avoided = None
    _helpers.clear()
    _queue, _lock = SimpleQueue(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def together(task, threads: int) -> None:
    """Run `task()` in this thread and in up to `threads - 1` helpers at once; return when all have returned."""
    if threads <= 1:
        task()
        return
    _start(threads - 1)
    _keep_away()
    job = _Job(task)
    for _ in range(threads - 1):
        _queue.put(job)
    try:
        task()
    finally:
        job.finish()
