"""How fastdiff compiles: flags, disk cache, and the few atomics the schedule needs.

Three properties of Numba's disk cache shape this file:

* its freshness stamp covers only the file that defines a function, so everything here is cached in one folder
  per hash of *all* kernel sources (`cache_folder`);
* one index lists every signature of a function and is unpickled whole, so a rule class that has since been
  deleted would break the cache for every other rule: each rule gets an index of its own (`_RuleCache`);
* its key ignores compile flags, so every compiled function here has one set of flags and one name.
"""

import ctypes
import gc
import hashlib
import os
import pickle
import platform
import sys
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numba
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, _CacheLocator
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from fastdiff.kernels._part import AS_PART

FASTMATH = {"contract", "nsz"}  # not True: NaN must stay visible
FLAGS = dict(nogil=True, error_model="numpy", boundscheck=False)


@lru_cache(maxsize=1)
def source_stamp() -> str:
    """Hash of every kernel source, the Python and the Numba that compile them."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {numba.__version__}".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def cache_root() -> Path:
    """Folder of everything compiled: `FASTDIFF_CACHE_DIR`, or `fastdiff` in the user's cache folder."""
    if "FASTDIFF_CACHE_DIR" in os.environ:
        return Path(os.environ["FASTDIFF_CACHE_DIR"]).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fastdiff"


def cache_folder() -> Path:
    """Folder of the kernels compiled from these very sources."""
    return cache_root() / f"kernels-{source_stamp()}"


class _Locator(_CacheLocator):
    def __init__(self, py_func, py_file):
        self._py_file, self._line = py_file, py_func.__code__.co_firstlineno

    def get_cache_path(self):
        return str(cache_folder())

    def get_source_stamp(self):
        return source_stamp()

    def get_disambiguator(self):
        return str(self._line)

    @classmethod
    def from_function(cls, py_func, py_file):
        self = cls(py_func, py_file)
        try:
            self.ensure_cache_path()
        except OSError:
            return None  # nowhere to write: compile in memory
        return self


class _Impl(CompileResultCacheImpl):
    _locator_classes = [_Locator]


def _rule_classes(kinds):
    """The rule classes among types, with those inside of them."""
    found = []
    for kind in kinds:
        if isinstance(kind, types.BaseNamedTuple):
            found += [kind.instance_class, *_rule_classes(kind.types)]
    return found


@lru_cache(maxsize=256)
def _rule_key(cls) -> str:
    """Name and source of a rule class: the part of the cache key that Numba does not see."""
    try:
        source = Path(sys.modules[cls.__module__].__file__).read_bytes()
    except (KeyError, AttributeError, TypeError, OSError):
        source = repr(sorted((k, f.__code__.co_code) for k, f in vars(cls).items() if hasattr(f, "__code__"))).encode()
    return hashlib.sha256(f"{cls.__module__}.{cls.__qualname__}".encode() + source).hexdigest()[:12]


_told_apart: set = set()


def tell_apart(rule) -> None:
    """Give the classes of a rule, and of rules inside of it, names of their own, with the hash of their source.

    Numba names machine code by a class's bare name: two rules called alike, in different modules or in two versions of
    a notebook's cell, would run each other's code when one of them comes from the cache.
    """
    cls = type(rule)
    if cls not in _told_apart:
        cls.__name__ = f"{cls.__name__}_{_rule_key(cls)}"
        _told_apart.add(cls)
    for field in rule:
        if hasattr(field, "_fields"):
            tell_apart(field)


# What unpickling a damaged file, or one written by code that is gone, may raise.
_DAMAGED = (pickle.UnpicklingError, AttributeError, ImportError, EOFError, KeyError, IndexError, ValueError, TypeError)


class _Index(IndexDataCacheFile):
    """An index that is empty when it cannot be read."""

    def _load_index(self):
        try:
            return super()._load_index()
        except _DAMAGED:
            return {}


def _lasting(sig) -> bool:
    """Whether the next process can find the rule's class again: not one of a script or of inside a function."""
    return not any(c.__module__ == "__main__" or "<locals>" in c.__qualname__ for c in _rule_classes(sig))


class _RuleCache(FunctionCache):
    """A function cache with one index per rule class."""

    _impl_class = _Impl

    def _load_overload(self, sig, target_context):
        if not _lasting(sig):
            return None
        try:
            return self._for(sig, super()._load_overload, sig, target_context)
        except _DAMAGED:
            return None  # compile anew

    def _save_overload(self, sig, data):
        if not _lasting(sig):
            return
        try:
            self._for(sig, super()._save_overload, sig, data)
        except (pickle.PicklingError, AttributeError, TypeError, OSError):
            pass  # a rule that cannot be pickled, a full disk: compiled in memory only

    def _for(self, sig, method, *args):
        keys = list(dict.fromkeys(_rule_key(c) for c in _rule_classes(sig)))
        key = "-".join(keys) or "plain"
        if len(keys) > 6:  # a file's name has a limit
            key = hashlib.sha256(key.encode()).hexdigest()[:24]
        shared = self._cache_file
        self._cache_file = _Index(self._cache_path, f"{self._impl.filename_base}-{key}", source_stamp())
        try:
            return method(*args)
        finally:
            self._cache_file = shared


