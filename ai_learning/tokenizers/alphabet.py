"""GPT-2's printable alphabet: how vocab.json and tokenizer.json write bytes as characters.

Bytes that print as themselves in Latin-1 stay; the other 68 are moved to U+0100 and up, so that a space is
"Ġ" and a newline "Ċ". In this order ("!" first) GPT-2 numbers the 256 bytes.
"""

from ..errors import InputError

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_MOVED = [byte for byte in range(256) if byte not in _PRINTABLE]

GPT2_BYTE_ORDER: tuple[int, ...] = (*_PRINTABLE, *_MOVED)  # byte of id 0, 1, 2 … in GPT-2's vocabulary
_TO_PRINTABLE = {byte: byte for byte in _PRINTABLE} | {byte: 0x100 + i for i, byte in enumerate(_MOVED)}
_TO_BYTE = {character: byte for byte, character in _TO_PRINTABLE.items()}


def to_printable(token: bytes) -> str:
    """Bytes as GPT-2's files write them.

    Example:
        >>> to_printable(" né\\n".encode())
        'ĠnÃ©Ċ'
    """
    return token.decode("latin-1").translate(_TO_PRINTABLE)


def from_printable(text: str) -> bytes:
    """The bytes that ``text`` stands for.

    Raises:
        InputError: a character outside the alphabet.
    """
    try:
        return bytes([_TO_BYTE[ord(character)] for character in text])
    except KeyError as error:
        raise InputError(
            f"{chr(error.args[0])!r} in token {text!r} is not in GPT-2's byte alphabet: "
            "only byte-level vocabularies can be read"
        ) from None
