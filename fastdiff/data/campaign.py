"""Campaigns: from a recipe to a data set, block by block, resumable at any moment.

Every sample is drawn from its own seed and marched with a time step that no other sample has a say in, so the numbers
do not depend on blocks, threads, processes, clusters or interruptions. How they reach the disk is told in store.py.
"""

import os
import shutil
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np

from fastdiff.data.job import Job
from fastdiff.data.layouts import layout_named
from fastdiff.data.making import here, in_processes, on_cluster
from fastdiff.data.recipes import Recipe, get
from fastdiff.data.store import METADATA, Store
from fastdiff.kernels._threads import default_threads

BLOCK_BYTES = 32 << 20  # aimed at: some seconds of work, and three blocks fit any memory
LARGEST_BLOCK = 4096
PROCESS_BYTES = 300 << 20  # of a Python with NumPy, Numba and HDF5
DIVERGED = ("refuse", "redraw")


@dataclass(frozen=True)
class Report:
    """What `generate` did: where the data set is, and how fast it was made.

    redone   samples of an earlier run that were damaged and were made again
    redrawn  samples that diverged and were drawn again, and how often
    deaths   worker processes that died; their samples were made again
    """

    path: Path
    samples: int
    bytes: int
    seconds: float
    cell_updates: int
    found: int
    redone: tuple[int, ...] = ()
    redrawn: tuple[tuple[int, int], ...] = ()
    deaths: int = 0

    @property
    def samples_per_second(self) -> float:
        """Samples made in this run, per second of it."""
        return (self.samples - self.found) / self.seconds

    @property
    def cell_updates_per_second(self) -> float:
        """Cells × time steps of this run per second of it, everything included."""
        return self.cell_updates / self.seconds


@dataclass(frozen=True)
class Plan:
    """What a campaign would be: its size and cost, before it is begun. `seconds` is extrapolated from a short trial."""

    recipe: str
    samples: int
    bytes: int
    free: int
    memory: int
    block: int
    blocks: int
    workers: int
    threads: int
    seconds: float

    def __str__(self):
        minutes = self.seconds / 60
        about = f"{minutes:.2g} minutes" if minutes < 90 else f"{minutes / 60:.3g} hours"
        fits = "" if self.bytes <= self.free else " (NOT ENOUGH)"
        return (f"{self.recipe}: {self.samples} samples, {self.bytes / 1e9:.3g} GB of {self.free / 1e9:.4g} GB free"
                f"{fits}, about {about}\n{self.blocks} blocks of {self.block} samples, "
                f"{self.workers} processes with {self.threads} threads in all, at most {self.memory / 1e9:.2g} GB of "
                f"memory")


def generate(recipe: str | Recipe | os.PathLike, path: str | os.PathLike, *, samples: int, shape=None, seed: int = 0,
             frames: int | None = None, workers: int | None = None, threads: int | None = None, cluster=None,
             device: str = "cpu", layout: str = "fastdiff", diverged: str = "refuse", block: int | None = None,
             overwrite: bool = False, progress: bool = True) -> Report:
    """Generate a data set from a recipe; started again after any interruption, it goes on.

    recipe     a name (`fd.data.recipes.known()`), a Recipe, or a YAML file of one
    path       the file, or with layout "the_well" the folder; until it is whole, it grows in `<path>.parts`
    samples    how many; sample i depends on the recipe, the shape, the seed and i alone
    shape      the grid, by default the recipe's; the domain stays the same
    frames     times kept, evenly from 0 to the end, by default the recipe's
    workers    processes that solve blocks side by side; default: this one alone, which uses `threads` threads
    cluster    address of a Dask scheduler ("tcp://…"), or a Client: blocks are solved there and written here
    device     "cpu", or "cuda": copies and writing then overlap with computing; equal to the CPU's to rounding
    layout     "fastdiff", "pdebench", "pdebench-tensor", "pdebench-seeds" or "the_well"; see fastdiff.data.layouts
    diverged   what becomes of a sample that turns NaN or infinite: "refuse" stops there, "redraw" draws it again
               (what a sample is filed under stays) and the Report lists it
    block      samples a block; by default about 32 MB of them
    overwrite  replace what is at `path`; an interrupted run of the same goes on

    Returns a Report. Memory stays below what `plan` says, for any number of samples. Raises ValueError for what cannot
    be made, FileExistsError for what is in the way, OSError for a disk that is too small or full, fd.Diverged.
    """
    job = _job(recipe, samples, shape, seed, frames, device, diverged)
    kind = layout_named(layout, len(job.recipe.fields), job.grid.ndim)
    threads_, workers = _count(threads, "threads", default_threads()), _workers(workers, device, cluster)
    block = _count(block, "block", _block(job, threads_, workers))
    start, redone, deaths = time.perf_counter(), [], 0
    with Store(Path(path), job, kind, overwrite) as store:
        found = store.found
        for repair in (False, True):
            redone += store.damaged() if repair else []
            if blocks := store.missing(block):
                with _bar(job, sum(count for _, count in blocks), progress) as done:
                    deaths += _make(job, store, blocks, workers, threads, cluster, done)
        with _status(f"finishing {path}", progress):
            store.finish()
    attempts = store.records["attempts"]
    redrawn = tuple((int(i), int(attempts[i])) for i in np.flatnonzero(attempts))
    return Report(Path(path), job.samples, _size(Path(path)), time.perf_counter() - start,
                  (job.samples - found + len(redone)) * job.updates, found, tuple(redone), redrawn, deaths)


