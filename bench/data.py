"""Training data at scale: writing, reading, memory, and two published generators, each beside what it is compared with.

`fastdiff bench data`. Correctness comes first: data sets are verified before their speed counts, and the solutions of
the published recipes are compared with independent ones. Writes data.json and data.md like `fastdiff bench targets`.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
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


def _h5(path) -> Any:
    return h5py.File(path, "r")


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
    """A campaign that computes more than it writes: how long the computing waits for the disk."""
    from fastdiff.data import making, recipes
    from fastdiff.data.campaign import _block

    side = options.side(128)
    recipe = replace(recipes.GRAY_SCOTT, t_end=20000.0 * options.steps, frames=41)
    job = Job(recipe, 32, 0, "cpu", (side, side))
    block = _block(job, options.threads, 1)
    blocks = [(first, min(block, job.samples - first)) for first in range(0, job.samples, block)]
    job.make(0, 2, options.threads)()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        path = Path(name) / "a.h5"

        put, waited = making.Behind.put, []

        def patient(self, item):
            start = perf_counter()
            put(self, item)
            waited[-1] += perf_counter() - start

        def campaign():
            path.unlink(missing_ok=True)
            waited.append(0.0)
            making.Behind.put = patient
            try:
                _campaign(job, path, options.threads, block)
            finally:
                making.Behind.put = put

        def alone():
            for first, count in blocks:
                job._march([job.recipe.draw(job.grid, 0, first + i) for i in range(count)], options.threads)()

        seconds = alternate(options.rounds, ours=campaign, computing=alone)
    ratio, wait = median(seconds["computing"]) / median(seconds["ours"]), median(waited) / median(seconds["ours"])
    return Row(f"computing beside writing, {job.samples} x {side}², 41 frames",
               f"{median(seconds['ours']):.2f} s, {wait:.1%} of it waiting", "waits <= 2 % for the disk", wait <= 0.02,
               ratio, f"computing alone {median(seconds['computing']):.2f} s", seconds)


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
            with _h5(path) as file:
                fields = file["fields"]
                for index in order:
                    sample, frame = divmod(index, 100)
                    torch.from_numpy(fields[sample, frame : frame + 2])

        item = data[order[0]]
        with _h5(path) as file:
            sample, frame = divmod(order[0], 100)
            if not (item["outputs"].numpy() == file["fields"][sample, frame + 1]).all() or through() != windows:
                raise AssertionError("the windows are not those of the file")
        seconds = alternate(options.rounds, ours=through, h5py=raw)
    rate, plain = (windows / median(seconds[k]) for k in ("ours", "h5py"))
    return Row(f"windows of 2 x {side}² x 2 fields through DataLoader, 2 workers", f"{rate:,.0f} windows/s",
               ">= 5,000 windows/s or >= 60 % of h5py", rate >= 5000 or rate >= 0.6 * plain, rate / plain,
               f"h5py alone {plain:,.0f} windows/s", seconds)


MEMORY = """
import sys
import fastdiff as fd
samples = int(sys.argv[2])
fd.data.generate("gray-scott", sys.argv[1], samples=samples, shape=(64, 64), frames=41, progress=False)
status = open("/proc/self/status").read()  # getrusage would tell the peak of the process that started this one, too
print(int(status.split("VmHWM:")[1].split()[0]) * 1024,
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
               bool(many[0] <= min(1.5e9, many[1])), None, f"the plan says {many[1] / 1e9:.2f} GB")


# -- PDEBench's diffusion-reaction ------------------------------------------------------------------------------------


def _their_slope(n):
    """u - u³ - k - v and u - v with the five-point stencil as a sparse matrix, as PDEBench has it."""
    from scipy.sparse import diags_array, eye_array, kron

    dx = 2 / n
    ends = np.full(n, -2.0)
    ends[[0, -1]] = -1
    line = diags_array([np.ones(n - 1), ends, np.ones(n - 1)], offsets=[-1, 0, 1])
    laplace = ((kron(line, eye_array(n)) + kron(eye_array(n), line)) / dx**2).tocsr()

    def slope(t, y):
        u, v = y[: n * n], y[n * n :]
        return np.concatenate([1e-3 * (laplace @ u) + u - u**3 - 5e-3 - v, 5e-3 * (laplace @ v) + u - v])

    return slope


