"""`fastdiff verify`, `convert` and `report`: what is done with a data set once it is made."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fastdiff.commands import out, plainly

DataSet = Annotated[Path, typer.Argument(help="A data set of any layout.")]


@plainly
def verify(path: DataSet,
           solve: Annotated[int, typer.Option(help="Samples to solve again and compare.")] = 1,
           repair: Annotated[bool, typer.Option("--repair", help="Make damaged samples again.")] = False):
    """Check a data set: structure, checksums, finite numbers, what stays, and some samples solved again."""
    from fastdiff import data

    if repair:
        made = data.repair(path)
        out.print(f"made again: {', '.join(map(str, made)) or 'nothing, no sample is damaged'}")
    found = data.verify(path, solve=solve)
    for note in found.notes:
        out.print(f"[dim]{escape(note)}[/]")
    if not found.ok:
        raise ValueError(f"{path}: {'; '.join(found.problems)}")
    out.print(f"{escape(str(path))}: {found.samples} samples, sound; {found.solved} solved again")


@plainly
def convert(path: DataSet,
            to: Annotated[Path, typer.Argument(help="What to write; with --layout the_well or zarr, a folder.")],
            layout: Annotated[str, typer.Option(help="fastdiff, pdebench, the_well, … or zarr.")] = "fastdiff",
            overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False):
    """Write a data set again in another layout."""
    from fastdiff import data

    made = data.to_zarr(path, to) if layout == "zarr" else data.convert(path, to, layout, overwrite=overwrite)
    out.print(f"data     {escape(str(made))}")


@plainly
def report(path: DataSet,
           out_: Annotated[Path | None, typer.Option("--out", help="The report; default: beside, .html.")] = None,
           errors: Annotated[int, typer.Option(help="Samples whose error is estimated.")] = 2):
    """Write a quality report: samples, spectra, histograms, stationarity, estimates of the error."""
    from fastdiff import data

    out.print(f"report   {escape(str(data.report(path, out_, errors=errors)))}")


def add(app: typer.Typer) -> None:
    """Make these commands of an app."""
    for command in (verify, convert, report):
        app.command()(command)
