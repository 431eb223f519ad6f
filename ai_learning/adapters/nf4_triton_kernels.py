# mypy: ignore-errors
"""The Triton kernels behind `nf4_triton`; importing this module imports triton."""

import triton
import triton.language as tl


@triton.jit
def _absmax(block, absmax, dynamic, nested_absmax, offset, mask, NESTED: tl.constexpr):
    """Scales of the blocks with these numbers."""
    if NESTED:  # an 8-bit code, its own block's scale, and the mean that was taken away (QLoRA, section 3)
        code = tl.load(absmax + block, mask=mask, other=0).to(tl.int32)
        outer = tl.load(nested_absmax + (block >> 8), mask=mask, other=0.0)
        scale = tl.load(dynamic + code) * outer + tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=mask, other=0.0)
    return scale


@triton.jit
def dequantize(
    packed, table, absmax, dynamic, nested_absmax, offset, out, n,
    NESTED: tl.constexpr, BLOCKS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """BLOCKS blocks, of BYTES bytes of codes each, → as many pairs of elements of out (n,)."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    scale = _absmax(block, absmax, dynamic, nested_absmax, offset, block * (2 * BYTES) < n, NESTED)[:, None]
    place = block[:, None] * BYTES + tl.arange(0, BYTES)[None, :]  # of a byte
    byte = tl.load(packed + place, mask=2 * place < n, other=0).to(tl.int32)
    first = tl.load(table + (byte >> 4)) * scale
    second = tl.load(table + (byte & 15)) * scale
    values = tl.interleave(first, second)  # side by side again, so that a warp writes whole lines
    element = block[:, None] * (2 * BYTES) + tl.arange(0, 2 * BYTES)[None, :]
    tl.store(out + element, values.to(out.dtype.element_ty), mask=element < n)


@triton.jit
def multiply(
    packed, table, absmax, dynamic, nested_absmax, offset, x, bias, out, words, rows, columns,
    NESTED: tl.constexpr, BIAS: tl.constexpr, BLOCKSIZE: tl.constexpr, ROWS: tl.constexpr,
    GROUPS: tl.constexpr, LOOK_UP: tl.constexpr,
):  # fmt: skip
    """ROWS rows of W at once: out (rows,) = W x + bias. A row is whole blocks.

    A thread takes groups of 32 elements, which have one scale: 4 times 4 bytes of codes, and the 8 elements
    of x that belong to them. LOOK_UP is PTX that makes 8 values of 4 bytes (`nf4_triton.look_up`); without
    it, they are read from the table.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there, in_row = row < rows, columns // 32  # groups of a row
    first_byte = row.to(tl.int64)[:, None, None] * (columns // 2)
    first_block = row.to(tl.int64)[:, None] * (columns // BLOCKSIZE)
    total = tl.zeros((ROWS, GROUPS, 4), tl.float32)
    if LOOK_UP != "":
        word = words + tl.arange(0, GROUPS)[None, :, None]  # one for each thread
        h0, h1 = tl.load(word), tl.load(word + GROUPS)
        h2, h3 = tl.load(word + 2 * GROUPS), tl.load(word + 3 * GROUPS)
        l0, l1 = tl.load(word + 4 * GROUPS), tl.load(word + 5 * GROUPS)
        l2, l3 = tl.load(word + 6 * GROUPS), tl.load(word + 7 * GROUPS)
    for begin in range(0, in_row, GROUPS):
        group = begin + tl.arange(0, GROUPS)
        inside = group < in_row
        mask = there[:, None] & inside[None, :]  # (ROWS, GROUPS)
        block = first_block + (group // (BLOCKSIZE // 32))[None, :]
        scale = _absmax(block, absmax, dynamic, nested_absmax, offset, mask, NESTED)
        unscaled = tl.zeros((ROWS, GROUPS, 4), tl.float32)
        for part in tl.static_range(4):
            place = (group * 16 + part * 4)[:, None] + tl.arange(0, 4)[None, :]
            byte = tl.load(packed + (first_byte + place[None, :, :]), mask=mask[:, :, None], other=0)
            element = (group * 32 + part * 8)[:, None] + tl.arange(0, 8)[None, :]
            pairs = tl.load(x + element, mask=inside[:, None], other=0.0).to(tl.float32)  # (GROUPS, 8)
            x_first, x_second = tl.split(tl.reshape(pairs, (GROUPS, 4, 2)))
            if LOOK_UP == "":
                code = byte.to(tl.int32)
                first, second = tl.load(table + (code >> 4)), tl.load(table + (code & 15))
            else:
                first, second = tl.inline_asm_elementwise(
                    LOOK_UP, "=r,=r,=r,=r,=r,=r,=r,=r,r" + ",r" * 32,
                    [byte, h0, h1, h2, h3, l0, l1, l2, l3],
                    dtype=(tl.float32, tl.float32), is_pure=True, pack=4,
                )  # fmt: skip
            unscaled += first * x_first[None, :, :]
            unscaled += second * x_second[None, :, :]
        total += unscaled * scale[:, :, None]
    result = tl.sum(tl.sum(total, axis=2), axis=1)
    if BIAS:
        result += tl.load(bias + row, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=there)


@triton.jit
def multiply_any(
    packed, table, absmax, dynamic, nested_absmax, offset, x, bias, out, rows, columns, blocksize,
    NESTED: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The same where a block may go on in the next row, COLUMNS bytes of each row at a time."""
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
        first, second = tl.load(table + (byte >> 4)) * scale, tl.load(table + (byte & 15)) * scale
        x_first = tl.load(x + element, mask=inside, other=0.0).to(tl.float32)
        x_second = tl.load(x + element + 1, mask=inside, other=0.0).to(tl.float32)
        total += tl.where(mask, first * x_first[None, :] + second * x_second[None, :], 0.0)
    result = tl.sum(total, axis=1)
    if BIAS:
        result += tl.load(bias + row, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=there)
