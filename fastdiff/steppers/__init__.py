"""Time integrators: one a file, each ending with `METHOD`; they are marched by `_base.py` and `fastdiff/solve.py`.

`spectral.py` is no marching method: it goes to any time at once.
"""

from fastdiff.steppers import crank_nicolson, etdrk4, euler, rk4, rk23, rkl2, strang
from fastdiff.steppers._base import Method

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD for module in (euler, rk4, rk23, rkl2, crank_nicolson, strang, etdrk4)
}

__all__ = ["METHODS", "Method"]
