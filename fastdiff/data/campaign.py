"""Campaigns: from a recipe to a file of samples, block by block, resumable at any moment.

Every sample is drawn from its own seed and marched with a time step that no other sample has a say in, so the numbers
do not depend on blocks, threads, processes or interruptions. Finished blocks lie in `<path>.parts`; see files.py.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import ceil, prod
from multiprocessing import get_context, parent_process
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

import numpy as np

import fastdiff as fd
from fastdiff.data import files
from fastdiff.data.recipes import Recipe, get
from fastdiff.kernels._threads import default_threads, set_threads
from fastdiff.steppers.euler import steps_between

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LAYOUTS = ("fastdiff",)
BLOCK_BYTES = 32 << 20  # aimed at: some seconds of work, and three blocks fit any memory
LARGEST_BLOCK = 4096


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says what is kept and how to go on."""


@dataclass(frozen=True)
class Report:
    """What `generate` did: where the data set is, and how fast it was made."""

    path: Path
    samples: int
    bytes: int
    seconds: float
    cell_updates: int
    found: int
    redone: int

    @property
    def samples_per_second(self) -> float:
        """Samples made in this run, per second of it."""
        return (self.samples - self.found) / self.seconds

    @property
    def cell_updates_per_second(self) -> float:
        """Cells × time steps of this run per second of it, everything included."""
        return self.cell_updates / self.seconds


@dataclass(frozen=True)
class Job:
    """A recipe made definite: everything that decides what a data set holds, and where it is computed."""

    recipe: Recipe
    samples: int
    seed: int
    device: str
    shape: tuple[int, ...]

    @cached_property
    def grid(self) -> fd.Grid:
        """The grid of every sample."""
        return self.recipe.grid(self.shape)

    @cached_property
    def times(self) -> np.ndarray:
        """Times of the frames."""
        return np.linspace(0.0, self.recipe.t_end, self.recipe.frames)

    @cached_property
    def dt(self) -> float | None:
        """Largest time step."""
        return self.recipe.time_step(self.grid)

    @property
    def full_shape(self) -> tuple[int, ...]:
        """Shape of the data set's fields."""
        return (self.samples, self.recipe.frames, len(self.recipe.fields), *self.grid.shape)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return prod(self.full_shape[1:]) * np.dtype(self.recipe.dtype).itemsize

    @cached_property
    def updates(self) -> int:
        """Cell updates of one sample; 0 where the method takes no steps."""
        if self.dt is None:
            return 0
        return self.grid.size * sum(steps_between(a, b, self.dt) for a, b in zip(self.times, self.times[1:]))

    def manifest(self) -> dict[str, Any]:
        """What tells two data sets apart."""
        return json.loads(json.dumps({
            "recipe": self.recipe.describe(), "samples": self.samples, "shape": self.shape, "seed": self.seed,
            "device": self.device, "version": fd.__version__,
        }))

    def attributes(self) -> dict[str, Any]:
        """What the data set says about itself, as HDF5 attributes."""
        recipe = self.recipe
        equation = recipe.equation if isinstance(recipe.equation, str) else recipe.equation.__qualname__
        return {
            "layout": files.LAYOUT, "recipe": recipe.name, "summary": recipe.summary, "equation": equation,
            "method": recipe.method, "dt": np.nan if self.dt is None else self.dt, "seed": self.seed,
            "samples": self.samples, "version": fd.__version__, "device": self.device,
            "grid_shape": self.grid.shape, "grid_extent": self.grid.extent, "grid_spacing": self.grid.spacing,
            "grid_periodic": self.grid.periodic, "grid_centering": self.grid.centering,
            "labels": json.dumps(recipe.labels),
        }

    def axes(self) -> dict[str, np.ndarray]:
        """Times and coordinates."""
        return {"t": self.times, **{name: self.grid.points(k) for k, name in enumerate(self.grid.names)}}

    def solve(self, first: int, count: int, threads: int | None = None) -> tuple[dict[str, list], Callable]:
        """Parameters of some samples, and a function that waits for their fields (count, frames, components, *grid)."""
        drawn = [self.recipe.draw(self.grid, self.seed, first + i) for i in range(count)]
        parameters = {name: [p[name] for p, _ in drawn] for name in drawn[0][0]}
        u0 = np.stack([u for _, u in drawn])
        if u0.shape[1:] != self.full_shape[2:]:
            raise ValueError(f"the initial condition of recipe {self.recipe.name!r} has shape {u0.shape[1:]}, "
                             f"expected {self.full_shape[2:]} (components, *grid)")
        march = self._on_gpu if self.device == "cuda" else self._on_cpu
        try:
            return parameters, march(parameters, u0, threads)
        except FloatingPointError:
            for i in range(count):  # one by one, to know which
                alone = {name: values[i : i + 1] for name, values in parameters.items()}
                try:
                    march(alone, u0[i : i + 1], threads)
                except FloatingPointError as error:
                    drawn_ = ", ".join(f"{name} = {value[0]}" for name, value in alone.items())
                    what = str(error).replace(" of sample 0", "")
                    raise fd.Diverged(f"sample {first + i} of recipe {self.recipe.name!r} ({drawn_}), seed "
                                      f"{self.seed}: {what}") from None
            raise

    def _run(self, parameters, u0, **how):
        arrays = {name: np.array(v) for name, v in parameters.items() if name not in self.recipe.labels}
        step = {"dt": self.dt} if self.recipe.method == "euler" else {}
        return fd.solve(self.recipe.build(arrays), u0, self.grid, boundary=self.recipe.sides(self.grid),
                        save_at=self.times, method=self.recipe.method, **step, **how).u

    def _on_cpu(self, parameters, u0, threads):
        fields = self._run(parameters, u0, threads=threads)
        return lambda: fields

    def _on_gpu(self, parameters, u0, threads):
        """March on the GPU; the copy to pinned memory runs beside the next block, on a stream of its own."""
        import torch

        fields = self._run(parameters, torch.from_numpy(u0).pin_memory().to("cuda", non_blocking=True), device="cuda")
        host = torch.empty(fields.shape, dtype=fields.dtype, pin_memory=True)
        stream, copied = _copy_stream(), torch.cuda.Event()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            host.copy_(fields, non_blocking=True)
            copied.record()
        fields.record_stream(stream)

        def wait():
            copied.synchronize()
            return host.numpy()

        return wait


