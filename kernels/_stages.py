"""Time integrators as rules around rules: a step of several stages inside one blocked sweep of the schedules.

A stage looks like a time step to `_march.py`: it reads the neighbours of the stage before. What an integrator keeps
besides its newest stage are further components, at the cell itself, so one march runs any number of whole steps, and
the boundaries are applied at every stage, at its own time. `at.step` modulo the number of stages is the stage; its
coefficients are read from tables. Around a rule with C components, component C*k + c is register k of component c.

The wrapped rule's `change` is h M(u), h the length of the whole step. Two kinds, each with and without an estimate:

`Chain`     explicit Runge-Kutta methods where a stage needs only the slope k_j before it. Registers y, z, s (and e):
            z is the old value, s collects b_j k_j, y = z + (a_j k_j + last_j s): where `last` is 1, a_j is 0. e
            collects e_j k_j of all steps of a march from level 0 on: the sum of the errors that they made, as they
            estimate them.
`Legendre`  Runge-Kutta-Legendre and alike. Registers Y_j, Y_{j-1}, Y_0, h M(Y_0):
            Y_j = Y_0 + mu (Y_{j-1} - Y_0) + nu (Y_{j-2} - Y_0) + rate h M(Y_{j-1}) + drag h M(Y_0);
            where `last` is 1, Y_{j-1} is left alone and 0.8 (Y_0 - Y_{j-1}) + 0.4 h (M(Y_0) + M(Y_{j-1})), an estimate
            of the error, takes the place of the second register.

Increments throughout: a field that does not change keeps every bit. Nothing is selected from two sums: whether the
products in them are fused would depend on what the compiler makes of the selection. Numba's disk cache finds a class
again by its name, hence one class of this module for each number of components.
"""

from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels import heat
from fastdiff.kernels._edges import HOLD, NONE, Side, hold, make_edges, pad
from fastdiff.kernels._march import Star, cell, change, components_of, settled
from fastdiff.kernels._math import select
from fastdiff.kernels._run import march

MOST_COMPONENTS = 4  # of a rule that is wrapped
CHAIN, LEGENDRE = "Chain", "Legendre"


class Scheme(NamedTuple):
    """An integrator as data.

    kind     CHAIN or LEGENDRE
    times    of the states after all stages but the last, in steps; the state before the first is at 0
    tables   a, b, last (and e), or mu, nu, rate, drag (and last): numbers for each stage
    """

    kind: str
    times: tuple[float, ...]
    tables: dict[str, tuple[float, ...]]

    @property
    def stages(self) -> int:
        """Number of stages, that of an estimate included."""
        return len(self.times) + 1

    @property
    def watched(self) -> bool:
        """Whether a step ends with an estimate of its error in a register."""
        return ("e" if self.kind == CHAIN else "last") in self.tables

    @property
    def registers(self) -> int:
        """Numbers kept for each component."""
        return 3 if self.kind == CHAIN and not self.watched else 4

    @property
    def error_register(self) -> int:
        """The register that holds the estimate after a step."""
        return 3 if self.kind == CHAIN else 1


_LINES = {
    CHAIN: """
z{c} = select(p.first, u[{c}].c, u[{z}].c)
s{c} = select(p.first, p.zero, u[{s}].c) + p.b * k{c}
y{c} = z{c} + (p.a * k{c} + p.last * s{c})
""",
    CHAIN + "Watched": """
z{c} = select(p.first, u[{c}].c, u[{z}].c)
s{c} = select(p.first, p.zero, u[{s}].c) + p.b * k{c}
e{c} = select(p.start, p.zero, u[{e}].c) + p.e * k{c}
y{c} = z{c} + (p.a * k{c} + p.last * s{c})
""",
    LEGENDRE: """
z{c} = select(p.first, u[{c}].c, u[{z}].c)
m{c} = select(p.first, k{c}, u[{m}].c)
q{c} = select(p.first, u[{c}].c, u[{q}].c)
y{c} = z{c} + ((p.mu * (u[{c}].c - z{c}) + p.nu * (q{c} - z{c})) + (p.rate * k{c} + p.drag * m{c}))
q{c} = u[{c}].c
""",
    LEGENDRE + "Watched": """
z{c} = select(p.first, u[{c}].c, u[{z}].c)
m{c} = select(p.first, k{c}, u[{m}].c)
q{c} = select(p.first, u[{c}].c, u[{q}].c)
y{c} = z{c} + ((p.mu * (u[{c}].c - z{c}) + p.nu * (q{c} - z{c})) + (p.rate * k{c} + p.drag * m{c}))
q{c} = select(p.last, p.keep * (z{c} - u[{c}].c) + p.slope * (m{c} + k{c}), u[{c}].c)
y{c} = select(p.last, u[{c}].c, y{c})
""",
}
_REGISTERS = {CHAIN: "yzs", CHAIN + "Watched": "yzse", LEGENDRE: "yqzm", LEGENDRE + "Watched": "yqzm"}
_TABLES = {CHAIN: "a b last", CHAIN + "Watched": "a b last e", LEGENDRE: "mu nu rate drag",
           LEGENDRE + "Watched": "mu nu rate drag last"}
