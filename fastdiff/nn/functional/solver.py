"""Differentiable marches: operators and autograd Functions around `kernels/_adjoint.py`."""

from typing import Any

import numpy as np
import torch

from fastdiff.dispatch import stream_of
from fastdiff.kernels._adjoint import march_adjoint, march_kept, plan_for
from fastdiff.kernels.adjoint import march_transposed
from fastdiff.kernels.power import march_power, power_adjoint, power_of, spans_of
from fastdiff.nn._ops import arrays, op
from fastdiff.nn._problem import LAYOUTS, Problem
from fastdiff.solve import Diverged

ONCE = ("the march differentiates once: there is no second derivative. For curvature use Gauss-Newton with "
        "torch.autograd.functional.vjp, or finite differences of gradients")


def _all(*tensors) -> Any:
    """NumPy views of tensors that are all there."""
    return arrays(*tensors)


def _ready(u, numbers, key, start, steps):
    """NumPy views of all, the layout, its walls and rule."""
    layout = LAYOUTS[key]
    u, *numbers = _all(u, *numbers)
    faces = layout.faces(numbers, len(u), u.dtype)
    edges = layout.edges(numbers, u, start, steps, faces)
    return layout, u, numbers, faces, edges, layout.rule(numbers, len(u), u.dtype)


def _plan(layout, shape, itemsize, steps):
    """Stages of a step, and what the march keeps."""
    problem = layout.problem
    registers, stages = (1, 1) if problem.scheme is None else (problem.scheme.registers, problem.scheme.stages)
    return stages, plan_for(tuple(shape), itemsize, steps, components=registers * shape[1], stages=stages,
                            threads=problem.threads, memory=problem.memory)


def _diverged(layout, steps):
    return Diverged(f"the field became NaN or infinite within {steps} steps of dt = {layout.problem.dt:g}: a "
                    "reaction or a boundary value grows faster than this step can follow; take a smaller dt, or "
                    "keep learned parameters in range, for example with fd.nn.Bounded")


def _march_cpu(u, numbers, key, start, steps, keep):
    kind, at_once = u.dtype, LAYOUTS[key].at_once(steps, u.element_size())
    u, numbers = _double(u, numbers) if at_once else (u, numbers)
    layout, u, numbers, faces, edges, rule = _ready(u, numbers, key, start, steps)
    largest = layout.check(numbers, faces.stiffness)
    if at_once:
        new, kept = _march_at_once(layout, u, numbers, edges, steps, largest, keep, kind.itemsize)
    else:
        stages, plan = _plan(layout, u.shape, u.itemsize, steps)
        plan = plan if keep else plan._replace(count=0)
        new, kept = march_kept(rule, u, edges, steps, plan, stages=stages, threads=layout.problem.threads)
    if not np.isfinite(new).all():
        raise _diverged(layout, steps)
    return torch.from_numpy(new).to(kind), torch.from_numpy(kept)


def _ready_cuda(u, numbers, key, start, steps):
    """As `_ready`, with boundaries as a GPU wants them; coefficients are made ready on the host."""
    layout = LAYOUTS[key]
    u, *numbers = _all(u.cpu(), *(n.cpu() for n in numbers))
    faces = layout.faces(numbers, len(u), u.dtype)
    edges = layout.edges(numbers, u, start, steps, faces, tables=True)
    return layout, u, numbers, faces, edges, layout.rule(numbers, len(u), u.dtype)


def _march_cuda(u, numbers, key, start, steps, keep):
    from fastdiff.kernels._adjoint_cuda import march_kept_cuda, refuse

    u = u.detach().contiguous()
    layout, host, numbers, faces, edges, rule = _ready_cuda(u, numbers, key, start, steps)
    layout.check(numbers, faces.stiffness)
    refuse(rule, edges)
    stages, plan = _plan(layout, host.shape, host.itemsize, steps)
    new, kept = march_kept_cuda(rule, u, edges, steps, plan if keep else plan._replace(count=0), stages=stages,
                                stream=stream_of(u))
    if not bool(torch.isfinite(new).all()):
        raise _diverged(layout, steps)
    return new, torch.stack(kept) if kept else u.new_empty((0, *u.shape))


