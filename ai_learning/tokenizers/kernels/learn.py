# mypy: ignore-errors
# (numba gives the types: every value is an int64)
"""Learning merges from unique words and their counts.

Symbols are linked within their word: a record of five uint32, id, previous, next, word, and the index of the
pair it makes with the next. A merge keeps the left record and marks the right one gone. Each pair has a
record of four int64, key (left id << 32 | right id), count, and where the places it occurs at are listed.
Places are never removed from a list, only found stale; a list is in ascending order, so that overlaps merge
from the left. A heap holds (count, tie, key) of each pair; counts only fall after the step that makes a pair,
so an entry found stale is put back lower.
"""

from .encode import copy_bytes
from .machine import kernel, load8, load32, load64, prefetch, shr, store32, store64
from .state import HASH_1

(
    SYMBOLS, N_SYMBOLS, WORD_COUNTS,
    PAIR_TABLE, TABLE_BITS, PAIR_RECORDS, N_PAIRS, MAX_PAIRS,
    PLACES, N_PLACES,
    HEAP, HEAP_SIZE,
    STEP,  # room for the places found in one step: pair index and place, uint32 each
    MERGES, N_MERGES,  # three int64 each: left, right, count
    FIRST_ID, MIN_COUNT, TIE,
    TOKENS, TOKEN_ENDS,  # bytes of each token, to break ties by them
    N_TRAIN_FIELDS,
) = range(21)  # fmt: skip

SMALLER_IDS, FIRST_SEEN, GREATER_BYTES = 0, 1, 2
_GONE = 0xFFFFFFFF
_SYMBOL = 20  # bytes
_AHEAD = 12  # places: symbols are all over memory, and fetching one takes as long as merging a few
LEARNED, NO_PAIR_LEFT, NEED_PAIRS = 0, 1, 2


@kernel
def place_symbols(words, offsets, n_words, byte_ids, symbols):
    """Write the symbol records of all words."""
    for w in range(n_words):
        begin, end = load64(offsets + 8 * w), load64(offsets + 8 * w + 8)
        for i in range(begin, end):
            record = symbols + _SYMBOL * i
            store32(record, load32(byte_ids + 4 * load8(words + i)))
            store32(record + 4, i - 1 if i > begin else _GONE)
            store32(record + 8, i + 1 if i + 1 < end else _GONE)
            store32(record + 12, w)
            store32(record + 16, _GONE)


@kernel
def pair_index(table, bits, records, key):
    """Index of the record of the pair ``key``, or -1 - slot of the table where it could go."""
    slot = shr(key * HASH_1, 64 - bits)
    while True:
        index = load32(table + 4 * slot)
        if index == _GONE:
            return -1 - slot
        if load64(records + 32 * index) == key:
            return index
        slot = slot + 1 & (1 << bits) - 1


@kernel
def index_pairs(table, bits, records, n):
    """Fill an empty table with the ``n`` records."""
    for i in range(n):
        store32(table + 4 * (-1 - pair_index(table, bits, records, load64(records + 32 * i))), i)


@kernel
def compare_tokens(state, a, b):
    """Below, at or above 0 as the bytes of token ``a`` sort before, with or after those of ``b``."""
    tokens, ends = load64(state + 8 * TOKENS), load64(state + 8 * TOKEN_ENDS)
    i, j = load64(ends + 8 * a), load64(ends + 8 * b)
    a_end, b_end = load64(ends + 8 * a + 8), load64(ends + 8 * b + 8)
    while i < a_end and j < b_end:
        difference = load8(tokens + i) - load8(tokens + j)
        if difference:
            return difference
        i += 1
        j += 1
    return (a_end - i) - (b_end - j)


@kernel
def goes_first(state, count, tie, key, entry):
    """Whether (count, tie, key) is merged before the heap's ``entry``."""
    other = load64(entry)
    if count != other:
        return count > other
    if load64(state + 8 * TIE) != GREATER_BYTES:
        return tie < load64(entry + 8)
    other = load64(entry + 16)
    difference = compare_tokens(state, shr(key, 32), shr(other, 32))
    if difference == 0:
        difference = compare_tokens(state, key & 0xFFFFFFFF, other & 0xFFFFFFFF)
    return difference > 0


@kernel
def set_entry(entry, count, tie, key):
    """Write one heap entry."""
    store64(entry, count)
    store64(entry + 8, tie)
    store64(entry + 16, key)


@kernel
def copy_entry(source, target):
    """Copy one heap entry."""
    set_entry(target, load64(source), load64(source + 8), load64(source + 16))


