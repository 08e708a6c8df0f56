"""Data sets as torch sees them: lazy, bounded in memory, safe in forked and spawned DataLoader workers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from fastdiff.data.layouts import SPLITS, source

NORMALISATIONS = ("zscore", "rms")


class Trajectories(Dataset):
    """Whole trajectories, or windows of them, read when asked for.

    path       a data set of any layout: fastdiff's, PDEBench's, The Well's
    inputs     frames of a window that go in; without it an item is a whole trajectory
    outputs    frames of a window that come out
    stride     frames from one of a window to the next
    split      "train", "valid" or "test": whole trajectories, as the file says; by default all
    normalize  "zscore", (u - mean)/std, or "rms", u/rms, of each component, by the statistics of the training split
               that are stored; `denormalize` goes back
    samples    the trajectories to take, by number, of those in the split

    An item is a dict: "fields" (frames, components, *grid), or "inputs" (inputs, components, *grid) and "outputs"
    (outputs, components, *grid); beside them "parameters" (in the order of `parameter_names`), "sample" and "frame",
    the first one. One read a window; nothing is kept in memory.

    fields, parameter_names, labels (name → one text a sample), parameters (samples, number of them), t, attributes,
    shape, statistics
    """

    def __init__(self, path, inputs: int | None = None, outputs: int = 1, stride: int = 1, *, split: str | None = None,
                 normalize: str | None = None, samples: Sequence[int] | None = None):
        self.source = source(path)
        self.path, self.inputs, self.outputs, self.stride = str(path), inputs, outputs, stride
        self.samples = _chosen(self.source, split, samples)
        self.shape, self.fields = (len(self.samples), *self.source.shape[1:]), self.source.names
        self.t, self.attributes = torch.from_numpy(np.asarray(self.source.t, np.float64)), self.source.attributes
        self.statistics = self.source.statistics
        self._read_parameters()
        self._offset, self._scale = self._normalisation(normalize)
        self._span = self.shape[1] if inputs is None else self._span_of(inputs, outputs, stride)
        self._windows = self.shape[1] - self._span + 1

    def _read_parameters(self):
        columns = {name: v[self.samples] for name, v in self.source.parameters.items()}
        self.labels = {name: [str(v) for v in columns[name]] for name in self.source.labels if name in columns}
        self.parameter_names = self.source.numbers()
        table = np.empty((len(self.samples), 0), np.float32)
        for name in self.parameter_names:
            table = np.concatenate([table, columns[name].reshape(len(table), -1)], 1, dtype=np.float32)
        self.parameters = torch.from_numpy(np.ascontiguousarray(table))

    def _normalisation(self, kind):
        if kind is None:
            return None, None
        if kind not in NORMALISATIONS:
            raise ValueError(f"unknown normalisation {kind!r}; known: {', '.join(NORMALISATIONS)}")
        if not self.statistics:
            raise ValueError(f"{self.path} stores no statistics: fd.data.convert writes a data set that does")
        scale = self.statistics["std" if kind == "zscore" else "rms"]
        offset = self.statistics["mean"] if kind == "zscore" else np.zeros_like(scale)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(f"{self.path} cannot be normalised: {dict(zip(self.fields, scale))} is its "
                             f"{'std' if kind == 'zscore' else 'rms'}")
        shape = (-1, *[1] * (len(self.shape) - 3))
        dtype = torch.from_numpy(np.empty(0, self.source.dtype)).dtype
        return (torch.from_numpy(np.asarray(v, np.float64)).to(dtype).reshape(shape) for v in (offset, scale))

    def denormalize(self, u):
        """Fields (…, components, *grid) as they were before `normalize`."""
        return u if self._scale is None or self._offset is None else u * self._scale.to(u) + self._offset.to(u)

    def _span_of(self, inputs, outputs, stride):
        if min(inputs, outputs, stride) < 1:
            raise ValueError(f"inputs, outputs and stride are at least 1, got {inputs}, {outputs} and {stride}")
        span = 1 + stride * (inputs + outputs - 1)
        if span > self.shape[1]:
            raise ValueError(f"a window of {inputs} + {outputs} frames, {stride} apart, spans {span} frames, but "
                             f"{self.path} has {self.shape[1]}: take fewer, or a smaller stride")
        return span

    def __len__(self):
        return self.shape[0] * self._windows

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        """Several items at once, in one piece of memory."""
        count = self.shape[1] if self.inputs is None else self.inputs + self.outputs
        data = torch.from_numpy(np.empty((len(indices), count, *self.shape[2:]), self.source.dtype))
        return [self._item(int(index), fields) for index, fields in zip(indices, data)]

    def _item(self, index, data):
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        row, frame = divmod(index % len(self), self._windows)
        sample = int(self.samples[row])
        self.source.read(sample, frame, len(data), 1 if self.inputs is None else self.stride, out=data.numpy())
        if self._scale is not None:
            data.sub_(self._offset).div_(self._scale)
        about = {"parameters": self.parameters[row], "sample": sample, "frame": frame}
        if self.inputs is None:
            return {"fields": data, **about}
        return {"inputs": data[: self.inputs], "outputs": data[self.inputs :], **about}


def _chosen(there, split, samples) -> np.ndarray:
    """Numbers of the trajectories to take."""
    chosen = np.arange(there.shape[0])
    if split is not None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        if there.split is None:
            raise ValueError(f"{there.path} keeps no split: choose trajectories with samples=range(…)")
        chosen = np.flatnonzero(there.split == SPLITS.index(split))
    if samples is not None:
        try:
            chosen = chosen[np.asarray(samples, int)]
        except IndexError:
            raise ValueError(f"samples go from 0 to {len(chosen) - 1} here, got {max(samples)}") from None
    if not len(chosen):
        raise ValueError(f"{there.path} has no trajectories in the split {split!r}: make more samples, at least 3")
    return chosen


__all__ = ["NORMALISATIONS", "Trajectories"]