def _adjoint_cuda(cot, u, kept, numbers, key, start, steps, wanted):
    from fastdiff.kernels._adjoint_cuda import march_adjoint_cuda, to_host
    from fastdiff.kernels.adjoint import march_transposed_cuda

    u, cot = u.detach().contiguous(), cot.detach().contiguous()
    layout, host, values, faces, edges, rule = _ready_cuda(u, numbers, key, start, steps)
    if layout.problem.linear and not any(wanted):
        weights, decay = layout.weights(values)
        by_start = march_transposed_cuda(weights, cot, edges, steps, decay, layout.problem.scheme, stream_of(u))
        return [by_start, *(n.new_empty(0) for n in numbers)]
    stages, plan = _plan(layout, host.shape, host.itemsize, steps)
    back = layout.back(values, edges, len(host), host.dtype, wanted)
    states = list(kept) if len(kept) == len(plan.positions(steps)) else None
    found = march_adjoint_cuda(rule, back, u, cot, edges, steps, kept=states, plan=plan, stages=stages,
                               walls=layout.needs_walls(faces, wanted), stream=stream_of(u))
    found = to_host(found, u.ndim - 2, type(back).grads)
    by_start, by_numbers = layout.gradients(found, values, wanted, host, faces, edges)
    rest = [n.new_empty(0) if g is None else torch.from_numpy(g).to(n.device) for g, n in zip(by_numbers, numbers)]
    return [torch.from_numpy(by_start).to(u.device), *rest]


def _double(u, numbers):
    """Stages of a polynomial cancel, where steps die out: they are computed in float64."""
    return u.double(), [n.double() for n in numbers]


def _march_at_once(layout, u, numbers, edges, steps, largest, keep, itemsize):
    """Many steps of a linear problem as one polynomial (kernels/power.py), for a result of so many bytes a number."""
    power = power_of(steps, largest, itemsize)
    rule = layout.rule(layout.scaled(numbers, power.scale), len(u), u.dtype)
    return march_power(rule, u, edges, power, keep=keep, threads=layout.problem.threads)


def _kept(layout, shape, itemsize, steps, device="cpu") -> int:
    """How many states a march keeps for its adjoint."""
    if device == "cpu" and layout.at_once(steps, itemsize):
        return 2 * spans_of(steps)
    return len(_plan(layout, shape, itemsize, steps)[1].positions(steps))


def _march_fake(u, numbers, key, start, steps, keep):
    layout, size, device = LAYOUTS[key], u.element_size(), u.device.type
    at_once = device == "cpu" and layout.at_once(steps, size)
    kept = u.new_empty((_kept(layout, u.shape, size, steps, device) if keep else 0, *u.shape),
                       dtype=torch.float64 if at_once else u.dtype)
    return torch.empty_like(u, memory_format=torch.contiguous_format), kept


def _adjoint_cpu(cot, u, kept, numbers, key, start, steps, wanted):
    device, kinds, at_once = u, [n.dtype for n in (u, *numbers)], LAYOUTS[key].at_once(steps, u.element_size())
    states = kept if len(kept) == _kept(LAYOUTS[key], u.shape, u.element_size(), steps) else None
    if at_once:
        cot, (u, numbers) = cot.double(), _double(u, numbers)
    layout, u, numbers, faces, edges, rule = _ready(u, numbers, key, start, steps)
    (cot,), states = _all(cot), None if states is None else _all(states)[0]
    threads, walls = layout.problem.threads, layout.needs_walls(faces, wanted)
    if at_once:
        found = _adjoint_at_once(layout, cot, u, states, numbers, faces, edges, steps, wanted, walls, kinds[0].itemsize)
    elif layout.problem.linear and not any(wanted):
        weights, decay = layout.weights(numbers)
        by_start = march_transposed(weights, cot, edges, steps, decay, layout.problem.scheme, threads)
        return [torch.from_numpy(by_start), *(device.new_empty(0) for _ in numbers)]
    else:
        stages, plan = _plan(layout, u.shape, u.itemsize, steps)
        back = layout.back(numbers, edges, len(u), u.dtype, wanted)
        found = march_adjoint(rule, back, u, cot, edges, steps, kept=states, plan=plan, stages=stages,
                              slopes=layout.slopes(faces), walls=walls, threads=threads)
    by_start, by_numbers = layout.gradients(found, numbers, wanted, u, faces, edges)
    made = [device.new_empty(0) if g is None else torch.from_numpy(g) for g in (by_start, *by_numbers)]
    return [g.to(kind) for g, kind in zip(made, kinds)]


