"""A contact sheet: some samples of a data set on one picture."""

import os
from pathlib import Path

import numpy as np

from fastdiff.data.files import written_whole
from fastdiff.data.layouts import source

SAMPLES, FRAMES = 8, 6


def contact_sheet(path, picture: str | os.PathLike | None = None, samples: int = SAMPLES, frames: int = FRAMES) -> Path:
    """Draw samples (rows) over time (columns) of the last component; in 1-D, one space-time picture a sample.

    `picture` is where to write it, by default beside the data set, as .png. In 3-D, slices through the middle.
    """
    picture = Path(picture) if picture is not None else Path(path).with_suffix(".png")
    figure = sheet(path, samples, frames)
    with written_whole(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    return picture


def sheet(path, samples: int = SAMPLES, frames: int = FRAMES):
    """The contact sheet as a matplotlib figure."""
    with source(path) as there:
        rows = range(min(samples, there.shape[0]))
        shown = np.unique(np.linspace(0, there.shape[1] - 1, frames).round().astype(int))
        if len(there.shape) == 4:
            panels = [[there.read(row)[:, -1]] for row in rows]
        else:
            middle = tuple(n // 2 for n in there.shape[5:])
            panels = [[there.read(row, int(t), 1)[(0, -1, slice(None), slice(None), *middle)].T for t in shown]
                      for row in rows]
        heads = [f"t = {there.t[t]:g}" for t in shown] if len(there.shape) > 4 else ["time downwards, x to the right"]
        return _draw(panels, [title(there, row) for row in rows], heads, f"{there.name}, {there.names[-1]}")


def title(there, row) -> str:
    """A sample's labels and parameters, in lines."""
    texts = [str(there.parameters[name][row]) for name in there.labels if name in there.parameters]
    return "\n".join(texts + [f"{name} = {there.parameters[name][row]:.4g}" for name in there.numbers()
                              if there.parameters[name].ndim == 1])


def _draw(panels, titles, heads, title):
    from matplotlib.figure import Figure

    rows, columns = len(panels), len(panels[0])
    figure = Figure(figsize=(1.4 * columns + 1.6, 1.4 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    low, high = min(p.min() for row in panels for p in row), max(p.max() for row in panels for p in row)
    for row in range(rows):
        for column in range(columns):
            ax = axes[row, column]
            origin, aspect = ("lower", "equal") if columns > 1 else ("upper", "auto")
            ax.imshow(panels[row][column], origin=origin, aspect=aspect, vmin=low, vmax=high)
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(heads[column], fontsize=8)
        axes[row, 0].set_ylabel(titles[row], fontsize=7, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=10)
    return figure


__all__ = ["contact_sheet", "sheet", "title"]
