"""The tutorial's surrogate on real data: `fastdiff bench station`.

Generates 1000 runs of the heat equation on a ring of 100 cells, trains the tutorial's 1 -> 16 -> 1 network on
steps of them, with the ring folded into its convolutions, and rolls it out over 20 steps of 200 runs it has not seen.
Asks for an nRMSE below 1 %; says what no change at all would give, and what the solver takes for the same. Some minutes
on two cores. Writes station.md and station.png; `--tiny` only shows that everything runs.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fastdiff as fd
from fastdiff.bench.targets import RESULTS
from fastdiff.data.initial import FourierSeries, GaussianField, OneOf
from fastdiff.nn import metrics
from fastdiff.nn.compare import at_equal_time, plot_rollout
from fastdiff.nn.training import fit, predict, trajectories

GOAL = 0.01


def recipe(cells: int) -> Any:
    """Heat on a ring; between two frames D dt / dx² = 1, so that most of it stays within the network's five cells."""
    start = OneOf((FourierSeries(modes=5, basis="fourier"), GaussianField(length=0.1, basis="fourier")))
    return dataclasses.replace(fd.data.recipes.get("heat"), name="station", shape=(cells,), periodic=True,
                               boundary=None, initial=start, parameters={"diffusivity": 0.01},
                               t_end=20 / (0.01 * cells**2))


def generate(folder, samples: int, seed: int, cells: int) -> torch.Tensor:
    """Trajectories (samples, 21, 1, cells)."""
    path = Path(folder, f"{seed}.h5")
    fd.data.generate(recipe(cells), path, samples=samples, seed=seed)
    return trajectories(path)


def solver(cells: int, t_end: float, dt: float | None):
    """fastdiff's own solver from the first frames (N, 1, cells) to the last ones."""
    grid = fd.Grid(cells, 1.0, periodic=True)

    def run(u):
        sol = fd.solve(fd.Heat(0.01), u[:, 0], grid, t_end=t_end, method="euler", dt=dt)
        return sol.final[:, None]

    return run


def main(args: list[str]) -> int:
    """Generate, train, predict, compare, draw; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(prog="fastdiff bench station", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--tiny", action="store_true", help="little data, one epoch: shows that it runs")
    parser.add_argument("--out", type=Path, help="folder of station.md and station.png")
    given = parser.parse_args(args)
    out = given.out or (Path(tempfile.mkdtemp()) if given.tiny else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    epochs, samples, unseen, cells = (1, 8, 2, 20) if given.tiny else (given.epochs, 1000, 200, 100)
    with tempfile.TemporaryDirectory() as folder:
        train, test = generate(folder, samples, 0, cells), generate(folder, unseen, 1, cells)
    torch.manual_seed(0)
    model = fd.nn.SurrogateCNN(boundary="periodic", residual=True)
    start = time.perf_counter()
    fit(model, train, epochs=epochs, batch_size=256, lr=1e-2, validation=0.05)
    fit(model, train, epochs=max(1, epochs // 3), batch_size=256, lr=1e-3, steps=4, validation=0.05)
    lines = report(model, test, time.perf_counter() - start, samples, cells)
    plot_rollout(model, test, out / "station.png")
    (out / "station.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), f"written to {out}", sep="\n")
    return 0 if given.tiny or metrics.report(*predict(model, test), 1)["nrmse"] < GOAL else 1


def report(model, test, seconds, samples, cells) -> list[str]:
    """What the page says."""
    prediction, truth = predict(model, test)
    still = test[:, :1].expand_as(truth)
    found, nothing = metrics.report(prediction, truth, 1), metrics.report(still, truth, 1)
    by_step = metrics.nrmse(prediction, truth, 1).mean((0, 2))
    t_end = recipe(cells).t_end
    ways = {"solver, its own step": solver(cells, t_end, None), "solver, half that step": solver(
        cells, t_end, 0.2 / (0.01 * cells**2))}
    lines = ["# The tutorial's station", "",
             f"1→16→1 network, kernel 3, {sum(p.numel() for p in model.parameters())} weights, trained in "
             f"{seconds:.0f} s on {samples} trajectories; {len(test)} unseen ones.", "",
             f"nRMSE of one step {by_step[0]:.3%}; mean over a rollout of {truth.shape[1]} steps {found['nrmse']:.3%} "
             f"(goal: below 1 %), at its end {by_step[-1]:.3%}; VRMSE {found['vrmse']:.3%}. "
             f"No change at all: {nothing['nrmse']:.1%}.", "",
             "| way to the last frame of all unseen runs | time | nRMSE |", "|---|---|---|"]
    lines += [f"| {c.name} | {c.seconds * 1e3:.2f} ms | {c.nrmse:.4%} |" for c in at_equal_time(model, test, ways)]
    return lines
