"""A contact sheet: some samples of a data set on one picture."""

import json
import os
from pathlib import Path

import numpy as np

from fastdiff.data.files import open_file, written_whole

SAMPLES, FRAMES = 8, 6


def contact_sheet(path, picture: str | os.PathLike | None = None, samples: int = SAMPLES, frames: int = FRAMES) -> Path:
    """Draw samples (rows) over time (columns) of the last component; in 1-D, one space-time picture a sample.

    `picture` is where to write it, by default beside the data set, as .png. In 3-D, slices through the middle.
    """
    picture = Path(picture) if picture is not None else Path(path).with_suffix(".png")
    with open_file(path) as file:
        data, times, names = file["fields"], file["t"][:], file["fields"].attrs["names"]
        rows = range(min(samples, data.shape[0]))
        titles = [_title(file, row) for row in rows]
        shown = np.unique(np.linspace(0, len(times) - 1, frames).round().astype(int))
        if data.ndim == 4:
            panels = [[data[row, :, -1]] for row in rows]
        else:
            middle = tuple(n // 2 for n in data.shape[5:])
            panels = [[data[(row, t, -1, slice(None), slice(None), *middle)].T for t in shown] for row in rows]
        heads = [f"t = {times[t]:g}" for t in shown] if data.ndim > 4 else ["time downwards, x to the right"]
        figure = _draw(panels, titles, heads, f"{file.attrs['recipe']}, {names[-1]}")
    with written_whole(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    return picture


def _title(file, row):
    labels = json.loads(file.attrs["labels"])
    values = {name: d[row] for name, d in file["parameters"].items()}
    texts = [values[name].decode() for name in labels]
    return "\n".join(texts + [f"{name} = {v:.4g}" for name, v in values.items() if name not in labels])


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


__all__ = ["contact_sheet"]
