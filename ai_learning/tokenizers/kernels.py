# mypy: ignore-errors
# (numba gives the types: every value is an int64)
"""The compiled encoder: splitting, word cache, merges, decoding.

Kernels never allocate and never fail: memory comes from the caller as addresses (see ``machine``), and one
that runs out of it saves its place, says what it needs and is called again. ``fast.py`` is the caller.
"""

from numba import njit

from .machine import classify64, load8, load32, load64, lowest_bit, shr, store8, store32, store64

# Fields of the state: int64 numbers, eight bytes each. Addresses and sizes first, then the place to go on
# from.
(
    CLASSES,  # uint8 of each code point: 0 other, 1 letter, 2 number, 3 space
    MASKS,  # 16 pairs of uint64: which bits of two words hold the first n bytes
    CACHE, CACHE_BITS, CACHE_USED, CACHE_LIMIT,  # slots of four int64: key, key, ids, ids; see encode_text
    ARENA, ARENA_USED, ARENA_SIZE,  # bytes of cached words too long for a key
    POOL, POOL_USED, POOL_SIZE,  # uint32 ids of cached words too many for a slot
    PAIRS, PAIR_BITS,  # left id (20 bits), right id (20), rank (24), open addressing
    NEW_IDS,  # uint32: rank → id
    BYTE_IDS,  # uint32: byte → id
    SCRATCH, SCRATCH_WORD,  # room to merge a word of SCRATCH_WORD bytes, 32 bytes a byte
    MAX_CACHED,  # longer words are merged anew each time
    FAMILY, MAX_DIGITS, WHOLE_TAIL,  # of the split pattern
    POSITION, BASE, STARTS, CARRY, WORD, OUT, NEEDED,
    N_FIELDS,
) = range(30)  # fmt: skip

NONE, GPT2, GPT4 = 0, 1, 2
SLOT = 32  # bytes
EMPTY = -1
NEED_SCRATCH = -1
_LONG_KEY = -(2**63)
_HASH_1, _HASH_2 = -7046029254386353131, -4417276706812531889  # odd, from splitmix64 and xxhash
_BYTES_TO_SCAN = 128  # up to here rescanning for the best pair beats a heap


# --- splitting ----------------------------------------------------------------------------------------------
# A text is cut into blocks of up to 64 bytes that end with a whole character. One bit a byte says what it
# is, and a few shifts say where words start: the "previous byte is a letter" mask is the letter mask shifted
# by one. What the next block needs to know of the last byte of this one is the carry.


@njit(nogil=True, cache=True)
def class_at(classes, place):
    """Class of the character at ``place``, and its length in bytes."""
    first = load8(place)
    if first < 0x80:
        return load8(classes + first), 1
    if first < 0xE0:
        return load8(classes + ((first & 0x1F) << 6 | load8(place + 1) & 0x3F)), 2
    if first < 0xF0:
        point = (first & 0x0F) << 12 | (load8(place + 1) & 0x3F) << 6 | load8(place + 2) & 0x3F
        return load8(classes + point), 3
    point = (first & 0x07) << 18 | (load8(place + 1) & 0x3F) << 12
    point |= (load8(place + 2) & 0x3F) << 6 | load8(place + 3) & 0x3F
    return load8(classes + (point if point < 0x110000 else 0)), 4


@njit(nogil=True, cache=True)
def contraction(place, room, any_case):
    """Bytes of the contraction at the apostrophe at ``place`` ('s, 're …); 0 if there is none."""
    one, two = load8(place + 1), load8(place + 2)
    if any_case:
        if one == 0xC5 and two == 0xBF and room >= 3:  # the long s, which ignoring case makes an s
            return 3
        if one < 0x80:
            one |= 0x20
        if two < 0x80:
            two |= 0x20
    if room >= 2 and (one == 115 or one == 100 or one == 109 or one == 116):  # s d m t
        return 2
    if room >= 3 and (
        (one == 108 and two == 108) or (one == 118 and two == 101) or (one == 114 and two == 101)
    ):  # ll ve re
        return 3
    return 0