_streams: list = []


def _copy_stream():
    import torch

    if not _streams:
        _streams.append(torch.cuda.Stream())
    return _streams[0]


def generate(recipe: str | Recipe, path: str | os.PathLike, *, samples: int, shape=None, seed: int = 0,
             frames: int | None = None, workers: int | None = None, threads: int | None = None, device: str = "cpu",
             layout: str = "fastdiff", block: int | None = None, overwrite: bool = False,
             progress: bool = True) -> Report:
    """Generate a data set from a recipe into one HDF5 file; started again after any interruption, it goes on.

    recipe     a name (`fd.data.recipes.known()`) or a Recipe
    path       the file; finished blocks lie in the folder `<path>.parts` until they are merged into it
    samples    how many; sample i depends on the recipe, the shape, the seed and i alone
    shape      the grid, by default the recipe's; the domain stays the same
    frames     times kept, evenly from 0 to the end, by default the recipe's
    workers    processes that solve blocks side by side; default: this one alone, which uses `threads` threads
    device     "cpu", or "cuda": copies and writing then overlap with computing; equal to the CPU's to rounding
    block      samples a block; by default about 32 MB of them
    overwrite  replace what is at `path`; an interrupted run of the same goes on

    Returns a Report with path, samples, bytes, seconds, samples_per_second, cell_updates_per_second.
    """
    job = _job(recipe, samples, shape, seed, frames, device, layout)
    path = Path(path)
    threads = _count(threads, "threads", default_threads())
    workers = _workers(workers, device)
    start = time.perf_counter()
    with _Parts(path, job, overwrite, _count(block, "block", _block(job, threads, workers))) as parts:
        found, redone = job.samples - sum(count for _, count in parts.missing()), 0
        while True:
            _make(job, parts, workers, threads, progress)
            try:
                with _status(f"merging the blocks into {path}", progress):
                    parts.merge(job)
                break
            except files.DamagedBlock as damage:
                redone += 1
                parts.discard(damage.args[0], redone)
    seconds = time.perf_counter() - start
    return Report(path, job.samples, path.stat().st_size, seconds, (job.samples - found) * job.updates, found, redone)


