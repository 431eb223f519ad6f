# mypy: ignore-errors
"""The Triton kernels behind `nf4_triton`; importing this module imports triton."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


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
def _two_words(words, place, mask):
    """16 bytes of each thread (4, 8, WARPS), 8 a word, which are read at once."""
    both = place[:, :, :, None] + tl.arange(0, 2)[None, None, None, :]
    if mask is None:
        loaded = tl.load(words + both)
    else:
        loaded = tl.load(words + both, mask=mask[:, :, :, None], other=0)
    return tl.split(loaded)


@triton.jit
def _places(row, rows, unit, quarters):
    """Where a thread's codes of a unit begin in two rows, in words, and how many quarters of these follow.

    Rows that are none are read as the last: what comes of them is not stored.
    """
    quarter = 4 * unit + tl.arange(0, 4)[:, None, None]
    upper, lower = tl.minimum(row, rows - 1).to(tl.int64), tl.minimum(row + 8, rows - 1).to(tl.int64)
    return 2 * (upper * quarters + quarter), 2 * (lower * quarters + quarter), quarters - 1 - quarter


@triton.jit
def _codes(words, upper, lower, left, n: tl.constexpr, WHOLE: tl.constexpr):
    """32 codes of either row, of the n-th unit from these places on; past the rows' end the last (x is 0)."""
    further = 8 * n if WHOLE else 2 * tl.minimum(4 * n, left)
    a0, a1 = _two_words(words, upper + further, None)
    b0, b1 = _two_words(words, lower + further, None)
    return a0, a1, b0, b1


@triton.jit
def _stored_scales(absmax, row, rows, unit, quarters, BLOCKSIZE: tl.constexpr, AS_ONE: tl.constexpr):
    """Absmax of a unit's two halves, as stored, and their blocks."""
    first_quarter = tl.minimum(row, rows - 1).to(tl.int64) * quarters
    if AS_ONE:  # a block each, and a byte each, beginning at an even place
        block = (first_quarter + tl.minimum(4 * unit, quarters - 4)) >> 1
        both = tl.load(absmax.to(tl.pointer_type(tl.uint16)) + (block >> 1)).to(tl.int32)
        first, second, block_2 = both & 255, both >> 8, block + 1
    else:
        block = (first_quarter + tl.minimum(4 * unit, quarters - 1)) // (BLOCKSIZE // 32)
        block_2 = (first_quarter + tl.minimum(4 * unit + 2, quarters - 1)) // (BLOCKSIZE // 32)
        first, second = tl.load(absmax + block), tl.load(absmax + block_2)
    return first, second, block, block_2


@triton.jit
def _scale(stored, block, dynamic, nested_absmax, mean, scales, NESTED: tl.constexpr, SCALE: tl.constexpr):
    """`_absmax`, of what is loaded; the code's value is read from this thread's copy of the table."""
    if NESTED:
        if SCALE == "":
            inner = tl.load(dynamic + stored.to(tl.int32))
        else:
            inner = tl.inline_asm_elementwise(
                SCALE, "=f,r,r", [stored.to(tl.int32), scales], dtype=tl.float32, is_pure=True, pack=1
            )
        scale = inner * tl.load(nested_absmax + (block >> 8)) + mean
    else:
        scale = stored
    return scale