def _adjoint_at_once(layout, cot, u, kept, numbers, faces, edges, steps, wanted, walls, itemsize):
    """The transpose of `_march_at_once`."""
    largest = layout.check(numbers, faces.stiffness)
    if kept is None:
        kept = _march_at_once(layout, u, numbers, edges, steps, largest, True, itemsize)[1]
    power = power_of(steps, largest, itemsize)
    scaled = layout.scaled(numbers, power.scale)
    back = layout.back(scaled, edges, len(u), u.dtype, wanted)
    found = power_adjoint(layout.rule(scaled, len(u), u.dtype), back, kept, cot, edges, power, walls=walls,
                          threads=layout.problem.threads)
    found.grads[...] *= u.dtype.type(power.scale)
    found.walls[..., 4, :] *= u.dtype.type(power.scale)
    return found


def _adjoint_fake(cot, u, kept, numbers, key, start, steps, wanted):
    new = lambda t: torch.empty_like(t, memory_format=torch.contiguous_format)
    return [new(u), *(new(n) if w else n.new_empty(0) for n, w in zip(numbers, wanted))]


_march = op("march(Tensor u, Tensor[] numbers, str key, float start, int steps, bool keep) -> (Tensor, Tensor)",
            _march_cpu, _march_fake, _march_cuda)
_adjoint = op("march_adjoint(Tensor cot, Tensor u, Tensor kept, Tensor[] numbers, str key, float start, int steps, "
              "bool[] wanted) -> Tensor[]", _adjoint_cpu, _adjoint_fake, _adjoint_cuda)


class _March(torch.autograd.Function):
    @staticmethod
    def forward(how, u, *numbers):
        return _march(u, list(numbers), *how)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.how, u, *numbers = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(u, output[1], *numbers)

    @staticmethod
    def backward(ctx: Any, *cots):
        if cots[0] is None:
            return None, *[None] * (len(ctx.needs_input_grad) - 1)
        u, kept, *numbers = ctx.saved_tensors
        wanted = [bool(w) for w in ctx.needs_input_grad[2:]]
        found = _MarchAdjoint.apply((ctx.how[:3], wanted), cots[0], u, kept, *numbers)
        return None, *(g if w else None for g, w in zip(found, ctx.needs_input_grad[1:]))

    @staticmethod
    def vmap(info, in_dims, how, u, *numbers):
        size = info.batch_size
        u, *numbers = _folded(size, in_dims[1:], u, *numbers)
        new, kept = _March.apply(how, u, *numbers)
        return (new.unflatten(0, (size, -1)), kept), (0, None)


class _MarchAdjoint(torch.autograd.Function):
    """The transposed march, which has no derivative of its own."""

    @staticmethod
    def forward(how, cot, u, kept, *numbers):
        (key, start, steps), wanted = how
        return tuple(_adjoint(cot, u, kept, list(numbers), key, start, steps, wanted))

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *cots):
        raise NotImplementedError(ONCE)

    @staticmethod
    def vmap(info, in_dims, how, cot, u, kept, *numbers):
        size, samples = info.batch_size, [n.shape[1 if d == 0 else 0] for n, d in zip(numbers, in_dims[4:])]
        cot, u, *folded = _folded(size, (*in_dims[1:3], *in_dims[4:]), cot, u, *numbers, all_batched=True)
        kept = kept if in_dims[3] is None and kept.shape[1] == u.shape[0] else kept.new_empty((0, *u.shape))
        found = _MarchAdjoint.apply(how, cot, u, kept, *folded)
        made = [g.unflatten(0, (size, -1)) if g.numel() else g.expand(size, 0) for g in found]
        made = [made[0], *(g.sum(1, keepdim=True) if g.numel() and n == 1 and g.shape[1] > 1 else g
                           for g, n in zip(made[1:], samples))]
        return tuple(made), (0,) * len(made)


def _folded(size, dims, first, *rest, all_batched=False):
    """The mapped axis as part of the batch: u (V B, ...), numbers (V B, ...) or (1, ...) where one serves all."""
    first = first.movedim(dims[0], 0) if dims[0] is not None else first.expand(size, *first.shape)
    batch, made = first.shape[1], [first.flatten(0, 1)]
    for value, dim in zip(rest, dims[1:]):
        if dim is None and value.shape[0] == 1 and not all_batched:
            made.append(value)
            continue
        value = value.movedim(dim, 0) if dim is not None else value.expand(size, *value.shape)
        made.append(value.expand(size, batch, *value.shape[2:]).flatten(0, 1))
    return made


# -- calls -------------------------------------------------------------------------------------------------------------

PROBLEMS: dict[str, Problem] = {}
_marched: Any = _March.apply


@torch._dynamo.allow_in_graph
def run(digest: str, names: tuple[str, ...], t: float, steps: int, keep: bool, u, *values):
    """`steps` steps of a known problem from u (B, C, *grid), with tensors for the named parameters."""
    layout, numbers = PROBLEMS[digest].numbers(dict(zip(names, values)), u.shape[0], u)
    new, _ = _marched((layout.key, t, steps, keep), u, *numbers)
    return new