@kernel
def push(state, count, tie, key):
    """Add an entry to the heap."""
    heap, hole = load64(state + 8 * HEAP), load64(state + 8 * HEAP_SIZE)
    store64(state + 8 * HEAP_SIZE, hole + 1)
    while hole:
        parent = (hole - 1) >> 1
        if not goes_first(state, count, tie, key, heap + 24 * parent):
            break
        copy_entry(heap + 24 * parent, heap + 24 * hole)
        hole = parent
    set_entry(heap + 24 * hole, count, tie, key)


@kernel
def replace_top(state, count, tie, key):
    """Put an entry in place of the first one."""
    heap, size = load64(state + 8 * HEAP), load64(state + 8 * HEAP_SIZE)
    hole = 0
    while True:
        child = heap + 24 * (2 * hole + 1)
        if 2 * hole + 1 >= size:
            break
        best = 2 * hole + 1
        if best + 1 < size:
            sibling = child + 24
            if goes_first(state, load64(sibling), load64(sibling + 8), load64(sibling + 16), child):
                best, child = best + 1, sibling
        if goes_first(state, count, tie, key, child):
            break
        copy_entry(child, heap + 24 * hole)
        hole = best
    set_entry(heap + 24 * hole, count, tie, key)


@kernel
def pop(state):
    """Drop the first entry."""
    heap, size = load64(state + 8 * HEAP), load64(state + 8 * HEAP_SIZE) - 1
    store64(state + 8 * HEAP_SIZE, size)
    if size:
        last = heap + 24 * size
        replace_top(state, load64(last), load64(last + 8), load64(last + 16))


@kernel
def add_to_pair(state, key, count):
    """Add ``count`` to the pair ``key``, which is made if need be.

    Returns:
        Its index.
    """
    table, bits = load64(state + 8 * PAIR_TABLE), load64(state + 8 * TABLE_BITS)
    records = load64(state + 8 * PAIR_RECORDS)
    index = pair_index(table, bits, records, key)
    if index < 0:
        slot = -1 - index
        index = load64(state + 8 * N_PAIRS)
        store64(state + 8 * N_PAIRS, index + 1)
        store32(table + 4 * slot, index)
        store64(records + 32 * index, key)
        store64(records + 32 * index + 8, 0)
        store64(records + 32 * index + 24, 0)
    record = records + 32 * index
    store64(record + 8, load64(record + 8) + count)
    return index


@kernel
def file_places(state, first_pair, n_found):
    """Write the ``n_found`` places of STEP into lists, one a pair from ``first_pair`` on, and push them."""
    records, step = load64(state + 8 * PAIR_RECORDS), load64(state + 8 * STEP)
    places, used = load64(state + 8 * PLACES), load64(state + 8 * N_PLACES)
    n_pairs = load64(state + 8 * N_PAIRS)
    for index in range(first_pair, n_pairs):
        record = records + 32 * index
        store64(record + 16, used)
        used += load64(record + 24)
        store64(record + 24, 0)
    store64(state + 8 * N_PLACES, used)
    for i in range(n_found):
        record = records + 32 * load32(step + 8 * i)
        size = load64(record + 24)
        store32(places + 4 * (load64(record + 16) + size), load32(step + 8 * i + 4))
        store64(record + 24, size + 1)
    lowest = load64(state + 8 * MIN_COUNT)
    first_seen = load64(state + 8 * TIE) == FIRST_SEEN
    for index in range(first_pair, n_pairs):
        record = records + 32 * index
        key, count = load64(record), load64(record + 8)
        if count >= lowest:
            tie = load32(places + 4 * load64(record + 16)) if first_seen else key
            push(state, count, tie, key)


@kernel
def found(state, key, count, place, n_found):
    """Note that a new pair occurs at ``place``."""
    index = add_to_pair(state, key, count)
    record = load64(state + 8 * PAIR_RECORDS) + 32 * index
    store64(record + 24, load64(record + 24) + 1)
    step = load64(state + 8 * STEP)
    store32(step + 8 * n_found, index)
    store32(step + 8 * n_found + 4, place)
    store32(load64(state + 8 * SYMBOLS) + _SYMBOL * place + 16, index)


@kernel
def count_first_pairs(state):
    """Count the pairs of neighbours in all words as they stand."""
    symbols, counts = load64(state + 8 * SYMBOLS), load64(state + 8 * WORD_COUNTS)
    n_found = 0
    for i in range(load64(state + 8 * N_SYMBOLS)):
        record = symbols + _SYMBOL * i
        if load32(record + 8) != _GONE:
            key = load32(record) << 32 | load32(record + _SYMBOL)
            found(state, key, load64(counts + 8 * load32(record + 12)), i, n_found)
            n_found += 1
    file_places(state, 0, n_found)


