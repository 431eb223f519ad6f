"""The compiled path: numba kernels over plain memory.

machine   loads, stores, bit scans, 64 bytes classified at once; the ``kernel`` decorator
state     the numbers that a kernel is told
split     where words start
merge     one word's bytes into ids
encode    a text into ids, through a cache of words
decode    ids into bytes
count     words and how often each occurs
learn     merges, from those counts

Kernels never allocate and never fail: memory comes from the caller as addresses, and one that runs out of it
saves its place, says what it needs and is called again. The callers are ``fast_encoder.py`` (encoding,
decoding) and ``fast_trainer.py``. All but ``state`` load numba, so they are imported late.
"""
