"""Every kernel against its reference, generated from `discover()`: a new family needs no edit here."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from fastdiff.kernels import Kernel, discover
from fastdiff.kernels._contract import WrongKernel, check

KERNELS = discover()

# Shapes on purpose, by number of axes, each with its reason. The first ones are small enough for the simulator.
SHAPES = {
    1: [
        ((1,), "one cell: both ghosts see it"),
        ((2,), "two cells: each is the other's second"),
        ((3,), "one cell that is no edge"),
        ((17,), "prime, a little more than a vector"),
        ((6551,), "prime, several blocks"),
    ],
    2: [
        ((1, 1), "one cell"),
        ((1, 13), "one row"),
        ((13, 1), "one column"),
        ((2, 3), "nothing but edges"),
        ((7, 19), "primes, not square, a ragged vector"),
        ((61, 131), "several vectors and a rest"),
        ((259, 521), "several tiles of rows"),
        ((35, 2063), "several tiles of columns"),
    ],
    3: [
        ((1, 1, 1), "one cell"),
        ((1, 5, 4), "one cell along the outer axis"),
        ((4, 1, 5), "one cell along the middle axis"),
        ((5, 4, 1), "one cell along the inner axis"),
        ((3, 5, 7), "primes"),
        ((9, 67, 271), "several tiles of the inner axes"),
        ((67, 35, 33), "several tiles of planes"),
    ],
}


def shapes_of(kernel):
    """The awkward shapes of a kernel: its own, or those of its number of axes."""
    return list(kernel.shapes) if kernel.shapes else [shape for shape, _ in SHAPES[kernel.ndim]]


SMALL = 150  # cells at most in the simulator, which runs every CUDA thread as a thread of the system


# A rule and a schedule are compiled together, once for each dtype. No line of a schedule knows the dtype, so the
# large grids of the other rules run in float32 alone, where wrong constants show; and the simulator, which has no
# types, runs most shapes in float64 alone.
IN_BOTH = ("heat_2d", "heat_3d", "gray_scott_2d", "variable_2d_faces", "rkl2_2d")


def cases(backend):
    """Parameters of one backend: every kernel that has it, on every shape of its number of axes, in each dtype."""
    small = backend == "cuda" and os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
    return [
        pytest.param(kernel, shape, dtype, id=f"{kernel.name}-{'x'.join(map(str, shape))}-{dtype}")
        for kernel in KERNELS.values()
        if kernel.implementation(backend)
        for shape in shapes_of(kernel)
        if not small or np.prod(shape) <= SMALL
        for dtype in ("float32", "float64")
        if _tells_more(kernel, shape, dtype, small)
    ]


def _tells_more(kernel, shape, dtype, small):
    if small:
        return dtype == "float64" or shape == shapes_of(kernel)[-1] or shape == shapes_of(kernel)[0]
    streams = kernel.rule is not None and kernel.ndim > 1 and np.prod(shape) > 5000
    return dtype == "float32" or not streams or kernel.name in IN_BOTH


def test_there_are_kernels():
    assert KERNELS
    assert all(kernel.cpu and (kernel.shapes or kernel.ndim in SHAPES) for kernel in KERNELS.values())


def test_every_cuda_kernel_runs_in_the_simulator():
    wanted = {kernel.name for kernel in KERNELS.values() if kernel.cuda}
    assert wanted == {k.name for k in KERNELS.values() if k.cuda and min(map(np.prod, shapes_of(k))) <= SMALL}


@pytest.mark.parametrize(("kernel", "shape", "dtype"), cases("cpu"))
def test_cpu_equals_reference(kernel, shape, dtype):
    check(kernel, "cpu", shape, dtype)


@pytest.mark.cuda
@pytest.mark.parametrize(("kernel", "shape", "dtype"), cases("cuda"))
def test_cuda_equals_reference(kernel, shape, dtype):
    check(kernel, "cuda", shape, dtype)


@pytest.mark.long
@pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"), reason="this is the simulator")
def test_cuda_parts_pass_in_the_simulator():
    """The variable is read when Numba is imported: the simulator needs a process of its own."""
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-x", "-p", "no:cacheprovider", "-m", "cuda", __file__],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout and "skipped" not in run.stdout, run.stdout


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_result_is_allocated_when_no_output_is_given(kernel):
    inputs = kernel.sample(shapes_of(kernel)[-3:][0], np.dtype("float32"), np.random.default_rng(1))
    given, own = kernel.cpu(**inputs, out=kernel.empty(inputs)), kernel.cpu(**inputs)
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (own, given)), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kernel", [k for k in KERNELS.values() if k.adjoint], ids=lambda kernel: kernel.name)
def test_adjoint_is_the_transpose(kernel, rng):
    """<v, J u> = <J^T v, u>, with J u = f(u) - f(0) for an affine f."""
    for shape in shapes_of(kernel):
        inputs = kernel.sample(shape, np.dtype("float64"), rng)
        u, v = inputs["u"], rng.standard_normal(inputs["u"].shape)
        forward = kernel.cpu(**inputs) - kernel.cpu(**{**inputs, "u": np.zeros_like(u)})
        backward = kernel.adjoint(**{**inputs, "u": v})
        size = np.linalg.norm(v) * np.linalg.norm(forward)
        assert abs(np.vdot(v, forward) - np.vdot(backward, u)) <= 1e-12 * size


# -- the contract itself ---------------------------------------------------------------------------------------------

TOY = """
    import numpy as np
    from numba import njit
    from fastdiff.kernels import Kernel


    def reference(u, rate, steps, out=None):
        v = u.astype(np.float64)
        for _ in range(steps):
            v = v + rate * (np.roll(v, 1, -1) - 2 * v + np.roll(v, -1, -1))
        return v


    @njit
    def march(u, rate, two, steps, out):
        n = u.shape[2]
        now, new = u.copy(), out
        for _ in range(steps):
            for i in range(n):
                new[0, 0, i] = now[0, 0, i] + rate * ((now[0, 0, i - 1] + now[0, 0, (i + 1) % n]) - two * now[0, 0, i])
            now[:] = new


    def cpu(u, rate, steps, out=None):
        out = np.empty_like(u) if out is None else out
        march(u, u.dtype.type(rate), u.dtype.type(2), steps, out)
        return out


    def sample(shape, dtype, rng):
        return dict(u=rng.random((1, 1, *shape)).astype(dtype), rate=0.25, steps=5)


    KERNELS = [Kernel(name="toy", reference=reference, cpu=cpu, sample=sample, ndim=1)]
