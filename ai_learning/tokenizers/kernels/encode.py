# mypy: ignore-errors
# (numba gives the types: every value is an int64)
"""A text into ids: words are looked up in a cache, and merged when they are new.

A slot of the cache is four int64. A word of up to 15 bytes is its own key: 15 bytes and, in the top byte, the
length. Longer ones have a hash, and (sign bit, 23 bits of length, 40 bits of place in the arena). Up to three
ids are packed in the third number, 20 bits each, their count above; more are in the pool: place << 24 | count
in the fourth.
"""

from .machine import kernel, load8, load32, load64, lowest_bit, shr, store8, store32, store64
from .merge import first_seam, merge_long, merge_short
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
    JOINTS,
    LONG_KEY,
    MASKS,
    MAX_CACHED,
    N_FIELDS,
    NEEDED,
    OUT,
    POOL,
    POOL_SIZE,
    POOL_USED,
    POSITION,
    SCRATCH_WORD,
    SLOT,
    STARTS,
    WORD,
)

NEED_SCRATCH = -1
_UNCUT = 32  # bytes; longer words (text without spaces, mostly new) are cut at seams into ones seen before
_BYTES_TO_SCAN = 128  # up to here rescanning for the best pair beats a heap


@kernel
def hash_long(place, n):
    """Hash of ``n`` >= 8 bytes, eight at a time; the last eight overlap."""
    value = n * HASH_2
    for i in range(0, n - 7, 8):
        value = (value ^ load64(place + i)) * HASH_1
        value ^= shr(value, 29)
    value = (value ^ load64(place + n - 8)) * HASH_1
    return value ^ shr(value, 32)


@kernel
def same_bytes(a, b, n):
    """Whether ``n`` >= 8 bytes at two places are the same."""
    for i in range(0, n - 7, 8):
        if load64(a + i) != load64(b + i):
            return False
    return load64(a + n - 8) == load64(b + n - 8)


@kernel
def copy_bytes(source, target, n):
    """Copy ``n`` bytes; up to seven more are written behind."""
    for i in range(0, n, 8):
        store64(target + i, load64(source + i))


