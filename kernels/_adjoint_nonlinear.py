"""Back rules of kernels/nonlinear.py, diffusivities D(u) and capacities R(u), and of kernels/burgers.py.

With faces' fluxes F_ij = r (D_i + D_j)(u_j - u_i), of which a cell's change is the sum over its neighbours, the
gradient by u_i of sum of l_i change_i is

    sum over j of  r (l_i - l_j) (D'_i (u_j - u_i) - (D_i + D_j))

which needs the stars of u and l alone: what a face takes from one side it gives to the other. A capacity divides:
change = S/R(u), so S is transposed with l/R in place of l, and -l S R'/R² is added. Laws' derivatives are laws, too.
Burgers' flux F(a, b) gives (l_+ - l) F_a(u, u_+) + (l - l_-) F_b(u_-, u).
"""

from typing import Any, NamedTuple

from fastdiff.kernels._adjoint import edge, pull
from fastdiff.kernels._march import Star, change
from fastdiff.kernels._math import select
from fastdiff.kernels.nonlinear import law

_LETTERS = {1: "2", 2: "02", 3: "012"}
_MADE: dict[str, Any] = {}


def _class(ndim, parameters):
    """D(u) on `ndim` axes, with the gradients by so many parameters; their laws are the fields by0, by1, ..."""
    letters, name = _LETTERS[ndim], f"LawBack{ndim}D_{parameters}"
    near = [f"{s}{x}" for x in letters for s in "mp"]
    lines = ["def pull(p, u, l, at):", "u, l = u[0], l[0]", "d, e = law(p.D, u.c), law(p.slope, u.c)",
             *(f"d{k} = law(p.D, u.{k})" for k in near)]
    flows = [f"p.r{k[-1]} * ((l.c - l.{k}) * (e * (u.{k} - u.c) - (d + d{k})))" for k in near]
    sums = []
    for j in range(parameters):
        terms = [f"p.r{k[-1]} * ((law(p.by{j}, u.c) + law(p.by{j}, u.{k})) * (u.{k} - u.c))" for k in near]
        sums.append(f"l.c * ({' + '.join(terms)})")
    lines.append(f"return ({', '.join([' + '.join(flows), *sums])},)")
    falls = [f"p.r{k[-1]} * (l.c * (law(p.slope, u.{k}) * (u.{k} - u.c) + (law(p.D, u.c) + law(p.D, u.{k}))))"
             if k in near else "l.c - l.c" for k in ("m0", "p0", "m1", "p1", "m2", "p2")]
    scope: dict[str, Any] = {"law": law}
    exec("\n    ".join(lines), scope)
    exec(f"def edge(p, u, l, at):\n    u, l = u[0], l[0]\n    return ({', '.join(falls)}, l.c)", scope)
    fields = [f"r{x}" for x in letters] + ["D", "slope", *(f"by{j}" for j in range(parameters))]
    return _type(name, fields, parameters, scope["pull"], scope["edge"], "Diffusivity that depends on u, transposed.")


def _stored(grads, parameters):
    """A back rule with `grads` sums, whose forward rule is divided by R(u); then the sums by parameters of R."""
    near = ("c", "m0", "p0", "m1", "p1", "m2", "p2")
    star = ", ".join(f"l[0].{k} / law(p.R, u[0].{k})" for k in near)
    share = [f"k = (Star({star}),)"]
    lines = ["def pull_stored(p, u, l, at):", *share, "new = pull(p.rule, u, k, at)", "R = law(p.R, u[0].c)",
             "lost = k[0].c * (change(p.forward, u[0], at) / R)"]
    sums = [f"new[{1 + j}]" for j in range(grads)] + [f"-(lost * law(p.by{j}, u[0].c))" for j in range(parameters)]
    lines.append(f"return ({', '.join(['new[0] - lost * law(p.slope, u[0].c)', *sums])},)")
    scope: dict[str, Any] = {"law": law, "pull": pull, "edge": edge, "change": change, "Star": Star}
    exec("\n    ".join(lines), scope)
    exec("\n    ".join(["def edge_stored(p, u, l, at):", *share, "return edge(p.rule, u, k, at)"]), scope)
    fields = ["rule", "forward", "R", "slope", *(f"by{j}" for j in range(parameters))]
    return _type(f"StoredBack{grads}_{parameters}", fields, grads + parameters, scope["pull_stored"],
                 scope["edge_stored"], "A capacity that depends on u, transposed.")


