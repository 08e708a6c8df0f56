"""The machine code of every float32 rule: wide vectors in the hot loop, and nothing turned into float64.

An integer literal in a float32 rule promotes it to float64: half the speed, and no test of the numbers sees it. Each
rule's row loop is compiled alone, as the schedules compile it, so that boundary code, which may convert, is not seen.
"""

import platform
import re
from functools import cache
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest
from numba import njit, types

from fastdiff.kernels import discover
from fastdiff.kernels._contract import families
from fastdiff.kernels._edges import ABSENT, PERIODIC
from fastdiff.kernels._fields import lowered
from fastdiff.kernels._jit import FLAGS
from fastdiff.kernels._march import sample_of, update_rows

if platform.machine().lower() not in ("x86_64", "amd64"):
    pytest.skip("the patterns are those of x86-64 machine code", allow_module_level=True)
if not llvm.get_host_cpu_features().get("avx2"):
    pytest.skip("this processor has no AVX2: vectors are narrower", allow_module_level=True)

WIDE = re.compile(r"\bv(?:add|sub|mul|fn?m(?:add|sub)\d+)p([sd])\b.*%[yz]mm")
CONVERSION = re.compile(r"\bv?cvt(?:ss2sd|ps2pd|sd2ss|pd2ps)\b")
DOUBLE = re.compile(r"\bv?(?:add|sub|mul|div|sqrt|fn?m(?:add|sub)\d+)[sp]d\b")


OPTIONS: dict[str, Any] = {**FLAGS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # wrappers convert numbers


@njit(**OPTIONS)
def one_row(p, dst, src, at, step):
    """The hot loop of a rule and nothing else."""
    update_rows(p, dst, at, at, at, src, at, at, at, at, at, at, at, src, at, at, step, at, at, step, step, step, step,
                step, at)


def row_code(rule, dtype: types.Float = types.float32):
    """Machine code of one row of a rule, line by line."""
    values = types.Array(dtype, 1, "C")
    signature = (numba.typeof(rule), values, values, types.uint64, types.int64)
    one_row.compile(signature)
    return one_row.inspect_asm(signature).splitlines()


def count(pattern, code):
    return sum(bool(pattern.search(line)) for line in code)


def rules():
    """The rule classes that the kernel families define."""
    return [
        pytest.param(cls, id=f"{module.__name__.split('.')[-1]}.{name}")
        for module in families()
        for name, cls in vars(module).items()
        if isinstance(cls, type) and cls.__module__ == module.__name__ and {"cell", "change"} & set(dir(cls))
        and not hasattr(cls, "near")  # wide rules are looked at as loops without a rule
        and not {"rule", "reaction", "diffusivity", "d2"} & set(getattr(cls, "_fields", ()))  # rules or laws inside:
    ]  # the test of kernels looks at them


def check_float32(code):
    """Packed float32 arithmetic in the widest registers, nothing in float64."""
    assert count(WIDE, code) > 0, "no packed arithmetic in ymm or zmm registers"
    assert count(CONVERSION, code) == 0, "float32 is converted to float64: an integer literal, or an untyped constant?"
    assert count(DOUBLE, code) == 0, "float64 arithmetic in a float32 rule"


@pytest.mark.parametrize("kernel", [k for k in discover().values() if k.rule], ids=lambda k: k.name)
def test_the_rule_of_every_kernel_is_packed_and_stays_float32(kernel):
    """As it is marched: with rules inside of it and numbers of every cell."""
    inputs = kernel.sample((4,) * kernel.ndim, np.dtype("float32"), np.random.default_rng(0))
    space = {1: (1, 1, 4), 2: (4, 1, 4), 3: (4, 4, 4)}[kernel.ndim]
    kinds = tuple(ABSENT if n == 1 else PERIODIC for n in space)
    check_float32(row_code(sample_of(lowered(kernel.rule_for(inputs), kinds, space, 1), 0)))


@pytest.mark.parametrize("cls", rules())
def test_float32_rule_is_packed_and_stays_float32(cls):
    check_float32(row_code(cls(*[np.float32(0.5)] * len(cls._fields))))


def loops():
    """The hot loops of the kernels without a rule, in float32."""
    return [
        pytest.param(dispatcher, signature, id=f"{kernel.name}-{k}")
        for kernel in discover().values() if kernel.machine_code
        for k, (dispatcher, signature) in enumerate(kernel.machine_code(np.dtype("float32")))
    ]


@cache  # kernels of one family share loops
def loop_code(dispatcher, signature):
    """Machine code of a loop, line by line."""
    options = {k: v for k, v in dispatcher.targetoptions.items() if k != "nopython"} | OPTIONS
    fresh = njit(**options)(dispatcher.py_func)  # code from the disk cache cannot be inspected
    fresh.compile(signature)
    return fresh.inspect_asm(fresh.signatures[-1]).splitlines()


@pytest.mark.parametrize(("dispatcher", "signature"), loops())
def test_float32_loop_is_packed_and_stays_float32(dispatcher, signature):
    check_float32(loop_code(dispatcher, signature))


def test_every_kernel_is_looked_at():
    assert [k.name for k in discover().values() if k.cpu and not (k.rule or k.machine_code)] == []


class Clean(NamedTuple):
    """As a rule should be: every constant is typed."""

    r: Any
    four: Any

    @staticmethod
    def cell(p, u, at):
        return u.c + p.r * (((u.m0 + u.p0) + (u.m2 + u.p2)) - p.four * u.c)


class IntegerLiteral(NamedTuple):
    r: Any
    four: Any

    @staticmethod
    def cell(p, u, at):
        return u.c + p.r * (((u.m0 + u.p0) + (u.m2 + u.p2)) - 4 * u.c)


class FloatLiteral(NamedTuple):
    r: Any
    four: Any

    @staticmethod
    def cell(p, u, at):
        return u.c + 0.25 * p.r * (((u.m0 + u.p0) + (u.m2 + u.p2)) - p.four * u.c)


class IndexArithmetic(NamedTuple):
    r: Any
    four: Any

    @staticmethod
    def cell(p, u, at):
        return u.c + p.r * at.step * u.m0


def rule(cls):
    return cls(np.float32(0.25), np.float32(4))


def test_the_gate_passes_a_clean_rule():
    check_float32(row_code(rule(Clean)))


@pytest.mark.parametrize("bad", [IntegerLiteral, FloatLiteral, IndexArithmetic])
def test_the_gate_catches_promotion(bad):
    with pytest.raises(AssertionError, match="converted to float64"):
        check_float32(row_code(rule(bad)))


def test_the_gate_catches_code_that_is_not_packed():
    code = row_code(rule(Clean))
    with pytest.raises(AssertionError, match="no packed arithmetic"):
        check_float32([line for line in code if not re.search("[yz]mm", line)])


def test_float64_rule_is_packed():
    code = row_code(Clean(np.float64(0.25), np.float64(4)), types.float64)
    assert {m.group(1) for line in code if (m := WIDE.search(line))} == {"d"}
