"""A recipe made definite: what a data set holds, and the solving of a few of its samples."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

import fastdiff as fd
from fastdiff.boundary import Dirichlet
from fastdiff.data import files
from fastdiff.data.layouts import About
from fastdiff.data.recipes import Recipe
from fastdiff.data.summary import moments
from fastdiff.steppers.euler import steps_between

TOGETHER = ("euler", "rk4", "rkl2")  # a sample's numbers do not depend on those beside it
MOST_ATTEMPTS = 20


@dataclass(frozen=True)
class Job:
    """Everything that decides what a data set holds, and where it is computed."""

    recipe: Recipe
    samples: int
    seed: int
    device: str
    shape: tuple[int, ...]
    diverged: str = "refuse"

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
        rough, fine = self.recipe.rough or (0, self.dt)
        steps = [steps_between(a, b, min(fine, self.dt) if k < rough else self.dt)
                 for k, (a, b) in enumerate(zip(self.times, self.times[1:]))]
        return self.grid.size * sum(steps)

    def manifest(self) -> dict[str, Any]:
        """What tells two data sets apart."""
        return json.loads(json.dumps({
            "recipe": self.recipe.describe(), "samples": self.samples, "shape": self.shape, "seed": self.seed,
            "device": self.device, "diverged": self.diverged, "version": fd.__version__,
        }))

    def attributes(self) -> dict[str, Any]:
        """What the data set says about itself, as HDF5 attributes."""
        recipe = self.recipe
        equation = recipe.equation if isinstance(recipe.equation, str) else recipe.equation.__qualname__
        return {
            "recipe": recipe.name, "summary": recipe.summary, "equation": equation,
            "method": recipe.method, "dt": np.nan if self.dt is None else self.dt, "seed": self.seed,
            "samples": self.samples, "version": fd.__version__, "device": self.device,
            "grid_shape": self.grid.shape, "grid_extent": self.grid.extent, "grid_spacing": self.grid.spacing,
            "grid_periodic": self.grid.periodic, "grid_centering": self.grid.centering,
        }

    @cached_property
    def about(self) -> About:
        """The data set before its first number; draws the parameters of all samples."""
        recipe, grid = self.recipe, self.grid
        return About(
            name=recipe.name.replace("-", "_"), shape=self.full_shape, dtype=recipe.dtype, names=recipe.fields,
            axes={"t": self.times, **{name: grid.points(k) for k, name in enumerate(grid.names)}},
            parameters=self._parameters(), labels=recipe.labels,
            periodic=grid.periodic, walls={name: "wall" if self._closed(name) else "open" for name in grid.names},
            attributes=self.attributes(), manifest=self.manifest(),
        )

    def _parameters(self) -> dict[str, np.ndarray]:
        """Parameters of all samples, a few thousand at a time: dictionaries of all would fill the memory."""
        parts = []
        for first in range(0, self.samples, 4096):
            count = min(4096, self.samples - first)
            drawn = [self.recipe.parameters_of(self.seed, first + i) for i in range(count)]
            parts.append({name: _column([p[name] for p in drawn]) for name in drawn[0]})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _closed(self, axis) -> bool:
        """Whether a wall lets nothing through or holds a value: what The Well calls a wall."""
        sides = self.recipe.sides(self.grid)
        sides = sides.get(axis) if isinstance(sides, dict) else sides
        return all(s is None or isinstance(s, Dirichlet | fd.Neumann) for s in np.ravel([sides]))

    def __getstate__(self):
        """Other processes need the record, but not everything that is known about the data set."""
        return {k: v for k, v in {**self.__dict__, "about_record": self.about_record}.items() if k != "about"}

    # -- solving -------------------------------------------------------------------------------------------------

    def make(self, first: int, count: int, threads: int | None = None) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Solve some samples; what is returned waits for them, then gives their records and fields."""
        attempts = np.zeros(count, np.uint32)
        drawn = [self.recipe.draw(self.grid, self.seed, first + i) for i in range(count)]
        try:
            wait = self._march(drawn, threads)
        except FloatingPointError:
            fields = np.concatenate([self._surely(first + i, drawn, attempts, i, threads) for i in range(count)])
            wait = lambda: fields

        def finish():
            fields = wait()
            return self._records(first, drawn, attempts, fields, threads), fields

        return finish

    def march_one(self, index: int, attempt: int = 0) -> np.ndarray:
        """The fields of one sample, as drawn at some attempt."""
        return self._march([self.recipe.draw(self.grid, self.seed, index, attempt)], None)()[0]

    def march_from(self, index: int, attempt: int, grid: fd.Grid, every) -> np.ndarray:
        """The fields of a sample that is drawn on another grid, of which `every` point is taken."""
        parameters, u0 = self.recipe.draw(grid, self.seed, index, attempt)
        return self._march([(parameters, np.ascontiguousarray(u0[every]))], None)()[0]

    def _records(self, first, drawn, attempts, fields, threads):
        records = np.zeros(len(fields), self.about_record)
        found = _each(lambda i: (files.checksum(fields[i]), moments(fields[i])), len(fields), threads)
        for i, (crc, parts) in enumerate(found):
            if not np.isfinite(parts).all():
                fields[i] = self._surely(first + i, drawn, attempts, i, threads)[0]
                crc, parts = files.checksum(fields[i]), moments(fields[i])
            records[i]["checksum"], records[i]["moments"] = crc, parts
            for name, value in drawn[i][0].items():
                records[i][f"parameters/{name}"] = value.encode() if isinstance(value, str) else value
        records["attempts"] = attempts
        return records

    @cached_property
    def about_record(self) -> np.dtype:
        """What is written down about a sample; as `about` says, but remembered when this goes to another process."""
        return self.about.record

    def _surely(self, index, drawn, attempts, i, threads):
        """One sample alone: drawn again as often as it takes if it diverges, or refused."""
        while True:
            try:
                fields = self._march([drawn[i]], threads)()
                if np.isfinite(fields).all():
                    return fields
                error = FloatingPointError("a field became NaN or infinite")
            except FloatingPointError as found:
                error = found
            attempts[i] += 1
            self._refuse(error, index, drawn[i][0], int(attempts[i]))
            drawn[i] = self.recipe.draw(self.grid, self.seed, index, int(attempts[i]))

    def _refuse(self, error, index, parameters, attempts):
        if self.diverged == "redraw" and attempts <= MOST_ATTEMPTS:
            return
        drawn = ", ".join(f"{name} = {value}" for name, value in parameters.items())
        what = str(error).replace(" of sample 0", "")
        often = f" {attempts} times" if attempts > 1 else ""
        advice = "" if self.diverged == "redraw" else '; diverged="redraw" draws such samples again'
        raise fd.Diverged(f"sample {index} of recipe {self.recipe.name!r} ({drawn}), seed {self.seed}: "
                          f"{what}{often}{advice}") from None

    def _march(self, drawn, threads) -> Callable[[], np.ndarray]:
        """March samples; what is returned waits for their fields (count, frames, components, *grid)."""
        parameters = {name: [p[name] for p, _ in drawn] for name in drawn[0][0]}
        u0, exact = np.stack([u for _, u in drawn]), self.recipe.method == "exact"
        expected = self.full_shape[1:] if exact else self.full_shape[2:]
        if u0.shape[1:] != expected:
            raise ValueError(f"the initial condition of recipe {self.recipe.name!r} has shape {u0.shape[1:]}, "
                             f"expected {expected} ({'frames, ' if exact else ''}components, *grid)")
        if exact:
            return lambda: u0
        if self.device == "cuda":
            return self._on_gpu(parameters, u0)
        if len(u0) > 1 and not self._together:
            fields = np.concatenate(_each(lambda i: self._march([drawn[i]], 1)(), len(u0), threads))
        else:
            fields = self._run(parameters, u0, threads=threads)
        return lambda: fields  # pyright: ignore[reportReturnType]

    @property
    def _together(self) -> bool:
        """Whether samples may be solved as a batch: not if what they are solved with could depend on the others."""
        varied = any(callable(value) for value in self.recipe.parameters.values())
        return self.recipe.method in TOGETHER and not (self.recipe.method == "rkl2" and varied)

    def _run(self, parameters, u0, **how):
        arrays = {name: np.array(v) for name, v in parameters.items() if name not in self.recipe.labels}
        equation, sides = self.recipe.build(arrays), self.recipe.sides(self.grid)

        def solve(u, times, dt):
            step = {} if dt is None else {"dt": dt}
            return fd.solve(equation, u, self.grid, boundary=sides, save_at=times, method=self.recipe.method, **step,
                            **how).u

        if self.recipe.rough is None or self.dt is None:
            return solve(u0, self.times, self.dt)
        count, fine = self.recipe.rough
        first = solve(u0, self.times[: count + 1], min(fine, self.dt))
        if count + 1 >= len(self.times):
            return first
        rest = solve(first[:, -1], self.times[count:] - self.times[count], self.dt)
        return _joined(first, rest[:, 1:])

    def _on_gpu(self, parameters, u0):
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


def _joined(first, rest):
    """Frames one after the other, NumPy or torch."""
    if isinstance(first, np.ndarray):
        return np.concatenate([first, rest], 1)
    import torch

    return torch.cat([first, rest], 1)


_streams: list = []


def _copy_stream():
    import torch

    if not _streams:
        _streams.append(torch.cuda.Stream())
    return _streams[0]


def _each(function, count, threads):
    """function(0), function(1), …, over some threads."""
    from fastdiff.kernels._threads import default_threads

    threads = min(count, threads or default_threads())
    if threads < 2:
        return [function(i) for i in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, range(count)))


def _column(values) -> np.ndarray:
    return np.array([v.encode() for v in values]) if isinstance(values[0], str) else np.array(values)


__all__ = ["Job"]