@njit(nogil=True, cache=True)
def block_masks(text, position, end, classes):
    """What each byte of the block at ``position`` is.

    Returns:
        length; letters, numbers, spaces, blanks, newlines, apostrophes, bytes above 0x7F, continuation bytes.
    """
    place = text + position
    letters, numbers, spaces, blanks, newlines, apostrophes, high, inside = classify64(place)
    length = min(64, end - position)
    if length < end - position:
        if high:
            while load8(place + length) & 0xC0 == 0x80:  # never cut a character
                length -= 1
        if shr(apostrophes, length - 3):  # nor a contraction: let the next block start with it
            length = length - 3 + lowest_bit(shr(apostrophes, length - 3))
    if length < 64:
        valid = (1 << length) - 1
        letters &= valid
        numbers &= valid
        spaces &= valid
        blanks &= valid
        newlines &= valid
        apostrophes &= valid
        high &= valid
        inside &= valid
    leads = high & ~inside
    while leads:
        i = lowest_bit(leads)
        leads &= leads - 1
        kind, width = class_at(classes, place + i)
        covered = ((1 << width) - 1) << i
        letters |= covered & -(kind == 1)
        numbers |= covered & -(kind == 2)
        spaces |= covered & -(kind == 3)
    return length, letters, numbers, spaces, blanks, newlines, apostrophes, high, inside


@njit(nogil=True, cache=True)
def space_follows(text, position, end, classes):
    """Whether white space goes on at ``position``; 1 at the end of the text, where it is not split."""
    if position >= end:
        return 1
    kind, _ = class_at(classes, text + position)
    return 1 if kind == 3 else 0


@njit(nogil=True, cache=True)
def to_first_byte(bits, inside):
    """Move bits on continuation bytes to the first byte of their character."""
    moving = bits & inside
    while moving:
        bits = (bits & ~moving) | shr(moving, 1)
        moving = bits & inside
    return bits


@njit(nogil=True, cache=True)
def gpt2_block(text, position, end, classes, carry):
    """Where words start in the block at ``position``, by GPT-2's pattern.

    Returns:
        starts (one bit a byte), length of the block, carry.
    """
    length, letters, numbers, spaces, blanks, _, apostrophes, high, inside = block_masks(
        text, position, end, classes
    )
    last = length - 1
    valid = shr(-1, 63 - last)
    other = valid & ~(letters | numbers | spaces)
    after_blank = blanks << 1 | carry & 1
    after_space = spaces << 1 | shr(carry, 1) & 1
    run_end = spaces & ~(shr(spaces, 1) | space_follows(text, position + length, end, classes) << last)
    if high:
        run_end = to_first_byte(run_end, inside)
    # a run of white space gives its last character away; a blank there joins the word that follows
    starts = spaces & ~after_space | run_end
    starts |= letters & ~(letters << 1 | shr(carry, 2) & 1 | after_blank)
    starts |= numbers & ~(numbers << 1 | shr(carry, 3) & 1 | after_blank)
    starts |= other & ~(other << 1 | shr(carry, 4) & 1 | after_blank)
    candidates = apostrophes & starts & shr(letters, 1)
    while candidates:
        i = lowest_bit(candidates)
        candidates &= candidates - 1
        width = contraction(text + position + i, end - position - i, 0)
        if width:
            starts &= ~(1 << i + 1)
            if i + width < length:
                starts |= 1 << i + width
    carry = shr(blanks, last) & 1 | (shr(spaces, last) & 1) << 1 | (shr(letters, last) & 1) << 2
    carry |= (shr(numbers, last) & 1) << 3 | (shr(other, last) & 1) << 4
    return starts, length, carry


@njit(nogil=True, cache=True)
def newline_ahead(text, position, end, classes, whole_tail):
    """Whether white space from ``position`` on holds another newline (or ends the whole text)."""
    while position < end:
        first = load8(text + position)
        if first == 10 or first == 13:
            return 1
        kind, width = class_at(classes, text + position)
        if kind != 3:
            return 0
        position += width
    return whole_tail