@contextmanager
def _few_collections():
    """Collect garbage less often meanwhile: a compiler makes many objects and keeps them, at a tenth of its time."""
    with global_compiler_lock:
        before = gc.get_threshold()
        gc.set_threshold(before[0] and max(before[0], 100_000), *before[1:])
        try:
            yield
        finally:
            gc.set_threshold(*before)


def kernel(fastmath=True):
    """Decorator: `njit` with fastdiff's flags, cached on disk where a folder can be written."""

    def wrap(function):
        dispatcher = njit(fastmath=FASTMATH if fastmath else False, no_cfunc_wrapper=True, **FLAGS)(function)
        try:
            dispatcher._cache = _RuleCache(function)
        except RuntimeError:
            pass  # no writable folder: every process compiles for itself
        dispatcher.compile = _few_collections()(dispatcher.compile)
        return dispatcher

    return wrap


inner = njit(**FLAGS, **AS_PART)  # a part of a kernel, compiled and cached with it; no contraction


# -- atomics on an int64 array -----------------------------------------------------------------------------------


def _element(context, builder, array_type, array, index):
    ary = context.make_array(array_type)(context, builder, array)
    return builder.gep(ary.data, [index])


@intrinsic
def atomic_add(typingctx, array, index, value):
    """Add `value` to `array[index]` and return what was there before."""

    def codegen(context, builder, sig, args):
        place = _element(context, builder, sig.args[0], args[0], args[1])
        return builder.atomic_rmw("add", place, args[2], "acq_rel")

    return types.int64(array, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, array, index):
    """Read `array[index]`; everything the writer did before its `atomic_store` is then visible."""

    def codegen(context, builder, sig, args):
        return builder.load_atomic(_element(context, builder, sig.args[0], args[0], args[1]), "acquire", 8)

    return types.int64(array, types.int64), codegen


@intrinsic
def atomic_store(typingctx, array, index, value):
    """Publish `value` at `array[index]`."""

    def codegen(context, builder, sig, args):
        builder.store_atomic(args[2], _element(context, builder, sig.args[0], args[0], args[1]), "release", 8)
        return context.get_dummy_value()

    return types.none(array, types.int64, types.int64), codegen


@intrinsic
def call_boundary(typingctx, address, t, x, y, z, u):
    """Call the C function `double f(t, x, y, z, u)` at an address."""

    def codegen(context, builder, sig, args):
        double = ir.DoubleType()
        pointer = ir.FunctionType(double, [double] * 5).as_pointer()
        return builder.call(builder.inttoptr(args[0], pointer), args[1:])

    f8 = types.float64
    return f8(types.int64, f8, f8, f8, f8, f8), codegen


@intrinsic
def call_seeing(typingctx, address, t, x, y, z, u, w0, w1, w2, w3, w4, w5, w6, w7):
    """Call the C function `double f(t, x, y, z, u, w0, ..., w7)` at an address."""

    def codegen(context, builder, sig, args):
        double = ir.DoubleType()
        pointer = ir.FunctionType(double, [double] * 13).as_pointer()
        return builder.call(builder.inttoptr(args[0], pointer), args[1:])

    return types.float64(types.int64, *[types.float64] * 13), codegen


def disowned(context, builder, ty, value):
    """A value of a type, when code is made, without the owners of its arrays."""
    if isinstance(ty, types.Array):
        array = context.make_array(ty)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    if isinstance(ty, types.BaseTuple):
        parts = [disowned(context, builder, t, v) for t, v in zip(ty.types, cgutils.unpack_tuple(builder, value))]
        return context.make_tuple(builder, ty, parts)
    return value


@intrinsic
def borrow(typingctx, value):
    """The same array, or tuple of arrays, without its owner: no reference is counted, so no lock is taken, on it.

    The caller must hold the owner for as long as the result lives.
    """

    def codegen(context, builder, sig, args):
        return disowned(context, builder, sig.args[0], args[0])

    return value(value), codegen


def _attribute(name, doc):
    def mark(typingctx):
        def codegen(context, builder, sig, args):
            set.add(builder.function.attributes, name)
            return context.get_dummy_value()

        return types.none(), codegen

    mark.__doc__ = doc
    return intrinsic(mark)


wide_vectors = _attribute('"prefer-vector-width"="512"', "Let the enclosing function use the widest vectors there are.")
inline_here = _attribute("alwaysinline", "Inline the enclosing function wherever it is called.")
keep_apart = _attribute("noinline", "Never inline the enclosing function: it is rarely run, and its code is long.")


