"""One step of Adam, AdamW or SGD on the row of one replica, compiled."""

import numba
import numpy as np

from lit_grok.kernels.compiled import compiled

ADAM, ADAMW, SGD = range(3)


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def update(theta, grad, kind, first, second, step, hyper):
    """Move the parameters, shape (D,), along their gradient.

    With g the gradient (its negative if maximised), λ the weight decay and t counted from 1:

    - ``ADAM`` (Kingma and Ba 2015, coupled decay): g ← g + λ θ, m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
      θ ← θ − lr (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε).
    - ``ADAMW`` (Loshchilov and Hutter 2019, decoupled): θ ← (1 − lr λ) θ, then the same without λ θ in g.
    - ``SGD``: g ← g + λ θ, m ← μ m + (1 − d) g (in the first step m ← g), θ ← θ − lr m, or lr (g + μ m) (Nesterov).

    Every element is treated alike, wherever it stands: D is a multiple of 16, so that none leaves the vector loop.

    Args:
        theta: θ, float32; written.
        grad: Its gradient; read only.
        kind: ``ADAM``, ``ADAMW`` or ``SGD``.
        first: m, shape (D,), written; for SGD without momentum, shape (0,).
        second: v, shape (D,), written; for SGD, shape (0,).
        step: t.
        hyper: lr, λ, β₁ or μ, β₂ or d, ε, whether Nesterov's, whether to maximise; float64.
    """
    rate, decay = np.float32(hyper[0]), np.float32(hyper[1])
    sign = np.float32(-1) if hyper[6] else np.float32(1)
    if kind == SGD:
        momentum, keep = np.float32(hyper[2]), np.float32(1) if step == 1 else np.float32(1 - hyper[3])
        nesterov = np.float32(1) if hyper[5] else np.float32(0)
        if len(first) == 0:
            for i in range(len(theta)):
                theta[i] -= rate * (sign * grad[i] + decay * theta[i])
            return
        for i in range(len(theta)):
            g = sign * grad[i] + decay * theta[i]
            m = momentum * first[i] + keep * g
            first[i] = m
            theta[i] -= rate * (nesterov * (g + momentum * m) + (np.float32(1) - nesterov) * m)
        return
    shrink = np.float32(1)
    if kind == ADAMW:
        shrink, decay = np.float32(1 - hyper[0] * hyper[1]), np.float32(0)
    fresh1, fresh2 = np.float32(1 - hyper[2]), np.float32(1 - hyper[3])
    beta2, eps = np.float32(hyper[3]), np.float32(hyper[4])
    length = np.float32(hyper[0] / (1 - hyper[2] ** step))
    unbias = np.float32(1 / np.sqrt(1 - hyper[3] ** step))
    for i in range(len(theta)):
        x = shrink * theta[i]
        g = sign * grad[i] + decay * x
        m = first[i] + (g - first[i]) * fresh1
        v = beta2 * second[i] + fresh2 * g * g
        first[i] = m
        second[i] = v
        theta[i] = x - length * m / (np.sqrt(v) * unbias + eps)


@compiled
def update_row(theta, grad, kind, first, second, step, hyper):
    """`update`, to be called from Python."""
    update(theta, grad, kind, first, second, step, hyper)
