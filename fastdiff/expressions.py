"""Formulas that users write: expressions such as "sin(t)*exp(-x)", and Python functions.

An expression is read, never run: its syntax tree may hold numbers, known names, + - * / **, and known functions. The
first time it is used, SymPy simplifies it and writes two Python functions, one for NumPy arrays and one for a C
function of (t, x, y, z, u), into a module of its own in the cache folder. The module and what Numba compiles from it
stay there, so the next process imports no SymPy and compiles nothing.

A formula may call its arguments by other names (`renamed`). One that uses w0 to w7, what a wall sees of other
components and of the wall opposite, becomes a C function of (t, x, y, z, u, w0, ..., w7).
"""

import ast
import hashlib
import importlib.util
import inspect
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache, cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastdiff.kernels._jit import cache_root

ARGUMENTS = ("t", "x", "y", "z", "u")
SEEN = tuple(f"w{k}" for k in range(8))
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
    "erf": (1, 1, math.erf, "erf"), "sigmoid": (1, 1, lambda v: 1 / (1 + math.exp(-v)), "sigmoid"),
    "cbrt": (1, 1, lambda v: math.copysign(abs(v) ** (1 / 3), v), "cbrt"),
    "sign": (1, 1, lambda v: float((v > 0) - (v < 0)), "sign"),
    "where": (3, 3, lambda d, a, b: a if d > 0 else b, "choose"),
    "Min": (2, 8, min, "Min"), "min": (2, 8, min, "Min"), "Max": (2, 8, max, "Max"), "max": (2, 8, max, "Max"),
}
_COMPARED = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


def formula(value: str | Callable, known: Iterable[str] = ARGUMENTS,
            renamed: Mapping[str, str] | None = None) -> "Expression | Function":
    """The formula that a string or a Python function stands for; `known` names what it may depend on.

    `renamed` gives names of `known` the names by which arguments are meant: those in `uses`, `host` and `address`.
    """
    known, new = tuple(known), tuple((renamed or {}).items())
    if isinstance(value, str):
        return _expression(value, known, new)
    try:
        return _function(value, known, new)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return Function(value, known, new)


# -- expressions -----------------------------------------------------------------------------------------------------