@kernel
def first_place(state, index):
    """First place where the pair ``index`` still occurs (it does); its list is shortened up to there."""
    symbols, places = load64(state + 8 * SYMBOLS), load64(state + 8 * PLACES)
    record = load64(state + 8 * PAIR_RECORDS) + 32 * index
    start, size = load64(record + 16), load64(record + 24)
    while size > 1 and load32(symbols + _SYMBOL * load32(places + 4 * start) + 16) != index:
        start += 1
        size -= 1
    store64(record + 16, start)
    store64(record + 24, size)
    return load32(places + 4 * start)


@kernel
def learn(state, until):
    """Learn merges until there are ``until``.

    Returns:
        LEARNED, NO_PAIR_LEFT (none is frequent enough), or NEED_PAIRS (double MAX_PAIRS and call again).
    """
    symbols, counts = load64(state + 8 * SYMBOLS), load64(state + 8 * WORD_COUNTS)
    heap, merges = load64(state + 8 * HEAP), load64(state + 8 * MERGES)
    places, lowest = load64(state + 8 * PLACES), load64(state + 8 * MIN_COUNT)
    tokens, ends = load64(state + 8 * TOKENS), load64(state + 8 * TOKEN_ENDS)
    first_seen = load64(state + 8 * TIE) == FIRST_SEEN
    records = load64(state + 8 * PAIR_RECORDS)
    table, bits = load64(state + 8 * PAIR_TABLE), load64(state + 8 * TABLE_BITS)
    while load64(state + 8 * N_MERGES) < until:
        if load64(state + 8 * HEAP_SIZE) == 0:
            return NO_PAIR_LEFT
        key = load64(heap + 16)
        index = pair_index(table, bits, records, key)
        record = records + 32 * index
        count = load64(record + 8)
        if count < lowest:
            pop(state)
            continue
        tie = key
        if first_seen:
            tie = first_place(state, index)
        if count != load64(heap) or tie != load64(heap + 8):
            replace_top(state, count, tie, key)
            continue
        start, size = load64(record + 16), load64(record + 24)
        if load64(state + 8 * N_PAIRS) + 2 * size > load64(state + 8 * MAX_PAIRS):
            return NEED_PAIRS
        pop(state)
        left, right = shr(key, 32), key & 0xFFFFFFFF
        n_merges = load64(state + 8 * N_MERGES)
        merged = load64(state + 8 * FIRST_ID) + n_merges
        store64(merges + 24 * n_merges, left)
        store64(merges + 24 * n_merges + 8, right)
        store64(merges + 24 * n_merges + 16, count)
        store64(state + 8 * N_MERGES, n_merges + 1)
        if tokens:
            end = load64(ends + 8 * merged)
            for token in (left, right):
                begin = load64(ends + 8 * token)
                length = load64(ends + 8 * token + 8) - begin
                copy_bytes(tokens + begin, tokens + end, length)
                end += length
            store64(ends + 8 * merged + 8, end)
        first_pair, n_found = load64(state + 8 * N_PAIRS), 0
        for i in range(start, start + size):
            prefetch(symbols + _SYMBOL * load32(places + 4 * (i + _AHEAD)))
            place = load32(places + 4 * i)
            symbol = symbols + _SYMBOL * place
            if load32(symbol + 16) != index:
                continue  # stale: one of the two was merged with another neighbour
            second = symbols + _SYMBOL * load32(symbol + 8)
            times = load64(counts + 8 * load32(symbol + 12))
            before, after = load32(symbol + 4), load32(second + 8)
            store32(symbol, merged)
            store32(symbol + 8, after)
            store32(symbol + 16, _GONE)
            if after != _GONE:
                old = records + 32 * load32(second + 16)
                store64(old + 8, load64(old + 8) - times)
                store32(second + 16, _GONE)
                store32(symbols + _SYMBOL * after + 4, place)
                found(state, merged << 32 | load32(symbols + _SYMBOL * after), times, place, n_found)
                n_found += 1
            if before != _GONE:
                old = records + 32 * load32(symbols + _SYMBOL * before + 16)
                store64(old + 8, load64(old + 8) - times)
                found(state, load32(symbols + _SYMBOL * before) << 32 | merged, times, before, n_found)
                n_found += 1
        store64(record + 8, 0)
        store64(record + 24, 0)
        file_places(state, first_pair, n_found)
    return LEARNED