_MORE = {CHAIN + "Watched": ["start"], LEGENDRE + "Watched": ["keep", "slope"]}


def _stage_class(kind, count):
    """The rule of one stage, its numbers taken from the tables; the source is written for `count` components."""
    registers, name = _REGISTERS[kind], f"{kind}{count}Stage"
    body = [line.format(c=c, **{r: c + count * k for k, r in enumerate(registers)})
            for c in range(count) for line in _LINES[kind].strip().splitlines()]
    lines = ["def cell(p, u, at):",
             ", ".join(f"k{c}" for c in range(count)) + " = change(p.rule, "
             + ("u[0]" if count == 1 else f"({', '.join(f'u[{c}]' for c in range(count))})") + ", at)",
             *body, "return " + ", ".join(f"{r}{c}" for r in registers for c in range(count))]
    scope: dict[str, Any] = {"change": change, "select": select}
    exec("\n    ".join(lines), scope)
    fields = ["rule", "first", *_TABLES[kind].split(), "zero", *_MORE.get(kind, [])]
    return type(name, (namedtuple(name, fields),), {
        "components": count * len(registers), "kept": count * (len(registers) - 1), "__module__": __name__,
        "cell": staticmethod(scope["cell"]),
        "__slots__": (), "__doc__": f"One stage of {kind} around {count} components."})


def _class(kind, count, stage):
    """The rule of all stages: tables, `settle`, which looks into them, and `cell`, for who does not settle first."""
    tables, name = _TABLES[kind].split(), f"{kind}{count}"
    picks = {**{t: f"p.{t}[stage]" for t in tables}, "zero": "p.zero", **{m: f"p.{m}" for m in _MORE.get(kind, [])}}
    known = {"start": "step == p.start"} | ({"last": "p.last[stage] > p.zero"} if kind.startswith(LEGENDRE) else {})
    picks |= {key: text for key, text in known.items() if key in picks}
    lines = ["def settle(p, step):", f"    stage = step % len(p.{tables[0]})",
             f"    return Stage(p.rule, stage == 0, {', '.join(picks.values())})",
             "def cell(p, u, at):", "    return step_of(settled(p, at.step), u, at)"]
    scope: dict[str, Any] = {"Stage": stage, "settled": settled, "step_of": cell}
    exec("\n".join(lines), scope)
    fields = ["rule", *tables, "zero", *_MORE.get(kind, [])]
    return type(name, (namedtuple(name, fields),), {
        "components": count * len(_REGISTERS[kind]), "kept": count * (len(_REGISTERS[kind]) - 1), "wrapped": count,
        "cell": staticmethod(scope["cell"]),
        "settle": staticmethod(scope["settle"]), "__module__": __name__, "__slots__": (),
        "__doc__": f"{kind} around {count} components."})


_STAGES = {f"{kind}{count}": _stage_class(kind, count) for kind in _LINES for count in range(1, MOST_COMPONENTS + 1)}
globals().update({f"{name}Stage": cls for name, cls in _STAGES.items()})
_CLASSES = {f"{kind}{count}": _class(kind, count, _STAGES[f"{kind}{count}"]) for kind in _LINES
            for count in range(1, MOST_COMPONENTS + 1)}
globals().update(_CLASSES)