_FACE = """
span{k} = {b} - {a}
need{k} = p.half * select(abs({b}) < abs({a}), abs({a}), abs({b})) + p.twelfth * abs(span{k})
free{k} = need{k} < p.rate
v{k} = select(free{k}, p.rate, need{k})
turn{k} = select(span{k} < p.zero, -p.twelfth, p.twelfth)
va{k} = select(abs({b}) < abs({a}), select({a} < p.zero, -p.half, p.half), p.zero) - turn{k}
vb{k} = select(abs({b}) < abs({a}), p.zero, select({b} < p.zero, -p.half, p.half)) + turn{k}
fa{k} = p.sixth * (({a} + {a}) + {b}) + v{k} - select(free{k}, p.zero, va{k} * span{k})
fb{k} = p.sixth * ({a} + ({b} + {b})) - v{k} - select(free{k}, p.zero, vb{k} * span{k})
""".strip()


def _burgers(by_nu):
    """Burgers' equation; by_nu: with the gradient by nu dt / dx^2."""
    faces = ["u, l = u[0], l[0]", *_FACE.format(k=0, a="u.m2", b="u.c").splitlines(),
             *_FACE.format(k=1, a="u.c", b="u.p2").splitlines()]
    sums = ["l.c * (select(free1, span1, p.zero) - select(free0, span0, p.zero))"] * by_nu
    new = "(l.p2 - l.c) * fa1 + (l.c - l.m2) * fb0"
    scope: dict[str, Any] = {"select": select}
    exec("\n    ".join(["def pull(p, u, l, at):", *faces, f"return ({', '.join([new, *sums])},)"]), scope)
    none = "l.c - l.c"
    falls = f"{none}, {none}, {none}, {none}, l.c * fa0, -(l.c * fb1), l.c"
    exec("\n    ".join(["def edge(p, u, l, at):", *faces, f"return ({falls})"]), scope)
    return _type(f"BurgersBack1_{by_nu}", ["sixth", "half", "twelfth", "rate", "zero"], by_nu, scope["pull"],
                 scope["edge"], "Burgers' equation, transposed.")


def _type(name, fields, grads, pull_of, edge_of, doc):
    base = NamedTuple(name, [(f, Any) for f in fields])
    return type(name, (base,), {"components": 1, "grads": grads, "pull": staticmethod(pull_of),
                                "edge": staticmethod(edge_of), "__module__": __name__, "__slots__": (),
                                "__doc__": doc})


def __getattr__(name):
    """Classes, made when they are asked for: Numba's cache looks for them by name."""
    kind, found, rest = name.partition("Back")
    if found and kind in ("Law", "Stored", "Burgers") and "_" in rest and name not in _MADE:
        first, _, last = rest.partition("_")
        make = {"Law": lambda: _class(int(first[0]), int(last)), "Stored": lambda: _stored(int(first), int(last)),
                "Burgers": lambda: _burgers(int(last))}
        _MADE[name] = make[kind]()
    if name in _MADE:
        return _MADE[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def back_law(rate, D, slope, by=()) -> Any:
    """The back rule for rates, one array (B,) an axis; `by` are the laws dD/da of parameters whose sums are wanted."""
    return __getattr__(f"LawBack{len(rate)}D_{len(by)}")(*rate, D, slope, *by)


def back_stored(rule, forward, R, slope, by=()) -> Any:
    """The back rule of `nonlinear.Stored(forward, R)`, from that of `forward`."""
    return __getattr__(f"StoredBack{type(rule).grads}_{len(by)}")(rule, forward, R, slope, *by)


def back_burgers(rule, by_nu: bool) -> Any:
    """The back rule of `burgers.Burgers1D`."""
    zero = rule.rate.dtype.type(0)
    return __getattr__(f"BurgersBack1_{by_nu:d}")(rule.sixth, rule.half, rule.twelfth, rule.rate, zero)


__all__ = ["back_burgers", "back_law", "back_stored"]