# -- checks ----------------------------------------------------------------------------------------------------------


def _job(recipe, samples, shape, seed, frames, device, layout) -> Job:
    recipe = get(recipe, **({} if frames is None else {"frames": frames}))
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; known: cpu, cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError('device="cuda" was asked for, but torch finds no GPU; leave device out to use the CPU')
    if recipe.method == "auto":
        raise ValueError(f'recipe {recipe.name!r} has the method "auto": a recipe names its method, such as "euler"')
    if _whole(recipe.frames, "frames") < 2:
        raise ValueError(f"frames must be at least 2, the start and the end, got {recipe.frames}")
    if _whole(seed, "seed") < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    samples = _count(samples, "samples", 0)
    return Job(recipe, samples, int(seed), device, recipe.grid(shape).shape)


def _whole(value, what) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{what} must be a whole number, got {value!r}")
    return int(value)


def _count(value, what, default) -> int:
    if value is None and default:
        return default
    if _whole(value, what) < 1:
        raise ValueError(f"{what} must be at least 1, got {value}")
    return int(value)


def _workers(workers, device) -> int:
    workers = _count(workers, "workers", 1)
    if workers > 1 and device == "cuda":
        raise ValueError('workers are processes on the CPU: with device="cuda" leave workers out')
    return workers


