"""Instructions of NVIDIA's GPUs (PTX) that `nf4_triton_kernels.multiply` needs, and Triton does not know.

To multiply a 4-bit weight by one token takes little reading, and so few instructions may be spent on a
number. Here two are looked up at once, by their byte of codes, in shared memory, and tensor cores multiply
and add: two and a half instructions a number. $0, $1, … are what `tl.inline_asm_elementwise` puts there:
results first.
"""

import torch


def _tables(nested: bool) -> str:
    """Fill shared memory: with the values of each byte, from $2, and of each absmax code, from $3.

    Threads that read from the same bank of that memory at once wait for each other. So each thread of a warp
    has a copy of the first table in a bank of its own: byte b of copy c lies at 4 · (32 b + c). Of the
    second, which is read less, there are 8, at 4 · (8 b + c). A thread writes 16 bytes at a time, to other
    banks than its neighbours.

    Results: where this thread's copies begin, $0 of the first table and $1 of the second.
    """
    lines = [
        ".shared .align 128 .b8 tables[40960];",
        ".reg .b32 n, step, value, part, to; .reg .b64 from; .reg .pred more;",
        "mov.u32 n, %tid.x; mov.u32 step, %ntid.x; mov.u32 $0, tables;",
        "BYTE:",
        "mul.wide.u32 from, n, 4; add.s64 from, from, $2; ld.global.b32 value, [from];",
    ]
    for k in range(8):
        lines += [
            f"add.u32 part, n, {k}; and.b32 part, part, 7; mad.lo.u32 part, n, 8, part;",
            "mad.lo.u32 to, part, 16, $0; st.shared.v4.b32 [to], {value, value, value, value};",
        ]
    if nested:
        lines += ["mul.wide.u32 from, n, 4; add.s64 from, from, $3; ld.global.b32 value, [from];"]
        for k in range(2):
            lines += [
                f"shr.u32 part, n, 2; add.u32 part, part, {k}; and.b32 part, part, 1;",
                "mad.lo.u32 part, n, 2, part; mad.lo.u32 to, part, 16, $0;",
                "st.shared.v4.b32 [to + 32768], {value, value, value, value};",
            ]
    lines += [
        "add.u32 n, n, step; setp.lt.u32 more, n, 256; @more bra BYTE;",
        "bar.sync 0;",
        "mov.u32 n, %tid.x; and.b32 part, n, 7; mad.lo.u32 $1, part, 4, $0; add.u32 $1, $1, 32768;",
        "and.b32 part, n, 31; mad.lo.u32 $0, part, 4, $0;",
    ]
    return "{ " + " ".join(lines) + " }"


def _sums(kind: str) -> str:
    """The sums $0 to $3 of a unit (`nf4_triton_kernels._sums`): codes $4 to $7, x in $8 to $15, table $16.

    ``mma`` multiplies 16 × 16 values by 16 × 8 of x. Of the values thread (t, g) has 4 of row g and 4 of row
    g + 8, of x 4 of column g; which columns of the weight they stand for is free, as long as both are of the
    same. Of the sums over all t it gets columns 2t and 2t + 1 of its rows. So where columns 2n and 2n + 1 are
    x of the n-th unit, thread t = n gets the sums of that unit's first half and its second.

    All wait for each other first: what is asked for ahead is then really asked for before this.
    """
    lines = [
        "bar.warp.sync 0xffffffff;",
        *(f"mov.b64 {{code{2 * n}, code{2 * n + 1}}}, ${4 + n};" for n in range(4)),
        *(f"mov.b64 {{x{2 * n}, x{2 * n + 1}}}, ${8 + n};" for n in range(8)),
        "mov.f32 $0, 0f00000000; mov.f32 $1, $0; mov.f32 $2, $0; mov.f32 $3, $0;",
    ]
    for n in range(0, 16, 2):  # two bytes of either row
        for m, byte in enumerate((n, n + 16, n + 1, n + 17)):
            lines += [
                f"prmt.b32 w{m}, code{byte // 4}, 0, 0x444{byte % 4}; mad.lo.u32 w{m}, w{m}, 128, $16;",
                f"ld.shared.b32 w{m}, [w{m}];",
            ]
        lines.append(
            f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{$0, $1, $2, $3}}, "
            f"{{w0, w1, w2, w3}}, {{x{n}, x{n + 1}}}, {{$0, $1, $2, $3}};"
        )
    return "{ .reg .b32 code<8>, x<16>, w<4>; " + " ".join(lines) + " }"


TABLES = {nested: _tables(nested) for nested in (False, True)}
"""by whether the absmax values are quantized too"""
SUMS = {torch.bfloat16: _sums("bf16"), torch.float16: _sums("f16")}
"""by the dtype of x"""
SCALE = "{ .reg .b32 at; mad.lo.u32 at, $1, 32, $2; ld.shared.f32 $0, [at]; }"
"""The value $0 of an absmax code $1, from the thread's copy of the table $2."""
