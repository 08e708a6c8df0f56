"""`fastdiff train pinn PROBLEM`: train a physics-informed network, and compare it with the solver."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fastdiff.commands import out, plainly


def _rod() -> dict[str, Any]:
    """The tutorial's rod: ends at sin t and exp(-t), which contradicts sin(pi x) at (1, 0)."""
    import fastdiff as fd

    return dict(equation=fd.Heat(1.0), grid=fd.Grid(101), u0="sin(pi*x)", t_end=1.0, width=12, depth=3, points=1500,
                boundary={"x": (fd.Dirichlet("sin(t)"), fd.Dirichlet("exp(-t)"))})


def _front() -> dict[str, Any]:
    """A Fisher-KPP front that moves to the right."""
    import fastdiff as fd

    return dict(equation=fd.FisherKPP(0.01, 1.0), grid=fd.Grid(201), u0="1/(1 + exp((x - 0.2)/sqrt(0.06)))^2",
                t_end=1.0, width=12, depth=2, points=1500)


PROBLEMS = {"rod": _rod, "front": _front}


@plainly
def pinn(
    problem: Annotated[str, typer.Argument(help=f"One of: {', '.join(PROBLEMS)}.")] = "rod",
    seconds: Annotated[float, typer.Option(help="How long to train.")] = 10.0,
    optimiser: Annotated[str, typer.Option(help="gauss_newton, lbfgs or adam.")] = "gauss_newton",
    seed: Annotated[int, typer.Option(help="Of the first weights and the points.")] = 0,
    out_: Annotated[Path | None, typer.Option("--out", help="The picture; default: pinn_PROBLEM.png.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File of the weights; read first if it exists.")] = None,
):
    """Train a physics-informed network of a small problem, draw it, and compare it with fd.solve."""
    import fastdiff as fd

    if problem not in PROBLEMS:
        raise ValueError(f"unknown problem {problem!r}; known: {', '.join(PROBLEMS)}")
    network = fd.nn.PINN(**PROBLEMS[problem](), seed=seed)  # pyright: ignore[reportCallIssue]
    if checkpoint is not None and checkpoint.exists():
        network.load(checkpoint)
    report = network.train_for(optimiser, seconds=seconds, progress=True, checkpoint=checkpoint)
    picture = out_ if out_ is not None else Path(f"pinn_{problem}.png")
    network.plot(picture)
    out.print(escape(str(report)))
    out.print(f"picture  {escape(str(picture))}")


__all__ = ["PROBLEMS", "pinn"]
