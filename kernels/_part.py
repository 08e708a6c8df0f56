"""How the parts of a kernel are compiled: as code to be linked into it, and nothing else.

Numba optimises every function that another one calls as if it were called from Python, makes a wrapper for that, and
then machine code of both, all of it thrown away when the function is linked into its caller and optimised again there.
Parts skip that: they get LLVM's passes for single functions, and the rest once, as a part of the kernel. It is more
than half of the time, for the same machine code. A part cannot be called from Python.
"""

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering
from numba.extending import overload


class _Library(JITCodeLibrary):
    """Code to be linked into other code."""

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lower(NativeLowering):
    _name = "lower_part"

    def run_pass(self, state):
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags = state.flags.copy()
        state.flags.no_compile = True
        super().run_pass(state)
        entry = {}.__getitem__  # Numba wants something callable, a different one for each function
        state["cr"] = state["cr"]._replace(cfunc=entry)
        state.targetctx.insert_user_function(entry, state["cr"].fndesc, [state.library])
        state.reload_init.extend(state.library._reload_init)
        return True


class _Compiler(CompilerBase):
    def define_pipelines(self):
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_Lower, NativeLowering)
        passes.passes = [p for p in passes.passes if p[0] is not NativeLowering]
        passes.finalize()
        return [passes]


AS_PART = dict(no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_Compiler)  # options of njit


def overload_part(function, cuda=True, strict=True, **options):
    """Decorator: `numba.extending.overload`, compiled as a part on the CPU. `options` are those of `njit`."""

    def wrap(choose):
        overload(function, jit_options={**options, **AS_PART}, strict=strict, target="cpu")(choose)
        if cuda:
            overload(function, jit_options=options, strict=strict, target="cuda")(choose)
        return choose

    return wrap


def callable_part(**options):
    """Decorator: a plain function that kernels may call, as a part; Python, CUDA and its simulator call it, too."""

    def wrap(function):
        overload_part(function, strict=False, **options)(lambda *arguments: function)
        return function

    return wrap


__all__ = ["AS_PART", "callable_part", "overload_part"]