@njit(nogil=True, cache=True)
def gpt4_block(text, position, end, classes, carry, max_digits, whole_tail):
    """The same by GPT-4's pattern."""
    length, letters, numbers, spaces, blanks, newlines, apostrophes, high, inside = block_masks(
        text, position, end, classes
    )
    last = length - 1
    valid = shr(-1, 63 - last)
    other = valid & ~(letters | numbers | spaces)
    after_other = other << 1 | shr(carry, 4) & 1
    # newlines right after punctuation belong to it: an addition carries through each such run and clears it
    tail = newlines & ~(newlines + (newlines & (after_other | shr(carry, 5) & 1)))
    spaces_left = spaces & ~tail
    flat = spaces & ~newlines
    after_blank = blanks << 1 | carry & 1
    run_end = flat & ~(shr(spaces, 1) | space_follows(text, position + length, end, classes) << last)
    if high:
        run_end = to_first_byte(run_end, inside)
    starts = spaces_left & ~(spaces_left << 1 | shr(carry, 1) & 1) | run_end
    # white space up to its last newline is one word
    lines = flat & ((newlines & spaces_left) << 1 | shr(carry, 6) & 1)
    while lines:
        i = lowest_bit(lines)
        lines &= lines - 1
        if not newline_ahead(text, position + i, end, classes, whole_tail):
            starts |= 1 << i
    # one character that is no letter, number or newline joins the letters after it
    other_starts = other & ~(after_other | after_blank)
    single = other_starts
    if high & single:
        wide = single & high
        single &= ~wide
        while wide:
            i = lowest_bit(wide)
            wide &= wide - 1
            _, width = class_at(classes, text + position + i)
            single |= 1 << i + width - 1
    starts |= other_starts
    starts |= letters & ~((letters | flat | single) << 1 | shr(carry, 2) & 1)
    digits = shr(carry, 8)
    figures = numbers & ~inside
    if figures:
        goes_on = numbers << 1 | shr(carry, 3) & 1
        while figures:
            i = lowest_bit(figures)
            figures &= figures - 1
            digits = digits + 1 if shr(goes_on, i) & 1 else 0
            if digits == max_digits:
                digits = 0
            if digits == 0:
                starts |= 1 << i
    candidates = apostrophes & other_starts & shr(letters, 1)
    while candidates:
        i = lowest_bit(candidates)
        candidates &= candidates - 1
        width = contraction(text + position + i, end - position - i, 1)
        if width and i + width < length:
            starts |= 1 << i + width
    carry = shr(blanks, last) & 1 | (shr(spaces_left, last) & 1) << 1
    carry |= (shr(letters | flat | single, last) & 1) << 2 | (shr(numbers, last) & 1) << 3
    carry |= (shr(other, last) & 1) << 4 | (shr(tail, last) & 1) << 5
    carry |= (shr(newlines & spaces_left, last) & 1) << 6 | digits << 8
    return starts, length, carry


@njit(nogil=True, cache=True)
def next_block(text, position, end, state, carry):
    """``gpt2_block`` or ``gpt4_block``, as the state says; without a pattern, one word."""
    family = load64(state + 8 * FAMILY)
    classes = load64(state + 8 * CLASSES)
    if family == GPT2:
        return gpt2_block(text, position, end, classes, carry)
    if family == GPT4:
        max_digits, whole_tail = load64(state + 8 * MAX_DIGITS), load64(state + 8 * WHOLE_TAIL)
        return gpt4_block(text, position, end, classes, carry, max_digits, whole_tail)
    return 0, end - position, 0


@njit(nogil=True, cache=True)
def split_starts(text, end, state, out):
    """Write where each word starts (int64) to ``out``; returns how many. To test the splitters alone."""
    position = carry = found = 0
    while position < end:
        starts, length, carry = next_block(text, position, end, state, carry)
        while starts:
            store64(out + 8 * found, position + lowest_bit(starts))
            starts &= starts - 1
            found += 1
        position += length
    return found


