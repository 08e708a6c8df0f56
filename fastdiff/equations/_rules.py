"""Reactions from strings: what users write becomes one small module with a compiled rule.

The strings are read by `fastdiff.expressions`, never run. SymPy puts each right-hand side in several forms (as given,
expanded in Horner form) and takes the one with the fewest operations, shares subexpressions and differentiates. All
that depends on parameters and the step alone is computed beforehand in float64 and handed over as numbers ("h0"), all
that depends on place too as fields ("f0"); what is left for each cell and step are the components and the time.

The module is a file in the cache folder, named after its contents. It holds

    Line, Square, Axes     rules: one axis; two axes with equal rates; two or three axes
    numbers(dt, a0, ...)   the h of the rules, from the step and the parameters
    fields(dt, x, y, z, a0, ...)   the f of the rules
    reaction, derivative   the reaction and its Jacobian for NumPy arrays

In it components are u0, u1, ..., parameters a0, a1, ...: two users' names for one model share a module.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fastdiff import expressions
from fastdiff.expressions import Expression, module_for, numpy_printer

AXES = ("x", "y", "z")
CURVED = {"r": "x", "theta": "y"}  # names of curved axes, as far as nothing else is called so
HOLDS = ("Line", "Square", "Axes", "numbers", "fields", "reaction", "derivative", "VARIES", "NUMBERS", "FIELDS", "TIME")


def canonical(texts: Iterable[str], names: tuple[str, ...], parameters: tuple[str, ...]) -> tuple[str, ...]:
    """The formulas with components renamed u0, u1, ... and parameters a0, a1, ...; they are checked on the way."""
    taken = (*names, *parameters)
    curved = {name: axis for name, axis in CURVED.items() if name not in taken}
    known = (*taken, *AXES, "t", *curved)
    new = {**{n: f"u{k}" for k, n in enumerate(names)}, **{n: f"a{k}" for k, n in enumerate(parameters)}, **curved}

    class Rename(ast.NodeTransformer):
        def visit_Name(self, node):
            return ast.Name(new.get(node.id, node.id), node.ctx)

    formulas = [Expression(text, known) for text in texts]
    for formula in formulas:
        formula.fold()
    return tuple(ast.unparse(Rename().visit(formula._tree)) for formula in formulas)


def places_of(grid, axes=None) -> list:
    """The coordinates that formulas mean by x, y and z (with r for x, theta for y), 0 for those that are not there.

    `axes` are the coordinates of each axis of the grid; default: those of its points.
    """
    known = {CURVED.get(name, name): x for name, x in zip(grid.names, grid.coordinates() if axes is None else axes)}
    return [known.get(name, 0.0) for name in AXES]


def check_places(texts, taken, grid, what: str) -> None:
    """Refuse formulas that name axes of other grids."""
    from fastdiff.equations._coefficients import uses

    strange = [name for name in (*AXES, *CURVED) if name not in (*taken, *grid.names)
               and (name in CURVED or grid.geometry != "cartesian") and any(uses(text, name) for text in texts)]
    if strange:
        raise ValueError(f"{what} depends on {strange[0]}, but the axes of this grid are {', '.join(grid.names)}")


@lru_cache(maxsize=256)
def rule_module(sources: tuple[str, ...], parameters: int, diffuses: tuple[bool, ...]) -> ModuleType:
    """The module of a reaction in canonical names; `diffuses` says which components have a Laplacian."""
    key = f"{_stamp()} {sources} {parameters} {diffuses}"
    return module_for("reaction", key, HOLDS, lambda: _write(sources, parameters, diffuses, digest(key)))


def digest(key: str) -> str:
    """What makes the name of a generated class its own.

    Numba names machine code after the names of types: two classes with one name and fields of the same types would run
    each other's code.
    """
    return hashlib.sha256(key.encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def _stamp() -> str:
    """Hash of what writes modules: another way of writing makes other modules."""
    files = (Path(__file__), Path(expressions.__file__))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


# -- symbols ---------------------------------------------------------------------------------------------------------


def _symbols(prefix, count):
    import sympy

    return [sympy.Symbol(f"{prefix}{k}", real=True) for k in range(count)]


def _forms(expressions, components):
    """The right-hand sides as given, and as Horner schemes where they are polynomials of low degree."""
    import sympy

    yield list(expressions)
    horner = []
    for e in expressions:
        used = [u for u in components if e.has(u)]
        if used and e.is_polynomial(*used) and sympy.Poly(e, *used).total_degree() <= 6:
            e = sympy.horner(sympy.expand(e), *used)
        horner.append(e)
    if horner != list(expressions):
        yield horner


def _shared(expressions, prefix) -> Any:
    """Common subexpressions, as [(symbol, expression)], and what is left of the expressions."""
    import sympy

    return sympy.cse(expressions, symbols=sympy.numbered_symbols(prefix, real=True))


# -- compiled code ---------------------------------------------------------------------------------------------------


class _Writer:
    """Writes expressions as code without literals; collects what is computed beforehand."""

    def __init__(self, parameters, dt):
        import sympy

        self.sympy, self.dt = sympy, dt
        self.fixed = {*parameters, dt}
        self.placed = {sympy.Symbol(name, real=True) for name in AXES}
        self.time = sympy.Symbol("t", real=True)
        self.numbers, self.fields, self.cost, self.functions = {}, {}, 0, set()

    def body(self, expressions, prefix, scale=None):
        """Lines of code and one text for each expression, times `scale`."""
        self.lines, self.powers, self.inlined = [], {}, {}
        shared, rest = _shared(expressions, prefix)
        for symbol, e in shared:
            e = e.xreplace(self.inlined)
            if self._level(e) < 2:
                self.inlined[symbol] = e
            else:
                text = self._sum(e)
                self.lines.append(f"{symbol} = {text}")
        return self.lines, [self._scaled(e.xreplace(self.inlined), scale) for e in rest]

    def _scaled(self, e, scale):
        if e == 0:
            return None
        terms = self.sympy.Add.make_args(e)
        return self._sum(e if scale is None else self.sympy.Add(*(scale * term for term in terms)))

    def _level(self, e):
        """0 if it is a number beforehand, 1 if a number of every cell, 2 if it changes."""
        free = e.free_symbols
        return 0 if free <= self.fixed else 1 if free <= self.fixed | self.placed else 2

    def _known(self, e):
        """The text of what is computed beforehand."""
        place, letter = (self.numbers, "h") if self._level(e) == 0 else (self.fields, "f")
        place.setdefault(e, f"{letter}{len(place)}")
        return f"p.{place[e]}" if letter == "h" else f"here(p.{place[e]}, at)"

    def _sum(self, e):
        """Sums: what is known first, so that products after it are fused into it."""
        plus, minus = [], []
        known, rest = [], []
        for term in self.sympy.Add.make_args(e):
            (rest if self._level(term) == 2 else known).append(term)
        for term in ([self.sympy.Add(*known)] if known else []) + rest:
            sign, text = self._product(term)
            (plus if sign > 0 else minus).append(text)
        self.cost += len(plus) + len(minus) - 1
        if plus:
            return " - ".join([" + ".join(plus), *minus])
        self.cost += 1
        return f"-({' + '.join(minus)})"

    def _product(self, e):
        """(sign, text) of a product: one known factor in front, then the changing ones, then one division."""
        known, over, under = [], [], []
        for f in self.sympy.Mul.make_args(e):
            if self._level(f) < 2:
                known.append(f)
            elif f.is_Pow and f.exp.is_number and f.exp.is_negative:
                under.append(self._factor(f.base ** -f.exp))
            else:
                over.append(self._factor(f))
        front = self.sympy.Mul(*known)
        sign = -1 if front.could_extract_minus_sign() else 1
        front = sign * front
        over.sort()
        if front != 1 or not over:
            over.insert(0, self._known(front))
        text = over[-1]
        for factor in reversed(over[:-1]):
            text = f"{factor} * ({text})" if " " in text else f"{factor} * {text}"
        self.cost += len(over) - 1 + (8 + len(under) - 1 if under else 0)
        if under:
            text = f"({text}) / ({' * '.join(under)})"
        return sign, text

    def _factor(self, e):
        """A factor as text that can stand in a product."""
        if e.is_Symbol:
            return str(e)
        if e.is_Pow:
            return self._power(e)
        if e.is_Function or isinstance(e, self.sympy.exp):
            return self._call(e)
        return f"({self._sum(e)})"

    def _power(self, e):
        base, n = e.base, e.exp
        if n.is_Integer:
            return self._whole(self._factor(base), int(n))
        if n.is_Rational and n.q == 2:
            root = self._named(f"sqrt({self._argument(base)})", "sqrt")
            return self._whole(root, int(n.p))
        if self._level(base) < 2:
            return self._named(f"exp({self._argument(self.sympy.log(base) * n)})", "exp")
        if self._level(n) == 2:
            return self._named(f"exp({self._argument(n)} * log({self._argument(base)}))", "exp", "log")
        return self._named(f"power({self._argument(base)}, {self._known(n)})", "power")

    def _whole(self, base, n):
        """base**n by squaring; each power is computed once."""
        if n == 1:
            return base
        if (base, n) not in self.powers:
            half = self._whole(base, n // 2 if n % 2 == 0 else n - 1)
            self.powers[base, n] = self._line(f"{half} * {half if n % 2 == 0 else base}")
            self.cost += 1
        return self.powers[base, n]

    def _line(self, text):
        name = f"q{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def _named(self, text, *functions):
        self.functions |= set(functions)
        self.cost += 20
        return text

    def _argument(self, e):
        return self._known(e) if self._level(e) < 2 else self._sum(e)

    def _call(self, e):
        name, args = type(e).__name__, list(e.args)
        if name == "Abs":
            self.cost += 1
            return f"abs({self._argument(args[0])})"
        if name == "Heaviside":
            zero, half, one = (self._known(self.sympy.Rational(n, 2)) for n in range(3))
            value = self._line(self._argument(args[0]))
            jump = f"select({value} < {zero}, {zero}, select({value} > {zero}, {one}, {half} + ({value} - {value})))"
            return self._named(jump, "select")
        if name in ("Min", "Max"):
            args.sort(key=self._level, reverse=True)  # a NaN must be the first
            best = self._line(self._argument(args[0]))
            for other in args[1:]:
                other = self._line(self._argument(other))
                sign = "<" if name == "Max" else ">"
                best = self._line(f"select({best} {sign} {other}, {other}, {best})")
            self.functions.add("select")
            self.cost += 2 * len(args)
            return best
        if name == "choose":
            value, yes, no = (self._line(self._argument(a)) for a in args)
            return self._named(f"select({value} > {self._known(self.sympy.Integer(0))}, {yes}, {no})", "select")
        if name not in ("exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "erf", "sigmoid", "cbrt"):
            raise ValueError(f"{name}(...) cannot be compiled in a reaction")
        return self._named(f"{name}({', '.join(map(self._argument, args))})", name)


# -- the module ------------------------------------------------------------------------------------------------------

_SPREAD = {
    "Line": "(s{k}.m2 + s{k}.p2) - p.two * u{k}",
    "Square": "((s{k}.m0 + s{k}.p0) + (s{k}.m2 + s{k}.p2)) - p.four * u{k}",
}
_RATES = {"Line": ("d{k}",), "Square": ("d{k}",), "Axes": ("d{k}_0", "d{k}_1", "d{k}_2")}


def _write(sources, parameters, diffuses, tag) -> str:
    import sympy

    count = len(sources)
    u, a, dt = _symbols("u", count), _symbols("a", parameters), sympy.Symbol("dt", positive=True)
    known = (*map(str, u), *map(str, a), *AXES, "t")
    right = [sympy.sympify(Expression(source, known).sympy()) for source in sources]
    for e, source in zip(right, sources):
        if e.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
            raise ValueError(f"{source!r} is not a finite real number")
    derivative = [_plain(sympy.diff(e, v)) for e in right for v in u]
    writer, react = _cheapest(right, u, a, dt)
    jacobian = writer.body(derivative, "y", dt)
    return _source(tag, count, diffuses, writer, react, jacobian, right, derivative, u, a)


def _erf():
    import sympy

    return sympy.erf


def _plain(e):
    """A derivative without impulses: those of |u|, min and max are steps, those of steps are left out."""
    import sympy

    e = e.replace(sympy.DiracDelta, lambda *args: sympy.Integer(0)).doit()
    return e.replace(sympy.sign, lambda v: 2 * sympy.Heaviside(v) - 1)


def _cheapest(right, u, a, dt):
    best = None
    for form in _forms(right, u):
        writer = _Writer(a, dt)
        body = writer.body(form, "x", dt)
        if best is None or writer.cost < best[0].cost:
            best = writer, body
    assert best is not None
    return best


def _source(tag, count, diffuses, writer, react, jacobian, right, derivative, u, a) -> str:
    numbers, fields = list(writer.numbers.items()), list(writer.fields.items())
    time = any(e.has(writer.time) for e in right)
    functions = ", ".join(sorted(writer.functions))
    lines = ['"""A reaction, written by fastdiff."""', "", "from typing import Any, NamedTuple", "", "import numpy", ""]
    lines += [f"from fastdiff.kernels._math import {functions}"] if functions else []
    lines += ["from fastdiff.kernels._fields import here, now"] if fields or time else []
    lines += ["from fastdiff.kernels._reaction import react", ""]
    lines += ["import scipy.special", ""] if any(e.has(_erf()) for e in right) else []
    used = [bool(e.free_symbols - {writer.dt}) for e, _ in numbers]
    lines += [f"NUMBERS = {len(numbers)}", f"VARIES = {tuple(used)}", f"FIELDS = {len(fields)}", f"TIME = {time}"]
    names = [name for _, name in numbers] + [name for _, name in fields] + (["clock"] if time else [])
    for shape in ("Line", "Square", "Axes"):
        lines += ["", "", *_rule(shape, tag, count, diffuses, names, react, jacobian, time)]
        lines += ["", "", f"{shape} = {shape}_{tag}"]
    lines += _host("numbers", ["dt", *map(str, a)], [e for e, _ in numbers])
    lines += _host("fields", ["dt", *AXES, *map(str, a)], [e for e, _ in fields])
    arguments = [*map(str, u), *map(str, a), *AXES, "t"]
    lines += _host("reaction", arguments, right) + _host("derivative", arguments, derivative)
    return "\n".join(lines) + "\n"


def _rule(shape, tag, count, diffuses, names, react, jacobian, time):
    rates = [text.format(k=k) for k in range(count) if diffuses[k] for text in _RATES[shape]]
    lines = [f"class {shape}_{tag}(NamedTuple):"]
    lines += [f"    {name}: Any" for name in (*rates, *names, "two", "four")]
    lines += [f"    components = {count}", "", "    @staticmethod", "    def react(p, u, at):"]
    lines += _inside(count, react, time, "u{k} - u{k}")
    lines += ["", "    @staticmethod", "    def change(p, u, at):", *_stars(count)]
    lines += [f"        {', '.join(f'r{k}' for k in range(count))}, = react(p, u, at)"]
    sums = [_spread(shape, k) if diffuses[k] else f"r{k}" for k in range(count)]
    lines += [f"        return {', '.join(sums)}"]
    lines += ["", "    @staticmethod", "    def jacobian(p, u, at):"]
    return lines + _inside(count, jacobian, time, "u0 - u0")


def _stars(count):
    names = ", ".join(f"s{k}" for k in range(count))
    return [f"        {names} = u", f"        {', '.join(f'u{k}' for k in range(count))} = "
            f"{', '.join(f's{k}.c' for k in range(count))}"]


def _inside(count, body, time, zero):
    lines, texts = body
    made = [*_stars(count), *(["        t = now(p.clock, at, u0)"] if time else [])]
    made += [f"        {line}" for line in lines]
    texts = [text or zero.format(k=k) for k, text in enumerate(texts)]
    return [*made, f"        return ({', '.join(texts)},)"]


def _spread(shape, k):
    if shape != "Axes":
        return f"p.d{k} * ({_SPREAD[shape].format(k=k)}) + r{k}"
    parts = [f"p.d{k}_{n} * ((s{k}.m{n} + s{k}.p{n}) - p.two * u{k})" for n in range(3)]
    return f"({parts[0]} + ({parts[1]} + {parts[2]})) + r{k}"


def _host(name, arguments, expressions):
    """A NumPy function of the arguments that returns a tuple."""
    printer = numpy_printer()
    common, results = _shared(expressions, "x_") if expressions else ([], [])
    lines = ["", "", f"def {name}({', '.join(arguments)}):"]
    lines += [f"    {symbol} = {printer.doprint(part)}" for symbol, part in common]
    texts = "".join(f"{printer.doprint(e)}, " for e in results)
    return [*lines, f"    return ({texts})"]


__all__ = ["AXES", "canonical", "check_places", "places_of", "rule_module"]
