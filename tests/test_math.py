"""kernels/_math.py: accuracy over the whole range, special values, packed machine code, CUDA."""

import platform
import re
import subprocess
import sys
from typing import Any

import llvmlite.binding as llvm
import mpmath
import numpy as np
import pytest
from numba import njit, types
from scipy import special

from fastdiff.kernels import _math
from fastdiff.kernels._jit import FASTMATH, FLAGS, wide_vectors

NAMES = ("exp", "log", "tanh", "sigmoid", "sin", "cos", "tan", "sinh", "cosh", "erf", "cbrt")
OPTIONS: dict[str, Any] = {"fastmath": FASTMATH, **FLAGS}
ULPS = {np.float32: 2.0, np.float64: 4.0}
LOOSER = {("tan", np.float32): 3.0}
RANGES = {  # beyond them the answer is infinite, zero, +-1 or refused
    np.float32: {"exp": (-104, 89), "tanh": (-10, 10), "sigmoid": (-104, 30), "sinh": (-90, 90), "cosh": (-90, 90),
                 "erf": (-4.5, 4.5), "sin": (-12800, 12800), "cos": (-12800, 12800), "tan": (-12800, 12800)},
    np.float64: {"exp": (-746, 710), "tanh": (-20, 20), "sigmoid": (-746, 40), "sinh": (-711, 711),
                 "cosh": (-711, 711), "erf": (-6.5, 6.5), "sin": (-1.6e6, 1.6e6), "cos": (-1.6e6, 1.6e6),
                 "tan": (-1.6e6, 1.6e6)},
}
EXACT: dict[str, Any] = {"sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
                         "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x))}
WIDER: dict[str, Any] = {"sigmoid": special.expit, "erf": special.erf}


def loop(name):
    """y[i] = f(x[i]), as a kernel would do it."""
    scope = {"f": getattr(_math, name), "wide_vectors": wide_vectors}
    exec("def k(x, y):\n    wide_vectors()\n    for i in range(x.size):\n        y[i] = f(x[i])\n", scope)
    return njit(**OPTIONS)(scope["k"])


LOOPS = {name: loop(name) for name in NAMES}


@njit(**OPTIONS)
def minus(x, y, k):
    wide_vectors()  # pyright: ignore[reportCallIssue]
    constants = (k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], k[9])
    for i in range(x.size):
        y[i] = _math.exp_minus(x[i], constants)


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 87), (np.float64, 700)])
def test_exp_minus_is_accurate(dtype, most, rng):
    x = np.concatenate([rng.uniform(-most, most, 200000), rng.uniform(-1, 1, 100000), [0, -0.0, most, -most]])
    x = x.astype(dtype)
    y = np.full_like(x, 123)
    minus(x, y, np.array(_math.exp_minus_constants(), dtype))
    exact = np.exp(-x.astype(np.longdouble))
    assert np.max(np.abs(y - exact) / np.spacing(exact.astype(dtype))) <= ULPS[dtype]
    assert y[-4] == y[-3] == 1
    minus(np.full(1, np.nan, dtype), y, np.array(_math.exp_minus_constants(), dtype))
    assert np.isnan(y[0])


def values(name, x):
    y = np.full_like(x, 123)
    LOOPS[name](x, y)
    return y