def staged(scheme: Scheme, rule, dtype):
    """The rule of one stage of a scheme around a rule, for `march` of a whole number of `scheme.stages` steps."""
    count, number = components_of(type(rule)), np.dtype(dtype).type
    if count > MOST_COMPONENTS:
        raise ValueError(f"{type(rule).__name__} has {count} components; integrators take up to {MOST_COMPONENTS}")
    kind = scheme.kind + ("Watched" if scheme.watched else "")
    tables = [np.array([scheme.tables[name]], number) for name in _TABLES[kind].split()]
    more = {"start": np.int64(0), "keep": number(0.8), "slope": number(0.4)}
    constants = [number(0), *(more[name] for name in _MORE.get(kind, []))]
    return _CLASSES[f"{kind}{count}"](rule, *tables, *constants)


def _plain_class(name, count, body, doc):
    """A class with one field, the rule, whose `cell` or `change` has this body; `flat` is a field without gradients."""
    stars = ["u"] if count == 1 else [f"u[{c}]" for c in range(count)]
    flats = ", ".join(f"Star({', '.join([f'{s}.c'] * 7)})" for s in stars)
    whole = "new" if count == 1 else ", ".join(f"new[{c}] - old[{c}]" for c in range(count))
    method = "cell" if name == "Slope" else "change"
    scope: dict[str, Any] = {"of_rule": change, "Star": Star}  # the method itself may be called change
    body = body.format(flat=flats if count == 1 else f"({flats})", less="new - old" if count == 1 else whole)
    exec(f"def {method}(p, u, at):\n    " + body, scope)
    return type(f"{name}{count}", (namedtuple(f"{name}{count}", ["rule"]),),
                {"components": count, method: staticmethod(scope[method]), "__module__": __name__, "__slots__": (),
                 "__doc__": doc})


_BODIES = {
    "Slope": ("return of_rule(p.rule, u, at)", "dt u_t of a rule in place of the new value."),
    "Local": ("return of_rule(p.rule, {flat}, at)", "What a rule does to a field without gradients: its reaction."),
    "Transport": ("new, old = of_rule(p.rule, u, at), of_rule(p.rule, {flat}, at)\n    return {less}",
                  "A rule without its reaction."),
}
_PLAIN = {(name, count): _plain_class(name, count, body, doc) for name, (body, doc) in _BODIES.items()
          for count in range(1, MOST_COMPONENTS + 1)}
globals().update({f"{name}{count}": cls for (name, count), cls in _PLAIN.items()})


def _around(name, rule):
    count = components_of(type(rule))
    if count > MOST_COMPONENTS:
        raise ValueError(f"{type(rule).__name__} has {count} components; integrators take up to {MOST_COMPONENTS}")
    return _PLAIN[name, count](rule)


def slope(rule):
    """The rule whose step writes what a step of `rule` would add. Held cells get the held value instead."""
    return _around("Slope", rule)


def local(rule):
    """The reaction of a rule, at the cell itself: what it does to a field without gradients."""
    return _around("Local", rule)


def transport(rule):
    """A rule without its reaction."""
    return _around("Transport", rule)


def spread(u, registers: int, out=None):
    """A state with room for the registers behind its components, (B, registers * C, *grid); they are zero."""
    shape = (u.shape[0], registers * u.shape[1], *u.shape[2:])
    if isinstance(u, np.ndarray):
        out = np.zeros(shape, u.dtype) if out is None else out
    else:
        out = u.new_zeros(shape) if out is None else out
    out[:, : u.shape[1]] = u
    return out


def sides_of(sides: dict, components: int, registers: int, axes) -> dict:
    """Sides for a staged rule: those of its newest stage, and none for what is kept at the cell itself.

    Where the field is held, what is kept is held at 0: no step is an error there.
    """
    kept = {}
    for c in range(components, components * registers):
        for axis in axes:
            for end in range(2):
                held = getattr(sides.get((c % components, axis, end)), "kind", NONE) == HOLD
                kept[c, axis, end] = Side(HOLD, value=0.0) if held else Side(kind=NONE)
    return {**kept, **sides}


def stage_times(scheme: Scheme, start: float, dt: float, steps: int) -> np.ndarray:
    """Times of all states of a march of `steps` whole steps, the first and the last included."""
    fractions = np.array([0.0, *scheme.times])
    return np.append((start + dt * (np.arange(steps)[:, None] + fractions)).ravel(), start + dt * steps)


# -- families ----------------------------------------------------------------------------------------------------------


