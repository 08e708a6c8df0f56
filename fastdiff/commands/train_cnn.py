"""`fastdiff train cnn`: a surrogate from a data set, with checkpoint, measures and picture."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fastdiff.commands import out, plainly

NETWORKS = ("cnn", "dilated", "unet")


@plainly
def cnn(
    data: Annotated[Path, typer.Option(help="A data set of fastdiff generate.")],
    out_: Annotated[Path | None, typer.Option("--out", help="The model; default: the data's name with .pt.")] = None,
    network: Annotated[str, typer.Option(help=f"One of: {', '.join(NETWORKS)}.")] = "cnn",
    hidden: Annotated[int, typer.Option(help="Hidden channels.")] = 16,
    boundary: Annotated[str, typer.Option(help="periodic, neumann or dirichlet.")] = "dirichlet",
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 50,
    batch: Annotated[int, typer.Option(help="Windows in a batch.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    steps: Annotated[int, typer.Option(help="Unrolled steps in the loss.")] = 1,
    pushforward: Annotated[int, typer.Option(help="Steps before them without gradient.")] = 0,
    noise: Annotated[float, typer.Option(help="Noise on the inputs, in units of the data's spread.")] = 0.0,
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without progress.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and noise.")] = 0,
    picture: Annotated[bool, typer.Option(help="Draw a rollout beside the model.")] = True,
):
    """Train a surrogate on a data set. Interrupted, the same command goes on."""
    import torch

    from fastdiff.nn import metrics
    from fastdiff.nn.compare import plot_rollout
    from fastdiff.nn.training import fit, predict, trajectories

    fields = trajectories(data)
    held = max(1, len(fields) // 10)
    if len(fields) < 2:
        raise ValueError(f"{data} has {len(fields)} trajectories: one is held out, so take at least two")
    torch.manual_seed(seed)
    model = _build(network, fields, hidden, boundary)
    target = out_ if out_ is not None else data.with_suffix(".pt")
    checkpoint = target.with_suffix(".checkpoint")
    history = fit(model, fields[:-held], validation=fields[-held:], epochs=epochs, batch_size=batch, lr=lr, steps=steps,
                  pushforward=pushforward, noise=noise, patience=patience, seed=seed, checkpoint=checkpoint,
                  progress=True)
    if history.stopped == "interrupted":
        raise KeyboardInterrupt(f"stopped after {len(history.loss)} epochs; the same command goes on")
    torch.save(model.state_dict(), target)
    checkpoint.unlink(missing_ok=True)
    measured = metrics.report(*predict(model, fields[-held:]), fields.ndim - 3)
    out.print(f"trained  {len(history.loss)} epochs in {history.seconds:.1f} s ({history.stopped}), best: "
              f"{history.best + 1}")
    out.print(f"one step nRMSE {history.validation[history.best]:.3%} on {held} trajectories held out")
    out.print(f"rollout  {fields.shape[1] - 1} steps: nRMSE {measured['nrmse']:.3%}, VRMSE {measured['vrmse']:.3%}")
    out.print(f"model    {escape(str(target))}")
    if picture and fields.ndim < 6:
        drawn = plot_rollout(model, fields[-held:], target.with_name(f"{target.stem}_rollout.png"))
        out.print(f"picture  {escape(str(drawn))}")


def _build(network, fields, hidden, boundary):
    from fastdiff.nn import surrogates as nn

    channels, ndim = fields.shape[2], fields.ndim - 3
    if network == "cnn":
        return nn.SurrogateCNN(channels, channels, hidden, ndim=ndim, boundary=boundary, dtype=fields.dtype)
    if network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}; known: {', '.join(NETWORKS)}")
    kind = nn.DilatedResNet if network == "dilated" else nn.SurrogateUNet
    return kind(channels, channels, hidden, ndim=ndim, boundary=boundary).to(fields.dtype)


__all__ = ["cnn"]
