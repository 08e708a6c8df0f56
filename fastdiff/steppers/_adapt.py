"""Step sizes that follow the error: one loop for every method that estimates it after each step.

The estimate of a step of length h is kept below rtol h / t_end, relative to the field, so that the errors of all steps
add up to rtol at most, as far as the equation does not amplify them. h changes by 0.8 (allowed/estimate)^(1/p), p the
order of the method: per unit of time the estimate is of that order.
"""

import numpy as np

from fastdiff import dispatch
from fastdiff.steppers._base import SAFETY, relative

LEAST, MOST = 0.2, 4.0  # factors of the step from one to the next
TRIES = 60


class Controller:
    """Marches a run from time to time, remembering the step that fits. `steps`, `rejected`, `evaluations` count."""

    def __init__(self, run, span: float, rtol: float):
        self.run, self.span, self.rtol = run, span, rtol
        self.most = SAFETY * run.limit if run.limit < np.inf else np.inf
        self.h = min(run.euler_limit if run.euler_limit < np.inf else span / 100, self.most, span)
        self.steps = self.rejected = self.evaluations = 0
        self.error = 0.0

    def advance(self, state, t, end, watch):
        """March a state to `end`; `watch(new, t, h)` sees every accepted one. Returns a new state."""
        spare = dispatch.empty_like(state)
        tries = 0
        while end - t > 1e-12 * max(abs(end), self.span):
            h = self._fitted(end - t)
            new = self.run.advance(state, t, h, 1, out=spare, watched=True)
            self.evaluations += self.run.scheme(h, True).stages
            error, allowed = relative(self.run.estimate(new), self.run.newest(new)), self.rtol * h / self.span
            accepted = error <= allowed
            self._learn(h, error / allowed)
            if accepted:
                state, spare, t, tries = new, state, t + h, 0
                self.steps, self.error = self.steps + 1, self.error + error
                watch(self.run.newest(state), t, h)
                continue
            self.rejected, tries = self.rejected + 1, tries + 1
            if tries > TRIES or h < 1e-12 * self.span:
                raise ValueError(f"{self.run.method.name} does not meet rtol = {self.rtol:g} at t = {t:g} with steps "
                                 f"down to {h:g}: the field blows up there, or rounding is larger; try a larger rtol, "
                                 f"or float64")
        return state

    def _fitted(self, left):
        """The step, made a whole part of what is left."""
        return left / max(1, int(np.ceil(left / min(self.h, self.most) * (1 - 1e-9))))

    def _learn(self, h, ratio):
        factor = 0.8 * max(ratio, 1e-10) ** (-1 / self.run.method.order) if np.isfinite(ratio) else LEAST
        grown = h * min(MOST, max(LEAST, factor))
        self.h = grown if ratio > 1 or h >= 0.5 * self.h else max(grown, self.h)
