"""The compiler's gate: every CUDA kernel compiles without a GPU, within its limits, from installed wheels alone."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
SHARED_BYTES = 48 << 10
REGISTERS = 65536  # of a multiprocessor, sm_80 and sm_90 alike


@pytest.fixture(scope="module")
def kernels():
    """What ptxas says of every kernel: in a process of its own, which patches numba.cuda and sees no toolkit."""
    pytest.importorskip("numba_cuda", reason="the compiler comes with numba-cuda")
    hidden = ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "LD_LIBRARY_PATH", "NUMBA_ENABLE_CUDASIM")
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    env["PATH"] = str(Path(sys.executable).parent)
    run = subprocess.run([sys.executable, "-m", "fastdiff.bench.ptx"], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def label(entry):
    wall = ", boundary of u" if entry["nonlinear"] else ""
    return f"{entry['kernel']} {entry['schedule']} {entry['dtype']} {entry['capability']} {entry['block']}{wall}"


def test_every_kernel_is_there(kernels):
    from fastdiff.kernels import discover

    wanted = {(k.name, schedule, dtype, capability)
              for k in discover().values() if k.cuda and k.rule
              for schedule in (["resident"] if k.ndim == 1 else ["resident", "stream"])
              for dtype in ("float32", "float64") for capability in ("sm_80", "sm_90")}
    marched = {k.name for k in discover().values() if k.rule}
    assert wanted == {(e["kernel"], e["schedule"], e["dtype"], e["capability"]) for e in kernels
                      if e["kernel"] in marched}
    others = {(k.name, dtype) for k in discover().values() if k.cuda and not k.rule for dtype in ("float32", "float64")}
    assert others == {(e["kernel"], e["dtype"]) for e in kernels if e["kernel"] not in marched}


def test_nothing_is_spilled(kernels):
    assert [label(e) for e in kernels if e["spills"] or e["stack"]] == []


def test_float32_kernels_have_no_float64(kernels):
    """Float64 runs at half speed or far less; only a boundary that depends on the field, a rare cell, may use it."""
    assert [label(e) for e in kernels if e["dtype"] == "float32" and e["float64"] and not e["nonlinear"]] == []


def test_a_block_fits_a_multiprocessor(kernels):
    for entry in kernels:
        threads = math.prod(entry["block"])
        per_warp = -(-entry["registers"] * 32 // 256) * 256  # registers are handed out 256 at a time
        assert entry["shared"] <= SHARED_BYTES, label(entry)
        assert threads <= 1024 and per_warp * -(-threads // 32) <= REGISTERS, label(entry)


def test_two_dimensional_kernels_keep_four_levels_on_chip(kernels):
    streamed = [e for e in kernels if e["schedule"] == "stream" and e["kernel"].endswith("_2d")]
    assert streamed and all(e["depth"] >= 4 for e in streamed)


def test_the_gate_sees_what_it_forbids():
    """A literal in float32 arithmetic makes float64 of it: the count must not be zero."""
    from fastdiff.bench.ptx import float64_instructions

    assert float64_instructions("\tadd.rn.f64 \t%fd3, %fd1, %fd2;\n\t@%p1 cvt.f64.f32 \t%fd1, %f1;\n") == 2
    assert float64_instructions("\tadd.rn.f32 \t%f3, %f1, %f2;\n.visible .entry x(.param .f64 y)\n") == 0