@triton.jit
def _sums(
    a0, a1, b0, b1, x0, x1, x2, x3, x4, x5, x6, x7, table, pairs,
    n: tl.constexpr, X: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Σ value · x over a unit of two rows, a and b: of its first half and of its second, right for t = n.

    All are (4, 8, WARPS). a0 and a1, b0 and b1 are 16 codes each, in 8 bytes; x0 to x7 are 4 elements of x
    each. Those of thread (t, g) are of quarter t of the unit g // 2, but 0 where g is even and the quarter in
    the second half, or g odd and it in the first.
    """
    if SUMS != "":
        a_1, a_2, b_1, b_2 = tl.inline_asm_elementwise(
            SUMS, "=f,=f,=f,=f" + ",l" * 12 + ",r", [a0, a1, b0, b1, x0, x1, x2, x3, x4, x5, x6, x7, pairs],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=False, pack=1,
        )  # fmt: skip
    else:  # what tensor cores do, for the interpreter
        a_1, a_2 = tl.zeros(a0.shape, tl.float32), tl.zeros(a0.shape, tl.float32)
        b_1, b_2 = tl.zeros(a0.shape, tl.float32), tl.zeros(a0.shape, tl.float32)
        g = tl.arange(0, 8)[None, :, None]
        for e in tl.static_range(32):
            place: tl.constexpr = 8 * (e % 16 // 2) + 4 * (1 - e % 2)
            four = (x0, x1, x2, x3, x4, x5, x6, x7)[e // 4]
            x_e = (four >> (16 * (e % 4))).to(tl.int16).to(X, bitcast=True).to(tl.float32)
            a = tl.load(table + ((a0 if e < 16 else a1) >> place & 15))
            b = tl.load(table + ((b0 if e < 16 else b1) >> place & 15))
            x_1 = tl.sum(tl.where(g == 2 * n, x_e, 0.0), axis=1)[:, None, :]
            x_2 = tl.sum(tl.where(g == 2 * n + 1, x_e, 0.0), axis=1)[:, None, :]
            a_1 += tl.sum(a * x_1, axis=0)[None, :, :]
            a_2 += tl.sum(a * x_2, axis=0)[None, :, :]
            b_1 += tl.sum(b * x_1, axis=0)[None, :, :]
            b_2 += tl.sum(b * x_2, axis=0)[None, :, :]
    return a_1, a_2, b_1, b_2


@triton.jit
def multiply(
    packed, table, absmax, dynamic, nested_absmax, offset, x, bias, out, byte_values, rows, columns,
    NESTED: tl.constexpr, BIAS: tl.constexpr, BLOCKSIZE: tl.constexpr, WARPS: tl.constexpr,
    WHOLE: tl.constexpr, AS_ONE: tl.constexpr, TABLES: tl.constexpr, SUMS: tl.constexpr,
    SCALE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out (rows,) = W x + bias, 16 rows at a time. A row is whole blocks of 64 or more, x has 16 bits.

    A warp's threads are (4, 8), t and g. They take a unit of 128 columns of 16 rows: thread (t, g) its t-th
    quarter of rows g and g + 8. Tensor cores multiply, and add up over t. After four units, thread (t, g)
    takes the sums of the t-th, and multiplies them by their scales. A program's warps share the columns.

    TABLES, SUMS and SCALE are PTX (`nf4_ptx`); without them, the values are read from the table. WHOLE: the
    columns are whole steps of all warps. AS_ONE: see `_stored_scales`. EARLY: start before the kernel before
    this one ends; before ``gdc_wait`` only what no kernel writes may be read.
    """
    if EARLY:
        gdc_launch_dependents()
    t, g = tl.arange(0, 4)[:, None, None], tl.arange(0, 8)[None, :, None]
    warp = tl.arange(0, WARPS)[None, None, :]
    everywhere = 0 * (t + g + warp)
    quarters = columns // 32  # of a row
    words, x_words = packed.to(tl.pointer_type(tl.int64)), x.to(tl.pointer_type(tl.int64))
    tile, unit = tl.program_id(0), 4 * warp + everywhere
    # What a unit needs is asked for two units ahead.
    upper, lower, left = _places(tile * 16 + g, rows, unit, quarters)
    a0, a1, b0, b1 = _codes(words, upper, lower, left, 0, WHOLE)
    c0, c1, d0, d1 = _codes(words, upper, lower, left, 1, WHOLE)
    pairs, scales, mean = 0, 0, 0.0
    if TABLES != "":
        pairs, scales = tl.inline_asm_elementwise(
            TABLES, "=r,=r,l,l", [byte_values.to(tl.int64), dynamic.to(tl.int64)],
            dtype=(tl.int32, tl.int32), is_pure=False, pack=1,
        )  # fmt: skip
    if NESTED:
        mean = tl.load(offset)
    total_a, total_b = tl.zeros((4, 8, WARPS), tl.float32), tl.zeros((4, 8, WARPS), tl.float32)
    if EARLY:
        gdc_wait()
    steps = tl.cdiv(quarters, 16 * WARPS)  # of four units a warp
    tiles = tl.cdiv(tl.cdiv(rows, 16) - tile, tl.num_programs(0))
    begin = 0  # the step's first unit
    for _ in range(tiles * steps):
        ends = 4 * (begin + 4 * WARPS) >= quarters
        next_tile, next_begin = tile, begin + 4 * WARPS
        if ends:
            next_tile, next_begin = tile + tl.num_programs(0), 0
        row, unit = tile * 16 + g, begin + 4 * warp + everywhere
        next_upper, next_lower, next_left = _places(
            next_tile * 16 + g, rows, next_begin + 4 * warp + everywhere, quarters
        )
        scale_a, scale_a2, block_a, block_a2 = _stored_scales(
            absmax, row, rows, unit + t, quarters, BLOCKSIZE, AS_ONE
        )
        scale_b, scale_b2, block_b, block_b2 = _stored_scales(
            absmax, row + 8, rows, unit + t, quarters, BLOCKSIZE, AS_ONE
        )
        quarter = 4 * (unit + g // 2) + t
        wanted = g % 2 + everywhere == t // 2
        if not WHOLE:
            wanted = wanted & (quarter < quarters)
        x0, x1 = _two_words(x_words, 8 * quarter, wanted)
        x2, x3 = _two_words(x_words, 8 * quarter + 2, wanted)
        x4, x5 = _two_words(x_words, 8 * quarter + 4, wanted)
        x6, x7 = _two_words(x_words, 8 * quarter + 6, wanted)
        sum_a, sum_a2 = tl.zeros((4, 8, WARPS), tl.float32), tl.zeros((4, 8, WARPS), tl.float32)
        sum_b, sum_b2 = tl.zeros((4, 8, WARPS), tl.float32), tl.zeros((4, 8, WARPS), tl.float32)
        for n in tl.static_range(4):
            if n < 2:
                e0, e1, f0, f1 = _codes(words, upper, lower, left, n + 2, WHOLE)
            else:
                e0, e1, f0, f1 = _codes(words, next_upper, next_lower, next_left, n - 2, WHOLE)
            a_1, a_2, b_1, b_2 = _sums(
                a0, a1, b0, b1, x0, x1, x2, x3, x4, x5, x6, x7, table, pairs, n, x.dtype.element_ty, SUMS
            )
            sum_a, sum_a2 = tl.where(t == n, a_1, sum_a), tl.where(t == n, a_2, sum_a2)
            sum_b, sum_b2 = tl.where(t == n, b_1, sum_b), tl.where(t == n, b_2, sum_b2)
            a0, a1, b0, b1, c0, c1, d0, d1 = c0, c1, d0, d1, e0, e1, f0, f1
        total_a += sum_a * _scale(scale_a, block_a, dynamic, nested_absmax, mean, scales, NESTED, SCALE)
        total_a += sum_a2 * _scale(scale_a2, block_a2, dynamic, nested_absmax, mean, scales, NESTED, SCALE)
        total_b += sum_b * _scale(scale_b, block_b, dynamic, nested_absmax, mean, scales, NESTED, SCALE)
        total_b += sum_b2 * _scale(scale_b2, block_b2, dynamic, nested_absmax, mean, scales, NESTED, SCALE)
        if ends:
            result = tl.sum(tl.sum(tl.join(total_a, total_b), axis=0), axis=1)  # (8, 2)
            place = tile * 16 + tl.arange(0, 8)[:, None] + 8 * tl.arange(0, 2)[None, :]
            if BIAS:
                result += tl.load(bias + place, mask=place < rows, other=0.0).to(tl.float32)
            tl.store(out + place, result.to(out.dtype.element_ty), mask=place < rows)
            total_a, total_b = tl.zeros((4, 8, WARPS), tl.float32), tl.zeros((4, 8, WARPS), tl.float32)
        tile, begin, upper, lower, left = next_tile, next_begin, next_upper, next_lower, next_left


@triton.jit
def multiply_blocks(
    packed, table, absmax, dynamic, nested_absmax, offset, x, bias, out, columns,
    NESTED: tl.constexpr, BIAS: tl.constexpr, BLOCKSIZE: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """A row at a time, of whole blocks of 32 or more. A thread takes 32 elements, which have one scale."""
    row, in_row = tl.program_id(0).to(tl.int64), columns // 32
    total = tl.zeros((GROUPS, 4), tl.float32)
    for begin in range(0, in_row, GROUPS):
        group = begin + tl.arange(0, GROUPS)
        inside = group < in_row
        block = row * (columns // BLOCKSIZE) + group // (BLOCKSIZE // 32)
        scale = _absmax(block, absmax, dynamic, nested_absmax, offset, inside, NESTED)
        unscaled = tl.zeros((GROUPS, 4), tl.float32)
        for part in tl.static_range(4):
            place = row * (columns // 2) + (group * 16 + part * 4)[:, None] + tl.arange(0, 4)[None, :]
            byte = tl.load(packed + place, mask=inside[:, None], other=0).to(tl.int32)
            element = (group * 32 + part * 8)[:, None] + tl.arange(0, 8)[None, :]
            pairs = tl.load(x + element, mask=inside[:, None], other=0.0).to(tl.float32)
            x_first, x_second = tl.split(tl.reshape(pairs, (GROUPS, 4, 2)))
            unscaled += tl.load(table + (byte >> 4)) * x_first + tl.load(table + (byte & 15)) * x_second
        total += unscaled * scale[:, None]
    result = tl.sum(tl.sum(total, axis=1), axis=0)
    if BIAS:
        result += tl.load(bias + row).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty))


@triton.jit
def multiply_any(
    packed, table, absmax, dynamic, nested_absmax, offset, x, bias, out, rows, columns, blocksize,
    NESTED: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS rows where a block may go on in the next one, COLUMNS bytes of each at a time."""
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
