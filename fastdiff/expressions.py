"""Formulas that users write: expressions such as "sin(t)*exp(-x)", and Python functions.

An expression is read, never run: its syntax tree may hold numbers, known names, + - * / **, and known functions. The
first time it is used, SymPy simplifies it and writes two Python functions, one for NumPy arrays and one for a C
function of (t, x, y, z, u), into a module of its own in the cache folder. The module and what Numba compiles from it
stay there, so the next process imports no SymPy and compiles nothing.
"""

import ast
import hashlib
import importlib.util
import inspect
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cache, cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastdiff.kernels._jit import cache_root

ARGUMENTS = ("t", "x", "y", "z", "u")
CONSTANTS = {"pi": math.pi, "E": math.e}
_LONGEST = 4000

# name: (least, most arguments, its value for numbers, its name in SymPy)
FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any], str]] = {
    "sin": (1, 1, math.sin, "sin"), "cos": (1, 1, math.cos, "cos"), "tan": (1, 1, math.tan, "tan"),
    "sinh": (1, 1, math.sinh, "sinh"), "cosh": (1, 1, math.cosh, "cosh"), "tanh": (1, 1, math.tanh, "tanh"),
    "exp": (1, 1, math.exp, "exp"), "log": (1, 1, math.log, "log"), "sqrt": (1, 1, math.sqrt, "sqrt"),
    "abs": (1, 1, abs, "Abs"), "Abs": (1, 1, abs, "Abs"),
    "Heaviside": (1, 1, lambda v: float(np.heaviside(v, 0.5)), "Heaviside"),
    "step": (1, 1, lambda v: float(np.heaviside(v, 0.5)), "Heaviside"),
    "Min": (2, 8, min, "Min"), "min": (2, 8, min, "Min"), "Max": (2, 8, max, "Max"), "max": (2, 8, max, "Max"),
}
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


def formula(value: str | Callable, known: Iterable[str] = ARGUMENTS) -> "Expression | Function":
    """The formula that a string or a Python function stands for; `known` names what it may depend on."""
    known = tuple(known)
    if isinstance(value, str):
        return _expression(value, known)
    try:
        return _function(value, known)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return Function(value, known)


# -- expressions -----------------------------------------------------------------------------------------------------


