"""Products and elementwise work in registers, beside numpy's."""

import math

import pytest
import torch

numba = pytest.importorskip("numba")
import numpy as np  # noqa: E402

from ai_learning.kernels.loops import processor_has, ready, registers, run  # noqa: E402
from ai_learning.kernels.loops.compiler import array, fields, loop  # noqa: E402
from ai_learning.kernels.loops.registers import LANES, keep_first, largest_of, load, splat, store, sum_of  # noqa: E402
from ai_learning.kernels.loops.tile import COLUMNS, ROWS, multiply_tile, transpose_tile  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (ready() and processor_has("avx512f")), reason="no AVX-512, or compiled loops do not work here"
)


@loop()
def multiply(job, first, last):  # type: ignore[no-untyped-def]
    job = fields(job)
    multiply_tile(job[5], job[0], job[6], job[1], job[2], job[7], job[3], job[4], last)


@loop()
def turn(job, first, last):  # type: ignore[no-untyped-def]
    job = fields(job)
    transpose_tile(job[2], job[0], job[3], job[1])


@loop()
def elementwise(job, first, last):  # type: ignore[no-untyped-def]
    job = fields(job)
    results = array(job, 1, 64, np.float32)
    at = results.ctypes.data
    x = load(job[0])
    store(at, registers.exp(x))
    store(at + 64, registers.fma(x, splat(np.float32(2)), registers.larger(x, splat(np.float32(-1)))))
    store(at + 128, keep_first(registers.subtract(registers.multiply(x, x), x), first, np.float32(7)))
    results[48], results[49] = sum_of(x), largest_of(registers.add(x, x))


@pytest.mark.parametrize("steps", [1, 2, 31, 64])
@pytest.mark.parametrize("add", [0, 1])
@pytest.mark.parametrize("other_way_round", [False, True])
def test_a_tile_is_the_product(steps: int, add: int, other_way_round: bool) -> None:
    torch.manual_seed(steps)
    C, B = torch.randn(ROWS, COLUMNS + 5), torch.randn(steps, COLUMNS + 3)
    A = torch.randn(steps, ROWS).t() if other_way_round else torch.randn(ROWS, steps)
    wanted, untouched = A @ B[:, :COLUMNS] + add * C[:, :COLUMNS], C[:, COLUMNS:].clone()
    row, step = 4 * A.stride(0), 4 * A.stride(1)
    numbers = (4 * C.stride(0), row, step, 4 * B.stride(0), steps, C.data_ptr(), A.data_ptr(), B.data_ptr())
    multiply.call(_job(numbers), 0, add)
    torch.testing.assert_close(C[:, :COLUMNS], wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(C[:, COLUMNS:], untouched)


def test_a_transposed_tile() -> None:
    source, to = torch.arange(16 * 20.0).view(16, 20), torch.zeros(16, 18)
    turn.call(_job((4 * 18, 4 * 20, to.data_ptr(), source.data_ptr())), 0, 0)
    assert torch.equal(to[:, :16], source[:, :16].t()) and not to[:, 16:].any()


@pytest.mark.parametrize("first", [0, 1, 15, 16])
def test_each_operation(first: int) -> None:
    x, results = -torch.rand(LANES) * 20, torch.zeros(64)
    elementwise.call(_job((x.data_ptr(), results.data_ptr())), first, 0)
    torch.testing.assert_close(results[:16], x.exp(), rtol=3e-7, atol=0)
    torch.testing.assert_close(results[16:32], 2 * x + x.clamp(min=-1))
    wanted = torch.where(torch.arange(LANES) < first, x * x - x, torch.tensor(7.0))
    torch.testing.assert_close(results[32:48], wanted)
    torch.testing.assert_close(results[48], x.sum())
    assert results[49] == (2 * x).max()


def test_exponentials_at_the_edges() -> None:
    x = torch.tensor([0.0, -0.0, -1e-30, -86.9, -87.0, -87.1, -1e30, -math.inf, math.nan, *[-1.0] * 7])
    results = torch.zeros(64)
    elementwise.call(_job((x.data_ptr(), results.data_ptr())), 0, 0)
    wanted = x.exp()
    wanted[5] = 0  # below −87 the result is not a normal number
    torch.testing.assert_close(results[:16], wanted, rtol=3e-7, atol=0, equal_nan=True)


def _job(numbers: tuple[int, ...]) -> int:
    """The address of a job; the array is kept until the next one."""
    global _kept
    _kept = np.array([*numbers, *[0] * 10], dtype=np.int64)
    return int(_kept.ctypes.data)


def test_a_job_runs_on_threads_as_well() -> None:
    x, results = -torch.ones(LANES), torch.zeros(64)
    run(elementwise, 3, 4, 1, (), (x, results))
    torch.testing.assert_close(results[48], torch.tensor(-16.0))
