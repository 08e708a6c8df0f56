"""How kernels that are no march share out their work: pieces over threads on the CPU, and launches on the GPU."""

from typing import Any

import numpy as np

from fastdiff.kernels import _cuda
from fastdiff.kernels._threads import default_threads

CHUNK = 4096  # numbers of a sample that one worker takes at a time: three or four arrays of them fit in L1
SERIAL = 1 << 15  # less work than this is not worth a second thread


def workers_for(pieces: int, numbers: int, threads: int | None = None) -> int:
    """How many workers so many pieces of work deserve; `numbers`: the work, in numbers that take a while each."""
    threads = default_threads() if threads is None else threads
    return 1 if numbers < SERIAL else max(1, min(threads, pieces))


def flat(array, dtype) -> np.ndarray:
    """An array as one contiguous line of a dtype."""
    return np.ascontiguousarray(array, dtype).reshape(-1)


def dtype_of(array) -> str:
    """The name of the dtype of a NumPy array or a device array."""
    return str(array.dtype).removeprefix("torch.")


def like(array) -> Any:
    """An uninitialised array like another, where it is."""
    return np.empty_like(array) if isinstance(array, np.ndarray) else _cuda.empty_like(array)


def line(array) -> Any:
    """A contiguous host or device array as one line, without a copy."""
    return array.reshape(-1)


def launch(kernel, blocks: int, threads: int, inputs: tuple, outputs: tuple, numbers: tuple = (), stream=None) -> None:
    """Launch a CUDA kernel with (*inputs, *outputs, *numbers).

    NumPy arrays among them are copied to the device, and results back; device arrays are only wrapped, and nothing
    waits for them.
    """
    _cuda.require_device()
    queue = _cuda.numba_stream(stream)
    held = [_to_device(a, queue) for a in (*inputs, *outputs)]
    kernel[blocks, threads, queue](*held, *numbers)
    for given, there in zip(outputs, held[len(inputs):]):
        if isinstance(given, np.ndarray) and not _cuda.simulated():
            there.copy_to_host(given, stream=queue)
            if queue:
                queue.synchronize()


def _to_device(value: Any, queue) -> Any:
    if _cuda.simulated():
        return value
    if isinstance(value, np.ndarray):
        return _cuda.toolkit().to_device(np.ascontiguousarray(value), stream=queue)
    return _cuda.wrap(value) if _cuda.on_device(value) else value


def grid_for(numbers: int, threads: int = 256) -> tuple[int, int]:
    """Blocks and threads for so many independent numbers; the simulator runs every thread as a thread of the system."""
    if _cuda.simulated():
        return 2, 4
    return max(1, min(-(-numbers // threads), 32 * _cuda.multiprocessors())), threads


__all__ = ["CHUNK", "SERIAL", "dtype_of", "flat", "grid_for", "launch", "like", "line", "workers_for"]
