"""The command line: `fastdiff generate`, `solve`, `info`, `verify` and `bench`.

Whatever goes wrong comes out as one red line and exit code 1; Ctrl-C says how to go on, and exits with 130.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fastdiff.commands import err, out, plainly, read_shape
from fastdiff.commands.train_pinn import pinn

app = typer.Typer(help="Compiled diffusion solvers, and the training data they make.", no_args_is_help=True,
                  add_completion=False, pretty_exceptions_enable=False)
train = typer.Typer(help="Train a network.", no_args_is_help=True)
train.command()(pinn)
train.callback()(lambda: None)  # a group, however many commands it has
app.add_typer(train, name="train")


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
    layout: Annotated[str, typer.Option(help="Layout of the file.")] = "fastdiff",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there, and start anew.")] = False,
    picture: Annotated[bool, typer.Option(help="Draw a contact sheet beside the file.")] = True,
):
    """Make a data set and a picture of it. Interrupted, the same command goes on."""
    from fastdiff import data

    path = out_ if out_ is not None else Path(f"{recipe}.h5")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system stops us as Ctrl-C does
    report = data.generate(recipe, path, samples=samples, shape=read_shape(shape), seed=seed, frames=frames,
                           workers=workers, threads=threads, device=device, layout=layout, overwrite=overwrite)
    _tell(report)
    if picture:
        out.print(f"picture  {escape(str(data.contact_sheet(path)))}")


def _tell(report):
    resumed = f", {report.found} of them found" if report.found else ""
    out.print(f"data     {escape(str(report.path))}  ({report.samples} samples{resumed}, {report.bytes / 1e6:.1f} MB)")
    if report.redone:
        out.print(f"[yellow]{report.redone} damaged blocks were made again[/]")
    out.print(f"time     {report.seconds:.1f} s: {report.samples_per_second:.3g} samples/s, "
              f"{report.cell_updates_per_second / 1e6:,.0f} million cell updates/s, compiling and writing included")


@app.command()
@plainly
def verify(path: Annotated[Path, typer.Argument(help="A data set.")]):
    """Check a data set: structure, checksums, finite numbers."""
    from fastdiff import data

    found = data.verify(path)
    if not found.ok:
        raise ValueError(f"{path}: {'; '.join(found.problems)}")
    out.print(f"{escape(str(path))}: {found.samples} samples, sound")


def _rod():
    """A cold rod of length 10, one end held at 100, the other at 0: 100 points, 1000 steps."""
    import numpy as np

    import fastdiff as fd

    u0 = np.zeros(100)
    u0[0] = 100.0
    return fd.solve(fd.Heat(0.1), u0, fd.Grid(100, 10.0), save_at=np.linspace(0.0, 1.0, 11), method="euler", dt=0.001,
                    boundary={"x": (fd.Dirichlet(100.0), fd.Dirichlet(0.0))})


PROBLEMS = {"rod": _rod}


@app.command()
@plainly
def solve(
    problem: Annotated[str, typer.Argument(help=f"One of: {', '.join(PROBLEMS)}.")] = "rod",
    out_: Annotated[Path | None, typer.Option("--out", help="The picture; default: the problem's name, .png.")] = None,
):
    """Solve a small problem and draw it."""
    if problem not in PROBLEMS:
        raise ValueError(f"unknown problem {problem!r}; known: {', '.join(PROBLEMS)}")
    solution = PROBLEMS[problem]()
    picture = out_ if out_ is not None else Path(f"{problem}.png")
    solution.plot(path=picture)
    stats = solution.stats
    seconds = stats["seconds"] - stats["compile_seconds"]
    out.print(f"solved   {stats['steps']} steps of {stats['dt']:g} in {seconds * 1e3:.2f} ms, compiled or loaded in "
              f"{stats['compile_seconds']:.2f} s")
    first = ", ".join(f"{value:.3f}" for value in solution.final[:5])
    out.print(f"values   at t = {solution.t[-1]:g} the first five points are {first}")
    out.print(f"picture  {escape(str(picture))}")


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
