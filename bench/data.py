"""Training data at scale: writing, reading, memory, and two published generators, each beside what it is compared with.

`fastdiff bench data`. Correctness comes first: data sets are verified before their speed counts, and the solutions of
the published recipes are compared with independent ones. Writes data.json and data.md like `fastdiff bench targets`.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import h5py
import numpy as np

from fastdiff.bench.kernels import use_threads
from fastdiff.bench.targets import RESULTS, Options, Row, alternate, machine_line, markdown
from fastdiff.data import files
from fastdiff.data.job import Job


def _data():
    from fastdiff import data

    return data


@dataclass(frozen=True)
class Ready(Job):
    """A campaign whose samples are there at once: what is left is to check, to count and to write them."""

    def make(self, first, count, threads=None):
        drawn = [(self.recipe.parameters_of(self.seed, first + i), None) for i in range(count)]
        fields = _blocks.setdefault((count, self.full_shape), np.random.default_rng(0).random(
            (count, *self.full_shape[1:]), np.float32) if (count, self.full_shape) not in _blocks else None)
        return lambda: (self._records(first, drawn, np.zeros(count, np.uint32), fields, threads), fields)


_blocks: dict[Any, np.ndarray] = {}


def ready(options, samples, side=128, frames=101):
    """Gray–Scott in shape, noise in content."""
    from fastdiff.data import recipes

    recipe = replace(recipes.GRAY_SCOTT, frames=frames)
    side = options.side(side)
    return Ready(recipe, max(4, int(samples * options.scale)), 0, "cpu", (side, side))


def _campaign(job, path, threads, block=2):
    from fastdiff.data.layouts.own import Own
    from fastdiff.data.making import here
    from fastdiff.data.store import Store

    with Store(path, job, Own, True) as store:
        here(job, store, store.missing(block), threads, lambda count: None)
        store.finish()


def _plainly(job, path, block=2):
    """The same bytes by h5py alone, and on the disk."""
    job.make(0, block)
    fields = _blocks[block, job.full_shape]
    with h5py.File(path, "w") as file:
        data = file.create_dataset("fields", job.full_shape, "f4")
        for first in range(0, job.samples, block):
            data[first : first + block] = fields[: job.samples - first]
    files.flush(path)


def writing_row(options):
    """What the campaign writes in a second, checksums and statistics included, against h5py alone."""
    job = ready(options, 60)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        ours, plain = Path(name) / "ours.h5", Path(name) / "plain.h5"

        def campaign():
            ours.unlink(missing_ok=True)
            _campaign(job, ours, options.threads)

        def h5py_alone():
            plain.unlink(missing_ok=True)
            _plainly(job, plain)

        campaign()
        found = _data().verify(ours, solve=0)
        if not found.ok:
            raise AssertionError(found.problems)
        seconds = alternate(options.rounds, ours=campaign, h5py=h5py_alone)
    size = job.samples * job.sample_bytes / 1e9
    ratio = median(seconds["h5py"]) / median(seconds["ours"])
    return Row(f"writing {size:.2g} GB, flushed to the disk", f"{size / median(seconds['ours']):.2f} GB/s",
               ">= 70 % of h5py", ratio >= 0.7, ratio, f"h5py {size / median(seconds['h5py']):.2f} GB/s", seconds)


def overlap_row(options):
    """A campaign that computes more than it writes, against the computing alone."""
    from fastdiff.data import recipes
    from fastdiff.data.campaign import _block

    side = options.side(128)
    recipe = replace(recipes.GRAY_SCOTT, t_end=2000.0 * options.steps, frames=41)
    job = Job(recipe, 32, 0, "cpu", (side, side))
    block = _block(job, options.threads, 1)
    blocks = [(first, min(block, job.samples - first)) for first in range(0, job.samples, block)]
    job.make(0, 2, options.threads)()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "a.h5"

        def campaign():
            path.unlink(missing_ok=True)
            _campaign(job, path, options.threads, block)

        def alone():
            for first, count in blocks:
                job._march([job.recipe.draw(job.grid, 0, first + i) for i in range(count)], options.threads)()

        seconds = alternate(options.rounds, ours=campaign, computing=alone)
    ratio = median(seconds["computing"]) / median(seconds["ours"])
    return Row(f"computing beside writing, {job.samples} x {side}², 41 frames", f"{median(seconds['ours']):.2f} s",
               ">= 90 % of computing alone", ratio >= 0.9, ratio, f"computing {median(seconds['computing']):.2f} s",
               seconds)


def reading_row(options):
    """Windows of one frame in and one out, shuffled, through a DataLoader, against h5py in a plain loop."""
    import torch
    from torch.utils.data import DataLoader

    job, side = ready(options, 60), options.side(128)
    windows = max(64, int(8000 * options.scale))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "a.h5"
        _campaign(job, path, options.threads)
        data = _data().open(path, inputs=1, outputs=1)
        order = np.random.default_rng(0).permutation(len(data))[:windows].tolist()
        windows = len(order)
        loader = DataLoader(data, batch_size=32, sampler=order, num_workers=2, persistent_workers=True,
                            multiprocessing_context="fork")

        def through():
            return sum(len(batch["inputs"]) for batch in loader)

        def raw():
            with h5py.File(path, "r") as file:
                fields = file["fields"]
                for index in order:
                    sample, frame = divmod(index, 100)
                    torch.from_numpy(fields[sample, frame : frame + 2])

        item = data[order[0]]
        with h5py.File(path, "r") as file:
            sample, frame = divmod(order[0], 100)
            if not (item["outputs"].numpy() == file["fields"][sample, frame + 1]).all() or through() != windows:
                raise AssertionError("the windows are not those of the file")
        seconds = alternate(options.rounds, ours=through, h5py=raw)
    rate, plain = (windows / median(seconds[k]) for k in ("ours", "h5py"))
    return Row(f"windows of 2 x {side}² x 2 fields through DataLoader, 2 workers", f"{rate:,.0f} windows/s",
               ">= 5,000 windows/s or >= 60 % of h5py", rate >= 5000 or rate >= 0.6 * plain, rate / plain,
               f"h5py alone {plain:,.0f} windows/s", seconds)


MEMORY = """
import resource, sys
import fastdiff as fd
samples = int(sys.argv[2])
fd.data.generate("gray-scott", sys.argv[1], samples=samples, shape=(64, 64), frames=41, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
      fd.data.plan("gray-scott", samples=samples, shape=(64, 64), frames=41).memory)