def _block(job, threads, workers) -> int:
    """Samples a block: about BLOCK_BYTES, whole turns of the threads, and a few blocks for every worker."""
    size = max(1, BLOCK_BYTES // job.sample_bytes)
    size = min(size, LARGEST_BLOCK, max(threads, ceil(job.samples / (4 * workers))))
    if size < threads:  # few and large samples: still one for every thread, if eight times the memory is enough
        size = min(threads, max(1, 8 * BLOCK_BYTES // job.sample_bytes))
    return min(job.samples, size // threads * threads or size)


# -- the folder of finished blocks ------------------------------------------------------------------------------------


class _Parts:
    """The folder `<path>.parts`: a manifest and finished blocks. Locked while it is in use."""

    def __init__(self, path: Path, job: Job, overwrite: bool, block: int):
        self.path, self.folder, self.samples, self.block = path, Path(f"{path}.parts"), job.samples, block
        self.manifest, self.needed = job.manifest(), job.samples * job.sample_bytes
        self.overwrite, self.lock = overwrite, None

    def __enter__(self):
        self._check_place()
        fresh = self._make_folder()
        try:
            self.lock = self._locked()
            if self.overwrite and not self._is_ours():
                self._clear("*.block", "manifest.json")
            self._take_up()
            self._check_room()
        except BaseException:
            self._leave(fresh)
            raise
        return self

    def __exit__(self, kind, error, trace):
        self._clear("*.tmp")
        done = len(self._finished())
        self._leave(kind is None or done == 0)
        if kind is None:
            return
        kept = f"{done} of {len(self.blocks())} blocks are kept in {self.folder}: run the same again to go on"
        if issubclass(kind, KeyboardInterrupt):
            raise Interrupted(f"interrupted; {kept}" if done else "interrupted; no block was done yet") from None
        if issubclass(kind, OSError):
            why = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
            refused = OSError(f"could not write {self.path} ({why}); " + (kept if done else "nothing is left behind"))
            refused.errno = error.errno
            raise refused from error

    def _leave(self, remove):
        if remove:
            self._clear("*.block", "*.tmp", "manifest.json", "lock")
            with suppress(OSError):
                self.folder.rmdir()
        if self.lock is not None:
            os.close(self.lock)

    def _check_place(self):
        folder = self.path.absolute().parent
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path} is a folder: give the name of a file, such as {self.path}/data.h5")
        if not folder.is_dir():
            raise FileNotFoundError(f"the folder {folder} does not exist: make it first")
        if self.path.exists() and not self.overwrite:
            raise FileExistsError(self._existing())

    def _existing(self):
        try:
            with files.open_file(self.path) as file:
                there = json.loads(file["manifest"][()])
        except (OSError, ValueError, KeyError):
            return f"{self.path} exists and is no data set of fastdiff: give another name, or overwrite it"
        differences = _differences(there, self.manifest)
        if not differences and self.folder.is_dir():  # killed after the file was whole, before the blocks were gone
            with suppress(OSError):
                self.lock = self._locked()
                self._leave(True)
        what = f"is another data set ({differences})" if differences else "is already complete"
        return f"{self.path} exists and {what}: use it, give another name, or overwrite it"

    def _make_folder(self) -> bool:
        try:
            self.folder.mkdir()
        except FileExistsError:
            if not self.folder.is_dir():
                raise FileExistsError(f"{self.folder} is in the way: move it, or give another name") from None
            return False
        except OSError as error:
            raise type(error)(f"cannot write in {self.path.absolute().parent} ({error.strerror}): choose another "
                              f"folder") from error
        return True

    def _locked(self):
        handle = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR)
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise FileExistsError(f"another process is generating {self.path}: wait for it, or give another "
                                      f"name") from None
            except OSError:  # a file system without locks
                pass
        return handle

    def _clear(self, *patterns):
        """Remove files of ours; others are left alone."""
        for pattern in patterns:
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)

    def _take_up(self):
        """Go on with the run that is here, or begin one."""
        self._clear("*.tmp")
        file = self.folder / "manifest.json"
        if not file.exists():
            self._clear("*.block")
            with files.written_whole(file) as temporary:
                temporary.write_text(json.dumps({**self.manifest, "block": self.block}, indent=1))
            return
        try:
            there = json.loads(file.read_text())
            self.block = there.pop("block")
        except (ValueError, KeyError):
            raise ValueError(f"{file} is damaged: delete {self.folder}, or overwrite") from None
        differences = _differences(there, self.manifest)
        if differences:
            raise FileExistsError(f"{self.folder} holds an unfinished run of something else ({differences}): give "
                                  f"another name, delete it, or overwrite")

    def _is_ours(self) -> bool:
        """Whether the blocks here are those of an interrupted run of the same."""
        try:
            there = json.loads((self.folder / "manifest.json").read_text())
        except (OSError, ValueError):
            return False
        there.pop("block", None)
        return not _differences(there, self.manifest)

    def _check_room(self):
        missing = sum(count for _, count in self.missing()) / self.samples * self.needed
        needed, free = missing + self.needed, shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"{self.path} needs {needed / 1e9:.2f} GB while it is made (blocks, then the file), but only "
                          f"{free / 1e9:.2f} GB are free: make room, or choose another disk")

    def name(self, first: int) -> Path:
        """The file of the block that begins with a sample."""
        return self.folder / f"{first:09d}.block"

    def blocks(self) -> list[tuple[int, int]]:
        """First sample and number of samples of every block."""
        return [(first, min(self.block, self.samples - first)) for first in range(0, self.samples, self.block)]

    def missing(self) -> list[tuple[int, int]]:
        """The blocks that are not finished."""
        return [(first, count) for first, count in self.blocks() if not _sound(self.name(first), count)]

    def _finished(self):
        return list(self.folder.glob("*.block"))

    def merge(self, job: Job):
        """Merge all blocks into the file."""
        blocks = [self.name(first) for first, _ in self.blocks()]
        files.merge(blocks, self.path, job.full_shape, job.recipe.dtype, job.recipe.fields, job.axes(),
                    job.attributes(), self.manifest)

    def discard(self, block: Path, times: int):
        """Remove a damaged block, so that it is made again; more often than there are blocks, the disk is at fault."""
        if times > len(self.blocks()):
            raise OSError(f"{block} is damaged again and again: check the disk")
        block.unlink(missing_ok=True)


def _sound(block: Path, count: int) -> bool:
    try:
        return files.read_header(block)[0]["shape"][0] == count
    except (OSError, files.DamagedBlock):
        return False