class Expression:
    """A formula read from a string.

    text   as given
    uses   the names it depends on
    """

    def __init__(self, text: str, known: tuple[str, ...] = ARGUMENTS):
        self.text, self.known = text, tuple(known)
        self._tree = _read(text, self.known)
        self.uses = frozenset(node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)) & set(known)

    def __repr__(self):
        return f"Expression({self.text!r})"

    def sympy(self):
        """The SymPy expression, in real symbols."""
        with np.errstate(all="ignore"):
            return _symbolic(self._build(self._tree))

    def host(self, **values):
        """Its value for numbers and NumPy arrays, given by name."""
        with np.errstate(all="ignore"):
            return self._module.host(**{name: values[name] for name in self.uses})

    def address(self) -> int:
        """Address of a C function `double f(double t, double x, double y, double z, double u)`."""
        return int(self._compiled.address)

    @cached_property
    def device(self):
        """The same function of (t, x, y, z, u) in Python, for kernels that compile it in, such as those of a GPU."""
        from numba.extending import register_jitable

        return register_jitable(self._module.scalar)

    @cached_property
    def _compiled(self) -> Any:
        if not self.uses <= set(ARGUMENTS):
            raise ValueError(f"{self.text!r} depends on more than {', '.join(ARGUMENTS)}")
        return _c_function(self._module.scalar, keep=getattr(self._module, "__file__", None) is not None)

    @cached_property
    def _module(self) -> ModuleType:
        names = tuple(name for name in self.known if name in self.uses)
        source = ast.unparse(self._tree)
        return module_for("expression", f"{_stamp()} {names} {source}", ("host", "scalar"),
                          lambda: _write(self.sympy(), names, self.text))

    def _build(self, node) -> Any:
        """A Python number where all is known, else a SymPy expression: SymPy never sees a tower of numbers."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            import sympy

            return CONSTANTS[node.id] if node.id not in self.uses else sympy.Symbol(node.id, real=True)
        if isinstance(node, ast.UnaryOp):
            value = self._build(node.operand)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp):
            parts = [self._build(node.left), self._build(node.right)]
            name = _BINARY[type(node.op)]
        else:
            parts, name = [self._build(part) for part in node.args], node.func.id
        if all(isinstance(part, int | float) for part in parts):
            return self._number(name, parts)
        return self._combined(name, parts)

    def fold(self) -> None:
        """Refuse parts that are no finite number, such as 1/0, without SymPy."""
        self._folded(self._tree)

    def _folded(self, node):
        """The number that a part of the tree stands for, or None."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return CONSTANTS.get(node.id) if node.id not in self.uses else None
        if isinstance(node, ast.UnaryOp):
            value = self._folded(node.operand)
            return -value if isinstance(node.op, ast.USub) and value is not None else value
        if isinstance(node, ast.BinOp):
            parts, name = [self._folded(node.left), self._folded(node.right)], _BINARY[type(node.op)]
        else:
            parts, name = [self._folded(part) for part in node.args], node.func.id
        if name == "/" and parts[1] == 0:
            raise ValueError(f"{self.text!r} divides by 0, which is not a finite real number")
        return None if None in parts else self._number(name, parts)

    def _number(self, name, parts):
        plain = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
                 "**": lambda a, b: float(a) ** float(b)}
        try:
            value = (plain.get(name) or FUNCTIONS[name][2])(*parts)
            if isinstance(value, complex) or not math.isfinite(value):
                raise ValueError
        except (ValueError, ArithmeticError):
            shown = f" {name} ".join(f"{p:g}" for p in parts) if name in plain else f"{name}({parts[0]:g})"
            raise ValueError(f"{self.text!r} holds {shown}, which is not a finite real number") from None
        return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)

    def _combined(self, name, parts):
        import sympy

        if name == "**":
            base, power = parts
            if isinstance(power, float) and (2 * power).is_integer() and abs(power) <= 64:
                power = sympy.Rational(int(2 * power), 2)
            return _symbolic(base) ** _symbolic(power)
        a, *rest = (_symbolic(part) for part in parts)
        if name in FUNCTIONS:
            return getattr(sympy, FUNCTIONS[name][3])(a, *rest)
        if name == "/":
            if parts[1] == 0:
                raise ValueError(f"{self.text!r} divides by 0")
            return a / rest[0]
        return a + rest[0] if name == "+" else a - rest[0] if name == "-" else a * rest[0]


@cache  # a compiled formula must outlive every march that calls it
def _expression(text, known):
    return Expression(text, known)


def _symbolic(value):
    import sympy

    if not isinstance(value, int | float):
        return value
    return sympy.Integer(value) if isinstance(value, int) and abs(value) < 2**53 else sympy.Float(float(value), 17)


def _read(text: str, known: tuple[str, ...]) -> ast.expr:
    if len(text) > _LONGEST:
        raise ValueError(f"an expression has at most {_LONGEST} characters, not {len(text)}: write a Python function")
    if "#" in text:
        raise ValueError(f"{text!r} is not an expression in {_known(known)}")
    if not text.strip():
        raise ValueError("an expression is empty: write a number, or a formula such as \"sin(t)\"")
    try:
        tree = ast.parse(" ".join(text.replace("^", "**").split()), mode="eval").body
        _check(tree, text, known)
    except (SyntaxError, ValueError) as error:
        if isinstance(error, ValueError) and error.args and "known:" in str(error):
            raise
        raise ValueError(f"{text!r} is not an expression in {_known(known)}") from None
    except (RecursionError, MemoryError):
        raise ValueError(f"an expression is nested too deeply: {text[:40]!r}...") from None
    return tree


