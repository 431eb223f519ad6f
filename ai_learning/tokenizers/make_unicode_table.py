"""Write ``unicode_table.py`` anew: which code points tiktoken's regex engine calls letter, number, space.

    python -m ai_learning.tokenizers.make_unicode_table

The ``regex`` module and ``unicodedata`` follow other Unicode versions than tiktoken and Hugging Face
tokenizers (which agree with each other), and would split newly assigned characters differently. So the
classes are asked of tiktoken itself: an encoding whose pattern is ``\\p{L}`` drops everything but letters.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

TABLE_FILE = Path(__file__).with_name("unicode_table.py")
CLASSES = {"LETTER": r"\p{L}", "NUMBER": r"\p{N}", "SPACE": r"\s"}
_SURROGATES = range(0xD800, 0xE000)  # no text that can be encoded holds one


def members(pattern: str) -> list[int]:
    """All code points that ``pattern`` matches, according to tiktoken."""
    import tiktoken

    bytes_only = {bytes([i]): i for i in range(256)}
    encoding = tiktoken.Encoding("classes", pat_str=pattern, mergeable_ranks=bytes_only, special_tokens={})
    everything = "".join(chr(i) for i in range(sys.maxunicode + 1) if i not in _SURROGATES)
    return [ord(character) for character in encoding.decode(encoding.encode_ordinary(everything))]


def ranges(points: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers as (first, last)."""
    first = last = points[0]
    for point in points[1:]:
        if point != last + 1:
            yield first, last
            first = point
        last = point
    yield first, last


def source() -> str:
    """The text of ``unicode_table.py``."""
    import tiktoken

    parts = [
        '"""Unicode classes as tiktoken\'s and Hugging Face tokenizers\' regex engines see them.\n\n'
        f"Written by ``make_unicode_table.py`` with tiktoken {tiktoken.__version__}: do not edit.\n"
        'Each class is a line of ranges in hexadecimal, ``first-last`` or a single code point.\n"""\n'
    ]
    for name, pattern in CLASSES.items():
        words = [f"{a:X}" if a == b else f"{a:X}-{b:X}" for a, b in ranges(members(pattern))]
        lines, line = [], ""
        for word in words:
            if len(line) + len(word) + 1 > 100:
                lines.append(line)
                line = ""
            line += (" " if line else "") + word
        lines.append(line)
        parts.append(f"# {pattern}: {len(words)} ranges\n{name} = (\n")
        parts.extend(f'    "{text}{"" if text is lines[-1] else " "}"\n' for text in lines)
        parts.append(")\n")
    return "\n".join(parts[:1]) + "\n" + "".join(parts[1:])


if __name__ == "__main__":
    TABLE_FILE.write_text(source(), encoding="utf-8")
    print(f"wrote {TABLE_FILE}")
