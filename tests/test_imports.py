"""Imports point downward, and importing fastdiff is light."""

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastdiff

ROOT = Path(__file__).resolve().parent.parent
# Everything else in fastdiff: 1
LAYERS = {"kernels": 0, "data": 2, "nn": 2, "bench": 3, "commands": 3, "cli": 4, "__main__": 5}
HEAVY = ("torch", "matplotlib", "sympy", "h5py", "pytest", "rich", "typer", "numba.cuda.cudadrv")


def source_files():
    """(layer name, file) of every source file; links are not followed."""
    for folder in ("kernels", "bench", "fastdiff"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).parts
            if folder == "fastdiff" and parts[1] in ("kernels", "bench"):
                continue
            yield (folder if folder != "fastdiff" else parts[1].removesuffix(".py")), file


def imported(file):
    """Dotted names that a file imports, anywhere in it: `from a import b` is a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = [pytest.param(layer, file, id=str(file.relative_to(ROOT))) for layer, file in source_files()]


@pytest.mark.parametrize(("layer", "file"), FILES)
def test_imports_point_downward(layer, file):
    for name in imported(file):
        top, _, rest = name.partition(".")
        assert top not in ("kernels", "bench"), f"{file}: write fastdiff.{name}"
        if top == "fastdiff" and layer != "__init__":
            below = rest.partition(".")[0]
            assert LAYERS.get(below, 1) <= LAYERS.get(layer, 1), f"{file} imports {name}, which lies above it"


@pytest.mark.parametrize("file", [pytest.param(p.values[1], id=p.id) for p in FILES if p.values[0] == "kernels"])
def test_kernels_need_numpy_and_numba_alone(file):
    allowed = {*sys.stdlib_module_names, "numpy", "numba", "llvmlite"}
    outside = {name for name in imported(file) if name.partition(".")[0] not in allowed}
    assert all(name.startswith("fastdiff.kernels.") for name in outside), outside


def test_ruff_bans_every_module_above_the_kernels():
    ruff = tomllib.loads((ROOT / "kernels/ruff.toml").read_text())
    banned = set(ruff["lint"]["flake8-tidy-imports"]["banned-api"])
    above = {f"fastdiff.{layer}" for layer, _ in source_files() if layer not in ("kernels", "__init__")}
    assert above <= banned


def modules():
    for info in pkgutil.walk_packages(fastdiff.__path__, "fastdiff."):
        if info.name.rpartition(".")[2] != "__main__":
            yield info.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_module_can_be_imported(name):
    if "cuda" in name:
        pytest.importorskip("numba_cuda", reason="CUDA parts need numba-cuda")
    importlib.import_module(name)


def fresh(program):
    """Run a program in a new process; what it prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_fastdiff_loads_nothing_heavy():
    program = f"import sys, fastdiff\nprint([n for n in {HEAVY} if n in sys.modules])"
    assert fresh(program) == "[]"


def test_importing_fastdiff_is_quick():
    """At most 0.7 s of processor time, at best of three: the wall clock of a busy machine says nothing."""
    program = "import time\nimport fastdiff\nprint(time.process_time())"
    assert min(float(fresh(program)) for _ in range(3)) <= 0.7