# --- merging ------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def pair_rank(pairs, bits, left, right):
    """Rank of a pair, or 2**24 if it is no merge."""
    key = left << 20 | right
    slot = shr(key * _HASH_1, 64 - bits)
    while True:
        entry = load64(pairs + 8 * slot)
        if shr(entry, 24) == key:
            return entry & 0xFFFFFF
        if entry == EMPTY:
            return 1 << 24
        slot = slot + 1 & (1 << bits) - 1


@njit(nogil=True, cache=True)
def add_pairs(pairs, bits, triples, n):
    """Fill the table of pairs from ``n`` rows of three int64: left, right, new id."""
    for rank in range(n):
        key = load64(triples + 24 * rank) << 20 | load64(triples + 24 * rank + 8)
        slot = shr(key * _HASH_1, 64 - bits)
        while load64(pairs + 8 * slot) != EMPTY:
            slot = slot + 1 & (1 << bits) - 1
        store64(pairs + 8 * slot, key << 24 | rank)


@njit(nogil=True, cache=True)
def merge_short(state, place, n, out):
    """Merge the word of ``n`` bytes at ``place``; writes uint32 ids to ``out``, returns how many."""
    pairs, bits = load64(state + 8 * PAIRS), load64(state + 8 * PAIR_BITS)
    new_ids, byte_ids = load64(state + 8 * NEW_IDS), load64(state + 8 * BYTE_IDS)
    ranks = load64(state + 8 * SCRATCH)
    nowhere = 1 << 24
    best, at = nowhere, 0
    right = load32(byte_ids + 4 * load8(place))
    store32(out, right)
    for i in range(1, n):
        left = right
        right = load32(byte_ids + 4 * load8(place + i))
        store32(out + 4 * i, right)
        rank = pair_rank(pairs, bits, left, right)
        store64(ranks + 8 * i - 8, rank)
        if rank < best:
            best, at = rank, i - 1
    while best != nowhere:
        merged = load32(new_ids + 4 * best)
        n -= 1
        for i in range(at + 1, n):  # close the gap; words are short
            store32(out + 4 * i, load32(out + 4 * i + 4))
            store64(ranks + 8 * i - 8, load64(ranks + 8 * i))
        store32(out + 4 * at, merged)
        if at:
            store64(ranks + 8 * at - 8, pair_rank(pairs, bits, load32(out + 4 * at - 4), merged))
        if at + 1 < n:
            store64(ranks + 8 * at, pair_rank(pairs, bits, merged, load32(out + 4 * at + 4)))
        best, at = nowhere, 0
        for i in range(n - 1):
            rank = load64(ranks + 8 * i)
            if rank < best:
                best, at = rank, i
    return n


@njit(nogil=True, cache=True)
def heap_push(heap, size, key):
    """Add ``key`` to a min-heap of ``size`` int64."""
    while size:
        parent = (size - 1) >> 1
        above = load64(heap + 8 * parent)
        if above <= key:
            break
        store64(heap + 8 * size, above)
        size = parent
    store64(heap + 8 * size, key)


@njit(nogil=True, cache=True)
def heap_replace_top(heap, size, key):
    """Put ``key`` in place of the smallest of ``size`` int64."""
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        below = load64(heap + 8 * child)
        if child + 1 < size and load64(heap + 8 * child + 8) < below:
            child += 1
            below = load64(heap + 8 * child)
        if below >= key:
            break
        store64(heap + 8 * hole, below)
        hole = child
    store64(heap + 8 * hole, key)


