"""The command line: what it says, where things are, one red line for every error."""

import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import fastdiff as fd
from fastdiff import cli
from fastdiff.commands import problems
from fastdiff.kernels import discover


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder; gives its exit code and what it said on both streams."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = CliRunner().invoke(cli.app, arguments)
        return result.exit_code, " ".join(result.output.split())

    return call


def test_generate_makes_a_data_set_and_a_picture(run, tmp_path):
    code, said = run("generate", "gray-scott", "--samples", "5", "--shape", "32x32", "--out", "gs.h5")
    assert code == 0, said
    assert sorted(os.listdir(tmp_path)) == ["gs.h5", "gs.png"]
    assert "data gs.h5 (5 samples, " in said and "picture gs.png" in said and "million cell updates/s" in said
    assert fd.data.verify(tmp_path / "gs.h5").ok
    code, said = run("verify", "gs.h5")
    assert code == 0 and said.endswith("gs.h5: 5 samples, sound; 1 solved again")


def test_heat_goes_to_a_file_of_its_name(run, tmp_path):
    code, said = run("generate", "heat", "--samples", "3", "--shape", "24x24", "--frames", "5", "--no-picture")
    assert code == 0, said
    assert os.listdir(tmp_path) == ["heat.h5"] and fd.data.open("heat.h5")[2]["fields"].shape == (5, 1, 24, 24)


@pytest.mark.parametrize("arguments, message", [
    (("generate", "grey-scott"), f"unknown recipe 'grey-scott'; known: {', '.join(fd.data.recipes.known())}"),
    (("generate", "heat", "--samples", "0"), "samples must be at least 1, got 0"),
    (("generate", "heat", "--shape", "12,12"), "a shape looks like 128x128, not '12,12'"),
    (("generate", "heat", "--out", "no/a.h5"), "no does not exist: make it first"),
    (("solve", "bar"), f"unknown problem 'bar'; known: rod, {', '.join(sorted(problems.known()))}"),
    (("verify", "a.h5"), "a.h5 does not exist; `fastdiff generate` makes data sets"),
])
def test_errors_are_one_line(run, tmp_path, arguments, message):
    code, said = run(*arguments)
    assert code == 1 and said.endswith(message) and "Traceback" not in said
    assert os.listdir(tmp_path) == []


def test_an_existing_file_is_kept(run, tmp_path):
    (tmp_path / "a.h5").write_text("precious")
    code, said = run("generate", "heat", "--samples", "1", "--out", "a.h5")
    assert (code, said) == (1, "a.h5 exists and is no data set of fastdiff: give another name, or pass overwrite=True "
                               "(--overwrite)")
    assert (tmp_path / "a.h5").read_text() == "precious"


def test_solve_rod_draws_it(run, tmp_path):
    code, said = run("solve", "rod")
    assert code == 0, said
    assert "1000 steps of 0.001" in said and "first five points are 100.000, 82." in said
    assert os.listdir(tmp_path) == ["rod.png"]


def test_rod_is_the_plain_double_loop():
    dx, u = 10 / 99, [100.0] + [0.0] * 99
    for _ in range(1000):
        u = [100.0] + [u[i] + 0.1 * 0.001 / dx**2 * (u[i + 1] - 2 * u[i] + u[i - 1]) for i in range(1, 99)] + [0.0]
    assert abs(cli.PROBLEMS["rod"]().final - u).max() < 1e-12


def test_info(run, monkeypatch):
    monkeypatch.setattr(cli, "_rivals", lambda: ["fastdiff"])
    code, said = run("info")
    assert code == 0, said
    words = ("threads", "GPU", "cache", "numba", "kernels", "gray-scott: Gray–Scott patterns", *discover())
    assert all(word in said for word in words), said
    assert "the distribution 'fastdiff' owns the import name fastdiff too" in said


def test_rivals_are_other_distributions(monkeypatch):
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "packages_distributions",
                        lambda: {"fastdiff": ["fastdiff-pde", "fastdiff", "fastdiff-pde"]})
    assert cli._rivals() == ["fastdiff"]


def test_bench_hands_its_arguments_on(run, monkeypatch):
    import fastdiff.bench

    given = []
    monkeypatch.setattr(fastdiff.bench, "main", lambda arguments: given.extend(arguments), raising=False)
    assert run("bench", "--quick", "heat2d") == (0, "") and given == ["--quick", "heat2d"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on(tmp_path, stop):
    command = [sys.executable, "-m", "fastdiff.cli", "generate", "gray-scott", "--samples", "4000", "--shape", "32x32"]
    child = subprocess.Popen([*command, "--out", "a.h5"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    parts, deadline = tmp_path / "a.h5.parts", time.monotonic() + 120
    journal = parts / "journal"
    while not (journal.exists() and journal.stat().st_size) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(stop)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130 and "samples are kept in a.h5.parts: run the same again to go on" in said
    assert "Traceback" not in said and not list(parts.glob("*.tmp")) and not (tmp_path / "a.h5").exists()


def test_python_m_fastdiff_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "fastdiff", "solve", "rod", "--device", "cuda"], capture_output=True,
                          text=True)
    assert done.returncode == 1 and "rod is a fixed problem" in done.stderr
