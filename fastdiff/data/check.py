"""Is a data set what it says it is?"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import fastdiff as fd
from fastdiff.data import files
from fastdiff.data.job import Job
from fastdiff.data.layouts import Source, source
from fastdiff.data.recipes import Recipe, from_description

LISTED = 20
STATIONARY = 1e-6  # of the field's rms: a smaller change from frame to frame is rounding
DRIFT = 1e-4  # of the rms: what an integral that stays may have moved


@dataclass(frozen=True)
class Verification:
    """What `verify` found: problems in words, none if the data set is sound.

    damaged  samples whose numbers are not those that were written
    notes    what is no fault but good to know: stationary samples, samples drawn again, what could not be checked
    solved   samples that were solved again
    """

    path: Path
    samples: int
    problems: tuple[str, ...] = ()
    damaged: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    solved: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(path, *, solve: int = 1, recipe: Recipe | None = None) -> Verification:
    """Check a data set of any layout.

    Structure; of every sample its checksum, that all numbers are finite, and that what the recipe conserves stays;
    which samples are stationary; and that `solve` samples, solved again, are the same. `recipe` is needed for that
    only where the recipe is made of your own functions or classes.

    Raises OSError or ValueError for a file that cannot be read as a data set at all.
    """
    path = Path(path)
    with source(path) as there:
        problems = _structure(there)
        if problems:
            return Verification(path, there.shape[0], tuple(problems))
        job, why = job_of(there, recipe)
        problems, damaged, notes = _samples(there, job)
        if there.checksums is None:
            notes.append("no checksums: these files are not ours")
        if why:
            notes.append(why)
        solved = _solved_again(there, job, solve, damaged) if job else []
        problems += [text for text in solved if text]
        attempts = there.attempts if there.attempts is not None else np.zeros(0, int)
        for i in np.flatnonzero(attempts):
            notes.append(f"sample {i} diverged and was drawn again {attempts[i]} times")
        return Verification(path, there.shape[0], _some(problems), tuple(damaged), _some(notes), len(solved))


def repair(path, *, recipe: Recipe | None = None) -> tuple[int, ...]:
    """Make the damaged samples of a data set again, in place; returns which.

    A sample is written back only if its checksum is the one stored: the numbers are those that were there before.
    """
    with source(path) as there:
        found = verify(path, solve=0, recipe=recipe)
        if not found.damaged:
            return ()
        job, why = job_of(there, recipe)
        if job is None:
            raise ValueError(f"{path} cannot be repaired: {why}")
        for i in found.damaged:
            fields = _again(there, job, i)
            if there.checksums is None or files.checksum(fields) != there.checksums[i]:
                raise ValueError(f"sample {i} of {path}, made again, is not what was stored: another fastdiff or "
                                 f"another processor made it; generate the data set again")
            _write_back(there, i, fields)
        return found.damaged


def job_of(there: Source, recipe: Recipe | None = None) -> tuple[Job | None, str]:
    """How a data set was made, from its manifest; or None, and why that is not known."""
    manifest = there.manifest
    if manifest is None or "recipe" not in manifest:
        return None, "nothing says how it was made: no sample can be solved again"
    try:
        if recipe is None:
            recipe = from_description(manifest["recipe"])
        else:
            recipe = replace(recipe, frames=manifest["recipe"]["frames"])
    except ValueError as error:
        return None, f"no sample can be solved again: {error}"
    return Job(recipe, manifest["samples"], manifest["seed"], "cpu", tuple(manifest["shape"]),
               manifest.get("diverged", "refuse")), ""


def _some(texts):
    return tuple(texts[:LISTED] + ([f"and {len(texts) - LISTED} more"] if len(texts) > LISTED else []))


def _structure(there):
    n, frames, components = there.shape[:3]
    lengths = {"t": frames, **dict(zip("xyz", there.shape[3:]))}
    problems = [f"{name} missing" if name not in there.axes else
                f"{name} has the shape {there.axes[name].shape}, expected ({size},)" for name, size in lengths.items()
                if name not in there.axes or there.axes[name].shape != (size,)]
    columns = {**{f"parameters/{name}": v for name, v in there.parameters.items()}, "checksum": there.checksums,
               "split": there.split}
    problems += [f"{name} is for {len(v)} samples, expected {n}" for name, v in columns.items()
                 if v is not None and len(v) != n]
    if len(there.names) != components:
        problems.append(f"{components} components, but {len(there.names)} names")
    if not problems and not (np.diff(there.t) > 0).all():
        problems.append("times do not ascend")
    if there.layout == "fastdiff" and there.checksums is None:
        problems.append("checksum missing")
    return problems


def _samples(there, job):
    """Problems, damaged samples and notes: reads everything once, one sample at a time."""
    problems, damaged, still = [], [], []
    for i in range(there.shape[0]):
        u = there.read(i)
        if there.checksums is not None and files.checksum(u) != there.checksums[i]:
            damaged.append(i)
            problems.append(f"sample {i}: checksum differs, its numbers were changed after writing")
        bad = np.flatnonzero(~np.isfinite(u).all(axis=tuple(range(1, u.ndim))))
        if len(bad):
            problems.append(f"sample {i}: not finite at frame {bad[0]}")
            continue
        problems += [f"sample {i}: the integral of {name} moved by {drift:.1e} of the field's size"
                     for name, drift in drifts(u, there, job).items() if drift > DRIFT]
        frame = stationary_from(u)
        if frame < len(u) - 1:
            still.append(f"{i} after frame {frame}")
    notes = [f"{len(still)} samples become stationary: {', '.join(_some(still))}"] if still else []
    return problems, damaged, notes


def drifts(u, there, job) -> dict[str, float]:
    """How far each integral that the recipe conserves has moved, over the field's rms at the start."""
    if job is None or not job.recipe.conserved:
        return {}
    weight = 1.0
    for w in job.grid.weights():
        weight = weight * w
    weight = np.broadcast_to(weight, job.grid.shape) / np.broadcast_to(weight, job.grid.shape).sum()
    found = {}
    for name in job.recipe.conserved:
        part = u[:, there.names.index(name)]
        means = part.reshape(len(part), -1).astype(np.float64) @ weight.ravel()
        found[name] = float(np.abs(means - means[0]).max() / max(np.sqrt(np.mean(part[0].astype(float) ** 2)), 1e-30))
    return found


