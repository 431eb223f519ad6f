# mypy: ignore-errors
"""The Triton kernel behind `loss_triton`; importing this module imports triton."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def softmax_gradient(
    logits, target, share, loss, stride, V, COLUMNS, GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):
    """Row by row, in place: logits → share · (softmax − one_hot(target)); loss = −share · log p(target).

    Columns from V to COLUMNS only fill the row up: they are no logits, and get zeros. Without GRADIENT the
    logits stay.
    """
    row = tl.program_id(0)
    start = logits + row.to(tl.int64) * stride
    share_of_row, target_of_row = tl.load(share + row), tl.load(target + row)
    is_known = (target_of_row >= 0) & (target_of_row < V)
    wanted = tl.load(start + target_of_row, mask=is_known, other=float("nan")).to(tl.float32)
    column = tl.arange(0, BLOCK)
    # Each lane keeps a largest logit and a sum of its own (Milakov & Gimelshein 2018): one reduction a row.
    largest = tl.full((BLOCK,), -1e30, tl.float32)  # finite: less than any logit but one that is ruled out
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        x = tl.load(start + first + column, mask=first + column < V, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, x)
        total = total * tl.exp2((largest - larger) * LOG2_E) + tl.exp2((x - larger) * LOG2_E)
        largest = larger
    top = tl.max(largest, axis=0)
    log_sum = top + tl.log(tl.sum(total * tl.exp2((largest - top) * LOG2_E), axis=0))
    counts = share_of_row != 0  # where nothing counts, nothing matters
    tl.store(loss + row, tl.where(counts, share_of_row * (log_sum - wanted), 0.0))
    for first in range(0, COLUMNS if GRADIENT else 0, BLOCK):
        place = first + column
        x = tl.load(start + place, mask=place < V, other=float("-inf")).to(tl.float32)
        p = tl.exp2((x - log_sum) * LOG2_E)
        gradient = share_of_row * tl.where(place == target_of_row, p - 1.0, p)
        gradient = tl.where(counts, gradient, 0.0).to(logits.dtype.element_ty)
        tl.store(start + place, gradient, mask=place < COLUMNS)