def points(name, dtype, rng, count):
    """Numbers spread over the range, near zero, and where sin, cos and tan cancel."""
    if name in ("log", "cbrt"):
        last = np.finfo(dtype).max
        kind = np.uint32 if dtype is np.float32 else np.uint64
        x = np.concatenate([rng.integers(1, last.view(kind), count, dtype=kind).view(dtype),
                            rng.uniform(0.5, 2, count).astype(dtype)])
        return x * rng.choice(np.array([-1, 1], dtype), len(x)) if name == "cbrt" else x
    low, high = RANGES[dtype][name]
    near = rng.standard_normal(count // 4) * 10.0 ** rng.uniform(-37, 0, count // 4)
    parts = [rng.uniform(low, high, count), rng.uniform(-2, 2, count), near]
    if name in ("sin", "cos", "tan"):
        parts.append(rng.integers(0, int(high / 1.58), count // 4) * (np.pi / 2))
    return np.concatenate(parts).astype(dtype)


def errors(got, exact, dtype):
    """|got - exact| in units in the last place of the exact value, rounded to dtype."""
    rounded = exact.astype(dtype)
    assert (np.isfinite(got) == np.isfinite(rounded)).mean() > 0.999  # the last number before infinity may differ
    ok = np.isfinite(got) & np.isfinite(rounded)
    unit = np.maximum(np.spacing(np.abs(rounded[ok])), np.finfo(dtype).smallest_subnormal)
    return np.abs(got[ok] - exact[ok]) / unit.astype(exact.dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:overflow")
def test_float32_is_good_to_2_ulp(name, rng):
    x = points(name, np.float32, rng, 400_000)
    exact = (WIDER.get(name) or getattr(np, name))(x.astype(np.float64))
    assert errors(values(name, x), exact, np.float32).max() <= LOOSER.get((name, np.float32), ULPS[np.float32])


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_good_to_4_ulp(name, rng):
    x, function = points(name, np.float64, rng, 400), EXACT.get(name) or getattr(mpmath, name)
    got = values(name, x)
    with mpmath.workprec(160):
        for a, y in zip(x, got):
            exact = function(mpmath.mpf(float(a)))
            if np.isfinite(y) and np.isfinite(float(exact)):
                unit = max(np.spacing(abs(float(exact))), 5e-324)
                assert abs(mpmath.mpf(float(y)) - exact) / unit <= ULPS[np.float64], (name, a)
            else:
                assert not np.isfinite(y) and not np.isfinite(float(exact)), (name, a)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore")
def test_special_values(dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, 1e30, -1e30], dtype)
    wanted = {
        "exp": [np.nan, np.inf, 0, 1, np.inf, 0], "log": [np.nan, np.inf, np.nan, -np.inf, np.log(1e30), np.nan],
        "tanh": [np.nan, 1, -1, 0, 1, -1], "erf": [np.nan, 1, -1, 0, 1, -1], "sigmoid": [np.nan, 1, 0, 0.5, 1, 0],
        "sinh": [np.nan, np.inf, -np.inf, 0, np.inf, -np.inf], "cosh": [np.nan, np.inf, np.inf, 1, np.inf, np.inf],
        "sin": [np.nan, np.nan, np.nan, 0, np.nan, np.nan], "cos": [np.nan, np.nan, np.nan, 1, np.nan, np.nan],
        "tan": [np.nan, np.nan, np.nan, 0, np.nan, np.nan], "cbrt": [np.nan, np.inf, -np.inf, 0, 1e10, -1e10],
    }
    for name, expected in wanted.items():
        np.testing.assert_allclose(values(name, x), expected, rtol=2 * float(np.finfo(dtype).eps), err_msg=name)


@pytest.mark.parametrize(("dtype", "edges"), [(np.float32, (88.72, 88.73, -103.9, -104.1, -100.0)),
                                              (np.float64, (709.78, 709.79, -745.1, -745.2, -740.0))])
def test_exp_overflows_and_underflows_where_it_should(dtype, edges):
    y = values("exp", np.array(edges, dtype))
    assert np.isfinite(y[0]) and np.isinf(y[1]) and y[2] == np.finfo(dtype).smallest_subnormal and y[3] == 0
    with mpmath.workprec(100):
        assert y[4] == dtype(float(mpmath.exp(mpmath.mpf(float(dtype(edges[4]))))))


def test_log_of_subnormal_numbers():
    for dtype in (np.float32, np.float64):
        x = np.array([np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny / 3], dtype)
        np.testing.assert_allclose(values("log", x), np.log(x.astype(np.float64)), rtol=2 * float(np.finfo(dtype).eps))


def test_odd_functions_are_odd_to_the_last_bit(rng):
    x = rng.uniform(-5, 5, 1000).astype(np.float32)
    for name in ("tanh", "sin", "sinh", "erf", "tan", "cbrt"):
        np.testing.assert_array_equal(values(name, -x), -values(name, x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power(dtype, rng):
    @njit(**OPTIONS)
    def run(x, p, y):
        for i in range(x.size):
            y[i] = _math.power(x[i], p)

    x = np.concatenate([[0.0], rng.uniform(0, 10, 1000)]).astype(dtype)
    for p in (1 / 3, -0.126, 2.5):
        p, y = dtype(p), np.empty_like(x)
        run(x, p, y)
        with np.errstate(divide="ignore"):
            exact = x.astype(np.float64) ** np.float64(p)
        np.testing.assert_allclose(y, exact, rtol=(3 + 6 * abs(p)) * float(np.finfo(dtype).eps))
    run(np.array([-1.0, np.nan], dtype), dtype(0.5), y)
    assert np.isnan(y[:2]).all()


@pytest.mark.parametrize("name", NAMES)
def test_plain_python_agrees(name, rng):
    """What the CUDA simulator runs; the type is kept."""
    x = rng.uniform(0.1, 3, 20)
    function = getattr(_math, name)
    for dtype in (np.float32, np.float64):
        one = [function(v) for v in x.astype(dtype)]
        assert all(type(v) is dtype for v in one)
        np.testing.assert_allclose(one, values(name, x.astype(dtype)), rtol=8 * float(np.finfo(dtype).eps))


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64")
                    or not llvm.get_host_cpu_features().get("avx2"), reason="the patterns are those of AVX2")
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_a_loop_is_packed_without_calls_or_float64(name, bits):
    scope = {"f": getattr(_math, name), "wide_vectors": wide_vectors}
    exec("def k(x, y):\n    wide_vectors()\n    for i in range(x.size):\n        y[i] = f(x[i])\n", scope)
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **OPTIONS}
    bare = njit(**options)(scope["k"])
    array = types.Array(types.float32 if bits == 32 else types.float64, 1, "C")
    bare.compile((array, array))
    code = "\n".join(bare.inspect_asm().values())
    called = set(re.findall(r"\bcallq?\s+\*?(\S+)", code))
    assert len(re.findall(r"\bv(?:mul|fn?madd\d+)p[sd]\b.*%[yz]mm", code)) >= 4
    assert called <= {"NRT_incref", "NRT_decref"} | {c for c in called if c.startswith("%r")}
    if bits == 32:
        assert not re.search(r"\bv?cvt(?:ss2sd|ps2pd|sd2ss|pd2ps)\b|p[d]\t.*%zmm", code)


PTX = """
import sys
import numpy as np
from numba import cuda
from fastdiff.bench.ptx import compile_ptx, float64_instructions
from fastdiff.kernels import _math
for name in sys.argv[1:]:
    scope = {"f": getattr(_math, name), "cuda": cuda}
    exec("def k(a):\\n    i = cuda.threadIdx.x\\n    a[i] = f(a[i])", scope)
    ptx = compile_ptx(cuda.jit(scope["k"]), (np.zeros(3, np.float32),))[0]
    assert float64_instructions(ptx) == 0 and ".local" not in ptx, (name, ptx)
print("compiled")
"""


def test_cuda_kernels_compile_in_float32():
    done = subprocess.run([sys.executable, "-c", PTX, *NAMES], capture_output=True, text=True)
    assert done.stdout.strip() == "compiled", done.stderr[-2000:]