def plain(scheme: Scheme, u, slope, hold, steps: int, start: float = 0.0, dt: float = 1.0):
    """The same in plain NumPy, float64: `slope(u, t, level)` is u_t, `hold(u, level)` sets held cells.

    `level` counts stages. Returns all registers, as (B, registers * C, *grid); those not written are zero.
    """
    run = _plain_chain if scheme.kind == CHAIN else _plain_legendre
    registers, times = [hold(np.array(u, np.float64), 0)], stage_times(scheme, start, dt, steps)
    for n in range(steps):
        registers = run(scheme, registers, slope, hold, dt, n * scheme.stages, times)
    return np.concatenate(registers, 1)


def _plain_chain(scheme, before, slope, hold, h, level, times):
    z = before[0]
    y, s, T = z, 0.0, scheme.tables
    e = before[3] if scheme.watched and len(before) > 3 else 0.0
    for j in range(scheme.stages):
        k = h * slope(y, times[level + j], level + j)
        s = s + T["b"][j] * k
        e = e + T["e"][j] * k if scheme.watched else e
        y = hold(z + (s if T["last"][j] else T["a"][j] * k), level + j + 1)
    return [y, z, s, *([e] if scheme.watched else [])]


def _plain_legendre(scheme, before, slope, hold, h, level, times):
    z = before[0]
    y, q, T = z, z, scheme.tables
    first = h * slope(z, times[level], level)
    for j in range(scheme.stages):
        k = h * slope(y, times[level + j], level + j) if j else first
        if scheme.watched and T["last"][j]:
            y, q = hold(y.copy(), level + j + 1), 0.8 * (z - y) + 0.4 * (first + k)
            continue
        new = z + T["mu"][j] * (y - z) + T["nu"][j] * (q - z) + T["rate"][j] * k + T["drag"][j] * first
        y, q = hold(new, level + j + 1), y
    return [y, q, z, first]


def heat_family(scheme: Scheme):
    """`reference`, `rule`, `cpu`, `cuda` and `outputs` of a scheme around the heat equation with rate D dt / dx^2."""

    def reference(u, rate, edges, steps, out=None):
        def slope(v, t, level):
            p, total = pad(v, edges, level), 0.0
            for axis in range(2, v.ndim):
                r = rate[:, axis - 2].astype(np.float64).reshape(-1, *[1] * (v.ndim - 1))
                inside = (slice(None), slice(None), *[slice(1, -1)] * (v.ndim - 2))
                total = total + r * (np.roll(p, 1, axis) + np.roll(p, -1, axis) - 2 * p)[inside]
            return total

        registers = plain(scheme, u[:, :1], slope, lambda v, level: hold(v, edges, level), steps // scheme.stages)
        if out is None:
            return registers
        out[...] = registers
        return out

    def rule(rate, dtype):
        return staged(scheme, heat.rule(rate, dtype), dtype)

    def cpu(u, rate, edges, steps, out=None, **how):
        return march(rule(rate, u.dtype), u, edges, steps, out=out, **how)

    def cuda(u, rate, edges, steps, out=None, **how):
        from fastdiff.kernels._march_cuda import march_cuda

        return march_cuda(rule(rate, u.dtype), u, edges, steps, out=out, **how)

    return reference, rule, cpu, cuda


def heat_sample(scheme: Scheme, step: float):
    """Random fields between walls with values that change from stage to stage; `step` is the sum of the rates.

    No side is held: what the registers have at a held cell is nobody's concern.
    """

    def sample(shape, dtype, rng):
        ndim, steps = len(shape), 2 * scheme.stages
        sides = {(0, 0, 0): Side(alpha=0.5, gamma=0.25, value=rng.random((1, steps + 1, 1))),
                 (0, ndim - 1, 1): Side(alpha=-1.0, gamma=2.0, value=rng.random((1, steps + 1, 1)))}
        edges = make_edges(shape, [False] * ndim, dtype, sides_of(sides, 1, scheme.registers, range(ndim)),
                           components=scheme.registers, batch=2)
        rate = rng.uniform(0.5, 1.0, (2, 1)) * step * np.linspace(0.8, 1.0, ndim) / ndim
        u = spread(rng.random((2, 1, *shape)).astype(dtype), scheme.registers)
        return dict(u=u, rate=rate.astype(dtype), edges=edges, steps=steps)

    return sample
