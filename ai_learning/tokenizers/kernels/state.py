"""What a kernel is told and keeps: one array of int64 fields, read by address.

Addresses and sizes first, then the place to go on from when a kernel came back for more room.
"""

(
    CLASSES,  # uint8 of each code point: 0 other, 1 letter, 2 number, 3 space
    MASKS,  # 16 pairs of uint64: which bits of two words hold the first n bytes
    CACHE, CACHE_BITS, CACHE_USED, CACHE_LIMIT,  # slots of four int64: key, key, ids, ids; see encode_text
    ARENA, ARENA_USED, ARENA_SIZE,  # bytes of cached words too long for a key
    POOL, POOL_USED, POOL_SIZE,  # uint32 ids of cached words too many for a slot
    PAIRS, PAIR_BITS,  # left id (20 bits), right id (20), rank (24), open addressing
    NEW_IDS,  # uint32: rank → id
    BYTE_IDS,  # uint32: byte → id
    JOINTS,  # 65536 bits: which two bytes follow each other in some token
    SCRATCH, SCRATCH_WORD,  # room to merge a word of SCRATCH_WORD bytes, 32 bytes a byte
    MAX_CACHED,  # longer words are merged anew each time
    FAMILY, MAX_DIGITS, WHOLE_TAIL,  # of the split pattern
    POSITION, BASE, STARTS, CARRY, WORD, OUT, NEEDED,
    N_FIELDS,
) = range(31)  # fmt: skip

NONE, GPT2, GPT4 = 0, 1, 2  # families of split patterns
SLOT = 32  # bytes of a slot of the word cache
EMPTY = -1  # an unused entry of the table of pairs
HASH_1, HASH_2 = -7046029254386353131, -4417276706812531889  # odd, from splitmix64 and xxhash
LONG_KEY = -(2**63)  # marks the key of a word that has more bytes than fit a key