@kernel
def put_in_slot(state, slot, first, second, place, n, ids, count):
    """Remember a word in its free slot; forgets all words first when there is no more room.

    After forgetting, this word is not remembered until it comes again.
    """
    used = load64(state + 8 * CACHE_USED)
    arena_used, pool_used = load64(state + 8 * ARENA_USED), load64(state + 8 * POOL_USED)
    if (
        used >= load64(state + 8 * CACHE_LIMIT)
        or arena_used + n + 8 > load64(state + 8 * ARENA_SIZE)
        or pool_used + count > load64(state + 8 * POOL_SIZE)
    ):
        cache = load64(state + 8 * CACHE)
        for i in range(SLOT // 8 << load64(state + 8 * CACHE_BITS)):
            store64(cache + 8 * i, 0)
        store64(state + 8 * CACHE_USED, 0)
        store64(state + 8 * ARENA_USED, 0)
        store64(state + 8 * POOL_USED, 0)
        return
    if second < 0:
        copy_bytes(place, load64(state + 8 * ARENA) + arena_used, n)
        second |= arena_used
        store64(state + 8 * ARENA_USED, arena_used + n)
    packed = 0
    if count <= 3:
        packed = count << 60
        for i in range(count):
            packed |= load32(ids + 4 * i) << 20 * i
    else:
        pool = load64(state + 8 * POOL)
        for i in range(count):
            store32(pool + 4 * (pool_used + i), load32(ids + 4 * i))
        store64(slot + 24, pool_used << 24 | count)
        store64(state + 8 * POOL_USED, pool_used + count)
    store64(slot, first)
    store64(slot + 8, second)
    store64(slot + 16, packed)
    store64(state + 8 * CACHE_USED, used + 1)


@kernel
def encode_text(text, end, out, state):
    """Encode ``end`` bytes of UTF-8 at ``text``; uint32 ids go to ``out``, which has room for ``end`` + 8.

    The state says where to go on (all zero for a new text, as it is left at the end).

    Returns:
        How many ids, or NEED_SCRATCH (state NEEDED: for a word of how many bytes): make room and call again.
    """
    cache = load64(state + 8 * CACHE)
    bits = load64(state + 8 * CACHE_BITS)
    masks = load64(state + 8 * MASKS)
    arena = load64(state + 8 * ARENA)
    pool = load64(state + 8 * POOL)
    joints = load64(state + 8 * JOINTS)
    wrap = (1 << bits) - 1
    position = load64(state + 8 * POSITION)
    base = load64(state + 8 * BASE)
    starts = load64(state + 8 * STARTS)
    carry = load64(state + 8 * CARRY)
    word = load64(state + 8 * WORD)
    target = out + 4 * load64(state + 8 * OUT)
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
        if n > _UNCUT:
            n = first_seam(joints, place, n)
            stop = word + n
        if n < 16:
            first = load64(place) & load64(masks + 16 * n)
            second = load64(place + 8) & load64(masks + 16 * n + 8) | n << 56
            slot = shr((first + second * HASH_2) * HASH_1, 64 - bits)
            where = cache + SLOT * slot
            while load64(where + 8) != second or load64(where) != first:
                if load64(where + 8) == 0:
                    break
                slot = slot + 1 & wrap
                where = cache + SLOT * slot
            hit = load64(where + 8) != 0
        elif n <= load64(state + 8 * MAX_CACHED):
            first = hash_long(place, n)
            second = LONG_KEY | n << 40
            slot = shr(first, 64 - bits)
            where = cache + SLOT * slot
            hit = False
            while True:
                key = load64(where + 8)
                if key == 0:
                    break
                same = load64(where) == first and shr(key, 40) == shr(second, 40)
                if same and same_bytes(place, arena + (key & (1 << 40) - 1), n):
                    hit = True
                    break
                slot = slot + 1 & wrap
                where = cache + SLOT * slot
        else:
            if n > load64(state + 8 * SCRATCH_WORD):
                store64(state + 8 * POSITION, position)
                store64(state + 8 * BASE, base)
                store64(state + 8 * STARTS, starts)
                store64(state + 8 * CARRY, carry)
                store64(state + 8 * WORD, word)
                store64(state + 8 * OUT, (target - out) >> 2)
                store64(state + 8 * NEEDED, n)
                return NEED_SCRATCH
            target += 4 * merge_long(state, place, n, target)
            word = stop
            continue
        if hit:
            packed = load64(where + 16)
            store32(target, packed & 0xFFFFF)
            store32(target + 4, shr(packed, 20) & 0xFFFFF)
            store32(target + 8, shr(packed, 40) & 0xFFFFF)
            count = shr(packed, 60)
            if count == 0:
                many = load64(where + 24)
                source = pool + 4 * shr(many, 24)
                count = many & 0xFFFFFF
                for i in range(0, 4 * count, 32):  # eight ids at once; up to seven more are written behind
                    store64(target + i, load64(source + i))
                    store64(target + i + 8, load64(source + i + 8))
                    store64(target + i + 16, load64(source + i + 16))
                    store64(target + i + 24, load64(source + i + 24))
        else:
            if n <= _BYTES_TO_SCAN:
                count = merge_short(state, place, n, target)
            else:
                count = merge_long(state, place, n, target)
            put_in_slot(state, where, first, second, place, n, target, count)
        target += 4 * count
        word = stop
    for field in range(POSITION, N_FIELDS):
        store64(state + 8 * field, 0)
    return (target - out) >> 2


@kernel
def encode_copy(source, n, text, out, state):
    """Copy ``n`` bytes at ``source`` to ``text``, where 64 bytes behind can be read; encode them there."""
    whole = n & ~7
    for i in range(0, whole, 8):
        store64(text + i, load64(source + i))
    for i in range(whole, n):
        store8(text + i, load8(source + i))
    return encode_text(text, n, out, state)


@kernel
def seed_cache(tokens, ends, ids, n, out, state):
    """Encode every token as a word by itself, which leaves it in the cache; the state has no split pattern.

    Args:
        tokens: the bytes of all tokens, one after the other.
        ends: int64, where each ends.
        ids: uint32, the id of each.
        n: how many.
        out: room for the ids of the longest.
        state: of the encoder.

    Returns:
        How many are reached by merges: encoded alone they give their own id.
    """
    reached = start = 0
    for i in range(n):
        end = load64(ends + 8 * i)
        count = encode_text(tokens + start, end - start, out, state)
        if count == 1 and load32(out) == load32(ids + 4 * i):
            reached += 1
        start = end
    return reached