def _check(node, text, known):
    """Let numbers, known names, operators and calls of known functions pass, and nothing else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        if not abs(node.value) < 1e308:
            raise ValueError(f"a number in {text!r} is too large; known: numbers below 1e308")
    elif isinstance(node, ast.Name):
        if node.id not in known and node.id not in CONSTANTS:
            hint = " (a function, which takes arguments)" if node.id in FUNCTIONS else ""
            raise ValueError(f"unknown name {node.id!r}{hint} in {text!r}; known: {_known(known)}")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        _check(node.operand, text, known)
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        _check(node.left, text, known)
        _check(node.right, text, known)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        _check_call(node, text, known)
    else:
        raise ValueError(f"{_shown(node)!r} is not allowed in {text!r}; known: {_known(known)}, operators + - * / **")


def _check_call(node, text, known):
    name = node.func.id
    if name not in FUNCTIONS:
        raise ValueError(f"unknown function {name!r} in {text!r}; known: {', '.join(FUNCTIONS)}")
    least, most = FUNCTIONS[name][:2]
    if node.keywords or not least <= len(node.args) <= most:
        count = f"{least}" if least == most else f"{least} to {most}"
        given = len(node.args) + len(node.keywords)
        raise ValueError(f"{name} in {text!r} takes {count} argument{'s' * (most > 1)}, not {given}; known: "
                         f"{_known(known)}")
    for part in node.args:
        _check(part, text, known)


def _known(known):
    return f"{', '.join([*known, *CONSTANTS])}; functions {', '.join(FUNCTIONS)}"


def _shown(node):
    source = ast.unparse(node)
    return source if len(source) <= 40 else source[:37] + "..."


# -- writing and loading modules -------------------------------------------------------------------------------------


def _write(expression, names, text) -> str:
    """Source of a module with `host`, for NumPy, and `scalar`, for a C function."""
    import sympy
    from sympy.printing.pycode import PythonCodePrinter

    if expression.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I) or not expression.free_symbols <= {
            sympy.Symbol(name, real=True) for name in names}:
        raise ValueError(f"{text!r} is not a finite real number")

    class Scalar(PythonCodePrinter):
        def _print_Heaviside(self, e):
            v = self._print(e.args[0])
            return f"(0.0 if ({v}) < 0 else 1.0 if ({v}) > 0 else 0.5 + 0*({v}))"

    common, (result,) = sympy.cse([expression], symbols=sympy.numbered_symbols("part_"))
    lines = ['"""A formula, written by fastdiff."""', "", "import math", "", "import numpy"]
    for name, arguments, printer in (("host", names, numpy_printer()), ("scalar", ARGUMENTS, Scalar())):
        lines += ["", "", f"def {name}({', '.join(arguments)}):"]
        lines += [f"    {symbol} = {printer.doprint(part)}" for symbol, part in common]
        lines += [f"    return 0.0 + {printer.doprint(result)}"]
    return "\n".join(lines) + "\n"


def numpy_printer() -> Any:
    """SymPy's printer of NumPy code, with two arguments for each maximum."""
    from sympy.printing.numpy import NumPyPrinter

    class Host(NumPyPrinter):
        def _print_Max(self, e):
            return _nested(self, "numpy.maximum", e.args)

        def _print_Min(self, e):
            return _nested(self, "numpy.minimum", e.args)

        def _print_Heaviside(self, e):
            return f"numpy.heaviside({self._print(e.args[0])}, 0.5)"

    return Host()


def _nested(printer, name, args):
    first, *rest = (printer._print(a) for a in args)
    for part in rest:
        first = f"{name}({first}, {part})"
    return first