def _restrict(name):
    @intrinsic
    def restrict(typingctx):
        def codegen(context, builder, sig, args):
            fields = [a for a in builder.function.args if a.name.startswith(f"arg.{name}.")]
            pointers = [a for a in fields if isinstance(a.type, ir.PointerType)]
            pointers[-1].add_attribute("noalias")  # meminfo, parent, data
            return context.get_dummy_value()

        return types.none(), codegen

    restrict.__doc__ = f"""Promise that what the enclosing function writes through its argument `{name}` is not read
    or written through another one.

    Without it a row with several outputs needs more run-time overlap checks than LLVM is willing to vectorise for.
    """
    return restrict


restrict_dst, restrict_kept = _restrict("dst"), _restrict("kept")


def _apart(builder, instruction, k, count):
    """Say that a load or store is number `k` of `count` whose addresses never meet."""
    add = builder.module.add_metadata
    scopes = [add([f"fastdiff store {j}", add(["fastdiff stores"])]) for j in range(count)]
    instruction.set_metadata("alias.scope", add([scopes[k]]))
    if count > 1:
        instruction.set_metadata("noalias", add([s for j, s in enumerate(scopes) if j != k]))


@lru_cache(maxsize=128)
def put_into(k: int, count: int):
    """`put(dst, at, value)`: `dst[at] = value`, where the function has `count` such stores that never meet.

    Compiled code alone cannot know that, and beyond a few stores LLVM finds the checks at run time too dear for short
    rows. Store `k` gets an alias scope of its own, and says that it meets none of the others.
    """

    @intrinsic
    def put(typingctx, dst, at, value):
        def codegen(context, builder, sig, args):
            kind = sig.args[0].dtype
            number = context.cast(builder, args[2], sig.args[2], kind)
            store = builder.store(number, _element(context, builder, sig.args[0], args[0], args[1]), kind.bitwidth // 8)
            _apart(builder, store, k, count)
            return context.get_dummy_value()

        return types.none(dst, at, value), codegen

    return put


@lru_cache(maxsize=128)
def take_from(k: int, count: int):
    """`take(src, at)`: `src[at]`, which of the `count` stores of `put_into` meets store `k` alone."""

    @intrinsic
    def take(typingctx, src, at):
        def codegen(context, builder, sig, args):
            load = builder.load(_element(context, builder, sig.args[0], args[0], args[1]),
                                align=sig.args[0].dtype.bitwidth // 8)
            _apart(builder, load, k, count)
            return load

        return src.dtype(src, at), codegen

    return take


_ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
_FLUSH = 0x8040  # MXCSR: flush results to zero, read denormals as zero


def _mxcsr(builder, name, slot):
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}")
    builder.call(function, [builder.bitcast(slot, ir.IntType(8).as_pointer())])


@intrinsic
def flush_denormals(typingctx):
    """Treat denormal numbers as zero in this thread from here on; return the state for `restore_denormals`.

    Fields that decay, a species that dies out, end in denormals, which cost a hundred cycles each.
    """

    def codegen(context, builder, sig, args):
        if not _ON_X86:
            return context.get_constant(types.uint32, 0)
        slot = cgutils.alloca_once(builder, ir.IntType(32))
        _mxcsr(builder, "stmxcsr", slot)
        before = builder.load(slot)
        builder.store(builder.or_(before, before.type(_FLUSH)), slot)
        _mxcsr(builder, "ldmxcsr", slot)
        return before

    return types.uint32(), codegen


@intrinsic
def restore_denormals(typingctx, state):
    """Undo `flush_denormals`."""

    def codegen(context, builder, sig, args):
        if _ON_X86:
            slot = cgutils.alloca_once(builder, ir.IntType(32))
            builder.store(args[0], slot)
            _mxcsr(builder, "ldmxcsr", slot)
        return context.get_dummy_value()

    return types.none(types.uint32), codegen


if hasattr(ctypes.CDLL(None) if sys.platform != "win32" else None, "sched_yield"):
    _yield = types.ExternalFunction("sched_yield", types.int32())

    @njit
    def give_way():
        """Let another thread run."""
        _yield()
else:  # no POSIX: the waiting thread spins

    @njit
    def give_way():
        """Let another thread run."""


__all__ = [
    "FASTMATH",
    "FLAGS",
    "atomic_add",
    "atomic_load",
    "atomic_store",
    "borrow",
    "cache_folder",
    "cache_root",
    "call_boundary",
    "call_seeing",
    "flush_denormals",
    "give_way",
    "inline_here",
    "inner",
    "keep_apart",
    "kernel",
    "put_into",
    "restore_denormals",
    "restrict_dst",
    "restrict_kept",
    "source_stamp",
    "take_from",
    "tell_apart",
    "wide_vectors",
]
