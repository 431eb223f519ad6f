"""GELU and its derivative as compiled loops; importing this module imports numba."""

import math

import numba
import numpy as np

from .loops.compiler import array, fields, loop
from .loops.math import exp
from .loops.pieces import piecewise
from .loops.registers import LANES, load, multiply, store

_SLOPE, _CUBE = 2 * math.sqrt(2 / math.pi), 0.044715

# --- with AVX-512: both forms, x times a share in pieces --------------------------------------------------

_WIDTH = 0.4
"""of a piece: from −6 to 6, beyond which the share is 0 or 1 to 1e-9, and so is the derivative to 4e-8"""


def _normal_share(x: float) -> float:
    """Φ(x), how much of the normal distribution lies below x."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _normal_derivative(x: float) -> float:
    return _normal_share(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _tanh_share(x: float) -> float:
    return 1 / (1 + math.exp(-_SLOPE * (x + _CUBE * x**3)))


def _tanh_derivative(x: float) -> float:
    share = _tanh_share(x)
    return share + x * share * (1 - share) * _SLOPE * (1 + 3 * _CUBE * x * x)


share, derivative = piecewise(_normal_share, _WIDTH), piecewise(_normal_derivative, _WIDTH)
share_new, derivative_new = piecewise(_tanh_share, _WIDTH), piecewise(_tanh_derivative, _WIDTH)
_BYTES = 4 * LANES


@numba.njit(inline="always")
def _values(job, first, last, share):  # type: ignore[no-untyped-def]
    """Registers first … last−1 of x (n,) → y (n,). The job: n, then the addresses of both."""
    x, y = fields(job)[1:3]
    for i in range(_BYTES * first, _BYTES * last, _BYTES):
        store(y + i, multiply(load(x + i), share(load(x + i))))


@numba.njit(inline="always")
def _gradients(job, first, last, derivative):  # type: ignore[no-untyped-def]
    """Registers first … last−1 of x and grad (n,) → grad_x (n,). The job: n, then their addresses."""
    x, grad, grad_x = fields(job)[1:4]
    for i in range(_BYTES * first, _BYTES * last, _BYTES):
        store(grad_x + i, multiply(load(grad + i), derivative(load(x + i))))


@loop()
def gelu(job, first, last):  # type: ignore[no-untyped-def]
    """See `_values`."""
    _values(job, first, last, share)


@loop()
def gelu_backward(job, first, last):  # type: ignore[no-untyped-def]
    """See `_gradients`."""
    _gradients(job, first, last, derivative)


@loop()
def gelu_new(job, first, last):  # type: ignore[no-untyped-def]
    """See `_values`."""
    _values(job, first, last, share_new)


@loop()
def gelu_new_backward(job, first, last):  # type: ignore[no-untyped-def]
    """See `_gradients`."""
    _gradients(job, first, last, derivative_new)


# --- on any processor: the tanh form, which PyTorch has a slow kernel for ----------------------------------
# With u = 2 √(2/π) (x + 0.044715 x³), (1 + tanh(u/2)) / 2 is 1 / (1 + exp(−u)): one exponential.

_slope, _cube = np.float32(_SLOPE), np.float32(_CUBE)
_one, _three = np.float32(1), np.float32(3)


@loop(fastmath={"contract"})
def portable_gelu_new(job, first, last):  # type: ignore[no-untyped-def]
    """Elements first … last−1 of x (n,) → y (n,). The job: n, then the addresses of both."""
    job = fields(job)
    x = array(job, 1, job[0], np.float32)[first:last]
    y = array(job, 2, job[0], np.float32)[first:last]
    for i in range(len(x)):
        u = _slope * x[i] * (_one + _cube * x[i] * x[i])
        e = exp(-abs(u))  # ≤ 1, whatever x is
        y[i] = x[i] * (_one if u > 0 else e) / (_one + e)


@loop(fastmath={"contract"})
def portable_gelu_new_backward(job, first, last):  # type: ignore[no-untyped-def]
    """Elements first … last−1 of x and grad (n,) → grad_x (n,). The job: n, then their addresses."""
    job = fields(job)
    x = array(job, 1, job[0], np.float32)[first:last]
    grad = array(job, 2, job[0], np.float32)[first:last]
    grad_x = array(job, 3, job[0], np.float32)[first:last]
    for i in range(len(x)):
        square = _cube * x[i] * x[i]
        u = _slope * x[i] * (_one + square)
        e = exp(-abs(u))
        share = _one / (_one + e)
        bend = x[i] * e * share * share * (_slope * (_one + _three * square))
        grad_x[i] = grad[i] * ((_one if u > 0 else e) * share + bend)