@lru_cache(maxsize=1)
def _stamp() -> str:
    """Hash of this file: another way of writing modules makes other modules."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def module_for(kind: str, key: str, holds: tuple[str, ...], write: Callable[[], str]) -> ModuleType:
    """The generated module for a key, from the cache folder, or in memory where that cannot be written.

    `holds` are names that a whole module has: a file that lacks them is written anew.
    """
    name = f"fastdiff_{kind}_" + hashlib.sha256(key.encode()).hexdigest()[:20]
    file = cache_root() / f"{kind}s" / f"{name}.py"
    try:
        return _load(name, file, holds)
    except (OSError, SyntaxError, AttributeError, ValueError):
        source = write()
    try:
        _replace(file, source)
        return _load(name, file, holds)
    except OSError:
        module = sys.modules[name] = ModuleType(name)
        exec(compile(source, f"<{name}>", "exec"), vars(module))
        return module


def _load(name, file, holds) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # NamedTuple looks for it
    try:
        spec.loader.exec_module(module)
        for known in holds:
            getattr(module, known)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _replace(file: Path, source: str):
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as f:
            f.write(source)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _c_function(function, keep: bool):
    import numba

    signature = numba.float64(*[numba.float64] * 5)
    try:
        return numba.cfunc(signature, cache=keep, error_model="numpy", nogil=True)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return numba.cfunc(signature, error_model="numpy", nogil=True)(function)


# -- Python functions ------------------------------------------------------------------------------------------------


class Function:
    """A formula given as a Python function, whose argument names say what it depends on."""

    def __init__(self, function: Callable, known: tuple[str, ...] = ARGUMENTS):
        self.text = getattr(function, "__name__", type(function).__name__)
        self.known, self._given = tuple(known), function
        self._python = getattr(function, "py_func", function)
        self.uses = frozenset(_arguments(self._python, self.known, self.text))

    def __repr__(self):
        return f"Function({self.text})"

    def host(self, **values):
        """Its value for numbers and NumPy arrays, given by name; called for each entry if it does not take arrays."""
        values = {name: values[name] for name in self.uses}
        shape = np.broadcast_shapes(*map(np.shape, values.values()))
        try:
            with np.errstate(all="ignore"):
                result = np.asarray(self._python(**values), np.float64)
            return np.broadcast_to(result, shape)
        except Exception:  # it may do anything with an array; what it says of single numbers counts
            return self._each(values, shape)

    def _each(self, values, shape):
        lines = [np.broadcast_to(v, shape).ravel().tolist() for v in values.values()]
        try:
            results = [float(self._python(**dict(zip(values, entry)))) for entry in zip(*lines)]
        except Exception as error:
            why = f"{type(error).__name__}: {_first_line(error)}"
            raise ValueError(f"the function {self.text} failed: {why}") from error
        return np.array(results).reshape(shape)

    def address(self) -> int:
        """Address of a C function `double f(double t, double x, double y, double z, double u)`."""
        return int(self._compiled.address)

    @cached_property
    def _compiled(self) -> Any:
        import numba

        try:
            given = self._given if hasattr(self._given, "py_func") else numba.njit(error_model="numpy")(self._given)
            return _c_function(self._calling(given), keep=False)
        except Exception as error:
            names = ", ".join(name for name in ARGUMENTS if name in self.uses)
            why = f"{self.text} depends on {names} and must be compiled, which failed: {_first_line(error)}"
            raise ValueError(f"{why}; write it as an expression or in Numba-compatible code") from error

    @cached_property
    def device(self):
        """The same function of (t, x, y, z, u) in Python, for kernels that compile it in, such as those of a GPU."""
        from numba.extending import register_jitable

        return register_jitable(self._calling(register_jitable(self._python)))

    def _calling(self, given):
        names = ", ".join(f"{name}={name}" for name in ARGUMENTS if name in self.uses)
        return eval(f"lambda {', '.join(ARGUMENTS)}: float(given({names}))", {"given": given, "float": float})


@cache
def _function(function, known):
    return Function(function, known)


def _first_line(error) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("Failed in")), type(error).__name__)


def _arguments(function, known, text):
    takes = f"a function takes some of {', '.join(known)} by name"
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise ValueError(f"{text} does not say its arguments: {takes}, as in lambda t: ...") from None
    uses = []
    for p in parameters:
        if p.kind is p.POSITIONAL_ONLY:
            raise ValueError(f"{text} does not take its arguments by name: {takes}, as in lambda t: {text}(t)")
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if p.name in known:
            uses.append(p.name)
        elif p.default is p.empty:
            raise ValueError(f"unknown argument {p.name!r} of {text}: {takes}")
    return uses


__all__ = ["ARGUMENTS", "CONSTANTS", "FUNCTIONS", "Expression", "Function", "formula"]