"""


def memory_row(options):
    """Peak memory of a campaign of few and of many samples."""
    peaks = {}
    for samples in (100, max(101, int(1500 * options.scale))):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            run = subprocess.run([sys.executable, "-c", MEMORY, f"{name}/a.h5", str(samples)], capture_output=True,
                                 text=True, check=True)
            peaks[samples] = [int(n) for n in run.stdout.split()]
    few, many = peaks.values()
    return Row(f"peak memory of campaigns of {' and '.join(map(str, peaks))} samples",
               f"{few[0] / 1e9:.2f} and {many[0] / 1e9:.2f} GB", "<= 1.5 GB, and what the plan says",
               many[0] <= min(1.5e9, many[1]), None, f"the plan says {many[1] / 1e9:.2f} GB")


def rows(options, only=()):
    """All rows whose group was asked for, one after the other."""
    groups = {"writing": writing_row, "overlap": overlap_row, "reading": reading_row, "memory": memory_row}
    for name, make in groups.items():
        if not only or name in only:
            yield make(options)


@dataclass(frozen=True)
class Where(Options):
    """Options, and the folder of what is written."""

    folder: str | None = None


def main(args: list[str]) -> int:
    """Measure, print, write; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="fastdiff bench data", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="groups: writing, overlap, reading, memory (default: all)")
    parser.add_argument("--threads", type=int, help="default: all cores we may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--folder", help="where to write the data sets; default: the folder for temporary files")
    parser.add_argument("--out", type=Path, help="folder of data.json and data.md")
    given = parser.parse_args(args)
    size = {"rounds": 1, "scale": 1 / 16, "steps": 1 / 20} if given.tiny else {"rounds": given.rounds}
    options = Where(use_threads(given.threads), folder=given.folder, **size)
    out = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS)
    start, about, found = perf_counter(), machine_line(options), []
    print(about)
    for row in rows(options, given.only):
        found.append(row)
        ratio, met = f"{row.ratio:6.2f}" if row.ratio else "     -", "met   " if row.met else "MISSED"
        print(f"{met} {row.case:60} {row.ours:26} {ratio}  {row.target}  [{row.baseline}]", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "data.md").write_text(markdown(found, about).replace("# Speed goals", "# Training data"))
    (out / "data.json").write_text(json.dumps({"about": about, "rows": [asdict(r) for r in found]}, indent=1))
    print(f"{perf_counter() - start:.0f} s; written to {out}")
    return 0 if all(row.met for row in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
