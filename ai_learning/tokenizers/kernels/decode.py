# mypy: ignore-errors
# (numba gives the types: every value is an int64)
"""Ids into bytes."""

from .machine import kernel, load32, load64, locked_kernel, store32, store64


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


@locked_kernel
def decoded_size_of_list(ids, n, int_type, one_digit, zero, records, vocab_size, out):
    """``decoded_size`` of a list of Python integers, which are also written to ``out`` (uint32).

    In CPython a list is its reference count, type, length, and the address of its items' addresses; an
    integer is its reference count, type, number of digits, and digits of 30 bits. ``fast.list_layout`` makes
    sure.

    Args:
        ids: address of the list.
        n: its length.
        int_type: address of the type ``int``.
        one_digit: how the number of digits of a small positive integer is written.
        zero: and that of 0, which has none.
        records: see ``decode_ids``.
        vocab_size: see ``decoded_size``.
        out: room for ``n`` ids.

    Returns:
        Bytes, or a negative number if an item is no integer, too great, or not in the vocabulary.
    """
    total = 0
    items = load64(ids + 24)
    if load64(ids + 16) != n:
        return -1  # it has changed meanwhile
    for i in range(n):
        place = load64(items + 8 * i)
        if load64(place + 8) != int_type:
            return -1 - i
        digits = load64(place + 16)
        token = load32(place + 24)
        if digits != one_digit:
            if digits != zero:
                return -1 - i
            token = 0
        if token >= vocab_size:
            return -1 - i
        size = load32(records + 24 * token + 20)
        if size == 0xFFFFFFFF:
            return -1 - i
        store32(out + 4 * i, token)
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