@njit(nogil=True, cache=True)
def merge_long(state, place, n, out):
    """``merge_short`` in O(n log n), with links between symbols and a heap of (rank, place)."""
    pairs, bits = load64(state + 8 * PAIRS), load64(state + 8 * PAIR_BITS)
    new_ids, byte_ids = load64(state + 8 * NEW_IDS), load64(state + 8 * BYTE_IDS)
    heap = load64(state + 8 * SCRATCH)
    ids = heap + 16 * n
    following = ids + 4 * n
    preceding = following + 4 * n
    gone, nowhere, size = 0xFFFFFFFF, 1 << 24, 0
    for i in range(n):
        store32(ids + 4 * i, load32(byte_ids + 4 * load8(place + i)))
        store32(following + 4 * i, i + 1)
        store32(preceding + 4 * i, i - 1)
    for i in range(n - 1):
        rank = pair_rank(pairs, bits, load32(ids + 4 * i), load32(ids + 4 * i + 4))
        if rank != nowhere:
            heap_push(heap, size, rank << 36 | i)
            size += 1
    while size:
        top = load64(heap)
        size -= 1
        heap_replace_top(heap, size, load64(heap + 8 * size))
        rank, i = shr(top, 36), top & (1 << 36) - 1
        left = load32(ids + 4 * i)
        j = load32(following + 4 * i)
        if left == gone or j >= n or pair_rank(pairs, bits, left, load32(ids + 4 * j)) != rank:
            continue  # one of the two was merged since
        merged = load32(new_ids + 4 * rank)
        k = load32(following + 4 * j)
        store32(ids + 4 * i, merged)
        store32(ids + 4 * j, gone)
        store32(following + 4 * i, k)
        if k < n:
            store32(preceding + 4 * k, i)
            rank = pair_rank(pairs, bits, merged, load32(ids + 4 * k))
            if rank != nowhere:
                heap_push(heap, size, rank << 36 | i)
                size += 1
        j = load32(preceding + 4 * i)
        if j != gone:
            rank = pair_rank(pairs, bits, load32(ids + 4 * j), merged)
            if rank != nowhere:
                heap_push(heap, size, rank << 36 | j)
                size += 1
    count = i = 0
    while i < n:
        store32(out + 4 * count, load32(ids + 4 * i))
        count += 1
        i = load32(following + 4 * i)
    return count


# --- the word cache -----------------------------------------------------------------------------------------
# A slot is four int64. A word of up to 15 bytes is its own key: 15 bytes and, in the top byte, the length.
# Longer ones have a hash, and (sign bit, 23 bits of length, 40 bits of place in the arena). Up to three ids
# are packed in the third number, 20 bits each, their count above; more are in the pool: place << 24 | count
# in the fourth.


@njit(nogil=True, cache=True)
def hash_long(place, n):
    """Hash of ``n`` >= 8 bytes, eight at a time; the last eight overlap."""
    value = n * _HASH_2
    for i in range(0, n - 7, 8):
        value = (value ^ load64(place + i)) * _HASH_1
        value ^= shr(value, 29)
    value = (value ^ load64(place + n - 8)) * _HASH_1
    return value ^ shr(value, 32)


@njit(nogil=True, cache=True)
def same_bytes(a, b, n):
    """Whether ``n`` >= 8 bytes at two places are the same."""
    for i in range(0, n - 7, 8):
        if load64(a + i) != load64(b + i):
            return False
    return load64(a + n - 8) == load64(b + n - 8)


@njit(nogil=True, cache=True)
def copy_bytes(source, target, n):
    """Copy ``n`` bytes; up to seven more are written behind."""
    for i in range(0, n, 8):
        store64(target + i, load64(source + i))


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True)
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
        if n < 16:
            first = load64(place) & load64(masks + 16 * n)
            second = load64(place + 8) & load64(masks + 16 * n + 8) | n << 56
            slot = shr((first + second * _HASH_2) * _HASH_1, 64 - bits)
            where = cache + SLOT * slot
            while load64(where + 8) != second or load64(where) != first:
                if load64(where + 8) == 0:
                    break
                slot = slot + 1 & wrap
                where = cache + SLOT * slot
            hit = load64(where + 8) != 0
        elif n <= load64(state + 8 * MAX_CACHED):
            first = hash_long(place, n)
            second = _LONG_KEY | n << 40
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


@njit(nogil=True, cache=True)
def encode_copy(source, n, text, out, state):
    """Copy ``n`` bytes at ``source`` to ``text``, where 64 bytes behind can be read; encode them there."""
    whole = n & ~7
    for i in range(0, whole, 8):
        store64(text + i, load64(source + i))
    for i in range(whole, n):
        store8(text + i, load8(source + i))
    return encode_text(text, n, out, state)


@njit(nogil=True, cache=True)
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


# --- decoding -----------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True)
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
