"""`fastdiff train ddpm` and `fastdiff sample`: generative models of images and fields."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fastdiff.commands import err, out, plainly


@plainly
def ddpm(
    data: Annotated[str, typer.Option(help="digits (scikit-learn's), or a file of fastdiff generate.")] = "digits",
    model: Annotated[str, typer.Option(help="ddpm, heat (heat dissipation), blurring or vae.")] = "ddpm",
    out_: Annotated[Path | None, typer.Option("--out", help="The run's folder; default: model and data.")] = None,
    epochs: Annotated[int, typer.Option(help="Epochs in all; a run that has fewer goes on.")] = 100,
    width: Annotated[int, typer.Option(help="Channels of the U-Net's first level.")] = 32,
    levels: Annotated[int, typer.Option(help="Levels of noise or blur.")] = 200,
    schedule: Annotated[str, typer.Option(help="Noise schedule.")] = "cosine",
    prediction: Annotated[str, typer.Option(help="epsilon, sample, v, or edm with karras.")] = "v",
    batch: Annotated[int, typer.Option(help="Samples of a step.")] = 128,
    rate: Annotated[float | None, typer.Option(help="Learning rate; default: 0.002, heat 0.0003.")] = None,
    frame: Annotated[int, typer.Option(help="Which frame of a data set's trajectories.")] = -1,
    seed: Annotated[int, typer.Option(help="Of weights, noise and order.")] = 0,
):
    """Train a generative model; interrupted, the same command goes on from its checkpoint."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fastdiff.nn.runs import Run, Settings, loss_curve, picture

    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
    folder = out_ if out_ is not None else Path(f"{model}-{Path(data).stem}")
    run = Run(folder, Settings(model=model, data=data, frame=frame, width=width, schedule=schedule,
                               prediction=prediction, levels=levels, batch=batch, rate=rate, seed=seed))
    if run.epoch:
        out.print(f"resumed  {escape(str(folder))} after {run.epoch} epochs")

    def tell(epoch, loss):
        bar.update(task, completed=epoch, loss=f"loss {loss:.5f}")
        if epoch % max(1, epochs // 20) == 0 or epoch == epochs:
            out.print(f"epoch    {epoch:5d}  loss {loss:.5f}")

    with Progress(TextColumn("training"), BarColumn(16), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
                  TimeRemainingColumn(), TextColumn("left"), console=err, transient=True) as bar:
        task = bar.add_task("", total=epochs, completed=run.epoch, loss="")
        run.train(epochs, tell)
    loss_curve(run.losses, folder / "loss.png")
    x, _ = run.sample(36, method="ddim", steps=min(20, levels)) if model == "ddpm" else run.sample(36)
    picture(x, folder / "samples.png")
    out.print(f"run      {escape(str(folder))}: checkpoint.pt, losses.json, loss.png, samples.png")


@plainly
def sample(
    run: Annotated[Path, typer.Argument(help="The folder of a run of fastdiff train ddpm.")],
    count: Annotated[int, typer.Option(help="How many samples.")] = 64,
    method: Annotated[str | None, typer.Option(help="ddpm, ddim, euler, heun or dpm++; default: ddpm.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler; default: all levels, or 20.")] = None,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    out_: Annotated[Path | None, typer.Option("--out", help="The array, .npy; the picture lies beside it.")] = None,
):
    """Draw samples from a trained model: an array in the data's own units, and a picture."""
    import numpy as np

    from fastdiff.nn.runs import Run, picture

    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    path = out_ if out_ is not None else run / "samples.npy"
    if path.suffix != ".npy":
        raise ValueError(f"samples are written as .npy: --out {path.with_suffix('.npy')}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: " + (
            "make it first" if out_ is not None else f"train a run with fastdiff train ddpm --out {run}"))
    trained = Run(run)
    if trained.settings.model != "ddpm" and (method is not None or steps is not None or guidance):
        raise ValueError(f"{run} holds a {trained.settings.model} model, which has one way to draw samples: leave out "
                         "--method, --steps and --guidance")
    with err.status("drawing samples"):
        x, _ = trained.sample(count, seed=seed, method=method or "ddpm", steps=steps, guidance=guidance)
    np.save(path, trained.data.back(x.numpy()))
    picture(x[:100], path.with_suffix(".png"))
    out.print(f"samples  {escape(str(path))}, picture {escape(str(path.with_suffix('.png')))}")


__all__ = ["ddpm", "sample"]