def stationary_from(u) -> int:
    """The frame after which nothing changes any more; the last one if that is never."""
    size = max(np.sqrt(np.mean(np.square(u[-1], dtype=np.float64))), 1e-30)
    frame = len(u) - 1
    while frame > 0 and np.abs(u[frame] - u[frame - 1]).max() <= STATIONARY * size:
        frame -= 1
    return frame


def _solved_again(there, job, count, damaged):
    """For each sample that was solved again, what is wrong, or nothing."""
    sound = [i for i in range(there.shape[0]) if i not in damaged]
    chosen = {sound[k] for k in np.linspace(0, len(sound) - 1, min(count, len(sound))).astype(int)} if count else set()
    return [_compare(there, i, _again(there, job, i)) for i in sorted(chosen)]


def _again(there, job, i):
    attempt = int(there.attempts[i]) if there.attempts is not None else 0
    return job.march_one(i, attempt)


def _compare(there, i, again):
    u = there.read(i)
    size = float(np.abs(again).max()) or 1.0
    error = float(np.abs(u - again).max()) / size
    same = there.manifest["version"] == fd.__version__ and there.manifest.get("device") == "cpu"
    allowed = 1e-5 if same else 1e-2  # another processor may round otherwise, and chaos lets that grow
    return "" if error <= allowed else (f"sample {i}, solved again, differs by {error:.1e} of its largest value: this "
                                        f"is not what its recipe and seed make")


def _write_back(there, i, fields):
    for place in there.offsets(i):
        path = there.path / place.file if place.file else there.path
        handle = os.open(path, os.O_RDWR)
        try:
            files.write_at(handle, place.offset, place.take(fields))
            os.fsync(handle)
        finally:
            os.close(handle)


def halved(job: Job) -> Job | None:
    """The same with half the time step, or None for a method without one."""
    if not job.dt:
        return None
    rough = job.recipe.rough and (job.recipe.rough[0], min(job.recipe.rough[1], job.dt) / 2)
    return replace(job, recipe=replace(job.recipe, dt=job.dt / 2, rough=rough))


__all__ = ["Verification", "drifts", "halved", "job_of", "repair", "stationary_from", "verify"]
