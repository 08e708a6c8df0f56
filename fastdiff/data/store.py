"""Where a data set grows: the folder `<path>.parts`, with the files as they will be and a journal of finished samples.

The files are made first, with room for everything, so that a full disk is found before anything is computed. Numbers
go straight to their final place, are flushed, and only then written down in the journal, with checksums. So each byte
is written once, and whatever happens, what the journal lists is there and whole. The last step is a rename.
"""

import json
import os
import shutil
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.data import files
from fastdiff.data.job import Job
from fastdiff.data.layouts import Layout, source
from fastdiff.data.summary import combine

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_ENTRY = struct.Struct("<QII")  # first sample, number of samples, CRC-32 of their records
METADATA = 1 << 16  # room for what HDF5 writes beside the fields


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says what is kept and how to go on."""


class Target:
    """The files of a data set, for writing samples: what a worker process needs to know."""

    def __init__(self, root: Path, places):
        self.root, self.places = root, places

    def write(self, first: int, fields: np.ndarray) -> None:
        """Write samples to their places and wait until they are on the disk."""
        handles: dict[str, int] = {}
        try:
            for i, sample in enumerate(fields):
                for place in self.places[first + i]:
                    if place.file not in handles:
                        handles[place.file] = os.open(self.root / place.file if place.file else self.root, os.O_RDWR)
                    files.write_at(handles[place.file], place.offset, place.take(sample))
            for handle in handles.values():
                getattr(os, "fdatasync", os.fsync)(handle)
        finally:
            for handle in handles.values():
                os.close(handle)

    def read(self, i: int, sample: np.ndarray) -> np.ndarray:
        """Read one sample back."""
        for place in self.places[i]:
            with open(self.root / place.file if place.file else self.root, "rb") as file:
                place.put(sample, lambda a: files.read_at(file.fileno(), place.offset, a))  # noqa: B023
        return sample

    def part(self, first: int, count: int) -> "Target":
        """What is needed to write some samples."""
        return Target(self.root, {i: self.places[i] for i in range(first, first + count)})


class Store:
    """The folder `<path>.parts`, locked while it is in use; a context."""

    def __init__(self, path: Path, job: Job, layout: type[Layout], overwrite: bool):
        self.path, self.folder, self.job, self.kind = path, Path(f"{path}.parts"), job, layout
        self.manifest = {**job.manifest(), "layout": layout.name}
        self.overwrite, self.lock, self.journal = overwrite, None, None
        self.done = np.zeros(job.samples, bool)
        self.found = 0

    @property
    def root(self) -> Path:
        """The data set as it grows."""
        return self.folder / ("data" if self.kind.folder else "data.h5")

    def __enter__(self):
        self._check_place()
        if not self.folder.exists():
            self._check_room(self.path.absolute().parent, self.job.samples * self.job.sample_bytes + METADATA)
        self.layout = self.kind(self.job.about)
        fresh = self._make_folder()
        try:
            self.lock = self._locked()
            if self.overwrite and not self._is_ours():
                self._clear()
            self._take_up()
        except BaseException:
            self._leave(fresh)
            raise
        return self

    # -- before anything is made -------------------------------------------------------------------------------

    def _check_place(self):
        folder = self.path.absolute().parent
        if self.path.is_dir() and not self.kind.folder:
            raise IsADirectoryError(f"{self.path} is a folder: give the name of a file, such as {self.path}/data.h5")
        if not folder.is_dir():
            raise FileNotFoundError(f"the folder {folder} does not exist: make it first")
        if self.path.exists() and not (self.overwrite and (self.path.is_file() or _manifest(self.path))):
            raise FileExistsError(self._existing())

    def _existing(self):
        there = _manifest(self.path)
        if there is None:
            return f"{self.path} exists and is no data set of fastdiff: give another name" + (
                ", or pass overwrite=True (--overwrite)" if self.path.is_file() else "")
        different = differences(there, self.manifest)
        if not different and self.folder.is_dir():  # killed after the file was whole, before the folder was gone
            with suppress(OSError):
                self.lock = self._locked()
                self._leave(True)
        what = f"is another data set ({different})" if different else "is already complete"
        return f"{self.path} exists and {what}: use it, give another name, or pass overwrite=True (--overwrite)"

    def _make_folder(self) -> bool:
        try:
            self.folder.mkdir()
        except FileExistsError:
            if not self.folder.is_dir():
                raise FileExistsError(f"{self.folder} is in the way: move it, or give another name") from None
            return False
        except OSError as error:
            raise type(error)(f"cannot write in {self.path.absolute().parent} ({error.strerror}): choose another "
                              f"folder") from error
        return True

    def _locked(self):
        handle = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR)
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise FileExistsError(f"another process is generating {self.path}: wait for it, or give another "
                                      f"name") from None
            except OSError:  # a file system without locks
                pass
        return handle

    def _is_ours(self) -> bool:
        """Whether an interrupted run of the same is here."""
        with suppress(OSError, ValueError):
            return not differences(json.loads((self.folder / "manifest.json").read_text()), self.manifest)
        return False

    def _take_up(self):
        """Go on with the run that is here, or begin one."""
        for file in self.folder.rglob("*.tmp"):
            file.unlink(missing_ok=True)
        file = self.folder / "manifest.json"
        if file.exists():
            try:
                there = json.loads(file.read_text())
            except ValueError:
                raise ValueError(f"{file} is damaged: delete {self.folder}, or overwrite") from None
            different = differences(there, self.manifest)
            if different:
                raise FileExistsError(f"{self.folder} holds an unfinished run of something else ({different}): give "
                                      f"another name, delete it, or overwrite")
        try:
            if not file.exists():
                raise OSError("nothing is here yet")
            self.target = Target(self.root, self.layout.places(self.root))
        except (OSError, KeyError):  # not begun, or damaged beyond use
            self._begin(file)
        self.records = np.zeros(self.job.samples, self.job.about_record)
        self._read_journal()

    def _begin(self, file):
        """Make the files, with room for everything."""
        self._clear()
        needed = self.job.about.total_bytes + METADATA
        self._check_room(self.folder, needed)
        try:
            self._reserve(needed)
            self.layout.create(self.root)
            self._reserve_files()
        except OSError as error:
            raise self._could_not(error, "nothing is left behind") from error
        self.target = Target(self.root, self.layout.places(self.root))
        with files.written_whole(file) as temporary:  # from here on, the run can be taken up
            temporary.write_text(json.dumps(self.manifest, indent=1))

    def _check_room(self, folder, needed):
        """Refuse a disk that is too small; at first by the fields alone: to draw all parameters may take long."""
        disk = shutil.disk_usage(folder)
        if disk.total and disk.free < needed:  # some that are mounted say that they are of no size
            raise OSError(f"{self.path} needs {needed / 1e9:.2f} GB, but only {disk.free / 1e9:.2f} GB are free: make "
                          f"room, or choose another disk")

    def _reserve(self, needed):
        """Try whether there is room for everything: HDF5 itself fails badly."""
        trial = self.folder / "room.tmp"
        try:
            files.reserve(trial, needed)
        finally:
            trial.unlink(missing_ok=True)

    def _reserve_files(self):
        for file in [self.root] if self.root.is_file() else [f for f in self.root.rglob("*") if f.is_file()]:
            files.reserve(file, file.stat().st_size)
            files.flush(file)

    # -- the journal -----------------------------------------------------------------------------------------------

    def _read_journal(self):
        """Take over what is written down; what follows the last whole entry was never finished."""
        path = self.folder / "journal"
        data = path.read_bytes() if path.exists() else b""
        place, size = 0, self.records.dtype.itemsize
        while place + _ENTRY.size <= len(data):
            first, count, crc = _ENTRY.unpack_from(data, place)
            end = place + _ENTRY.size + count * size
            if first + count > len(self.done) or end > len(data) or zlib.crc32(data[place + _ENTRY.size : end]) != crc:
                break
            self.records[first : first + count] = np.frombuffer(data, self.records.dtype, count, place + _ENTRY.size)
            self.done[first : first + count] = True
            place = end
        self.journal = os.open(path, os.O_CREAT | os.O_RDWR)
        os.ftruncate(self.journal, place)
        os.lseek(self.journal, place, os.SEEK_SET)
        self.found = int(self.done.sum())
        self._trust = np.flatnonzero(self.done)

    def note(self, first: int, records: np.ndarray) -> None:
        """Write down that samples are on the disk."""
        raw = records.tobytes()
        os.write(self.journal, _ENTRY.pack(first, len(records), zlib.crc32(raw)) + raw)
        os.fsync(self.journal)
        self.records[first : first + len(records)] = records
        self.done[first : first + len(records)] = True

    def missing(self, block: int) -> list[tuple[int, int]]:
        """First sample and number of samples of the blocks that are not finished."""
        todo = np.flatnonzero(~self.done)
        runs = np.split(todo, np.flatnonzero(np.diff(todo) > 1) + 1) if len(todo) else []
        return [(int(first), int(min(block, run[-1] + 1 - first))) for run in runs
                for first in range(run[0], run[-1] + 1, block)]

    def damaged(self) -> list[int]:
        """Samples of an earlier run whose numbers are not what was written down; they count as missing again."""
        sample = np.empty(self.job.full_shape[1:], self.job.recipe.dtype)
        found = []
        for i in self._trust:
            try:
                sound = files.checksum(self.target.read(i, sample)) == self.records[i]["checksum"]
            except OSError:
                sound = False
            if not sound:
                found.append(int(i))
        self._trust = np.array([], int)
        self.done[found] = False
        return found

    # -- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Fill the tables and give the data set its name."""
        train = self.records["moments"][self.job.about.split == 0]
        self.layout.finish(self.root, self.records, combine(train))
        for file in [self.root] if self.root.is_file() else [f for f in self.root.rglob("*") if f.is_file()]:
            files.flush(file)
        if self.path.is_dir():
            old = self.folder / "old"
            os.replace(self.path, old)
        os.replace(self.root, self.path)
        files.flush(self.path.absolute().parent)

    def _clear(self):
        """Remove what is ours; the rest is left alone."""
        for name in ("manifest.json", "journal", "data.h5", "room.tmp"):
            (self.folder / name).unlink(missing_ok=True)
        for file in self.folder.glob("*.tmp"):
            file.unlink(missing_ok=True)
        for name in ("data", "old"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _leave(self, remove):
        if self.journal is not None:
            os.close(self.journal)
            self.journal = None
        if remove:
            self._clear()
            (self.folder / "lock").unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def __exit__(self, kind, error, trace):
        done = int(self.done.sum())
        self._leave(kind is None or done == 0)
        if kind is None:
            return
        kept = f"{done} of {self.job.samples} samples are kept in {self.folder}: run the same again to go on"
        if issubclass(kind, KeyboardInterrupt):
            raise Interrupted(f"interrupted; {kept}" if done else "interrupted; no sample was done yet") from None
        if issubclass(kind, OSError):
            raise self._could_not(error, kept if done else "nothing is left behind") from error

    def _could_not(self, error, kept):
        why = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        refused = OSError(f"could not write {self.path} ({why}); {kept}")
        refused.errno = error.errno
        return refused


def _manifest(path) -> dict[str, Any] | None:
    try:
        with source(path) as there:
            if there.manifest is None:
                return None
            return {**there.manifest, "layout": there.layout}
    except (OSError, ValueError, KeyError):
        return None


def differences(there, here, prefix="") -> str:
    """What differs between two manifests, in words."""
    found = []
    for key in {**there, **here}:
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [differences(a, b, f"{prefix}{key}.")] if a != b else []
        elif a != b:
            found.append(f"{prefix}{key} {_short(a)} there, {_short(b)} here")
    return "; ".join(found[:3])


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


__all__ = ["Interrupted", "Store", "Target", "differences"]