def plan(recipe: str | Recipe | os.PathLike, path: str | os.PathLike = ".", *, samples: int, shape=None, seed: int = 0,
         frames: int | None = None, workers: int | None = None, threads: int | None = None, cluster=None,
         device: str = "cpu", layout: str = "fastdiff", diverged: str = "refuse", block: int | None = None) -> Plan:
    """What `generate` with these arguments would make, and what it would take; makes a few frames to find out."""
    job = _job(recipe, samples, shape, seed, frames, device, diverged)
    layout_named(layout, len(job.recipe.fields), job.grid.ndim)(replace(job, samples=1).about)
    threads, workers = _count(threads, "threads", default_threads()), _workers(workers, device, cluster)
    block = _count(block, "block", _block(job, threads, workers))
    folder = Path(path).absolute().parent
    return Plan(job.recipe.name, job.samples, job.samples * job.sample_bytes + METADATA,
                shutil.disk_usage(folder if folder.is_dir() else ".").free, _memory(job, block, workers), block,
                ceil(job.samples / block), workers, threads, _seconds(job, threads))


def _memory(job, block, workers) -> int:
    """Bytes at most: in one process, three blocks (solved, waiting, written), in several, one each."""
    state = block * job.sample_bytes // job.recipe.frames
    one = block * job.sample_bytes * (2 if job.recipe.rough else 1) + 4 * state
    records = 200 * job.samples
    if workers > 1:
        return (workers + 1) * PROCESS_BYTES + workers * one + records
    return PROCESS_BYTES + 3 * one + records


def _seconds(job, threads) -> float:
    """Seconds of the whole, from its first frames: what one interval takes, and what each more takes."""
    last, spent = job.recipe.frames - 1, {}
    for intervals in (1, 1, min(5, last)):  # the first time, things are compiled
        trial = replace(job.recipe, frames=intervals + 1, t_end=float(job.times[intervals]))
        start = time.perf_counter()
        replace(job, samples=threads, recipe=trial).make(0, threads, threads)()
        spent[intervals] = time.perf_counter() - start
    one, few = spent[1], spent[min(5, last)]
    each = max(0.0, few - one) / max(1, min(5, last) - 1)
    return (one + each * (last - 1)) * job.samples / threads


# -- checks ----------------------------------------------------------------------------------------------------------


def _job(recipe, samples, shape, seed, frames, device, diverged="refuse") -> Job:
    recipe = get(recipe, **({} if frames is None else {"frames": frames}))
    if diverged not in DIVERGED:
        raise ValueError(f"unknown choice {diverged!r} for diverged; known: {', '.join(DIVERGED)}")
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
    return Job(recipe, samples, int(seed), device, recipe.grid(shape).shape, diverged)


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


def _workers(workers, device, cluster) -> int:
    workers = _count(workers, "workers", 1)
    if workers > 1 and device == "cuda":
        raise ValueError('workers are processes on the CPU: with device="cuda" leave workers out')
    if workers > 1 and cluster is not None:
        raise ValueError("give workers or a cluster, not both: the cluster has workers of its own")
    if cluster is not None and device == "cuda":
        raise ValueError('a cluster solves on the CPU: with device="cuda" leave cluster out')
    return workers


def _block(job, threads, workers) -> int:
    """Samples a block: about BLOCK_BYTES, whole turns of the threads, and a few blocks for every worker."""
    size = max(1, BLOCK_BYTES // job.sample_bytes)
    size = min(size, LARGEST_BLOCK, max(threads, ceil(job.samples / (4 * workers))))
    if size < threads:  # few and large samples: still one for every thread, if eight times the memory is enough
        size = min(threads, max(1, 8 * BLOCK_BYTES // job.sample_bytes))
    return min(job.samples, size // threads * threads or size)


# -- making blocks ----------------------------------------------------------------------------------------------------


def _make(job, store, blocks, workers, threads, cluster, done) -> int:
    """Make all blocks that are missing; returns how many worker processes died."""
    if cluster is not None:
        on_cluster(job, store, blocks, cluster, threads, done)
        return 0
    threads = threads or default_threads()
    if workers == 1 or len(blocks) == 1:
        here(job, store, blocks, threads, done)
        return 0
    here(job, store, blocks[:1], threads, done)  # compiles once, for all
    return in_processes(job, store, blocks[1:], workers, threads, done)


def _size(path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


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


__all__ = ["BLOCK_BYTES", "Plan", "Report", "generate", "plan"]
