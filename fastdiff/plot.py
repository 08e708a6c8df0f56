"""Pictures of solutions: profiles and space-time in 1-D, frames in 2-D, slices through the middle in 3-D."""

import os
from pathlib import Path
from typing import Any

import numpy as np

_SEQUENTIAL, _DIVERGING = "viridis", "RdBu_r"


def draw(solution, *, sample=0, component=None, path=None, times=5):
    """Draw one sample of a Solution; the method `Solution.plot`."""
    names, frames = _chosen(solution, sample, component)
    shown = np.unique(np.linspace(0, len(solution.t) - 1, max(1, min(times, len(solution.t)))).round().astype(int))
    picture = {1: _profiles, 2: _frames, 3: _slices}[solution.grid.ndim](solution, names, frames, shown)
    picture.suptitle(_title(solution))
    if path is not None:
        picture.savefig(_writable(path), dpi=150)
    return picture


def animate(solution, path=None, *, sample=0, component=None, fps=12):
    """Animate one sample of a Solution; the method `Solution.animate`."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    if path is not None and Path(path).suffix.lower() != ".gif":
        raise ValueError(f'animations are written as .gif: write "{Path(path).with_suffix(".gif")}" instead of {path}')
    if path is not None:
        _writable(path)
    names, frames = _chosen(solution, sample, component)
    figure, update = (_moving_lines if solution.grid.ndim == 1 else _moving_frames)(solution, names, frames)
    movie = FuncAnimation(figure, update, frames=len(solution.t), interval=1000 / fps, blit=False)
    if path is not None:
        movie.save(os.fspath(path), writer=PillowWriter(fps=fps))
        _close(figure)
    return movie


def _chosen(solution, sample, component):
    """Names and frames (T, C, *grid) of what to draw."""
    frames, names = solution.frames(), solution.names
    if not -len(frames) <= sample < len(frames):
        raise ValueError(f"there is no sample {sample}: the batch has {len(frames)}")
    if component is not None and component not in names:
        raise ValueError(f"unknown component {component!r}; known: {', '.join(names)}")
    keep = [c for c, name in enumerate(names) if component in (None, name)]
    return [names[c] for c in keep], frames[sample][:, keep]


def _writable(path):
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {Path(path).parent} does not exist: make it first")
    return path


def _title(solution):
    equation = solution.equation
    return equation if isinstance(equation, str) else "" if equation is None else type(equation).__name__


def _figure(rows, columns, width, height) -> tuple[Any, Any]:
    """A figure and its axes, (rows, columns); pyplot only where a notebook or a window may show it."""
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width * columns + 1.0, height * rows + 0.6), squeeze=False,
                        layout="constrained")


def _close(figure):
    import matplotlib.pyplot as plt

    plt.close(figure)


def _colours(values) -> dict[str, Any]:
    """Colour map and limits: symmetric about 0 where the field has both signs."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low < 0 < high and min(-low, high) > 0.2 * max(-low, high):
        high = max(-low, high)
        return dict(cmap=_DIVERGING, vmin=-high, vmax=high)
    return dict(cmap=_SEQUENTIAL, vmin=low, vmax=high if high > low else low + 1e-12 + abs(low) * 1e-6)


def _edges(grid, axis):
    """Ends of the picture along an axis: half a cell beyond the first and last point."""
    points, half = grid.points(axis), grid.mean_spacing[axis] / 2
    return points[0] - half, points[-1] + half


