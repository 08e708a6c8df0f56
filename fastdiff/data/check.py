"""Is a data set what it says it is?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdiff.data.files import checksums, open_file

LISTED = 20


@dataclass(frozen=True)
class Verification:
    """What `verify` found: problems in words, none if the data set is sound."""

    path: Path
    samples: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(path) -> Verification:
    """Check a data set: structure, the checksum of every sample, and that all numbers are finite.

    Raises OSError or ValueError for a file that cannot be read as a data set at all.
    """
    with open_file(path) as file:
        problems = _structure(file)
        if not problems:
            for i in range(len(file["fields"])):
                problems += _sample(file, i)
        samples = len(file["fields"]) if "fields" in file else 0
    more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    return Verification(Path(path), samples, tuple(problems[:LISTED] + more))


def _structure(file):
    missing = [name for name in ("fields", "t", "checksum", "parameters") if name not in file]
    if missing:
        return [f"{', '.join(missing)} missing"]
    shape, names = file["fields"].shape, file["fields"].attrs["names"]
    lengths = {"t": shape[1], "checksum": shape[0], **{f"parameters/{p}": shape[0] for p in file["parameters"]},
               **dict(zip("xyz", shape[3:]))}
    problems = [f"{name} has the shape {file[name].shape}, expected ({n},)" for name, n in lengths.items()
                if name not in file or file[name].shape != (n,)]
    if len(names) != shape[2]:
        problems.append(f"{shape[2]} components, but {len(names)} names")
    if not (np.diff(file["t"][:]) > 0).all():
        problems.append("times do not ascend")
    return problems


def _sample(file, i):
    fields = file["fields"][i : i + 1]
    wrong = checksums(fields)[0] != file["checksum"][i]
    bad = np.argwhere(~np.isfinite(fields[0]))
    return ([f"sample {i}: checksum differs, its numbers were changed after writing"] if wrong else []) + (
        [f"sample {i}: not finite at frame {bad[0][0]}"] if len(bad) else [])


__all__ = ["Verification", "verify"]
