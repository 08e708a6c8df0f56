"""What is built is what is tracked: wheel, sdist, editable install; and the code is clean."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / ".git").exists() or not shutil.which("git"):
    pytest.skip("compares with what git tracks: needs a clone and git", allow_module_level=True)
pytest.importorskip("build")


def run(*command, cwd=ROOT, **environment):
    """Run a command and return what it prints; fail with its output."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked():
    """All tracked files that exist, links included."""
    names = run("git", "ls-files", "-z").split("\0")
    return sorted(name for name in names if name and os.path.lexists(ROOT / name))


def copy(folder, links=True):
    """Copy the tracked files; without links, as a clone on a system that has none."""
    for name in tracked():
        if links or not (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def sources():
    """Where each tracked source file lies in an installation."""
    places = {"kernels/": "fastdiff/kernels/", "bench/": "fastdiff/bench/", "fastdiff/": "fastdiff/"}
    found = set()
    for name in tracked():
        if not (ROOT / name).is_symlink() and name.endswith((".py", "py.typed")):
            found |= {new + name.removeprefix(old) for old, new in places.items() if name.startswith(old)}
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel built from nothing but the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy(tmp_path_factory.mktemp("tree")))
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def files_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_holds_exactly_the_tracked_sources(built):
    assert files_of(built[0]) == sources()


def test_wheel_installs_one_top_level_name(built):
    with zipfile.ZipFile(built[0]) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("top_level.txt")]
        assert archive.read(name).decode().split() == ["fastdiff"]
        (name,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert "fastdiff = fastdiff.cli:main" in archive.read(name).decode()
    assert {name.split("/")[0] for name in files_of(built[0])} == {"fastdiff"}


def test_sdist_holds_every_tracked_file(built):
    with tarfile.open(built[1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked() if not (ROOT / name).is_symlink()} <= held


def test_wheel_is_the_same_from_a_clone_without_links(tmp_path, built):
    tree = copy(tmp_path / "tree", links=False)
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, tree)
    assert files_of(next(tmp_path.glob("*.whl"))) == files_of(built[0])


def test_editable_install_imports_the_tree(tmp_path):
    tree = copy(tmp_path / "tree")
    prefix = tmp_path / "prefix"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
        "--ignore-installed", "--prefix", prefix, "--editable", tree)  # fmt: skip
    site = sysconfig.get_path("purelib", vars={"base": str(prefix)})
    program = (
        f"import site, sys; site.addsitedir({site!r})\n"  # first: the tests may run from another editable install
        f"sys.path.append({sysconfig.get_path('purelib')!r})\n"
        "import fastdiff, fastdiff.kernels, fastdiff.bench, importlib.util\n"
        "print(fastdiff.__file__, fastdiff.kernels.__file__, fastdiff.bench.__file__, sep='\\n')\n"
        "assert not importlib.util.find_spec('kernels') and not importlib.util.find_spec('bench')\n"
    )
    places = run(sys.executable, "-I", "-S", "-c", program, cwd=tmp_path).splitlines()
    expected = ["fastdiff/__init__.py", "kernels/__init__.py", "bench/__init__.py"]
    assert [Path(place).resolve() for place in places] == [(tree / name).resolve() for name in expected]


def test_every_package_is_listed():
    """The list of packages in pyproject.toml is explicit, so that nothing else is installed; it must be complete."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {str(Path(name).parent) for name in sources() if name.endswith(".py")}
    assert set(project["tool"]["setuptools"]["packages"]) == {folder.replace("/", ".") for folder in folders}


def test_ci_runs_the_test_command_of_the_readme():
    lines = (ROOT / "README.md").read_text().splitlines()
    command = lines[lines.index("<!-- test command -->") + 2]
    assert command.endswith("pytest") and "[test]" in command
    assert lines[lines.index("<!-- test command -->") + 3] == "```"


def test_ruff_is_clean():
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".")


@pytest.mark.long
def test_pyright_is_clean():
    """Pyright's wheel fetches its program on first use: where that cannot be had there is nothing to run."""
    command = [sys.executable, "-m", "pyright"]
    if subprocess.run([*command, "--version"], capture_output=True, cwd=ROOT).returncode:
        pytest.skip("pyright cannot be fetched here")
    run(*command, "--pythonpath", sys.executable)
