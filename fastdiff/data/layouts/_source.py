"""A data set that exists, whatever its layout: what it says, and its numbers read when asked for."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdiff.data import files
from fastdiff.data.layouts._about import Place


class _Data(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any
    offset: int | None


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
        self._known: dict[str, _Data] = {}
        self._handles: dict[str, int] = {}
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
            data = self._data(file, name)
            if data.offset is None:
                raise ValueError(f"{self.path} holds its numbers in pieces or compressed: it cannot be written to")
            size = int(np.prod(data.shape[len(index) :])) * data.dtype.itemsize
            found.append(Place(file, data.offset + (index[0] * size if index else 0), part))
        return found

    def _part(self, file, name, index, part, first, stride, out):
        data = self._data(file, name)
        place = Place(file, 0, part)
        if data.offset is None or data.dtype != out.dtype:
            stop = first + stride * (len(out) - 1) + 1
            with self._h5(file) as h5:
                return place.put(out, lambda array: _copy(array, h5[name][(*index, slice(first, stop, stride))]))
        handle, frame = self._handle(file), int(np.prod(data.shape[len(index) + 1 :])) * data.dtype.itemsize
        start = data.offset + ((index[0] * data.shape[1] if index else 0) + first) * frame
        if stride == 1:
            return place.put(out, lambda array: files.read_at(handle, start, array))
        return place.put(out, lambda array: _strided(handle, start, stride * frame, array))

    def _h5(self, file):
        return files.open_h5(self.path / file if file else self.path)

    def _data(self, file, name) -> "_Data":
        """Shape, kind and place of an array; HDF5 is asked once, and not left open: others may want the file."""
        key = f"{file}:{name}"
        if key not in self._known:
            with self._h5(file) as h5:
                data = h5[name]
                self._known[key] = _Data(data.shape, data.dtype, None if data.chunks else data.id.get_offset())
        return self._known[key]

    def _handle(self, file) -> int:
        """A file that this very process has opened: handles must not cross a fork."""
        if self._process != os.getpid():
            self._handles, self._process = {}, os.getpid()
        if file not in self._handles:
            self._handles[file] = os.open(self.path / file if file else self.path, os.O_RDONLY)
        return self._handles[file]

    def close(self) -> None:
        """Close what is open; reading opens it again."""
        if self._process == os.getpid():
            for handle in self._handles.values():
                os.close(handle)
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
