"""Formulas: read safely, compiled once, equal to SymPy."""

import ctypes
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import sympy

from fastdiff import expressions
from fastdiff.expressions import FUNCTIONS, Expression, formula

C = ctypes.CFUNCTYPE(ctypes.c_double, *[ctypes.c_double] * 5)
POINT = dict(t=0.7, x=0.3, y=-1.2, z=2.5, u=1.4)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """A cache folder of our own: what another run left there would hide a failure to write."""
    from fastdiff.kernels._jit import cache_root

    before = os.environ.get("FASTDIFF_CACHE_DIR")
    os.environ["FASTDIFF_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    cache_root.cache_clear()
    yield
    os.environ.pop("FASTDIFF_CACHE_DIR")
    if before is not None:
        os.environ["FASTDIFF_CACHE_DIR"] = before
    cache_root.cache_clear()


EXPRESSIONS = [
    "sin(t)", "0.1*exp(-x)*cos(2*t) - u**4/3", "u^2 - 3*u + 1/7", "sqrt(u) + u**0.5 + u**1.5 + u**(1/3)",
    "tan(x)*tanh(y)", "sinh(x) - cosh(z) + log(u) + abs(y)", "Max(t, x, 0.3) + Min(y, z)",
    "Heaviside(t - 0.5) + step(x - 0.3)", "2**t", "-u",
    "1e-3*(x + y)**3/(1 + z**2)", "pi*E + 2", "exp(log(u))*u**-2", "0.1", "3*(0.1 + x - x)",
]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_compiled_and_host_values_equal_sympy(text):
    f = Expression(text)
    exact = float(f.sympy().evalf(40, subs={sympy.Symbol(k, real=True): sympy.Float(v, 40) for k, v in POINT.items()}))
    assert math.isclose(C(f.address())(*POINT.values()), exact, rel_tol=4e-15)
    assert math.isclose(float(f.host(**POINT)), exact, rel_tol=4e-15)
    names = {**vars(math), **{name: known[2] for name, known in FUNCTIONS.items()}, "E": math.e, **POINT}
    assert math.isclose(eval(text.replace("^", "**"), {}, names), exact, rel_tol=1e-14)


def test_uses_and_arrays():
    f = formula("t*sin(x)", ("t", "x", "u"))
    assert f.uses == {"t", "x"}
    t, x = np.linspace(0, 1, 3)[:, None], np.linspace(0, 1, 4)
    np.testing.assert_allclose(f.host(t=t, x=x), t * np.sin(x), rtol=1e-15)
    np.testing.assert_allclose(formula("Max(0, t, 0.5)").host(t=t), np.maximum(t, 0.5))
    assert formula("sin(t)") is formula("sin(t)")


@pytest.mark.parametrize("text", [
    "__import__('os').system('true')", "().__class__", "x.real", "x[0]", "lambda: 1", "[t for t in (1,)]",
    "t if t else x", "eval('1')", "open('f')", "'a'", "f'{t}'", "1j", "True", "t; x", "t = 1", "t := 1", "x and t",
    "t < 1", "not t", "~t", "t % 2", "t // 2", "t @ x", "t, x", "{t}", "*t", "sin(*t)", "sin(**t)", "sin(x=t)",
    "sin.__call__(t)", "None", "...", "t #\"\"\"\nimport os", "sin", "await t", "1e999", "t\0",
    "", "  ", "(t", "exec(t)", "t is x",
])
def test_code_is_refused(text):
    with pytest.raises(ValueError) as error:
        formula(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "says"), [
    ("w*2", "unknown name 'w'.*known: t, x, u"),
    ("y", "unknown name 'y'.*known: t, x, u"),
    ("sine(t)", "unknown function 'sine'.*known: sin, cos"),
    ("sin(t, x)", "takes 1 argument, not 2"),
    ("Max(t)", "takes 2 to 8 arguments, not 1"),
    ("t +", "not an expression in t, x, u"),
    ("t*" * 3000 + "t", "at most 4000 characters"),
    ("-" * 3000 + "t", "nested too deeply|not an expression"),
    ("(" * 500 + "t" + ")" * 500, "nested too deeply|not an expression"),
])
def test_errors_say_what_is_known(text, says):
    with pytest.raises(ValueError, match=says):
        formula(text, ("t", "x", "u"))


@pytest.mark.parametrize("text", ["9**9**9**9", "exp(exp(exp(100)))", "1/0", "0**-1", "x/0", "sqrt(-1)", "log(0)",
                                  "(-8)**0.5", "pi**pi**pi**pi*x", "10**400"])
def test_numbers_that_are_not_finite_are_refused_at_once(text):
    with pytest.raises(ValueError, match="not a finite real number|divides by 0"):
        formula(text).host(x=1.0)


def test_functions_of_python():
    assert formula(lambda t, x: t + x).uses == {"t", "x"}
    np.testing.assert_allclose(formula(lambda t: 1.0 if t > 1 else 0.0).host(t=np.array([0.5, 2.0])), [0, 1])
    np.testing.assert_allclose(formula(lambda t: math.sin(t)).host(t=np.array([0.5, 2.0])), np.sin([0.5, 2]))
    np.testing.assert_allclose(formula(lambda: 3).host(), 3.0)

    def cooling(u, x, power=4):
        return -(u**power) if x > 0 else 0

    assert math.isclose(C(formula(cooling).address())(*POINT.values()), -(POINT["u"] ** 4), rel_tol=1e-15)


@pytest.mark.parametrize(("function", "says"), [
    (lambda q: q, "unknown argument 'q'.*takes some of t, x"),
    (math.sin, "by name"),
    (lambda t: [t, t, t], "failed"),
    (lambda t: {}["t"], "the function <lambda> failed: KeyError"),
])
def test_bad_functions(function, says):
    with pytest.raises(ValueError, match=says):
        formula(function).host(t=np.linspace(0, 1, 5))


def test_a_function_numba_cannot_compile():
    def strange(u):
        return sympy.sin(u)

    with pytest.raises(ValueError, match="write it as an expression or in Numba-compatible code") as error:
        formula(strange).address()
    assert "\n" not in str(error.value)


SECOND = """
    import ctypes, sys
    from fastdiff.expressions import formula
    f = formula("sin(t)*exp(-x) + u**3/7")
    value = ctypes.CFUNCTYPE(ctypes.c_double, *[ctypes.c_double] * 5)(f.address())(0.5, 0.25, 0, 0, 2)
    print(repr(value), f._compiled.cache_hits, "sympy" in sys.modules, "matplotlib" in sys.modules)
"""


def test_a_second_process_loads_it_compiled(tmp_path):
    environment = {**os.environ, "FASTDIFF_CACHE_DIR": str(tmp_path)}
    runs = [subprocess.run([sys.executable, "-c", textwrap.dedent(SECOND)], env=environment, check=True, text=True,
                           capture_output=True).stdout.split() for _ in range(2)]
    exact = math.sin(0.5) * math.exp(-0.25) + 8 / 7
    assert runs[0][1:] == ["0", "True", "False"]
    assert runs[1] == [runs[0][0], "1", "False", "False"] and math.isclose(float(runs[1][0]), exact, rel_tol=1e-15)


def test_a_damaged_module_is_written_anew():
    Expression("t*17").host(t=1.0)
    Path(str(Expression("t*17")._module.__file__)).write_text("def host(t):\n    retu")
    assert Expression("t*17").host(t=2.0) == 34.0


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(expressions, "cache_root", lambda: blocked)
    f = Expression("t*19 + u")
    assert f.host(t=1.0, u=1.0) == 20.0 and C(f.address())(2, 0, 0, 0, 1) == 39.0
