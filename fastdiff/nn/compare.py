"""Surrogate and solver side by side: rollouts next to the truth, and errors at equal wall-clock time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastdiff.nn import metrics
from fastdiff.nn.training import predict, trajectories


def plot_rollout(model, data, path: Any = "rollout.png", *, sample: int = 0, component: int = 0, frames: int = 5):
    """Draw a rollout of a surrogate next to the truth, and how its error grows; returns the picture's path.

    data  trajectories (N, T, C, *grid) on one or two axes, or what `fit` takes. Raises ValueError for three axes.
    """
    from matplotlib.figure import Figure

    fields = trajectories(data)
    ndim = fields.ndim - 3
    if ndim not in (1, 2):
        raise ValueError(f"rollouts are drawn on one or two axes, not {ndim}")
    prediction, truth = predict(model, fields[sample : sample + 1])
    error = metrics.nrmse(prediction, truth, ndim)[0, :, component]
    shown = torch.linspace(0, truth.shape[1] - 1, min(frames, truth.shape[1])).round().long().tolist()
    figure = Figure(figsize=(9, 4) if ndim == 1 else (2 * len(shown) + 3, 5), layout="constrained")
    draw = _lines if ndim == 1 else _images
    growth = draw(figure, truth[0, :, component], prediction[0, :, component], shown)
    growth.semilogy(range(1, len(error) + 1), error.clamp_min(1e-12), "k")
    growth.set(xlabel="steps", title="nRMSE")
    growth.grid(True, lw=0.3)
    figure.savefig(path, dpi=130)
    return Path(path)


def _lines(figure, truth, prediction, shown):
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for k, frame in enumerate(shown):
        left.plot(truth[frame], color=f"C{k}", lw=3, alpha=0.35)
        left.plot(prediction[frame], color=f"C{k}", lw=1, ls="--", label=f"step {frame + 1}")
    left.set(title="truth (broad) and rollout (dashed)", xlabel="cell")
    left.legend(fontsize="small")
    return right


def _images(figure, truth, prediction, shown):
    cells = figure.subplots(2, len(shown) + 1, squeeze=False)
    low, high = float(truth.min()), float(truth.max())
    for k, frame in enumerate(shown):
        for row, field in zip(cells[:, k], (truth, prediction)):
            row.imshow(field[frame], vmin=low, vmax=high, cmap="inferno")
            row.set(xticks=[], yticks=[])
        cells[0, k].set_title(f"step {frame + 1}")
    cells[0, 0].set_ylabel("truth")
    cells[1, 0].set_ylabel("rollout")
    cells[1, -1].axis("off")
    return cells[0, -1]


@dataclass(frozen=True)
class Contest:
    """One way to the same frames: its name, seconds (median of several runs) and mean nRMSE."""

    name: str
    seconds: float
    nrmse: float


@torch.no_grad()
def at_equal_time(model, data, solvers: dict[str, Callable[[torch.Tensor], torch.Tensor]], *, rounds: int = 5):
    """Time a rollout of a surrogate and other ways to the last frame: a list of `Contest`, the surrogate first.

    solvers  name -> function of the first frames (N, C, *grid) that gives the last ones, such as the solver on a
             coarser grid or with larger steps. Read the list as: what else could one have had in the surrogate's time?

    They take turns; a first round of each, which compiles, is thrown away.
    """
    fields = trajectories(data)
    ndim, start, truth = fields.ndim - 3, fields[:, 0], fields[:, -1]
    model.eval()

    def by_network(u):
        for _ in range(fields.shape[1] - 1):
            u = model(u)
        return u

    ways = {"surrogate": by_network, **solvers}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            before = time.perf_counter()
            results[name] = way(start)
            if turn:
                seconds[name].append(time.perf_counter() - before)
    middle = lambda values: sorted(values)[len(values) // 2]
    return [Contest(name, middle(seconds[name]), float(metrics.nrmse(results[name], truth, ndim).mean()))
            for name in ways]


__all__ = ["Contest", "at_equal_time", "plot_rollout"]
