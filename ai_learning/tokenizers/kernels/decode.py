# mypy: ignore-errors
# (numba gives the types: every value is an int64)
"""Ids into bytes."""

from .machine import kernel, load32, load64, store64


@kernel
def decoded_size(ids, n, records, vocab_size):
    """Bytes that ``n`` uint32 ids decode to, or -1 - i if the i-th is not in the vocabulary."""
    total = 0
    for i in range(n):
        token = load32(ids + 4 * i)
        if token >= vocab_size:
            return -1 - i
        size = load32(records + 24 * token + 20)
        if size == 0xFFFFFFFF:
            return -1 - i
        total += size
    return total


@kernel
def decode_ids(ids, n, records, long_tokens, out):
    """Write the bytes of ``n`` ids; up to 16 bytes more are written behind.

    A record is 24 bytes: up to 16 bytes of the token, its place among the long tokens, its length.
    """
    for i in range(n):
        record = records + 24 * load32(ids + 4 * i)
        size = load32(record + 20)
        store64(out, load64(record))
        store64(out + 8, load64(record + 8))
        if size > 16:
            source = long_tokens + load32(record + 16)
            for j in range(0, size, 8):
                store64(out + j, load64(source + j))
        out += size
