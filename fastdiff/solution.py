"""What `solve` returns: the field at the saved times, with how it was computed, ways to see it and to keep it."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdiff.grid import Grid

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure

_FORMAT = "fastdiff solution 1"


@dataclass(repr=False)
class Solution:
    """The solution of an equation.

    t      the saved times, (T,)
    u      the field at these times, (T, [C,] *grid), with a batch (B, T, [C,] *grid)
    final  the last field, in the shape of u0
    stats  method, why, steps, dt, seconds, compile_seconds, cell_updates_per_second, error_estimate
    names  of the components
    """

    t: np.ndarray
    u: Any
    final: Any
    stats: dict[str, Any] = field(default_factory=dict)
    grid: Grid | None = None
    equation: Any = None
    names: tuple[str, ...] = ("u",)

    def __repr__(self):
        shape = "x".join(map(str, self.u.shape))
        times = f"{len(self.t)} time{'s' * (len(self.t) != 1)} to {self.t[-1]:g}" if len(self.t) else "no times"
        what = type(self.equation).__name__ if is_dataclass(self.equation) else (self.equation or "unknown equation")
        return f"Solution({what}, {times}, u {shape} {str(self.u.dtype)}, method {self.stats.get('method')!r})"

    def frames(self) -> np.ndarray:
        """u as a NumPy array with all its axes: (batch, times, components, *grid)."""
        grid, u = self._grid(), _numpy(self.u)
        missing = grid.ndim + 3 - u.ndim
        if missing == 0:
            return u
        if len(self.names) > 1 or missing == 2:
            u = u[None]
        return u if u.ndim == grid.ndim + 3 else u[:, :, None]

    def plot(self, *, sample: int = 0, component: str | None = None, path: str | os.PathLike | None = None,
             times: int = 5) -> "Figure":
        """Draw one sample: profiles and a space-time picture in 1-D, frames in 2-D, slices through the middle in 3-D.

        component  the one to draw; default: all
        path       where to write the picture, too
        times      how many of the saved times to show
        """
        from fastdiff import plot

        return plot.draw(self, sample=sample, component=component, path=path, times=times)

    def animate(self, path: str | os.PathLike | None = None, *, sample: int = 0, component: str | None = None,
                fps: int = 12) -> "FuncAnimation":
        """Animate one sample over the saved times and write it to `path` (a .gif)."""
        from fastdiff import plot

        return plot.animate(self, path, sample=sample, component=component, fps=fps)

    def to_xarray(self):
        """An xarray Dataset with a variable for each component, over time and place (and sample)."""
        try:
            import xarray
        except ImportError as error:
            raise ImportError("to_xarray needs xarray: pip install xarray, or fastdiff-pde[xarray]") from error
        grid, u = self._grid(), self.frames()
        batched = self._batched()
        dims = [*(["sample"] if batched else []), "time", *grid.names]
        data = u if batched else u[0]
        axis = 2 if batched else 1
        variables = {name: (dims, np.take(data, c, axis)) for c, name in enumerate(self.names)}
        coordinates = {"time": self.t, **{name: grid.points(k) for k, name in enumerate(grid.names)}}
        return xarray.Dataset(variables, coordinates, {"equation": repr(self.equation), "stats": _to_json(self.stats)})

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write everything to an HDF5 file, which appears only when it is complete."""
        path = Path(path)
        temporary = begin_file(path, overwrite)
        try:
            self._write(temporary)
            publish_file(temporary, path)
        except BaseException as error:
            discard_file(temporary)
            if isinstance(error, OSError | RuntimeError):
                why = str(error).splitlines()[0]
                raise OSError(f"could not write {path}, and left nothing behind: {why}") from error
            raise
        return path

    def _write(self, path):
        import h5py

        with h5py.File(path, "w") as file:
            file["u"] = _numpy(self.u)
            self._describe(file)

    def _describe(self, file):
        """Everything but u."""
        file.attrs["format"] = _FORMAT
        file.attrs["names"] = list(self.names)
        file.attrs["stats"] = _to_json(self.stats)
        file["t"], file["final"] = _numpy(self.t), _numpy(self.final)
        if self.grid is not None:
            file.attrs["grid"] = _to_json({f.name: getattr(self.grid, f.name) for f in fields(self.grid)})
        file.attrs["equation"] = self.equation if isinstance(self.equation, str) else repr(self.equation)
        if is_dataclass(self.equation):
            _write_fields(file.create_group("equation"), self.equation)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Solution":
        """Read a file that `save` wrote; arrays come back as NumPy arrays."""
        import h5py

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}: save a Solution there first")
        try:
            with h5py.File(path, "r") as file:
                attrs: dict[str, Any] = dict(file.attrs)
                if attrs.get("format") != _FORMAT:
                    raise ValueError(f"{path} is not a solution that fastdiff saved")
                t, u, final = (np.asarray(file[name]) for name in ("t", "u", "final"))
                grid = Grid(**json.loads(attrs["grid"])) if "grid" in attrs else None
                return cls(t, u, final, json.loads(attrs["stats"]), grid, _read_equation(file),
                           tuple(map(str, attrs["names"])))
        except (OSError, KeyError, RuntimeError) as error:
            why = str(error).splitlines()[0]
            raise ValueError(f"{path} is damaged or not a solution that fastdiff saved: {why}") from error

    def _grid(self) -> Grid:
        if self.grid is None:
            raise ValueError("this Solution has no grid: set solution.grid = fd.Grid(...)")
        return self.grid

    def _batched(self) -> bool:
        return self.u.ndim >= self._grid().ndim + (3 if len(self.names) > 1 else 2)


def begin_file(path: Path, overwrite: bool = False, check_only: bool = False) -> str:
    """Check that a file can be made, and make a temporary one beside it; returns that one's name."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file, such as {path / 'solution.h5'}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or remove it (save has overwrite=True)")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first")
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise type(error)(f"cannot write in {path.parent} ({error.strerror}): choose another folder") from error
    os.close(handle)
    if check_only:
        discard_file(temporary)
    return temporary


def publish_file(temporary, path: Path):
    """Give a finished temporary file its name."""
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, path)


def discard_file(temporary):
    """Remove a temporary file."""
    Path(temporary).unlink(missing_ok=True)


def _numpy(array) -> np.ndarray:
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _plain(value):
    """What JSON cannot hold as what it can: arrays as lists, the rest as text."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


def _to_json(value) -> str:
    return json.dumps(value, default=_plain)


def _write_fields(group, equation):
    group.attrs["class"] = type(equation).__name__
    for f in fields(equation):
        value = getattr(equation, f.name)
        if hasattr(value, "detach") or isinstance(value, np.ndarray):
            group[f.name] = _numpy(value)
        elif isinstance(value, str | int | float | bool | Sequence | dict | np.generic | None):
            group.attrs[f.name] = _to_json(value)
        else:
            group.attrs["unknown"] = True  # such as a function


def _read_equation(file):
    """The equation, or its text if it cannot be made anew."""
    from fastdiff import equations

    text, group = str(file.attrs["equation"]), file.get("equation")
    if group is None or "unknown" in group.attrs or not hasattr(equations, str(group.attrs["class"])):
        return text
    values = {name: _tuples(json.loads(value)) for name, value in group.attrs.items() if name != "class"}
    values |= {name: np.asarray(item) for name, item in group.items()}
    try:
        return getattr(equations, str(group.attrs["class"]))(**values)
    except (TypeError, ValueError):
        return text


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


__all__ = ["Solution"]
