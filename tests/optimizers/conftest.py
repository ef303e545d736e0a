"""The update rules written out in NumPy: decoupled decay of all rows, updates of the touched ones."""

import numpy as np
import pytest

LEARNING_RATE = 0.1


class Reference:
    """One variable, updated by the definition of an optimizer; `rate` may have a value for each row."""

    def __init__(self, rule, weights, rate=LEARNING_RATE, decay=0.0, l2=0.0, every_row=False):
        self.rule, self.w, self.rate, self.decay, self.l2 = rule, weights.astype("float64"), rate, decay, l2
        self.every_row = every_row
        self.step = 0
        self.adagrad = np.full(weights.shape, 0.1)
        self.row_wise = np.zeros(weights.shape[0])
        self.m, self.v = np.zeros(weights.shape), np.zeros(weights.shape)

    def update(self, gradient, touched=None):
        """Decays all rows, and applies the summed gradient [V, k] to those in the boolean mask `touched`."""
        self.step += 1
        if touched is None:
            touched = np.any(gradient != 0, axis=tuple(range(1, gradient.ndim)))
        if self.every_row:
            touched = np.ones(len(gradient), bool)
        before = self.w
        rates = np.reshape(self.rate, (-1,) + (1,) * (self.w.ndim - 1))
        self.w = before - rates * self.decay * before
        for row in np.flatnonzero(touched):
            self.w[row] = self.w[row] - self._change(row, gradient[row] + self.l2 * before[row])

    def _change(self, row, g):
        rate = np.broadcast_to(self.rate, len(self.w))[row]
        if self.rule == "SparseSGD":
            return rate * g
        if self.rule == "SparseAdagrad":
            self.adagrad[row] += g**2
            return rate * g / (np.sqrt(self.adagrad[row]) + 1e-7)
        if self.rule == "RowWiseAdagrad":
            self.row_wise[row] += np.mean(g**2)
            return rate * g / (np.sqrt(self.row_wise[row]) + 1e-8)
        self.m[row] = 0.9 * self.m[row] + 0.1 * g
        self.v[row] = 0.999 * self.v[row] + 0.001 * g**2
        correction = np.sqrt(1 - 0.999**self.step) / (1 - 0.9**self.step)
        return rate * correction * self.m[row] / (np.sqrt(self.v[row]) + 1e-7)


@pytest.fixture(scope="session")
def reference():
    return Reference


@pytest.fixture(params=["SparseSGD", "SparseAdagrad", "RowWiseAdagrad", "LazyAdam"])
def rule(request):
    return request.param
