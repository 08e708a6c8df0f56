"""Files: HDF5 with room for numbers that are written raw, and files that appear whole or not at all.

HDF5 makes a skeleton in which every array is contiguous, allocated and filled with nothing. From then on the numbers
go to their places in the file by plain system calls: from several processes at once, each byte written once, in any
order, any number of times. A process that is killed cannot leave the skeleton damaged, and a full disk is an OSError.
"""

import ctypes
import errno
import os
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np


@contextmanager
def written_whole(path: Path, folder: Path | None = None):
    """A temporary path to write to; it becomes `path` when the body ends well, and vanishes when it does not."""
    temporary = (folder or path.parent) / f"{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path) -> None:
    """Wait until a file or folder is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(sample: np.ndarray) -> int:
    """CRC-32 of a sample (frames, components, *grid), C-contiguous."""
    return zlib.crc32(as_bytes(sample))


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array."""
    return memoryview(array.reshape(-1).view(np.uint8))


def write_at(handle: int, offset: int, array: np.ndarray) -> None:
    """Write an array at a place in an open file."""
    data = as_bytes(np.ascontiguousarray(array))
    while len(data):
        count = os.pwrite(handle, data, offset)
        data, offset = data[count:], offset + count


def read_at(handle: int, offset: int, array: np.ndarray) -> np.ndarray:
    """Fill a C-contiguous array from a place in an open file."""
    data = as_bytes(array)
    while len(data):
        count = os.preadv(handle, [data], offset)
        if count == 0:
            raise OSError("the file is cut short: generate it again")
        data, offset = data[count:], offset + count
    return array


def reserve(path: Path, size: int) -> None:
    """Take room on the disk: a full disk is found here, in a system call, not at the last sample.

    Not by posix_fallocate, which writes every block where the file system cannot reserve.
    """
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None or size == 0:
        return
    with open(path, "ab") as file:
        if fallocate(file.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
            code = ctypes.get_errno()
            if code not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise OSError(code, os.strerror(code))


def room(group, name: str, shape: tuple[int, ...], dtype) -> h5py.Dataset:
    """A contiguous data set, allocated at once and filled with nothing."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype), logical=True)
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, plist, links))


def open_h5(path) -> Any:
    """An h5py.File opened for reading; says so when it is not one, or not whole."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; `fastdiff generate` makes data sets")
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        what = "is cut short" if "truncated" in str(error) else "is no HDF5 file, or a damaged one"
        raise OSError(f"{path} {what}: delete it and generate it again") from error


__all__ = ["as_bytes", "checksum", "flush", "open_h5", "read_at", "reserve", "room", "write_at", "written_whole"]
