"""The command line: `fastdiff generate`, `verify`, `convert`, `report`, `solve`, `train`, `sample`, `info` and `bench`.

Whatever goes wrong comes out as one red line and exit code 1; Ctrl-C says how to go on, and exits with 130.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fastdiff.commands import data, err, out, plainly, read_shape, solving
from fastdiff.commands.generative import ddpm, sample
from fastdiff.commands.solving import PROBLEMS
from fastdiff.commands.train_cnn import cnn
from fastdiff.commands.train_pinn import pinn

app = typer.Typer(help="Compiled diffusion solvers, and the training data they make.", no_args_is_help=True,
                  add_completion=False, pretty_exceptions_enable=False)
train = typer.Typer(help="Train a network on a data set.", no_args_is_help=True)
train.command()(ddpm)
train.command()(cnn)
train.command()(pinn)
app.add_typer(train, name="train")
app.command()(sample)


@app.command()
@plainly
def generate(
    recipe: Annotated[str, typer.Argument(help="What to make, such as gray-scott or heat.")],
    samples: Annotated[int, typer.Option(help="How many trajectories.")] = 64,
    out_: Annotated[Path | None, typer.Option("--out", help="The file; default: the recipe's name with .h5.")] = None,
    shape: Annotated[str | None, typer.Option(help="The grid, such as 128x128; default: the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Root of every sample's own seed.")] = 0,
    frames: Annotated[int | None, typer.Option(help="Times kept; default: the recipe's, 21.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one with several threads.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads in all; default: all cores we may use.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    cluster: Annotated[str | None, typer.Option(help="A Dask scheduler that solves, as tcp://10.0.0.1:8786.")] = None,
    layout: Annotated[str, typer.Option(help="fastdiff, pdebench[-tensor|-seeds] or the_well.")] = "fastdiff",
    diverged: Annotated[str, typer.Option(help="Of samples that turn NaN: refuse, or redraw.")] = "refuse",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell samples, bytes, memory and minutes.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there, and start anew.")] = False,
    picture: Annotated[bool, typer.Option(help="Draw a contact sheet beside the file.")] = True,
    report_: Annotated[bool, typer.Option("--report", help="Write a quality report beside the file, as HTML.")] = False,
):
    """Make a data set and a picture of it. Interrupted, the same command goes on. RECIPE may be a YAML file, too."""
    from fastdiff import data as fdata

    path = out_ if out_ is not None else Path(Path(recipe).stem + ("" if layout == "the_well" else ".h5"))
    what: dict[str, Any] = dict(samples=samples, shape=read_shape(shape), seed=seed, frames=frames, workers=workers,
                                threads=threads, cluster=cluster, device=device, layout=layout, diverged=diverged)
    if dry_run:
        return out.print(escape(str(fdata.plan(recipe, path, **what))))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system stops us as Ctrl-C does
    report = fdata.generate(recipe, path, overwrite=overwrite, **what)
    _tell(report)
    if report_:
        out.print(f"report   {escape(str(fdata.report(path, made=report)))}")
    if picture:
        out.print(f"picture  {escape(str(fdata.contact_sheet(path)))}")


def _tell(report):
    resumed = f", {report.found} of them found" if report.found else ""
    out.print(f"data     {escape(str(report.path))}  ({report.samples} samples{resumed}, {report.bytes / 1e6:.1f} MB)")
    if report.redone:
        out.print(f"[yellow]damaged samples were made again: {', '.join(map(str, report.redone))}[/]")
    if report.redrawn:
        often = ", ".join(f"{i} ({n})" for i, n in report.redrawn)
        out.print(f"[yellow]{len(report.redrawn)} samples diverged and were drawn again (times): {often}[/]")
    if report.deaths:
        out.print(f"[yellow]{report.deaths} worker processes died; their samples were made again[/]")
    out.print(f"time     {report.seconds:.1f} s: {report.samples_per_second:.3g} samples/s, "
              f"{report.cell_updates_per_second / 1e6:,.0f} million cell updates/s, compiling and writing included")


data.add(app)


app.command()(solving.solve)


@app.command()
@plainly
def info():
    """Tell threads, GPU, cache folder, versions, kernels and recipes."""
    import fastdiff as fd
    from fastdiff.kernels import discover

    rows = [("fastdiff", f"{fd.__version__} in {Path(fd.__file__).parent}"), ("versions", _versions()),
            ("threads", _threads()), ("GPU", _gpu()), ("cache", _cache()),
            ("kernels", "\n".join(_kernel(k) for k in discover().values())), ("recipes", _recipes())]
    for name, text in rows:
        for line in text.splitlines():
            out.print(f"[bold]{name:<10}[/]{escape(line)}")
            name = ""
    for other in _rivals():
        err.print(f"[yellow]the distribution {other!r} owns the import name fastdiff too: uninstall it, then install "
                  f"fastdiff-pde again[/]")


def _versions():
    from importlib.metadata import PackageNotFoundError, version

    found = [f"Python {sys.version.split()[0]}"]
    for name in ("numba", "numpy", "scipy", "torch", "h5py", "numba-cuda"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def _threads():
    from fastdiff.kernels._threads import default_threads

    return f"{default_threads()} of {os.cpu_count()} cores; fastdiff's own pool, no Numba threading layer"


def _gpu():
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return ", ".join(names) + f"; CUDA {torch.version.cuda}"


def _cache():
    from fastdiff.kernels._jit import cache_folder, cache_root

    size = sum(f.stat().st_size for f in cache_root().rglob("*") if f.is_file()) if cache_root().exists() else 0
    return f"{cache_folder()} ({size / 1e6:.0f} MB in all; FASTDIFF_CACHE_DIR chooses another folder)"


def _kernel(kernel):
    backends = [name for name in ("cpu", "cuda", "adjoint") if getattr(kernel, name) is not None]
    return f"{kernel.name}: {', '.join(backends)}"


def _recipes():
    from fastdiff.data import recipes

    return "\n".join(f"{name}: {recipes.get(name).summary}" for name in recipes.known())


def _rivals():
    """Other distributions that install a package of our name."""
    from importlib.metadata import packages_distributions

    return sorted(set(packages_distributions().get("fastdiff", [])) - {"fastdiff-pde"})


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
@plainly
def bench(context: typer.Context):
    """Time every kernel against its reference; `fastdiff bench --help` lists what it takes."""
    import fastdiff.bench

    code = fastdiff.bench.main(context.args)
    if code:
        raise typer.Exit(code)


def main():
    """The entry point of the command `fastdiff`."""
    app(prog_name="fastdiff")


__all__ = ["PROBLEMS", "app", "main"]


if __name__ == "__main__":
    main()
