"""Training data straight from the solver: no disk, no end, and still the same numbers every time."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from fastdiff.data.campaign import _count, _job
from fastdiff.kernels._threads import default_threads


class Stream(IterableDataset):
    """Solves samples of a recipe as they are asked for, and gives whole trajectories or windows of them.

    recipe, shape, frames, seed, device   as in `fd.data.generate`: sample i here is sample i there
    inputs, outputs, stride               as in `fd.data.open`; the windows of a block come in a random order
    samples    how many trajectories an epoch has; None: it never ends
    block      trajectories solved at once by each worker; their windows are mixed
    threads    of each worker; default: one in a DataLoader worker, all cores without
    rank, world  of this process among several that train together: each gets trajectories of its own
    diverged   "redraw" draws samples that turn NaN again, "refuse" stops

    Blocks are dealt out to the DataLoader's workers in turn, so nothing is solved twice, and with the same number of
    workers the order is the same, too. `set_epoch(n)` goes on to the next samples. Items as in `Trajectories`.
    """

    def __init__(self, recipe, inputs: int | None = None, outputs: int = 1, stride: int = 1, *, shape=None,
                 frames: int | None = None, seed: int = 0, samples: int | None = None, block: int = 4,
                 threads: int | None = None, device: str = "cpu", rank: int = 0, world: int = 1,
                 diverged: str = "redraw", shuffle: bool = True):
        self.job = _job(recipe, 1, shape, seed, frames, device, diverged)  # one, to know what is written down of each
        if samples is not None:
            samples = _count(samples, "samples", 0)
        self.inputs, self.outputs, self.stride, self.samples, self.shuffle = inputs, outputs, stride, samples, shuffle
        self.block, self.threads, self.epoch = _count(block, "block", 1), threads, 0
        if not 0 <= rank < world:
            raise ValueError(f"rank is one of 0 to world - 1, got rank {rank} of a world of {world}")
        self.rank, self.world = rank, world
        self.shape, self.fields = self.job.full_shape[1:], self.job.recipe.fields
        self.t = torch.from_numpy(self.job.times)
        self.parameter_names = tuple(name for name in self.job.recipe.parameters_of(seed, 0)
                                     if name not in self.job.recipe.labels)
        self._offsets = self._window()

    def _window(self) -> np.ndarray:
        """First frames of the windows of a trajectory."""
        if self.inputs is None:
            return np.zeros(1, int)
        if min(self.inputs, self.outputs, self.stride) < 1:
            raise ValueError(f"inputs, outputs and stride are at least 1, got {self.inputs}, {self.outputs} and "
                             f"{self.stride}")
        span = 1 + self.stride * (self.inputs + self.outputs - 1)
        if span > self.shape[0]:
            raise ValueError(f"a window of {self.inputs} + {self.outputs} frames, {self.stride} apart, spans {span} "
                             f"frames, but a trajectory has {self.shape[0]}: give frames={span} or more")
        return np.arange(self.shape[0] - span + 1)

    def set_epoch(self, epoch: int) -> None:
        """Begin the n-th epoch: samples that no other epoch has. Needs `samples`."""
        if self.samples is None:
            raise ValueError("a stream without an end has no epochs: give samples")
        self.epoch = _count(epoch + 1, "epoch + 1", 1) - 1

    def __len__(self):
        if self.samples is None:
            raise TypeError("this stream never ends: give samples to have epochs")
        mine = sum(min(self.block, self.samples - first) for first in range(0, self.samples, self.block)
                   if first // self.block % self.world == self.rank)
        return mine * len(self._offsets)

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        workers, me = (worker.num_workers, worker.id) if worker else (1, 0)
        threads = self.threads or (1 if worker else default_threads())
        turn = self.world * workers
        number = self.rank + self.world * me
        while self.samples is None or number * self.block < self.samples:
            first = number * self.block
            count = self.block if self.samples is None else min(self.block, self.samples - first)
            yield from self._solved(first + self.epoch * (self.samples or 0), count, threads)
            number += turn

    def _solved(self, first, count, threads):
        records, fields = self.job.make(first, count, threads)()
        table = [np.ravel(records[f"parameters/{name}"].astype(np.float32).reshape(count, -1)[i])
                 for i in range(count) for name in self.parameter_names]
        per = len(self.parameter_names)
        rows = [torch.from_numpy(np.concatenate(table[i * per : (i + 1) * per]) if per else np.empty(0, np.float32))
                for i in range(count)]
        data = torch.from_numpy(fields)
        order = np.arange(count * len(self._offsets))
        if self.shuffle:
            np.random.default_rng(np.random.SeedSequence(self.job.seed, spawn_key=(first, 1, 1))).shuffle(order)
        for row, offset in (divmod(int(k), len(self._offsets)) for k in order):
            yield self._item(data[row], rows[row], first + row, offset)

    def _item(self, data, parameters, sample, offset):
        about = {"parameters": parameters, "sample": sample, "frame": offset}
        if self.inputs is None:
            return {"fields": data, **about}
        frames = data[offset : offset + 1 + self.stride * (self.inputs + self.outputs - 1) : self.stride]
        return {"inputs": frames[: self.inputs], "outputs": frames[self.inputs :], **about}


__all__ = ["Stream"]
