"""A data set that exists, whatever its layout: what it says, and its numbers read when asked for."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastdiff.data import files
from fastdiff.data.layouts._about import Place


class Source(ABC):
    """A data set open for reading; safe to pickle and to carry into a forked process.

    layout, path, name
    shape        (samples, frames, components, *grid)
    names        of the components
    axes         t, x, y, z → coordinates
    parameters   name → one value a sample; labels: those that are no numbers of the equation
    split        0, 1, 2 (train, valid, test) for each sample, or None where the layout keeps none
    statistics   of the training split, name → (components,), or None
    checksums    of each sample, or None in files of others
    manifest     how it was made, or None
    """

    layout = ""

    def __init__(self, path):
        self.path = Path(path)
        self.name = self.path.stem
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype("f4")
        self.names: tuple[str, ...] = ()
        self.axes: dict[str, np.ndarray] = {}
        self.parameters: dict[str, np.ndarray] = {}
        self.labels: tuple[str, ...] = ()
        self.split: np.ndarray | None = None
        self.statistics: dict[str, np.ndarray] | None = None
        self.checksums: np.ndarray | None = None
        self.attempts: np.ndarray | None = None
        self.attributes: dict[str, Any] = {}
        self.manifest: dict[str, Any] | None = None
        self.periodic: tuple[bool, ...] = ()
        self._handles: dict[str, Any] = {}
        self._process: int | None = None
        self.open()

    @abstractmethod
    def open(self) -> None:
        """Read everything but the fields."""

    @abstractmethod
    def places(self, sample: int) -> list[tuple[str, str, tuple[int, ...], int]]:
        """Where a sample lies: file, data set in it, leading index, and part as in `Place`."""

    @property
    def t(self) -> np.ndarray:
        """Times of the frames."""
        return self.axes["t"]

    def read(self, sample: int, first: int = 0, count: int | None = None, stride: int = 1, out=None) -> np.ndarray:
        """Frames first, first + stride, … of a sample, (count, components, *grid); filled into `out` if given."""
        count = self.shape[1] if count is None else count
        if out is None:
            out = np.empty((count, *self.shape[2:]), self.dtype)
        for file, name, index, part in self.places(sample):
            self._part(file, name, index, part, first, stride, out)
        return out

    def offsets(self, sample: int) -> list[Place]:
        """Where a sample lies in its files, byte by byte; refuses files whose numbers are not plain."""
        found = []
        for file, name, index, part in self.places(sample):
            data, _, offset = self._data(file, name)
            if offset is None:
                raise ValueError(f"{self.path} holds its numbers in pieces or compressed: it cannot be written to")
            size = int(np.prod(data.shape[len(index) :])) * data.dtype.itemsize
            found.append(Place(file, offset + (index[0] * size if index else 0), part))
        return found

    def _part(self, file, name, index, part, first, stride, out):
        data, handle, offset = self._data(file, name)
        frame = int(np.prod(data.shape[len(index) + 1 :])) * data.dtype.itemsize
        if offset is None or data.dtype != out.dtype:
            stop = first + stride * (len(out) - 1) + 1
            Place(file, 0, part).put(out, lambda array: _copy(array, data[(*index, slice(first, stop, stride))]))
            return
        row = index[0] * data.shape[1] if index else 0
        start = offset + (row + first) * frame
        if stride == 1:
            Place(file, 0, part).put(out, lambda array: files.read_at(handle, start, array))
        else:
            Place(file, 0, part).put(out, lambda array: _strided(handle, start, stride * frame, array))

    def _data(self, file, name):
        """A data set of a file that this very process has opened: handles must not cross a fork."""
        if self._process != os.getpid():
            self._handles, self._process = {}, os.getpid()
        key = f"{file}:{name}"
        if key not in self._handles:
            if file not in self._handles:
                path = self.path / file if self.path.is_dir() else self.path
                self._handles[file] = (files.open_h5(path), os.open(path, os.O_RDONLY))
            h5, handle = self._handles[file]
            data = h5[name]
            plain = data.chunks is None and data.id.get_offset() is not None
            self._handles[key] = (data, handle, data.id.get_offset() if plain else None)
        return self._handles[key]

    def close(self) -> None:
        """Close what is open; reading opens it again."""
        if self._process == os.getpid():
            for value in self._handles.values():
                if isinstance(value[0], h5py.File):
                    value[0].close()
                    os.close(value[1])
        self._handles = {}

    def __del__(self):
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __getstate__(self):
        return {**self.__dict__, "_handles": {}, "_process": None}

    def numbers(self) -> tuple[str, ...]:
        """Names of the parameters that are numbers."""
        return tuple(name for name, v in self.parameters.items() if name not in self.labels and v.dtype.kind in "biuf")


def _copy(array, values):
    array[...] = values
    return array


def _strided(handle, start, step, array):
    for k in range(len(array)):
        files.read_at(handle, start + k * step, array[k])
    return array


def columns(group) -> dict[str, np.ndarray]:
    """The parameters in an HDF5 group; texts as str."""
    return {name: _texts(d[()]) for name, d in group.items()} if group is not None else {}


def _texts(values):
    return values.astype(str) if values.dtype.kind in "SO" else values


__all__ = ["Source", "columns"]
