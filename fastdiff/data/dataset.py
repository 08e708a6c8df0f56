"""Data sets as torch sees them: lazy, and safe in forked and spawned DataLoader workers. Only this file needs torch."""

import json
import os
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fastdiff.data.files import open_file


class Trajectories(Dataset):
    """Whole trajectories, or windows of them, read when asked for.

    Without `inputs` an item is a whole trajectory under the key "fields" (frames, components, *grid); with it, items
    are windows, "inputs" (inputs, components, *grid) and "outputs" (outputs, components, *grid), whose frames are
    `stride` apart. Beside them: "parameters" (in the order of `parameter_names`), "sample" and "frame", the first one.

    fields, parameter_names, labels (name → one text a sample), parameters (samples, number of them), t, attributes
    """

    def __init__(self, path, inputs: int | None = None, outputs: int = 1, stride: int = 1):
        self.path, self.inputs, self.outputs, self.stride = os.fspath(path), inputs, outputs, stride
        with open_file(path) as file:
            self._read_about(file)
        self._span = self.shape[1] if inputs is None else self._span_of(inputs, outputs, stride)
        self._windows = self.shape[1] - self._span + 1
        self._file: Any = None
        self._process: int | None = None

    def _read_about(self, file):
        self.shape, self.fields = file["fields"].shape, tuple(map(str, file["fields"].attrs["names"]))
        self.t = torch.from_numpy(file["t"][:])
        self.attributes = dict(file.attrs)
        labels, columns = json.loads(file.attrs["labels"]), {name: d[:] for name, d in file["parameters"].items()}
        self.labels = {name: columns[name].astype(str).tolist() for name in labels}
        self.parameter_names = tuple(name for name in columns if name not in labels)
        table = np.array([columns[name] for name in self.parameter_names], np.float32).reshape(-1, self.shape[0])
        self.parameters = torch.from_numpy(np.ascontiguousarray(table.T))

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
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        sample, frame = divmod(int(index) % len(self), self._windows)
        data = torch.from_numpy(self._data()[sample, frame : frame + self._span : self.stride])
        about = {"parameters": self.parameters[sample], "sample": sample, "frame": frame}
        if self.inputs is None:
            return {"fields": data, **about}
        return {"inputs": data[: self.inputs], "outputs": data[self.inputs :], **about}

    def _data(self):
        """The fields, from a file that this very process has opened: handles must not cross a fork."""
        if self._process != os.getpid():
            self._file, self._process = open_file(self.path), os.getpid()
        return self._file["fields"]

    def __getstate__(self):
        return {**self.__dict__, "_file": None, "_process": None}


__all__ = ["Trajectories"]
