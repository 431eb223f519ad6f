# mypy: ignore-errors
# (numba gives the types: every value is an int64)
"""One word's bytes into ids: the table of pairs, and the merges of a short and of a long word."""

from .machine import kernel, load8, load32, load64, shr, store32, store64
from .state import BYTE_IDS, EMPTY, HASH_1, NEW_IDS, PAIR_BITS, PAIRS, SCRATCH


@kernel
def pair_rank(pairs, bits, left, right):
    """Rank of a pair, or 2**24 if it is no merge."""
    key = left << 20 | right
    slot = shr(key * HASH_1, 64 - bits)
    while True:
        entry = load64(pairs + 8 * slot)
        if shr(entry, 24) == key:
            return entry & 0xFFFFFF
        if entry == EMPTY:
            return 1 << 24
        slot = slot + 1 & (1 << bits) - 1


@kernel
def add_pairs(pairs, bits, triples, n):
    """Fill the table of pairs from ``n`` rows of three int64: left, right, new id."""
    for rank in range(n):
        key = load64(triples + 24 * rank) << 20 | load64(triples + 24 * rank + 8)
        slot = shr(key * HASH_1, 64 - bits)
        while load64(pairs + 8 * slot) != EMPTY:
            slot = slot + 1 & (1 << bits) - 1
        store64(pairs + 8 * slot, key << 24 | rank)


@kernel
def first_seam(joints, place, n):
    """Where the ``n`` bytes at ``place`` first have two neighbours that no token has; ``n`` if nowhere.

    No merge reaches across such a seam, so what stands on both sides can be encoded apart.
    """
    following = load8(place)
    for i in range(1, n):
        pair = following << 8
        following = load8(place + i)
        pair |= following
        if shr(load8(joints + (pair >> 3)), pair & 7) & 1 == 0:
            return i
    return n


@kernel
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


@kernel
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


@kernel
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


@kernel
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