"""


def family(folder: Path, source: str, name: str = "toy.py") -> dict[str, Kernel]:
    """Write a kernel family into a folder and discover it."""
    (folder / name).write_text(textwrap.dedent(source))
    return discover(folder)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_new_file_is_found_and_passes(tmp_path, dtype):
    (tmp_path / "_helpers.py").write_text("raise RuntimeError('a file with an underscore is no family')")
    assert check(family(tmp_path, TOY)["toy"], "cpu", (17,), dtype) <= 1


MUTANTS = {
    "wrong coefficient": ("rate * ((now", "rate * (two * rate) * ((now", "differs from its reference"),
    "wrong last cell": ("now[0, 0, (i + 1) % n]", "now[0, 0, min(i + 1, n - 1)]", "differs from its reference"),
    "one step short": ("(steps):\n            for", "(steps - 1):\n            for", "differs from its reference"),
    "a cell not written": ("for i in range(n)", "for i in range(n - 1)", "unwritten or NaN"),
    "input changed": ("now, new = u.copy(), out", "now, new = u, out", "changed its input 'u'"),
    "float32 arithmetic": ("two * now[0, 0, i])", "two * np.float32(now[0, 0, i]))", "differs from its reference"),
    "another array returned": ("return out\n\n", "return out.copy()\n\n", "does not return"),
}


@pytest.mark.parametrize("change", MUTANTS)
def test_a_wrong_kernel_is_caught(tmp_path, change):
    old, new, message = MUTANTS[change]
    assert old in TOY
    kernel = family(tmp_path, TOY.replace(old, new))["toy"]
    with pytest.raises(WrongKernel, match=message):
        check(kernel, "cpu", (17,), "float64")


def test_a_file_without_kernels_is_an_error(tmp_path):
    with pytest.raises(ImportError, match=r"empty\.py has no KERNELS"):
        family(tmp_path, "x = 1", "empty.py")


def test_a_stranger_among_kernels_is_an_error(tmp_path):
    with pytest.raises(TypeError, match=r"odd\.py.*expected a Kernel"):
        family(tmp_path, "KERNELS = ['heat']", "odd.py")


def test_a_name_used_twice_is_an_error(tmp_path):
    family(tmp_path, TOY)
    with pytest.raises(ValueError, match=r"zoo\.py.*'toy'"):
        family(tmp_path, TOY, "zoo.py")


def test_a_kernel_needs_a_reference_and_a_sample():
    with pytest.raises(TypeError, match="reference"):
        Kernel(name="bare")  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="cpu, cuda"):
        next(iter(KERNELS.values())).implementation("tpu")
