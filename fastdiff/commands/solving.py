"""`fastdiff solve`: any equation of the package, from a line."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fastdiff.commands import out, plainly, read_shape


def rod():
    """A cold rod of length 10, one end held at 100, the other at 0: 100 points, 1000 steps."""
    import numpy as np

    import fastdiff as fd

    u0 = np.zeros(100)
    u0[0] = 100.0
    return fd.solve(fd.Heat(0.1), u0, fd.Grid(100, 10.0), save_at=np.linspace(0.0, 1.0, 11), method="euler", dt=0.001,
                    boundary={"x": (fd.Dirichlet(100.0), fd.Dirichlet(0.0))})


PROBLEMS = {"rod": rod}


@plainly
def solve(
    problem: Annotated[str, typer.Argument(help="rod, or an equation: heat, gray-scott, fisher-kpp, sir ...")] = "rod",
    set_: Annotated[list[str] | None, typer.Option("--set", help="A parameter, as F=0.04; may be repeated.")] = None,
    shape: Annotated[str | None, typer.Option(help="The grid, such as 256x256, 512 or 64x64x64.")] = None,
    extent: Annotated[float | None, typer.Option(help="Length of every axis; default: the problem's.")] = None,
    periodic: Annotated[bool | None, typer.Option(help="All axes periodic, or none; default: the problem's.")] = None,
    t_end: Annotated[float | None, typer.Option(help="How far; default: the problem's.")] = None,
    method: Annotated[str, typer.Option(help="auto, euler, rk4, rkl2, spectral ...")] = "auto",
    dt: Annotated[float | None, typer.Option(help="Largest step of a fixed-step method.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Asked relative error in time.")] = None,
    frames: Annotated[int | None, typer.Option(help="Times kept; default: 5, with one axis 61, animated 60.")] = None,
    seed: Annotated[int, typer.Option(help="Of the initial field.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="Threads; default: all cores we may use.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    animate: Annotated[bool, typer.Option("--animate", help="A moving picture (.gif) instead of a still one.")] = False,
    component: Annotated[str | None, typer.Option(help="The component to draw; default: all.")] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Where to: .png, .gif, or .h5 for the numbers; default: "
                                              "the problem's name.")] = None,
):
    """Solve a problem and draw it: `fastdiff solve gray-scott --set F=0.03 --set k=0.057 --animate`."""
    path = out_ if out_ is not None else Path(f"{problem}.{'gif' if animate else 'png'}")
    moving = animate or path.suffix.lower() == ".gif"
    if animate and path.suffix.lower() != ".gif":
        raise ValueError(f'--animate writes a .gif: --out {path.with_suffix(".gif")}')
    _check_path(path)
    if problem in PROBLEMS:
        if set_ or any(v is not None for v in (shape, extent, periodic, t_end, dt, rtol, frames, threads)) \
                or (method, seed, dtype, device) != ("auto", 0, "float32", "cpu"):
            raise ValueError(f"{problem} is a fixed problem; choose an equation, such as heat, to set parameters")
        solution = PROBLEMS[problem]()
    else:
        solution = _solved(problem, set_ or [], read_shape(shape), extent, periodic, t_end, method, dt, rtol,
                           60 if moving and frames is None else frames, seed, dtype, threads, device)
    _written(solution, path, moving, component)
    _told(solution, path)


def _check_path(path):
    """Refuse what could not be written, before anything is solved."""
    from matplotlib.backend_bases import FigureCanvasBase

    from fastdiff.solution import begin_file

    kind = path.suffix.lower()
    known = sorted({".h5", ".gif", *map(".{}".format, FigureCanvasBase.get_supported_filetypes())})
    if kind not in known:
        raise ValueError(f"a picture or a file of numbers ends in one of {', '.join(known)}, not {path.name!r}")
    begin_file(path, overwrite=kind != ".h5", check_only=True)


def _solved(name, pairs, shape, extent, periodic, t_end, method, dt, rtol, frames, seed, dtype, threads, device):
    import numpy as np

    from fastdiff.commands import problems
    from fastdiff.solve import solve as run

    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is float32 or float64, not {dtype!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if frames is not None and frames < 2:
        raise ValueError(f"at least two frames are kept, the first and the last, not {frames}")
    equation, u0, grid, boundary, usual = problems.make(name, problems.settings(pairs), shape, extent, periodic, seed,
                                                        dtype)
    if frames is None:  # as many as a picture shows: profiles and a space-time image, or a row of fields
        frames = 61 if grid.ndim == 1 else 5
    times = np.linspace(0.0, usual if t_end is None else t_end, frames)
    if not times[-1] > 0:
        raise ValueError(f"t_end must be positive, not {t_end!r}")
    return run(equation, u0, grid, save_at=times, boundary=boundary, method=method, dt=dt, rtol=rtol, threads=threads,
               device=device, progress=True)


def _written(solution, path, moving, component):
    if path.suffix.lower() == ".h5":
        solution.save(path)
    elif moving:
        solution.animate(path, component=component)
    else:
        solution.plot(path=path, component=component)


def _told(solution, path):
    stats = solution.stats
    seconds = (stats["seconds"] - stats["compile_seconds"]) * 1e3
    steps = f"{stats['steps']} steps" + (f" of {stats['dt']:g}" if stats["dt"] else "")
    out.print(f"solved   {steps if stats['steps'] else 'in one go'} in {seconds:.2f} ms, compiled or loaded in "
              f"{stats['compile_seconds']:.2f} s")
    out.print(f"method   {escape(stats['method'])}: {escape(stats['why'])}")
    if solution.grid.ndim == 1 and len(solution.names) == 1:
        first = ", ".join(f"{value:.3f}" for value in solution.final[:5])
        out.print(f"values   at t = {solution.t[-1]:g} the first five points are {first}")
    else:
        last = solution.frames()[0, -1]
        ranges = ", ".join(f"{name} {u.min():.3g} to {u.max():.3g}" for name, u in zip(solution.names, last))
        out.print(f"values   at t = {solution.t[-1]:g}: {ranges}")
    out.print(f"{'numbers' if path.suffix.lower() == '.h5' else 'picture'}  {escape(str(path))}")


__all__ = ["PROBLEMS", "rod", "solve"]
