"""What a layout is: where the numbers of each sample lie in which file, and what else the files say."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdiff.data import files

SPLITS = ("train", "valid", "test")
CHANNELS_LAST = -1  # a place that holds all components, as the last axis
WHOLE = -2  # a place that holds a sample as it is, (frames, components, *grid)


class Place(NamedTuple):
    """Where one sample, or one component of it, lies."""

    file: str  # relative to the root of the data set
    offset: int  # bytes
    part: int  # a component, CHANNELS_LAST or WHOLE

    def take(self, sample: np.ndarray) -> np.ndarray:
        """What of a sample (frames, components, *grid) lies here, C-contiguous."""
        if self.part == WHOLE:
            return np.ascontiguousarray(sample)
        return np.ascontiguousarray(np.moveaxis(sample, 1, -1) if self.part == CHANNELS_LAST else sample[:, self.part])

    def put(self, sample: np.ndarray, read) -> None:
        """Fill `sample` with what lies here: `read(array)` fills a C-contiguous array."""
        if self.part == WHOLE:
            read(sample)
        elif self.part == CHANNELS_LAST:
            sample[...] = np.moveaxis(read(np.empty((len(sample), *sample.shape[2:], sample.shape[1]), sample.dtype)),
                                      -1, 1)
        else:
            sample[:, self.part] = read(np.empty((len(sample), *sample.shape[2:]), sample.dtype))


@dataclass(frozen=True)
class Evenly:
    """Samples one after the other in one file: like a list of their places, however many there are."""

    start: int
    size: int

    def __getitem__(self, i) -> list[Place]:
        return [Place("", self.start + int(i) * self.size, WHOLE)]


@dataclass(frozen=True, kw_only=True)
class About:
    """A data set before its first number: everything that its files say, and their sizes.

    parameters  name → one value a sample, as drawn
    labels      the parameters that describe a sample and are no numbers of the equation
    split       0, 1, 2 (train, valid, test) for each sample
    attributes  what the files say in HDF5 attributes
    """

    name: str
    shape: tuple[int, ...]  # (samples, frames, components, *grid)
    dtype: str
    names: tuple[str, ...]
    axes: dict[str, np.ndarray]  # t, x, y, z
    parameters: dict[str, np.ndarray]
    labels: tuple[str, ...]
    periodic: tuple[bool, ...]
    walls: dict[str, str] = field(default_factory=dict)  # axis → what kind of walls
    attributes: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.shape[0]

    @cached_property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    @property
    def total_bytes(self) -> int:
        """Bytes of all samples."""
        return self.samples * self.sample_bytes

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """The samples of each parameter set: those with the same labels; without labels, all are one group."""
        if not self.labels:
            return [np.arange(self.samples)]
        keys = list(zip(*(self.parameters[name].tolist() for name in self.labels)))
        return [np.array([i for i, k in enumerate(keys) if k == key]) for key in sorted(set(keys))]

    @cached_property
    def split(self) -> np.ndarray:
        """0, 1, 2 (train, valid, test) for each sample: 80, 10 and 10 % of each group, whole trajectories."""
        split = np.zeros(self.samples, np.uint8)
        for group in self.groups:
            few = max(1, round(0.1 * len(group))) if len(group) > 2 else 0
            split[group[len(group) - 2 * few : len(group) - few]] = 1
            split[group[len(group) - few :]] = 2
        return split

    @cached_property
    def record(self) -> np.dtype:
        """What is written down about each finished sample."""
        C = self.shape[2]
        columns = [(f"parameters/{name}", v.dtype, v.shape[1:]) for name, v in self.parameters.items()]
        return np.dtype([("checksum", "u4"), ("attempts", "u4"), ("moments", "f8", (4, C)), *columns])


class Layout(ABC):
    """A way to lay a data set out in files. `root` is the file of a layout of one file, else the folder."""

    name: str
    folder = False  # whether a data set is a folder of files

    def __init__(self, about: About):
        self.about = about
        self.check()

    def check(self) -> None:  # noqa: B027
        """Refuse what the layout cannot hold."""

    @abstractmethod
    def create(self, root: Path) -> None:
        """Make all files, with room for all numbers."""

    @abstractmethod
    def places(self, root: Path) -> "list[list[Place]] | Evenly":
        """Where the parts of sample i lie, at [i], once the files are made."""

    @abstractmethod
    def finish(self, root: Path, records: np.ndarray, statistics: dict[str, np.ndarray]) -> None:
        """Write the tables, by plain system calls: it may be killed and done again."""


def fill(path: Path, tables: dict[str, np.ndarray]) -> None:
    """Write arrays into the room that was made for them in an HDF5 file."""
    with files.open_h5(path) as file:
        places = [(file[name].id.get_offset(), np.asarray(values, file[name].dtype)) for name, values in tables.items()
                  if name in file and file[name].size]
    handle = os.open(path, os.O_RDWR)
    try:
        for offset, values in places:
            files.write_at(handle, offset, values)
    finally:
        os.close(handle)


def make_tables(group, about: About, which: np.ndarray) -> None:
    """Room in an HDF5 group for what is known once the samples `which` are made."""
    from fastdiff.data.summary import STATISTICS

    n = len(which)
    files.room(group, "checksum", (n,), "u4")
    files.room(group, "attempts", (n,), "u4")
    for name, values in about.parameters.items():
        files.room(group, f"parameters/{name}", (n, *values.shape[1:]), values.dtype)
    for name in STATISTICS:
        files.room(group, f"statistics/{name}", (about.shape[2],), "f8")


def tables(prefix: str, records: np.ndarray, statistics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What goes into the room of `make_tables`."""
    columns = {name: records[name] for name in records.dtype.names or () if name != "moments"}
    return {f"{prefix}{name}": v for name, v in
            {**columns, **{f"statistics/{k}": v for k, v in statistics.items()}}.items()}


__all__ = ["CHANNELS_LAST", "SPLITS", "WHOLE", "About", "Evenly", "Layout", "Place", "fill", "make_tables",
           "tables"]
