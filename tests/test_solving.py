"""`fastdiff solve` for every equation of the package."""

import numpy as np
import pytest
from typer.testing import CliRunner

import fastdiff as fd
from fastdiff import cli, equations
from fastdiff.commands import problems

RUN = CliRunner()


def run(*arguments):
    result = RUN.invoke(cli.app, list(map(str, arguments)))
    return result.exit_code, result.output


NAMED = [name for name in problems.known() if name != "reaction-diffusion"]


@pytest.mark.parametrize("name", NAMED)
def test_every_equation_is_solved_and_drawn(name, tmp_path):
    """On a small grid, to a hundredth of its time; explicitly, as other tests do: compiled once."""
    picture = tmp_path / "out.png"
    cls = problems.known()[name]
    problem = problems.CATALOGUE.get(cls, problems.Problem())
    shape = "x".join(["24"] * len(problem.shape))
    code, said = run("solve", name, "--shape", shape, "--t-end", problem.t_end / 100, "--method", "euler",
                     "--dtype", "float64", "--out", picture)
    assert code == 0, said
    assert picture.stat().st_size > 1000 and "solved" in said and "method" in said


def test_every_equation_has_a_start_of_its_own():
    """An equation that is added to the package gets an entry in the catalogue, too."""
    assert {n for n in equations.__all__ if n != "Equation"} <= set(problems.CATALOGUE)


def test_parameters_shape_method_and_time_are_taken(tmp_path):
    code, said = run("solve", "gray-scott", "--set", "F=0.03", "--set", "k=0.057", "--shape", "20x30", "--t-end", 50,
                     "--method", "euler", "--dt", 1.0, "--frames", 3, "--out", tmp_path / "run.h5", "--seed", 4)
    assert code == 0 and "50 steps of 1 in" in said and "numbers" in said, said
    found = fd.Solution.load(tmp_path / "run.h5")
    assert found.u.shape == (3, 2, 20, 30) and found.t.tolist() == [0, 25, 50]
    assert found.equation == fd.GrayScott(F=0.03, k=0.057)
    assert found.grid is not None and found.grid.periodic == (True, True)
    assert (found.u[0] == problems.make("gray-scott", {}, (20, 30), seed=4)[1]).all()


def test_animation(tmp_path):
    code, said = run("solve", "heat", "--shape", "24x24", "--animate", "--frames", 4, "--out", tmp_path / "h.gif")
    assert code == 0 and (tmp_path / "h.gif").read_bytes()[:4] == b"GIF8", said


def test_one_axis_and_three(tmp_path):
    for name, shape in (("fisher-kpp", "50"), ("heat", "12x10x8")):
        code, said = run("solve", name, "--shape", shape, "--t-end", 0.01, "--out", tmp_path / "f.png")
        assert code == 0, said


def test_a_reaction_from_the_command_line(tmp_path):
    code, said = run("solve", "reaction-diffusion", "--set", "diffusivity=0.1", "--set", 'reaction={"u": "u*(1 - u)"}',
                     "--shape", "64", "--dtype", "float64", "--t-end", 2, "--out", tmp_path / "r.h5")
    assert code == 0, said
    found = fd.Solution.load(tmp_path / "r.h5")
    assert found.u.dtype == np.float64 and found.u[-1].sum() > found.u[0].sum()


def test_components_start_at_places_of_their_own(tmp_path):
    code, said = run("solve", "reaction-diffusion", "--set", 'diffusivity={"u": 0.1, "v": "0.1*(1 + x/20)"}', "--set",
                     'reaction={"u": "u*(1 - u) - v", "v": "u - v"}', "--shape", "64", "--dtype", "float64", "--t-end",
                     0.5, "--out", tmp_path / "r.h5")
    assert code == 0, said
    found = fd.Solution.load(tmp_path / "r.h5")
    assert found.u.shape[1:] == (2, 64) and (found.u[0][0] != found.u[0][1]).any()


BAD = [
    (("nothing",), "unknown problem 'nothing'; known: rod, adv"),
    (("gray-scott", "--set", "Q=1"), "GrayScott has no parameter 'Q'; known: F, k"),
    (("gray-scott", "--set", "F"), "--set takes NAME=VALUE"),
    (("reaction-diffusion",), "ReactionDiffusion needs"),
    (("rod", "--shape", "5"), "rod is a fixed problem"),
    (("heat", "--t-end", "-1"), "t_end must be positive"),
    (("heat", "--animate", "--out", "x.png"), "--animate writes a .gif"),
    (("heat", "--dtype", "int8"), "dtype is float32 or float64"),
    (("heat", "--out", "no/such/folder.png"), "make it first"),
    (("heat", "--method", "magic"), "unknown method 'magic'"),
    (("heat", "--method", "strang", "--device", "cuda"), "runs on the CPU alone"),
    (("heat", "--device", "gpu"), "unknown device 'gpu'"),
    (("heat", "--frames", "0"), "at least two frames are kept, the first and the last, not 0"),
    (("heat", "--seed", "-1"), "seed must not be negative, got -1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = run("solve", *arguments)
    assert code == 1 and message in said.replace("\n", " ") and "Traceback" not in said


@pytest.mark.parametrize(("name", "message"), [("a.xyz", "not 'a.xyz'"), ("there.h5", "there.h5 exists"),
                                               ("folder.png", "is a folder")])
def test_what_cannot_be_written_is_refused_before_anything_is_solved(name, message, tmp_path, monkeypatch):
    (tmp_path / "there.h5").write_text("precious")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(problems, "make", lambda *a, **k: pytest.fail("it was begun"))
    code, said = run("solve", "heat", "--out", tmp_path / name)
    assert code == 1 and message in said.replace("\n", " "), said
    assert (tmp_path / "there.h5").read_text() == "precious"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["folder.png", "there.h5"]


def test_progress_is_shown(tmp_path):
    code, said = run("solve", "heat", "--method", "euler", "--dt", 1e-4, "--t-end", 0.005, "--shape", "24x24",
                     "--dtype", "float64", "--frames", 6, "--out", tmp_path / "f.png")
    assert code == 0 and "50/50 steps" in said, said


@pytest.mark.parametrize(("name", "shape", "frames"), [("heat", "24", 61), ("heat", "12x12", 5)])
def test_pictures_show_times_equally_far_apart(name, shape, frames, tmp_path):
    code, said = run("solve", name, "--shape", shape, "--out", tmp_path / "f.h5")
    assert code == 0, said
    assert len(fd.Solution.load(tmp_path / "f.h5").t) == frames  # the picture shows 5 of them, first and last too
    assert (frames - 1) % 4 == 0