def advance(problem: Problem, u, t: float, steps: int, given: dict[str, Any]):
    """March a field as users hold it; `given` has tensors by the names of parameters."""
    u = _checked(u)
    full, shape = _full(u, problem)
    keep = torch.is_grad_enabled() and (any(v.requires_grad for v in given.values())
                                        or (u.requires_grad and not problem.linear))
    PROBLEMS.setdefault(problem.digest, problem)
    new = run(problem.digest, tuple(given), float(t), int(steps), keep, full, *given.values())
    return new.reshape(shape)


def _checked(u):
    if not isinstance(u, torch.Tensor):
        raise TypeError(f"fd.nn marches torch tensors, not {type(u).__name__}; fd.solve takes NumPy arrays")
    if u.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(u.device.type):
        u = u.float()
    if u.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"fd.nn marches in float32 and float64, not in {u.dtype}: half precision would lose what a "
                        "step adds. Convert with .float()")
    if u.device.type not in ("cpu", "cuda"):
        raise NotImplementedError(f"a march runs on the CPU and on CUDA GPUs, not on {u.device}: pass u.cpu()")
    return u


def _full(u, problem):
    """A field as (B, C, *grid), and the shape it came in."""
    names, grid, shape = problem.equation.names, problem.grid.shape, tuple(u.shape)
    C, lead = len(names), list(shape[: len(shape) - len(grid)])
    fits = len(shape) >= len(grid) and shape[len(lead):] == grid
    fits = fits and ((len(lead) in (1, 2) and lead[-1] == C) if C > 1 else
                     len(lead) < 2 or (len(lead) == 2 and lead[1] == 1))
    if not fits:
        plain = (*([C] if C > 1 else []), *grid)
        raise ValueError(f"u has shape {shape}; expected {plain} or (batch, {', '.join(map(str, plain))})"
                         + (f", with components {', '.join(names)}" if C > 1 else ""))
    batch = lead[0] if len(lead) > (1 if C > 1 else 0) else 1
    if batch == 0:
        raise ValueError("u has a batch of 0 samples: nothing to march")
    return u.reshape(batch, C, *grid), shape


def march(equation, u, grid, *, steps: int, dt=None, boundary=None, method: str = "euler", t: float = 0.0,
          parameters=None, memory: int | None = None, shortcut: bool = True, threads: int | None = None):
    """`steps` time steps of an equation, differentiable by the start and by every parameter.

    equation    as in `fd.nn.Solver`; its coefficients may be tensors, and then it is differentiated by them
    u           (*grid), (B, *grid) or (B, 1, *grid); of several components (C, *grid) or (B, C, *grid); float32 or 64
    parameters  tensors by name that replace those of the equation and the boundary: see `fd.nn.Solver`
    dt          of one step; default: a safe one for the equation as given
    method      "euler", "rk4" or "rkl2"; on a GPU no boundary value may depend on u
    memory      bytes for states that the backward pass needs; default: about 2 sqrt(steps) states, and every step is
                computed twice; with less, more often
    shortcut    many steps of "euler" on fd.Heat with a D, source and walls that do not change in time are one
                polynomial of the step, and summed as such in float64: 1000 steps take some 200 stages and 4 states
                (kernels/power.py). The same numbers but for 1e-11 (2e-16 in float64) of the field that 4096 steps
                begin with; False: step by step
    returns     the field after the steps, of u's shape

    The gradient is that of the steps as they are computed (discretise, then differentiate), by hand-written transposed
    kernels. Once differentiable; forward mode is refused by torch. Under autocast a half-precision field is marched in
    float32. Inside torch.func and torch.compile give tensors in `parameters`, or use `fd.nn.Solver`.

    Raises NotImplementedError for what has no adjoint, Unstable for coefficients that this dt is too long for, Diverged
    for a field that becomes NaN, TypeError and ValueError for what does not fit.
    """
    if not isinstance(steps, int | np.integer) or steps < 0:
        raise ValueError(f"steps is a whole number from 0 on, not {steps!r}")
    how: dict[str, Any] = dict(dt=dt, boundary=boundary, method=method, memory=memory, threads=threads,
                               shortcut=shortcut)
    problem, given = Problem.for_tensors(PROBLEMS, equation, grid, **how)
    given |= parameters or {}
    problem.check_names(given)
    return advance(problem, u, t, steps, given)


__all__ = ["advance", "march"]
