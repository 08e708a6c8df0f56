"""The Python of the README runs, as one program, from a file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.mark.long
def test_the_tour_runs(tmp_path):
    pytest.importorskip("torch")
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    checks = "assert frames.shape == (10, 100) and np.isfinite(u).all() and u.dtype == f and len(data) == 4\n"
    (tmp_path / "tour.py").write_text("\n".join(blocks) + checks)
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    run = subprocess.run([sys.executable, "tour.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "rod.png").stat().st_size > 1000


def test_two_commands_and_no_more():
    """One installs and runs the main job, one installs and passes the tests."""
    part = README.read_text().partition("## Two commands")[2].partition("\n## ")[0]
    first, second = re.findall(r"^```bash\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
    assert first.count("\n") == second.count("\n") == 1
    assert "pip install ." in first and "fastdiff generate gray-scott --samples 64 --out gray_scott.h5" in first
    assert second.strip().endswith("pytest") and "pip install -e '.[test]'" in second