def _their_sample(task):
    """One sample, as PDEBench makes it: RK45 at its default tolerance, and a group of an HDF5 file."""
    from scipy.integrate import solve_ivp

    seed, n, path, frames, u0, how = task
    u0 = np.random.default_rng(seed).standard_normal(2 * n * n) if u0 is None else u0
    y = solve_ivp(_their_slope(n), (0, 5.0), u0, t_eval=np.linspace(0, 5, frames), **how).y
    data = np.moveaxis(y.reshape(2, n, n, -1), (3, 0), (0, 3))
    if path is None:
        return data
    with h5py.File(f"{path}/{seed}.h5", "w") as file:
        file.create_dataset("0000/data", data=data.astype(np.float32), compression="lzf")


def _relative(a, b):
    return float(np.sqrt(((a - b) ** 2).sum() / (b**2).sum()))


def diff_react_row(options):
    """Samples a second of the whole: ours, and solve_ivp with a sparse matrix in two processes."""
    from fastdiff.data import campaign

    samples, n = max(4, int(64 * options.scale)), options.side(128)
    job = campaign._job("pdebench-diff-react", samples, (n, n), 0, None, "cpu")
    _, u0 = job.recipe.draw(job.grid, 0, 0)
    solve = lambda **how: np.moveaxis(_their_sample((0, n, None, 101, u0.ravel().astype(float), how)), -1, 1)
    exact, theirs = solve(method="DOP853", rtol=1e-8, atol=1e-8), solve()
    errors = _relative(job.march_one(0), exact), _relative(theirs, exact)
    if not errors[0] <= errors[1]:
        raise AssertionError(f"ours is off by {errors[0]:.1e}, solve_ivp by {errors[1]:.1e}")
    few = 2 if options.scale < 1 else 6
    with tempfile.TemporaryDirectory(dir=options.folder) as name, multiprocessing.get_context("spawn").Pool(2) as pool:

        def ours():
            _data().generate("pdebench-diff-react", f"{name}/ours.h5", samples=samples, shape=(n, n),
                             layout="pdebench", threads=options.threads, overwrite=True, progress=False)

        def them():
            pool.map(_their_sample, [(seed, n, name, 101, None, {}) for seed in range(few)], chunksize=1)

        ours()
        seconds = alternate(max(1, options.rounds // 2), ours=ours, solve_ivp=them)
    rate, plain = samples / median(seconds["ours"]), few / median(seconds["solve_ivp"])
    return Row(f"PDEBench diffusion-reaction, {n}², 101 frames, {samples} samples, files included",
               f"{rate:.1f} samples/s, error {errors[0]:.0e}", ">= 50x solve_ivp in 2 processes, error not larger",
               rate >= 50 * plain, rate / plain, f"{plain:.2f} samples/s, error {errors[1]:.0e}", seconds)


# -- The Well's Gray-Scott --------------------------------------------------------------------------------------------


def etdrk4(u, F, k, times, dt=1.0):
    """ETDRK4 with the 2/3 rule in plain NumPy, float64, for a batch (B, 2, n, n): what The Well's generator does."""
    from scipy.fft import irfft2, rfft2

    n = u.shape[-1]
    kx, ky = np.fft.fftfreq(n, 1 / n) * np.pi, np.arange(n // 2 + 1) * np.pi
    z = -dt * np.array([2e-5, 1e-5]).reshape(2, 1, 1) * (kx[:, None] ** 2 + ky**2)
    r = z[..., None] + np.exp(1j * np.pi * (np.arange(32) + 0.5) / 32)
    mean = lambda f: dt * f.mean(-1).real
    Q, e = mean((np.exp(r / 2) - 1) / r), np.exp(r)
    f1 = mean((-4 - r + e * (4 - 3 * r + r * r)) / r**3)
    f2 = mean((2 + r + e * (r - 2)) / r**3)
    f3 = mean((-4 - 3 * r - r * r + e * (4 - r)) / r**3)
    half, whole = np.exp(z / 2), np.exp(z)
    keep = (np.abs(kx)[:, None] <= 2 / 3 * np.pi * n / 2) & (ky <= 2 / 3 * np.pi * n / 2)
    F, k = (np.reshape(p, (-1, 1, 1)) for p in (F, k))

    def N(w):
        u, v = np.moveaxis(irfft2(w, s=(n, n), workers=2), 1, 0)
        eaten = u * v * v
        return rfft2(np.stack([F * (1 - u) - eaten, eaten - (F + k) * v], 1), workers=2) * keep

    w, t, frames = rfft2(u.astype(float)), 0.0, []
    for time in times:
        for _ in range(round((time - t) / dt)):
            n0 = N(w)
            a = half * w + Q * n0
            n1 = N(a)
            n2 = N(half * w + Q * n1)
            n3 = N(half * a + Q * (2 * n2 - n0))
            w = whole * w + f1 * n0 + 2 * f2 * (n1 + n2) + f3 * n3
        t = time
        frames.append(irfft2(w, s=(n, n)))
    return np.stack(frames, 1)


def _patterns(job):
    """A sample of each pattern and kind of start: index, parameters and field."""
    found: dict[Any, Any] = {}
    for i in range(400):
        parameters, u0 = job.recipe.draw(job.grid, 0, i)
        found.setdefault((parameters["pattern"], bool(u0.min() == 0)), (i, parameters, u0))
    return [found[key] for key in sorted(found)]


def gray_scott_row(options):
    """Core-seconds of a whole trajectory of The Well's Gray-Scott, files included; checked at t = 200 first."""
    from fastdiff.data import campaign

    t_end = 10000.0 if options.scale == 1 else 200.0
    short = campaign._job("well-gray-scott", 1, None, 0, None, "cpu")
    short = replace(short, recipe=replace(short.recipe, t_end=200.0, frames=21))
    drawn = _patterns(short)
    F, k = (np.array([p[name] for _, p, _ in drawn]) for name in ("F", "k"))
    exact = etdrk4(np.stack([u for *_, u in drawn]), F, k, [200.0])[:, 0]
    errors = [_relative(short.march_one(i)[-1], u) for (i, *_), u in zip(drawn, exact)]
    if not max(errors) <= 1e-2:
        raise AssertionError(f"the patterns are off by {errors} at t = 200")
    recipe = replace(_data().recipes.get("well-gray-scott"), t_end=t_end, frames=round(t_end / 10) + 1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        start, used = perf_counter(), process_time()
        _data().generate(recipe, f"{name}/well", samples=2, layout="the_well", threads=options.threads, progress=False)
        spent, used = perf_counter() - start, process_time() - used
    each = max(used, spent * options.threads) / 2
    return Row(f"The Well's Gray-Scott, 128², {recipe.frames} frames, files included",
               f"{each:.1f} core-s a trajectory, error at t = 200 <= {max(errors):.0e}",
               "<= 20 core-s, error <= 1e-2 for all patterns", each <= 20, 3960 / each if t_end == 1e4 else None,
               "published 3960 core-s", {"ours": [spent]})


def end_row(options):
    """Mean and standard deviation at the end of the longest run, against ETDRK4 with half the step."""
    from fastdiff.data import campaign

    t_end = 10000.0 if options.scale == 1 else 200.0
    job = campaign._job("well-gray-scott", 1, None, 0, None, "cpu")
    job = replace(job, recipe=replace(job.recipe, t_end=t_end, frames=3))
    drawn = [d for d in _patterns(job) if d[2].min() == 0]
    F, k = (np.array([p[name] for _, p, _ in drawn]) for name in ("F", "k"))
    exact = etdrk4(np.stack([u for *_, u in drawn]), F, k, [t_end])[:, 0]
    ours = np.stack([job.march_one(i)[-1] for i, *_ in drawn]).astype(float)
    over = (2, 3)
    worst = {p["pattern"]: max(np.abs(ours[j].mean((1, 2)) / exact[j].mean((1, 2)) - 1).max(),
                               np.abs(ours[j].std((1, 2)) / np.maximum(exact[j].std((1, 2)), 1e-6) - 1).max())
             for j, (_, p, _) in enumerate(drawn)}
    pooled = max(np.abs(ours.mean((0, *over)) / exact.mean((0, *over)) - 1).max(),
                 np.abs(ours.std((0, *over)) / exact.std((0, *over)) - 1).max())
    each = ", ".join(f"{name} {value:.1%}" for name, value in worst.items())
    return Row(f"The Well's Gray-Scott, mean and deviation at t = {t_end:g}", f"{pooled:.2%} over all patterns",
               "<= 2 %", bool(pooled <= 0.02), None, f"each: {each}")


def rows(options, only=()):
    """All rows whose group was asked for, one after the other."""
    groups = {"writing": writing_row, "overlap": overlap_row, "reading": reading_row, "memory": memory_row,
              "diff-react": diff_react_row, "gray-scott": gray_scott_row, "end": end_row}
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
    parser.add_argument("only", nargs="*", help="writing, overlap, reading, memory, diff-react, gray-scott, end")
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
