# mypy: ignore-errors
# (numba gives the types: every value is an int64)
"""Counting the words of a text.

The table is that of the encoder (same state, same keys), but the third number of a slot is the index of the
word in order of first appearance, and the fourth its count. The bytes of all words are in the arena; POOL
holds the int64 offset of each.
"""

from .encode import copy_bytes, hash_long, same_bytes
from .machine import kernel, load64, lowest_bit, shr, store64
from .split import next_block
from .state import (
    ARENA,
    ARENA_SIZE,
    ARENA_USED,
    BASE,
    CACHE,
    CACHE_BITS,
    CACHE_LIMIT,
    CACHE_USED,
    CARRY,
    HASH_1,
    HASH_2,
    LONG_KEY,
    MASKS,
    N_FIELDS,
    POOL,
    POSITION,
    SLOT,
    STARTS,
    WORD,
)

COUNTED, NEED_ROOM = 0, 1


@kernel
def count_words(text, end, times, state):
    """Count each word of ``end`` bytes at ``text`` ``times`` times.

    Returns:
        COUNTED, or NEED_ROOM: double the memory and call again, to go on where it stopped.
    """
    table = load64(state + 8 * CACHE)
    bits = load64(state + 8 * CACHE_BITS)
    masks = load64(state + 8 * MASKS)
    arena = load64(state + 8 * ARENA)
    offsets = load64(state + 8 * POOL)
    wrap = (1 << bits) - 1
    position = load64(state + 8 * POSITION)
    base = load64(state + 8 * BASE)
    starts = load64(state + 8 * STARTS)
    carry = load64(state + 8 * CARRY)
    word = load64(state + 8 * WORD)
    while True:
        if starts:
            stop = base + lowest_bit(starts)
            if stop == word:
                starts &= starts - 1
                continue
        elif position < end:
            base = position
            starts, length, carry = next_block(text, position, end, state, carry)
            position += length
            continue
        elif word < end:
            stop = end
        else:
            break
        place = text + word
        n = stop - word
        if n < 16:
            first = load64(place) & load64(masks + 16 * n)
            second = load64(place + 8) & load64(masks + 16 * n + 8) | n << 56
            slot = shr((first + second * HASH_2) * HASH_1, 64 - bits)
            where = table + SLOT * slot
            while load64(where + 8) != second or load64(where) != first:
                if load64(where + 8) == 0:
                    break
                slot = slot + 1 & wrap
                where = table + SLOT * slot
        else:
            first = hash_long(place, n)
            second = LONG_KEY | n
            slot = shr(first, 64 - bits)
            where = table + SLOT * slot
            while load64(where + 8) != 0:
                same = load64(where + 8) == second and load64(where) == first
                if same and same_bytes(place, arena + load64(offsets + 8 * load64(where + 16)), n):
                    break
                slot = slot + 1 & wrap
                where = table + SLOT * slot
        if load64(where + 8) == 0:
            used, arena_used = load64(state + 8 * CACHE_USED), load64(state + 8 * ARENA_USED)
            if used >= load64(state + 8 * CACHE_LIMIT) or arena_used + n + 8 > load64(state + 8 * ARENA_SIZE):
                store64(state + 8 * POSITION, position)
                store64(state + 8 * BASE, base)
                store64(state + 8 * STARTS, starts)
                store64(state + 8 * CARRY, carry)
                store64(state + 8 * WORD, word)
                return NEED_ROOM
            store64(where, first)
            store64(where + 8, second)
            store64(where + 16, used)
            copy_bytes(place, arena + arena_used, n)
            store64(offsets + 8 * used, arena_used)
            store64(offsets + 8 * used + 8, arena_used + n)
            store64(state + 8 * CACHE_USED, used + 1)
            store64(state + 8 * ARENA_USED, arena_used + n)
        store64(where + 24, load64(where + 24) + times)
        word = stop
    for field in range(POSITION, N_FIELDS):
        store64(state + 8 * field, 0)
    return COUNTED


@kernel
def add_counts(words, offsets, counts, start, n, state):
    """Add the words ``start`` to ``n`` of another counter; the state has no split pattern.

    Returns:
        The word to go on with once there is more room; ``n`` when done.
    """
    for i in range(start, n):
        begin = load64(offsets + 8 * i)
        size = load64(offsets + 8 * i + 8) - begin
        if count_words(words + begin, size, load64(counts + 8 * i), state) == NEED_ROOM:
            return i
    return n


@kernel
def rehash(old, old_bits, new, new_bits):
    """Move all slots of one table into a larger one."""
    for i in range(1 << old_bits):
        source = old + SLOT * i
        first, second = load64(source), load64(source + 8)
        if second == 0:
            continue
        slot = first if second < 0 else (first + second * HASH_2) * HASH_1
        slot = shr(slot, 64 - new_bits)
        while load64(new + SLOT * slot + 8) != 0:
            slot = slot + 1 & (1 << new_bits) - 1
        for field in range(4):
            store64(new + SLOT * slot + 8 * field, load64(source + 8 * field))


@kernel
def counts_in_order(table, bits, out):
    """Write the count of each word (int64), in order of first appearance."""
    for i in range(1 << bits):
        slot = table + SLOT * i
        if load64(slot + 8) != 0:
            store64(out + 8 * load64(slot + 16), load64(slot + 24))
