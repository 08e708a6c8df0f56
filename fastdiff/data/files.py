"""Files: blocks of finished samples, and the data set they are merged into.

Nothing here is seen under its own name before it is whole: everything is written under a temporary name in the folder
`<path>.parts`, flushed to the disk, then renamed.

A block is a header line and raw numbers. The data set (layout "fastdiff") is HDF5:

    /fields        (samples, frames, components, *grid), contiguous: any window of frames is one read
    /t /x /y /z    times of the frames, coordinates of the points
    /parameters/…  (samples,) each
    /checksum      (samples,) CRC-32 of each sample's bytes in /fields
    /manifest      JSON: the whole recipe, samples, shape, seed, device, version
    attributes     layout, recipe, summary, equation, labels, grid_*, dt, method, seed, samples, version, device
"""

import errno
import json
import os
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

LAYOUT = "fastdiff 1"
_PREFIX = struct.Struct("<8sII")  # magic, length and CRC-32 of the header that follows
_MAGIC = b"fdblock1"
_METADATA = 1 << 16  # room for what HDF5 writes beside the fields


class DamagedBlock(Exception):
    """A block file whose size or checksum is not what it says."""


@contextmanager
def written_whole(path: Path, folder: Path | None = None):
    """A temporary path to write to; it becomes `path` when the body ends well, and vanishes when it does not."""
    temporary = (folder or path.parent) / f"{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path):
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksums(fields: np.ndarray) -> list[int]:
    """CRC-32 of each sample."""
    return [zlib.crc32(sample.reshape(-1).view(np.uint8)) for sample in fields]


def write_block(path: Path, fields: np.ndarray, parameters: dict[str, list]) -> None:
    """Write samples and their parameters."""
    fields = np.ascontiguousarray(fields)
    header = {"dtype": str(fields.dtype), "shape": fields.shape, "checksums": checksums(fields),
              "parameters": parameters}
    text = json.dumps(header).encode()
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        file.write(_PREFIX.pack(_MAGIC, len(text), zlib.crc32(text)) + text)
        file.write(memoryview(fields.reshape(-1).view(np.uint8)))


def read_header(path: Path) -> tuple[dict, int]:
    """A block's header and the place where its numbers begin; checks that the file is as long as it should be."""
    with open(path, "rb") as file:
        prefix = file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size:
            raise DamagedBlock(path)
        magic, length, crc = _PREFIX.unpack(prefix)
        text = file.read(length)
        if magic != _MAGIC or len(text) != length or zlib.crc32(text) != crc:
            raise DamagedBlock(path)
        header, start = json.loads(text), file.tell()
        size = int(np.prod(header["shape"])) * np.dtype(header["dtype"]).itemsize
        if os.fstat(file.fileno()).st_size != start + size:
            raise DamagedBlock(path)
    return header, start


def read_block(path: Path) -> np.ndarray:
    """The samples of a block; checks every one."""
    header, start = read_header(path)
    with open(path, "rb") as file:
        file.seek(start)
        fields = np.empty(header["shape"], header["dtype"])
        count = file.readinto(memoryview(fields.reshape(-1).view(np.uint8)))
    if count != fields.nbytes or checksums(fields) != header["checksums"]:
        raise DamagedBlock(path)
    return fields


def merge(blocks: list[Path], path: Path, shape: tuple[int, ...], dtype, names, axes: dict, attributes: dict,
          manifest: dict) -> None:
    """Merge blocks, in order, into the data set at `path`, by way of a temporary file beside the blocks."""
    headers = [read_header(block)[0] for block in blocks]
    parameters = {name: sum((h["parameters"][name] for h in headers), []) for name in headers[0]["parameters"]}
    sums = np.array(sum((h["checksums"] for h in headers), []), np.uint32)
    with written_whole(path, blocks[0].parent) as temporary:
        _reserve(temporary, int(np.prod(shape)) * np.dtype(dtype).itemsize + _METADATA)  # HDF5 itself fails badly
        tables = {**axes, "checksum": sums, "manifest": np.bytes_(json.dumps(manifest)),
                  **{f"parameters/{name}": _column(values) for name, values in parameters.items()}}
        offset = _create(temporary, shape, dtype, names, tables, attributes)
        _reserve(temporary, temporary.stat().st_size)
        with open(temporary, "r+b") as file:
            file.seek(offset)
            for block in blocks:
                file.write(memoryview(read_block(block).reshape(-1).view(np.uint8)))


def _reserve(path, size):
    """Take room on the disk: a full one is found here, in a system call, not at the last block."""
    with open(path, "ab") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise


def _column(values) -> np.ndarray:
    return np.array([v.encode() for v in values]) if isinstance(values[0], str) else np.array(values)


def _create(path, shape, dtype, names, tables, attributes) -> int:
    """Make the HDF5 file with room for the fields; return the byte where they begin."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for name, values in tables.items():
            file[name] = values
        fields = _room(file, "fields", shape, dtype)
        fields.attrs["names"] = list(names)
        for dim, label in zip(fields.dims, ("sample", "t", "field", "x", "y", "z")):
            dim.label = label
        return fields.id.get_offset()


def _room(file, name, shape, dtype) -> h5py.Dataset:
    """A contiguous data set, allocated at once and filled with nothing, so that its numbers can be written raw."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype), logical=True)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, plist))


def open_file(path) -> Any:
    """A data set, an h5py.File, opened for reading; says so when it is not one, or not whole."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; `fastdiff generate` makes data sets")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        what = "is cut short" if "truncated" in str(error) else "is no HDF5 file, or a damaged one"
        raise OSError(f"{path} {what}: delete it and generate it again") from error
    if file.attrs.get("layout") != LAYOUT or "manifest" not in file:
        layout = file.attrs.get("layout", "unknown")
        file.close()
        raise ValueError(f'{path} has the layout {layout!r}; this reads {LAYOUT!r}')
    return file


__all__ = ["LAYOUT", "DamagedBlock", "checksums", "merge", "open_file", "read_block", "read_header", "write_block",
           "written_whole"]
