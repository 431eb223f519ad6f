# mypy: ignore-errors
"""The Triton kernels behind `nf4_triton`; importing this module imports triton."""

import triton
import triton.language as tl


@triton.jit
def _absmax(block, absmax, dynamic, nested_absmax, offset, mask, NESTED: tl.constexpr):
    """Scales of the blocks with these numbers."""
    if NESTED:  # an 8-bit code, its own block's scale, and the mean that was taken away (QLoRA, section 3)
        code = tl.load(absmax + block, mask=mask, other=0).to(tl.int32)
        scale = tl.load(nested_absmax + block // 256, mask=mask, other=0.0)
        return tl.load(dynamic + code) * scale + tl.load(offset)
    return tl.load(absmax + block, mask=mask, other=0.0)


@triton.jit
def dequantize(
    packed, table, absmax, dynamic, nested_absmax, offset, out, n, blocksize,
    NESTED: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """BYTES bytes of codes → 2 · BYTES elements of out (n,)."""
    place = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)  # of a byte
    inside = 2 * place < n
    byte = tl.load(packed + place, mask=inside, other=0).to(tl.int32)
    # A block is an even number of elements, so both halves of a byte have the same scale.
    scale = _absmax(2 * place // blocksize, absmax, dynamic, nested_absmax, offset, inside, NESTED)
    first = tl.load(table + (byte >> 4)) * scale
    second = tl.load(table + (byte & 15)) * scale
    values = tl.interleave(first, second)  # side by side again, so that a warp writes whole lines
    element = tl.program_id(0).to(tl.int64) * (2 * BYTES) + tl.arange(0, 2 * BYTES)
    tl.store(out + element, values.to(out.dtype.element_ty), mask=element < n)


@triton.jit
def multiply(
    packed, table, absmax, dynamic, nested_absmax, offset, x, bias, out, rows, columns, blocksize,
    NESTED: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of W, COLUMNS bytes of each at a time: out (rows,) = W x + bias."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    start = row.to(tl.int64)[:, None] * columns  # the row's first element
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for column in range(0, columns, 2 * COLUMNS):
        element = column + 2 * tl.arange(0, COLUMNS)  # the first of each byte's two
        inside = element < columns
        mask = there[:, None] & inside[None, :]
        place = start + element[None, :]
        byte = tl.load(packed + place // 2, mask=mask, other=0).to(tl.int32)
        scale = _absmax(place // blocksize, absmax, dynamic, nested_absmax, offset, mask, NESTED)
        # Rounded to the dtype of x, as the weight of the two-step product is.
        first = (tl.load(table + (byte >> 4)) * scale).to(x.dtype.element_ty).to(tl.float32)
        second = (tl.load(table + (byte & 15)) * scale).to(x.dtype.element_ty).to(tl.float32)
        x_first = tl.load(x + element, mask=inside, other=0.0).to(tl.float32)
        x_second = tl.load(x + element + 1, mask=inside, other=0.0).to(tl.float32)
        total += tl.where(mask, first * x_first[None, :] + second * x_second[None, :], 0.0)
    result = tl.sum(total, axis=1)
    if BIAS:
        result += tl.load(bias + row, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=there)
