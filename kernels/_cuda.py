"""The one place where numba.cuda is imported, and only when something asks for a GPU.

Importing fastdiff must not load CUDA. Everything that needs it calls `toolkit()`; another back end with the same
interface (numba-cuda-mlir, say) would be swapped in here.
"""

import ast
import copy
import inspect
import os
import textwrap
from contextlib import nullcontext
from functools import lru_cache

import numpy as np

SHARED_BYTES = 48 << 10  # shared memory a block may have without opting in for more
MULTIPROCESSORS = 132  # of an H100; used for planning where no device can be asked


@lru_cache(maxsize=1)
def toolkit():
    """The module `numba.cuda`: the real one, or the simulator if NUMBA_ENABLE_CUDASIM is set."""
    try:
        from numba import cuda
    except ImportError as error:
        raise ImportError("CUDA kernels need numba-cuda: install fastdiff-pde[cuda13] or [cuda12]") from error
    return cuda


def simulated() -> bool:
    """Whether kernels run in Numba's CUDA simulator."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def require_device() -> None:
    """Raise an error that says what is missing unless there is a GPU, or the simulator."""
    if simulated():
        return
    cuda = toolkit()
    if not cuda.is_available():
        raise RuntimeError("no CUDA device can be used: check the driver, or choose device='cpu'")


def multiprocessors() -> int:
    """Number of multiprocessors of the current device."""
    if simulated():
        return MULTIPROCESSORS
    return int(toolkit().get_current_device().MULTIPROCESSOR_COUNT)


def on(array):
    """A context in which kernels are launched on the GPU where an array is, if it says so (torch's do)."""
    index = getattr(getattr(array, "device", None), "index", None)
    return toolkit().gpus[index] if isinstance(index, int) and not simulated() else nullcontext()


def current() -> int:
    """The number of the GPU on which kernels are launched."""
    return 0 if simulated() else int(toolkit().get_current_device().id)


def on_device(array) -> bool:
    """Whether an array lives on a GPU (it has `__cuda_array_interface__`, or is Numba's own device array)."""
    if isinstance(array, np.ndarray):
        return False
    return hasattr(array, "__cuda_array_interface__") or hasattr(array, "copy_to_host")


def wrap(array):
    """A Numba device array on the memory of any device array; nothing is copied and no stream is waited for."""
    if hasattr(array, "copy_to_host"):
        return array
    if simulated():
        return _simulated(array) if hasattr(array, "detach") else array
    return toolkit().as_cuda_array(array, sync=False)


def _simulated(tensor):
    """A tensor on the CPU as the simulator's device array, so that what is built for torch can be tried there, too."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    return FakeCUDAArray(tensor.numpy())


def empty_like(array, shape=None):
    """An uninitialised device array like another, from the same allocator: torch's for a torch tensor."""
    shape = tuple(array.shape) if shape is None else tuple(shape)
    return array.new_empty(shape) if hasattr(array, "new_empty") else toolkit().device_array(shape, array.dtype)


def numba_stream(stream):
    """A Numba stream: of a Numba stream, of a raw handle such as `torch.cuda.current_stream().cuda_stream`, or 0."""
    if stream is None or simulated():
        return 0
    return toolkit().external_stream(stream) if isinstance(stream, int) and stream else stream


def specialised(function, *, threads, blocks=1, **constants):
    """A CUDA kernel from a plain function: free names become constants, loops over them are unrolled.

    `for k in range(name)` with `name` among the integer constants is written out before Numba sees it, because
    per-thread arrays live in registers only if every index is known, and the compiler gives up on long bodies.
    `threads`, a constant too, is the number of threads a block is launched with; registers are kept few enough for
    `blocks` such blocks on a multiprocessor.
    """
    constants["threads"] = threads
    lines, first = inspect.getsourcelines(function)
    tree = ast.increment_lineno(ast.parse(textwrap.dedent("".join(lines))), first - 1)
    tree = ast.fix_missing_locations(_Unroll(constants).visit(tree))
    scope = {**function.__globals__, **constants}
    exec(compile(tree, inspect.getsourcefile(function) or "<kernel>", "exec"), scope)
    jit = toolkit().jit() if simulated() else toolkit().jit(launch_bounds=(threads, blocks))
    return jit(scope[function.__name__])


class _Unroll(ast.NodeTransformer):
    """Writes out loops over the range of a constant; puts the constant for its name."""

    def __init__(self, constants):
        self.constants = constants

    def visit_Name(self, node):
        value = self.constants.get(node.id)
        return ast.Constant(value) if isinstance(value, int) and isinstance(node.ctx, ast.Load) else node

    def visit_For(self, node):
        match node.iter:
            case ast.Call(func=ast.Name(id="range"), args=[ast.Name(id=name)]) if name in self.constants:
                return [line for turn in range(self.constants[name]) for line in self._turn(node, turn)]
        return self.generic_visit(node)

    def _turn(self, node, turn):
        unroll = _Unroll({**self.constants, node.target.id: turn})
        return unroll.visit(ast.Module([copy.deepcopy(line) for line in node.body], [])).body