def _differences(there, here, prefix="") -> str:
    """What differs between two manifests, in words."""
    found = []
    for key in {**there, **here}:
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [_differences(a, b, f"{prefix}{key}.")] if a != b else []
        elif a != b:
            found.append(f"{prefix}{key} {_short(a)} there, {_short(b)} here")
    return "; ".join(found[:3])


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- making blocks ----------------------------------------------------------------------------------------------------


def _make(job, parts, workers, threads, progress):
    """Make all blocks that are missing."""
    blocks = parts.missing()
    if not blocks:
        return
    with _bar(job, sum(count for _, count in blocks), progress) as done:
        if workers > 1 and len(blocks) > 1:
            _here(job, parts, blocks[:1], threads, done)  # compiles once, for all
            _in_processes(job, parts, blocks[1:], min(workers, len(blocks) - 1), threads, done)
        else:
            _here(job, parts, blocks, threads, done)


def _here(job, parts, blocks: Iterable[tuple[int, int]], threads, done):
    with _Writer(done) as writer:
        for first, count in blocks:
            parameters, wait = job.solve(first, count, threads)
            writer.put((parts.name(first), wait, parameters, count))


class _Writer:
    """A thread that writes blocks while the next one is computed. It holds one block and one more waits."""

    def __init__(self, done):
        self.done, self.queue, self.error = done, Queue(1), None
        self.thread = threading.Thread(target=self._work, daemon=True, name="fastdiff-writer")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._hand_over(None)  # what is computed is written, also on the way out
        self.thread.join()
        if kind is None and self.error is not None:
            raise self.error

    def put(self, block):
        """Hand a block over; waits while another one waits."""
        self._hand_over(block)
        if self.error is not None:
            raise self.error

    def _hand_over(self, item):
        while self.error is None:
            with suppress(Full):
                return self.queue.put(item, timeout=0.1)

    def _work(self):
        try:
            while (item := self.queue.get()) is not None:
                path, wait, parameters, count = item
                files.write_block(path, wait(), parameters)
                self.done(count)
        except BaseException as error:  # raised again by `put`
            self.error = error
            with suppress(Empty):
                self.queue.get_nowait()


def _in_processes(job, parts, blocks, workers, threads, done):
    share, todo, running = max(1, threads // workers), iter(blocks), {}
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (share,)) as pool:

        def begin(count):
            for first, n in islice(todo, count):
                running[pool.submit(_make_one, job, parts.name(first), first, n, share)] = n

        try:
            with _ctrl_c_is_ours():
                begin(workers)
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    done(running.pop(future))
                    begin(1)
        except BrokenProcessPool:
            raise RuntimeError('a worker process died (out of memory? a script needs `if __name__ == "__main__":`); '
                               'finished blocks are kept: run the same again to go on') from None


@contextmanager
def _ctrl_c_is_ours():
    """Processes started in here never see Ctrl-C, from their first moment on: this one decides."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(threads):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    set_threads(threads)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _make_one(job, path, first, count, threads):
    parameters, wait = job.solve(first, count, threads)
    files.write_block(path, wait(), parameters)


def _status(text, shown):
    if not shown:
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


@contextmanager
def _bar(job, samples, shown):
    """A progress bar over samples with throughput and time left; gives `done(count)`."""
    if not shown:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(16), MofNCompleteColumn(),
               TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("left"))
    start, before, made = time.perf_counter(), 0, 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(job.recipe.name, total=samples, rate="")

        def done(count):
            nonlocal start, before, made
            made, now = made + count, time.perf_counter()
            progress.update(task, advance=count, rate=_rate(job, made - before, now - start))
            if before == 0:  # the first block may have waited for the compiler: from here on, without it
                start, before = now, made

        yield done


def _rate(job, samples, seconds):
    speed = f"{samples * job.updates / seconds / 1e6:,.0f} M updates/s" if job.updates else (
        f"{samples * job.sample_bytes / seconds / 1e6:,.0f} MB/s")
    return f"{samples / seconds:.3g} samples/s, {speed}"


__all__ = ["BLOCK_BYTES", "LAYOUTS", "Interrupted", "Job", "Report", "generate"]