def _profiles(solution, names, frames, shown):
    """1-D: lines at some times, and, with more than one, the whole run over space and time."""
    import matplotlib as mpl

    grid, t = solution.grid, solution.t
    x, several = grid.points(0), len(t) > 1
    figure, axes = _figure(len(names), 2 if several else 1, 4.6, 3.2)
    palette = mpl.colormaps[_SEQUENTIAL]
    for name, field, (lines, *rest) in zip(names, np.moveaxis(frames, 1, 0), axes):
        for n, frame in enumerate(shown):
            lines.plot(x, field[frame], color=palette(n / max(len(shown) - 1, 1) * 0.9), label=f"t = {t[frame]:.3g}")
        lines.set(xlabel=grid.names[0], ylabel=name, xlim=_edges(grid, 0))
        lines.grid(alpha=0.25)
        lines.legend(frameon=False, fontsize="small")
        for picture in rest:
            rows, columns = -(-len(t) // 1000), -(-len(x) // 1000)  # no more than can be seen
            mesh = picture.pcolormesh(x[::columns], t[::rows], field[::rows, ::columns], shading="nearest",
                                      rasterized=True, **_colours(field))
            picture.set(xlabel=grid.names[0], ylabel="t")
            figure.colorbar(mesh, ax=picture, label=name)
    return figure


def _frames(solution, names, frames, shown):
    """2-D: a row for each component, a column for each time."""
    figure, axes = _figure(len(names), len(shown), 2.6, 2.6 * _slant(solution.grid, (0, 1)) + 0.2)
    for c, (name, field, row) in enumerate(zip(names, np.moveaxis(frames, 1, 0), axes)):
        colours = _colours(field[shown])
        for frame, cell in zip(shown, row):
            image = _image(cell, solution.grid, field[frame], (0, 1), colours)
            cell.set_title(f"t = {solution.t[frame]:.4g}" if c == 0 else "", fontsize="medium")
        figure.colorbar(image, ax=list(row), label=name, shrink=0.85)
    _only_outer_labels(axes)
    return figure


def _slices(solution, names, frames, shown):
    """3-D: the last frame, cut through the middle of each axis."""
    grid, last = solution.grid, shown[-1]
    figure, axes = _figure(len(names), 3, 3.0, 2.8)
    for name, field, row in zip(names, frames[last], axes):
        colours = _colours(field)
        for axis, cell in zip((2, 1, 0), row):
            middle = grid.shape[axis] // 2
            others = tuple(k for k in range(3) if k != axis)
            image = _image(cell, grid, np.take(field, middle, axis), others, colours)
            where = f"{grid.names[axis]} = {grid.points(axis)[middle]:.3g}"
            cell.set_title(f"{where}, t = {solution.t[last]:.4g}", fontsize="medium")
        figure.colorbar(image, ax=list(row), label=name, shrink=0.85)
    return figure


def _image(cell, grid, field, axes, colours):
    """A plane of the field, its first axis to the right."""
    if grid.lines is not None:
        image = cell.pcolormesh(*(grid.points(a) for a in axes), field.T, shading="nearest", **colours)
    else:
        image = cell.imshow(field.T, origin="lower", extent=(*_edges(grid, axes[0]), *_edges(grid, axes[1])),
                            interpolation="nearest", **colours)
    if _slant(grid, axes) in (_FLATTEST, _STEEPEST):
        cell.set_aspect("auto")
    cell.set(xlabel=grid.names[axes[0]], ylabel=grid.names[axes[1]])
    return image


_FLATTEST, _STEEPEST = 0.3, 2.5


def _slant(grid, axes) -> float:
    """Height over width of a picture of two axes."""
    (left, right), (bottom, top) = _edges(grid, axes[0]), _edges(grid, axes[1])
    return float(np.clip((top - bottom) / (right - left), _FLATTEST, _STEEPEST))


def _only_outer_labels(axes):
    for row in axes:
        for cell in row:
            cell.label_outer()


def _moving_lines(solution, names, frames):
    figure, axes = _figure(1, len(names), 4.6, 3.2)
    x, lines = solution.grid.points(0), []
    for c, (name, cell) in enumerate(zip(names, axes[0])):
        colours = _colours(frames[:, c])
        margin = 0.05 * (colours["vmax"] - colours["vmin"])
        lines += cell.plot(x, frames[0, c], lw=2)
        cell.set(xlabel="x", ylabel=name, xlim=_edges(solution.grid, 0),
                 ylim=(colours["vmin"] - margin, colours["vmax"] + margin))
        cell.grid(alpha=0.25)
    return figure, _updater(solution, figure, lines, lambda line, n, c: line.set_ydata(frames[n, c]))


def _moving_frames(solution, names, frames):
    grid = solution.grid
    if grid.ndim == 3:
        frames = np.take(frames, grid.shape[2] // 2, -1)
    figure, axes = _figure(1, len(names), 4.0, 3.6 * _slant(grid, (0, 1)) + 0.4)
    images = []
    for c, (name, cell) in enumerate(zip(names, axes[0])):
        images.append(_image(cell, grid, frames[0, c], (0, 1), _colours(frames[:, c])))
        figure.colorbar(images[-1], ax=cell, label=name, shrink=0.85)
    return figure, _updater(solution, figure, images, lambda image, n, c: image.set_data(frames[n, c].T))


def _updater(solution, figure, artists, change):
    title, place = _title(solution), ""
    if solution.grid.ndim == 3:
        middle = solution.grid.shape[2] // 2
        place = f"  z = {solution.grid.points(2)[middle]:.3g}"

    def update(n):
        for c, artist in enumerate(artists):
            change(artist, n, c)
        figure.suptitle(f"{title}{place}  t = {solution.t[n]:.4g}")
        return artists

    update(0)
    return update


__all__ = ["animate", "draw"]
