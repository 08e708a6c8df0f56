"""`fastdiff bench gallery`: a small picture of every equation, and the README's section that shows them.

Pictures go to gallery/ of the repository, the section between the gallery marks of README.md is written anew. With
`--out` the pictures go elsewhere and the README is left alone.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastdiff.bench.kernels import use_threads

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- gallery: written by `fastdiff bench gallery` -->", "<!-- end of gallery -->"
ROW = 5  # pictures in a row
SURROGATE = ("The tutorial's network, trained on a thousand generated runs, on one that it has not seen "
             "(`fastdiff bench station`):\n\n![Rollout of the surrogate beside the truth](bench/results/station.png)")


@dataclass(frozen=True)
class Picture:
    """A command of `fastdiff solve` and which component is shown."""

    file: str
    problem: str
    settings: tuple[str, ...] = ()
    t_end: float | None = None
    component: int = 0
    colors: str = "viridis"
    caption: str = ""

    @property
    def command(self) -> str:
        """What a user types for it."""
        more = "".join(f" --set {pair}" for pair in self.settings) + (f" --t-end {self.t_end:g}" if self.t_end else "")
        return f"fastdiff solve {self.problem}{more}"


PICTURES = [
    Picture("heat", "heat", t_end=0.002, colors="inferno", caption="Heat"),
    Picture("advection", "advection-diffusion", colors="inferno", caption="Advection and diffusion"),
    Picture("fisher", "fisher-kpp", caption="Fisher-KPP: spreading colonies"),
    Picture("sir", "sir", component=1, colors="magma", caption="SIR: the ill"),
    Picture("allen_cahn", "allen-cahn", colors="RdBu_r", caption="Allen-Cahn"),
    Picture("gray_scott", "gray-scott", ("F=0.037", "k=0.06"), 6000.0, 1, caption="Gray-Scott: labyrinth"),
    Picture("gray_scott_spots", "gray-scott", ("F=0.03", "k=0.062"), 6000.0, 1, caption="Gray-Scott: dividing spots"),
    Picture("brusselator", "brusselator", colors="cividis", caption="Brusselator"),
    Picture("schnakenberg", "schnakenberg", colors="cividis", caption="Schnakenberg: Turing spots"),
    Picture("fitzhugh_nagumo", "fitzhugh-nagumo", t_end=20.0, colors="RdBu_r", caption="FitzHugh-Nagumo"),
    Picture("cahn_hilliard", "cahn-hilliard", colors="RdBu_r", caption="Cahn-Hilliard"),
    Picture("swift_hohenberg", "swift-hohenberg", colors="RdBu_r", caption="Swift-Hohenberg"),
]


def field_of(picture, shape=None, share=1.0):
    """The field of a picture at its last time, (n0, n1)."""
    from fastdiff.commands import problems
    from fastdiff.solve import solve

    equation, u0, grid, boundary, usual = problems.make(picture.problem, problems.settings(picture.settings), shape)
    sol = solve(equation, u0, grid, t_end=share * (picture.t_end or usual), boundary=boundary, method="euler")
    return np.asarray(sol.final)[picture.component] if len(equation.names) > 1 else np.asarray(sol.final)


def draw(picture, folder, **how) -> Path:
    """Solve and write one picture, a pixel a cell; x to the right, y upwards."""
    from matplotlib.image import imsave

    path = Path(folder, f"{picture.file}.png")
    imsave(path, field_of(picture, **how).T[::-1], cmap=picture.colors)
    return path


def known():
    """The pictures of the equations that this version has."""
    from fastdiff.commands import problems

    return [p for p in PICTURES if p.problem in problems.known()]


def section(pictures) -> str:
    """The README's section; only the marks if nothing is drawn."""
    if not pictures:
        return f"{BEGIN}\n{END}"
    lines = [BEGIN, "", "Each picture is one line of the shell, a second or two on a laptop; hover to see which.", ""]
    for k in range(0, len(pictures), ROW):
        row = pictures[k : k + ROW]
        cells = [f'![{p.caption}](gallery/{p.file}.png "{p.command}")' for p in row]
        blank = [""] * (ROW - len(row) if k else 0)
        lines.append("| " + " | ".join([*cells, *blank]) + " |")
        if k == 0:
            lines.append("|" + "---|" * len(row))
        lines.append("| " + " | ".join([*(p.caption for p in row), *blank]) + " |")
    return "\n".join([*lines, "", SURROGATE, "", END])


def write_section(readme: Path, pictures):
    """Put the section between its marks."""
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no gallery marks: {BEGIN} and {END}")
    readme.write_text(before + section(pictures) + after)


def main(args: list[str]) -> int:
    """Draw, and write the section."""
    parser = argparse.ArgumentParser(prog="fastdiff bench gallery", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="pictures, by their files' names (default: all)")
    parser.add_argument("--out", type=Path, help="folder; default: gallery/ of the repository, and its README")
    parser.add_argument("--tiny", action="store_true", help="tiny fields for a moment: shows that it runs")
    given = parser.parse_args(args)
    use_threads(None)
    folder = given.out or ROOT / "gallery"
    if given.out is None and not (ROOT / "README.md").exists():
        parser.error("there is no README here: give a folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    how = {"shape": (24, 24), "share": 0.01} if given.tiny else {}
    for picture in known():
        if not given.only or picture.file in given.only:
            print(draw(picture, folder, **how), picture.command, flush=True)
    if given.out is None:
        write_section(ROOT / "README.md", known())
    return 0


__all__ = ["PICTURES", "Picture", "draw", "known", "main", "section"]
