"""Which array goes where: NumPy and torch on the CPU to the CPU kernels without a copy, torch on CUDA to the GPU's.

An explicit choice of device never falls back to another.
"""

import sys
from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels import _memory
from fastdiff.kernels._cuda import on
from fastdiff.kernels._threads import together

FLOATS = ("float32", "float64")


class Array(NamedTuple):
    """An array ready for the kernels, and the way back to what the user gave."""

    data: Any  # NumPy, or a torch CUDA tensor
    backend: str  # "cpu" or "cuda"
    back: Any  # function: kernel array -> user's kind of array


def is_tensor(array: Any) -> bool:
    """Whether this is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def adopt(array: Any, device: str | None = None) -> Array:
    """Take a user's array: float32 or float64, C-contiguous (copied if it is not), on the asked device."""
    wanted, number = _backend(device)
    given: Any = array
    tensor = is_tensor(array)
    if tensor:
        if array.requires_grad:
            raise ValueError("u0 requires grad, but fd.solve does not differentiate: pass u0.detach(), or use "
                             "fd.nn.Solver, which does")
        on_gpu, kind = array.device.type == "cuda", str(array.dtype).removeprefix("torch.")
    else:
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"u0 is a NumPy array or a torch tensor, not {type(array).__name__}: pass "
                            "np.asarray(u0, float)")
        on_gpu, kind = False, str(array.dtype)
    if kind not in FLOATS:
        how = "u0.double()" if tensor else 'u0.astype("float64")'
        raise TypeError(f"u0 has dtype {kind}; expected float32 or float64: convert it, e.g. {how}")
    if tensor and on_gpu:
        if wanted == "cpu":
            raise ValueError('u0 is on the GPU but device="cpu" was asked for: pass u0.cpu()')
        if number is not None and given.device.index != number:
            raise ValueError(f'u0 is on {given.device} but device="cuda:{number}" was asked for: pass '
                             f'u0.to("cuda:{number}")')
        return Array(given.contiguous(), "cuda", lambda a: a)
    if wanted == "cuda":
        return _upload(array, tensor, number)
    if tensor:
        import torch

        return Array(np.ascontiguousarray(given.numpy()), "cpu", torch.from_numpy)
    return Array(np.ascontiguousarray(array), "cpu", lambda a: a)


def _upload(array, tensor, number):
    import torch

    name = "cuda" if number is None else f"cuda:{number}"
    if not torch.cuda.is_available():
        raise RuntimeError(f'device="{name}" was asked for, but torch finds no GPU; leave device out to use the CPU')
    known = torch.cuda.device_count()
    if number is not None and number >= known:
        raise RuntimeError(f'device="{name}" was asked for, but torch finds {known} GPU(s), numbered from 0')
    data = (array if tensor else torch.from_numpy(np.ascontiguousarray(array))).to(name).contiguous()
    return Array(data, "cuda", (lambda a: a.cpu()) if tensor else (lambda a: a.cpu().numpy()))


def _backend(device) -> tuple[str | None, int | None]:
    """"cpu" or "cuda", and the number of a GPU, as far as they are asked for."""
    if device is None:
        return None, None
    kind, colon, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"unknown device {device!r}; known: 'cpu', 'cuda', 'cuda:1' (a number from 0), or None for "
                         "where u0 is")
    return kind, int(number) if colon else None


def copy(a):
    """A contiguous copy of the same kind."""
    return a.copy() if isinstance(a, np.ndarray) else a.clone().contiguous()


def for_each(function, items, threads: int) -> None:
    """Call a function of each item on our threads; for NumPy calls, which leave the interpreter to others meanwhile."""
    left = list(items)

    def task():
        while left:
            try:
                item = left.pop()
            except IndexError:
                return  # another thread took the last one
            function(item)

    together(task, threads)


def empty_like(a):
    """An uninitialised array of the same kind."""
    if isinstance(a, np.ndarray):
        return _memory.empty_like(a)
    from fastdiff.kernels._cuda import empty_like as make

    return make(a)


def stream_of(u):
    """The stream on which work on a device array is queued: torch's current one for a tensor."""
    if not is_tensor(u) or not u.is_cuda:
        return None
    import torch

    return torch.cuda.current_stream(u.device).cuda_stream


def place_of(u) -> str:
    """Where an array is: "cpu", or the name of its GPU."""
    return "cpu" if isinstance(u, np.ndarray) else str(u.device) if is_tensor(u) else "cuda"


def march(rule, u, edges, steps, **how):
    """March a rule where `u` is."""
    if isinstance(u, np.ndarray):
        from fastdiff.kernels._run import march as run

        return run(rule, u, edges, steps, **how)
    from fastdiff.kernels._march_cuda import march_cuda

    with on(u):
        return march_cuda(rule, u, edges, steps, stream=stream_of(u), **how)


def hold(u, edges):
    """Set the held cells of a state to their values at the first time level, in place."""
    if isinstance(u, np.ndarray):
        from fastdiff.kernels._edges import hold as run

        return run(u, edges, 0)
    from fastdiff.kernels._state_cuda import hold_cuda

    with on(u):
        return hold_cuda(u, edges, 0, stream_of(u))


def assign(target, source):
    """Copy a state into another one."""
    if isinstance(source, np.ndarray):
        target[...] = source
        return target
    from fastdiff.kernels._state_cuda import copy_cuda

    with on(source):
        return copy_cuda(source, target, stream_of(source))


def accumulate(u, x, scale, threads=None):
    """u += scale * x."""
    if isinstance(u, np.ndarray):
        from fastdiff.kernels.tridiagonal import accumulate as run

        return run(u, x, scale, threads)
    from fastdiff.kernels._state_cuda import accumulate_cuda

    with on(u):
        return accumulate_cuda(u, x, scale, stream_of(u))


def systems(like):
    """The class of tridiagonal systems for states like this one."""
    if isinstance(like, np.ndarray):
        from fastdiff.kernels.tridiagonal import Systems

        return Systems
    from fastdiff.kernels._tridiagonal_cuda import SystemsCuda

    return SystemsCuda


def solve_lines(system, r, scale=None):
    """Solve tridiagonal systems in place."""
    if isinstance(r, np.ndarray):
        return system.solve(r, out=r, scale=scale)
    with on(r):
        return system.solve(r, out=r, scale=scale, stream=stream_of(r))