class Expression:
    """A formula read from a string.

    text   as given
    uses   the names it depends on
    """

    def __init__(self, text: str, known: tuple[str, ...] = ARGUMENTS, renamed: tuple = ()):
        self.text, new = text, dict(renamed)
        self._tree = _renamed(_read(text, tuple(known)), new)
        self.known = known = tuple(dict.fromkeys(new.get(name, name) for name in known))
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
        """Address of a C function `double f(double t, double x, double y, double z, double u)`, see `arguments`."""
        return int(self._compiled.address)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of the C function."""
        return (*ARGUMENTS, *SEEN) if self.uses & set(SEEN) else ARGUMENTS

    @cached_property
    def device(self):
        """The same function of (t, x, y, z, u) in Python, for kernels that compile it in, such as those of a GPU."""
        from numba.extending import register_jitable

        return register_jitable(self._module.scalar)

    @cached_property
    def _compiled(self) -> Any:
        if not self.uses <= {*ARGUMENTS, *SEEN}:
            raise ValueError(f"{self.text!r} depends on more than {', '.join(ARGUMENTS)}")
        return _c_function(self._module.scalar, len(self.arguments),
                           keep=getattr(self._module, "__file__", None) is not None)

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
            parts, name = [self._build(part) for part in _parts(node)], node.func.id
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
            parts, name = [self._folded(part) for part in _parts(node)], node.func.id
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
            own = functions().get(FUNCTIONS[name][3])
            return (own or getattr(sympy, FUNCTIONS[name][3]))(a, *rest)
        if name == "/":
            if parts[1] == 0:
                raise ValueError(f"{self.text!r} divides by 0")
            return a / rest[0]
        return a + rest[0] if name == "+" else a - rest[0] if name == "-" else a * rest[0]


@cache  # a compiled formula must outlive every march that calls it
def _expression(text, known, renamed):
    return Expression(text, known, renamed)


def _renamed(tree, new):
    class Rename(ast.NodeTransformer):
        def visit_Name(self, node):
            return ast.Name(new.get(node.id, node.id), node.ctx)

    return Rename().visit(tree) if new else tree


def _parts(call: ast.Call) -> list:
    """The arguments of a call; where(p < q, a, b) becomes where(q - p, a, b): a where that is positive."""
    if call.func.id != "where":  # type: ignore[attr-defined]
        return call.args
    test, a, b = call.args
    p, q, sign = test.left, test.comparators[0], _COMPARED[type(test.ops[0])]  # type: ignore[attr-defined]
    low, high = (p, q) if sign in ("<", ">=") else (q, p)
    return [ast.BinOp(high, ast.Sub(), low), *((a, b) if sign in ("<", ">") else (b, a))]


@cache
def functions() -> dict[str, Any]:
    """Functions of real numbers that SymPy lacks, or has for complex numbers."""
    import sympy

    class sigmoid(sympy.Function):
        """1 / (1 + exp(-x))."""

        is_real, nargs = True, 1

        def fdiff(self, argindex=1):
            return self * (1 - self)

    class cbrt(sympy.Function):
        """The real cube root."""

        is_real, nargs = True, 1

        def fdiff(self, argindex=1):
            return 1 / (3 * self**2)

    class choose(sympy.Function):
        """The second argument where the first is positive, else the third."""

        is_real, nargs = True, 3

        def fdiff(self, argindex=1):
            d = self.args[0]
            return sympy.Integer(0) if argindex == 1 else choose(d, *((1, 0) if argindex == 2 else (0, 1)))

    return {"sigmoid": sigmoid, "cbrt": cbrt, "choose": choose, "sign": lambda x: 2 * sympy.Heaviside(x) - 1}


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
    args = node.args
    if name == "where":
        test, *args = node.args
        if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in _COMPARED):
            raise ValueError(f"where in {text!r} asks one question of two numbers, as in where(x < 0.5, 1, 2), not "
                             f"{_shown(test)!r}; known: comparisons {' '.join(_COMPARED.values())}")
        args = [test.left, test.comparators[0], *args]
    for part in args:
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

        def _print_sigmoid(self, e):
            return f"(1.0/(1.0 + math.exp(-({self._print(e.args[0])}))))"

        def _print_cbrt(self, e):
            v = self._print(e.args[0])
            return f"math.copysign(abs({v})**(1.0/3.0), {v})"

        def _print_choose(self, e):
            d, a, b = map(self._print, e.args)
            return f"(0.0 + ({a}) if ({d}) > 0 else 0.0 + ({b}))"

    common, (result,) = sympy.cse([expression], symbols=sympy.numbered_symbols("part_"))
    lines = ['"""A formula, written by fastdiff."""', "", "import math", "", "import numpy"]
    lines += ["import scipy.special"] if expression.has(sympy.erf) else []
    wanted = (*ARGUMENTS, *SEEN) if set(names) & set(SEEN) else ARGUMENTS
    for name, arguments, printer in (("host", names, numpy_printer()), ("scalar", wanted, Scalar())):
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

        def _print_erf(self, e):
            return f"scipy.special.erf({self._print(e.args[0])})"

        def _print_sigmoid(self, e):
            return f"(1.0/(1.0 + numpy.exp(-({self._print(e.args[0])}))))"

        def _print_cbrt(self, e):
            return f"numpy.cbrt({self._print(e.args[0])})"

        def _print_choose(self, e):
            d, a, b = map(self._print, e.args)
            return f"numpy.where(({d}) > 0, {a}, {b})"

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
        return _told_apart(module)


def _told_apart(module) -> ModuleType:
    """Give the module's rule classes names that no other module has.

    Numba makes symbols of the names of types. Two rules that are both called Line, compiled by two processes and loaded
    from disk by a third, would be one symbol there, and one of them would run in place of the other.
    """
    for known in list(vars(module).values()):
        if isinstance(known, type) and hasattr(known, "_fields"):
            known.__name__ = f"{known.__qualname__}_{module.__name__[-20:]}"
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
    return _told_apart(module)


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


def _c_function(function, arguments: int, keep: bool):
    import numba

    signature = numba.float64(*[numba.float64] * arguments)
    try:
        return numba.cfunc(signature, cache=keep, error_model="numpy", nogil=True)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return numba.cfunc(signature, error_model="numpy", nogil=True)(function)


# -- Python functions ------------------------------------------------------------------------------------------------


class Function:
    """A formula given as a Python function, whose argument names say what it depends on."""

    def __init__(self, function: Callable, known: tuple[str, ...] = ARGUMENTS, renamed: tuple = ()):
        self.text = getattr(function, "__name__", type(function).__name__)
        self.known, self._given = tuple(known), function
        self._python = getattr(function, "py_func", function)
        new = dict(renamed)
        self._names = {new.get(name, name): name for name in _arguments(self._python, self.known, self.text)}
        self.uses = frozenset(self._names)

    def __repr__(self):
        return f"Function({self.text})"

    def host(self, **values):
        """Its value for numbers and NumPy arrays, given by name; called for each entry if it does not take arrays."""
        values = {name: values[meant] for meant, name in self._names.items()}
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
        """Address of a C function `double f(double t, double x, double y, double z, double u)`, see `arguments`."""
        return int(self._compiled.address)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of the C function."""
        return (*ARGUMENTS, *SEEN) if self.uses & set(SEEN) else ARGUMENTS

    @cached_property
    def _compiled(self) -> Any:
        import numba

        try:
            given = self._given if hasattr(self._given, "py_func") else numba.njit(error_model="numpy")(self._given)
            return _c_function(self._calling(given), len(self.arguments), keep=False)
        except Exception as error:
            names = ", ".join(self._names.values())
            why = f"{self.text} depends on {names} and must be compiled, which failed: {_first_line(error)}"
            raise ValueError(f"{why}; write it as an expression or in Numba-compatible code") from error

    @cached_property
    def device(self):
        """The same function of (t, x, y, z, u) in Python, for kernels that compile it in, such as those of a GPU."""
        from numba.extending import register_jitable

        return register_jitable(self._calling(register_jitable(self._python)))

    def _calling(self, given):
        names = ", ".join(f"{name}={meant}" for meant, name in self._names.items())
        return eval(f"lambda {', '.join(self.arguments)}: float(given({names}))", {"given": given, "float": float})


@cache
def _function(function, known, renamed):
    return Function(function, known, renamed)


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
