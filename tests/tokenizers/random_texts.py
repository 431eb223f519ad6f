"""Random texts that meet the rules of the split patterns."""

import random

# characters that meet each other's rules: classes, contractions, every white space, widths 1 to 4
ALPHABET = [*list("aZ sdmtlvreSLVRET''' \t\n\r\x0b\x1c\x00019!?.-_\"/"),
    "é", "ſ", "’", "中", "я", "ß", "\u00a0", "\u0085", "\u2003", "\u2028", "\u3000", "٣", "²", "½", "Ⅷ", "—",
    "«", "😀", "👍🏽", "\u0301", "\u200d", "𝒳", "𝟙", "\u0378", "\U000e0001", "  ", "\n\n", "\r\n",
    "   ", "'ll", "'S ",
]  # fmt: skip


MULTILINGUAL = (
    "Hello, world! Das ist größer. Ça va? Это русский текст, 12345 и ещё. "
    "这是中文文本，没有空格。日本語のテキスト。"
    "한국어 텍스트입니다. नमस्ते दुनिया. مرحبا بالعالم ١٢٣ שלום. 👩‍👩‍👧‍👦 👍🏽 "
    "e\u0301\r\n\r\n\ttab\x00\x07\u0378\U0003ffff"
    "\u2028\u0085I'LL don't ſ'ſ x'S  \n \n  "
)


def random_text(generator: random.Random, length: int) -> str:
    """A random text over few of the characters, so that runs and repetitions happen."""
    some = generator.choices(ALPHABET, k=generator.randint(1, 8))
    return "".join(generator.choices(some, k=length))
