"""Transposed reactions: from the strings of a reaction, the back rule of its march (kernels/_adjoint.py).

SymPy differentiates; what is compiled for each cell is the product of the transposed Jacobian with the gradient l,

    sum over i of  l_i dR_i/du_j      and, where they are asked for, the same with dR_i/da_k of a parameter a_k

never the Jacobian itself. Written, cached and loaded as reactions are (`_rules.py`). The module holds `Back`, a class
on one, two or three axes with the rates d{component}_{axis} of the diffusing components, and `numbers` and `fields`.
"""

from functools import lru_cache
from pathlib import Path
from types import ModuleType

from fastdiff.equations._rules import AXES, _host, _plain, _stamp, _symbols, _Writer, digest
from fastdiff.expressions import Expression, module_for

_HOLDS = ("Back", "numbers", "fields", "VARIES", "NUMBERS", "FIELDS", "TIME")
_LETTERS = {1: "2", 2: "02", 3: "012"}


@lru_cache(maxsize=256)
def back_module(sources: tuple[str, ...], parameters: int, diffuses: tuple[bool, ...], ndim: int, rates: bool,
                wanted: tuple[int, ...], source: bool = False) -> ModuleType:
    """The module of a transposed reaction in canonical names.

    rates   whether gradients by the rates are summed up, of every diffusing component and axis in turn
    wanted  the parameters whose gradients are summed up, in ascending order
    source  whether those by a source are, one a component
    """
    key = f"{_own_stamp()} {sources} {parameters} {diffuses} {ndim} {rates} {wanted} {source}"
    return module_for("back", key, _HOLDS,
                      lambda: _write(sources, parameters, diffuses, ndim, rates, wanted, source, digest(key)))


@lru_cache(maxsize=1)
def _own_stamp() -> str:
    return digest(_stamp() + Path(__file__).read_text())


def _write(sources, parameters, diffuses, ndim, rates, wanted, source, tag) -> str:
    import sympy

    C = len(sources)
    u, a, l, dt = _symbols("u", C), _symbols("a", parameters), _symbols("l", C), sympy.Symbol("dt", positive=True)
    known = (*map(str, u), *map(str, a), *AXES, "t")
    right = [sympy.sympify(Expression(text, known).sympy()) for text in sources]

    def product(v):
        return sympy.Add(*(g * _plain(sympy.diff(e, v)) for e, g in zip(right, l)))

    writer = _Writer(a, dt)
    lines, texts = writer.body([*map(product, u), *(product(a[k]) for k in wanted)], "y", dt)
    time = any(e.has(writer.time) for e in right)
    numbers, fields = list(writer.numbers.items()), list(writer.fields.items())
    functions = ", ".join(sorted(writer.functions))
    out = ['"""A transposed reaction, written by fastdiff."""', "", "from typing import Any, NamedTuple", "",
           "import numpy", ""]
    out += [f"from fastdiff.kernels._math import {functions}"] if functions else []
    out += ["from fastdiff.kernels._fields import here, now", ""] if fields or time else [""]
    out += [f"NUMBERS = {len(numbers)}", f"VARIES = {tuple(bool(e.free_symbols - {dt}) for e, _ in numbers)}",
            f"FIELDS = {len(fields)}", f"TIME = {time}", "", ""]
    names = [name for _, name in numbers] + [name for _, name in fields] + (["clock"] if time else [])
    out += _class(C, diffuses, ndim, rates, source, names, lines, texts, time, tag)
    out += _host("numbers", ["dt", *map(str, a)], [e for e, _ in numbers])
    out += _host("fields", ["dt", *AXES, *map(str, a)], [e for e, _ in fields])
    return "\n".join(out) + "\n"


def _class(C, diffuses, ndim, rates, source, names, lines, texts, time, tag):
    letters, spread = _LETTERS[ndim], [c for c in range(C) if diffuses[c]]
    grads = (len(spread) * ndim if rates else 0) + len(texts) - C + (C if source else 0)
    fields = [f"d{c}_{x}" for c in spread for x in letters] + [*names, "two"]
    out = [f"class Back_{tag}(NamedTuple):", *(f"    {name}: Any" for name in fields),
           f"    components = {C}", f"    grads = {grads}", "", "    @staticmethod", "    def pull(p, u, l, at):",
           *(f"        s{c}, g{c} = u[{c}], l[{c}]" for c in range(C)),
           *(f"        u{c}, l{c} = s{c}.c, g{c}.c" for c in range(C))]
    out += ["        t = now(p.clock, at, u0)"] if time else []
    out += [f"        {line}" for line in lines]
    texts = [text or "u0 - u0" for text in texts]
    new = []
    for c in range(C):
        parts = [f"p.d{c}_{x} * ((g{c}.m{x} + g{c}.p{x}) - p.two * l{c})" for x in letters if diffuses[c]]
        new.append(" + ".join([*parts, f"({texts[c]})"]))
    sums = [f"l{c} * ((s{c}.m{x} + s{c}.p{x}) - p.two * u{c})" for c in spread for x in letters] if rates else []
    sums += texts[C:] + ([f"l{c}" for c in range(C)] if source else [])
    out += [f"        return ({', '.join([*new, *sums])},)", "", "    @staticmethod", "    def edge(p, u, l, at):"]
    falls = []
    for c in range(C):
        for x in "012":
            there = diffuses[c] and x in letters
            falls += [f"p.d{c}_{x} * l[{c}].c" if there else f"l[{c}].c - l[{c}].c"] * 2
        falls.append(f"l[{c}].c")
    return [*out, f"        return ({', '.join(falls)},)", "", "", f"Back = Back_{tag}"]


__all__ = ["back_module"]
