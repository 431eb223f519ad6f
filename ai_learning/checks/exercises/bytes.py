"""Day 15: text as bytes, and back without ever failing."""

import codecs
import unicodedata
from typing import Any

from ...tokenizers import ByteTokenizer
from ...tokenizers.streaming import StreamDecoder
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form

# --- day15.encode -------------------------------------------------------------------------------------------


def _encode(text: str) -> list[int]:
    return list(ByteTokenizer().encode(text))


def _encode_cases() -> list[tuple[Any, ...]]:
    return [
        ("hello",),
        ("",),
        ("naïve café",),
        ("日本語 🙂",),
        ("a\r\n\tb\x00",),
        ("cafe\u0301 \ufb01n",),  # é of two characters, fi of one: both must stay so
        *((limit,) for limit in ("\x7f", "\x80", "\u07ff", "\u0800", "\uffff", "\U00010000")),
    ]


def _by_hand(two: int = 0x80, three: int = 0x800, four: int = 0x10000) -> Any:
    """UTF-8 by its definition (RFC 3629); the arguments are the first code points of two, three, four bytes."""

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for code in map(ord, text):
            if code < two:
                ids += [code]
            elif code < three:
                ids += [0xC0 | code >> 6, 0x80 | code & 63]
            elif code < four:
                ids += [0xE0 | code >> 12, 0x80 | code >> 6 & 63, 0x80 | code & 63]
            else:
                ids += [0xF0 | code >> 18, *(0x80 | code >> shift & 63 for shift in (12, 6, 0))]
        return ids

    return encode


def _encode_range(fn: Any) -> None:
    for (text,) in _encode_cases():
        ids = fn(text)
        bad = [i for i in ids if not 0 <= i < 256]
        if bad:
            raise Wrong("ids outside 0 to 255: these are code points, not bytes", f"{text!r} gives {bad[:3]}")


ENCODE = Exercise(
    name="day15.encode",
    title="text to bytes",
    stub='''
def encode(text):
    """The UTF-8 bytes of a text as a list of ids, 0 to 255."""
    raise NotImplementedError
''',
    solution=ByteTokenizer.encode,
    reference=_encode,
    steps=(
        same_form(_encode, _encode_cases, "a list of ints"),
        Step("stays within 0 to 255", _encode_range),
        equals(_encode, _encode_cases, 0, "is right for every script"),
    ),
    hints=(
        "How many bytes has é in UTF-8? And 🙂?",
        'text.encode("utf-8") gives bytes; what does a list of bytes hold?',
        'list(text.encode("utf-8"))',
    ),
    cases=_encode_cases,
    mutants=(
        Mutant(
            "code points", "ord gives numbers up to 1,114,111; encode first", lambda s: [ord(c) for c in s]
        ),
        Mutant("code points cut to a byte", "é is two bytes in UTF-8", lambda s: [ord(c) % 256 for c in s]),
        Mutant("latin-1", "UTF-8 knows every character", lambda s: list(s.encode("latin-1", "replace"))),
        Mutant(
            "ASCII only", "other characters must not be lost", lambda s: list(s.encode("ascii", "ignore"))
        ),
        Mutant("UTF-16", "UTF-8", lambda s: list(s.encode("utf-16-le"))),
        Mutant(
            "a byte order mark", "plain utf-8, without a signature", lambda s: list(s.encode("utf-8-sig"))
        ),
        Mutant(
            "line ends changed", "bytes in are bytes out", lambda s: list(s.replace("\r\n", "\n").encode())
        ),
        Mutant("stripped", "white space is text", lambda s: list(s.strip("\x00 ").encode())),
        Mutant(
            "normalised",
            "é may be one character or two: keep the text as it is",
            lambda s: list(unicodedata.normalize("NFC", s).encode()),
        ),
        Mutant(
            "normalised",
            "ﬁ is one character of its own: keep the text as it is",
            lambda s: list(unicodedata.normalize("NFKC", s).encode()),
        ),
        Mutant("a limit is off by one", "U+007F is still one byte: code < 0x80", _by_hand(two=0x7F)),
        Mutant("a limit is off by one", "U+0080 has two bytes: code < 0x80", _by_hand(two=0x81)),
        Mutant("a limit is off by one", "U+07FF has two bytes: code < 0x800", _by_hand(three=0x7FF)),
        Mutant("a limit is off by one", "U+0800 has three bytes: code < 0x800", _by_hand(three=0x801)),
        Mutant("a limit is off by one", "U+FFFF has three bytes: code < 0x10000", _by_hand(four=0xFFFF)),
        Mutant("a limit is off by one", "U+10000 has four bytes: code < 0x10000", _by_hand(four=0x10001)),
        Mutant("lower case", "keep the text as it is", lambda s: list(s.upper().encode())),
        Mutant("wrong shape or type", "a list of ints", lambda s: s.encode()),
    ),
    alternatives=(
        lambda s: list(s.encode()),
        lambda s: [b for c in s for b in c.encode("utf-8")],
        _by_hand(),
    ),
)

# --- day15.decode -------------------------------------------------------------------------------------------


def _decode(ids: list[int]) -> str:
    return bytes(i for i in ids if i < 256).decode("utf-8", errors="ignore")


def _decode_cases() -> list[tuple[Any, ...]]:
    return [
        (list(b"hello"),),
        ([],),
        (list("é 🙂".encode()),),
        ([104, 256, 105, 257],),
        (list("🙂".encode())[:3],),
        ([0xFF, 65, 0xC3],),
        ([66, 0xFF, 67],),
        ([0xC3, 256, 0xA9],),
        (list(b" \tedges \n"),),
        (list("a�b".encode()),),  # a real U+FFFD, which is text
        ([0xFF, *"�".encode()],),
        (list("\ufeffmark".encode()),),
    ]


def _valid_beginning(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()


def _decode_never_raises(fn: Any) -> None:
    for ids in ([0xFF], [0xC3], [256], [257, 0x80]):
        try:
            fn(ids)
        except Exception as error:
            raise Wrong(
                "it raises: a model may produce any ids, and half a character is normal at the end",
                f"{ids} raised {type(error).__name__}",
            ) from None


DECODE = Exercise(
    name="day15.decode",
    title="bytes to text, whatever they are",
    stub='''
def decode(ids):
    """Text of a list of ids. 256 (end) and 257 (classify) stand for no byte; what is not UTF-8 vanishes.

    Never raises.
    """
    raise NotImplementedError
''',
    solution=ByteTokenizer.decode,
    reference=_decode,
    steps=(
        same_form(_decode, _decode_cases, "a str"),
        leaves_inputs(_decode_cases),
        Step("never raises", _decode_never_raises),
        equals(_decode, _decode_cases, 0),
    ),
    hints=(
        "bytes(ids) fails for 256: what should become of the special ids?",
        "bytes.decode has an argument errors.",
        'bytes(i for i in ids if i < 256).decode("utf-8", errors="ignore")',
    ),
    cases=_decode_cases,
    mutants=(
        Mutant(
            "replaced by �",
            'here what is not UTF-8 vanishes: errors="ignore"',
            lambda ids: bytes(i for i in ids if i < 256).decode("utf-8", "replace"),
        ),
        Mutant(
            "a real � is dropped",
            'it is text where its own bytes stand; errors="ignore" drops only what is not UTF-8',
            lambda ids: bytes(i for i in ids if i < 256).decode("utf-8", "replace").replace("�", ""),
        ),
        Mutant("stripped", "white space is text", lambda ids: _decode(ids).strip()),
        Mutant(
            "the byte order mark is dropped",
            "plain utf-8: U+FEFF is a character of the text",
            lambda ids: bytes(i for i in ids if i < 256).decode("utf-8-sig", "ignore"),
        ),
        Mutant(
            "chr of each",
            "a character may be several bytes",
            lambda ids: "".join(chr(i) for i in ids if i < 256),
        ),
        Mutant(
            "special ids shown",
            "256 and 257 stand for nothing",
            lambda ids: "".join(f"<{i}>" if i > 255 else bytes([i]).decode("utf-8", "ignore") for i in ids),
        ),
        Mutant(
            "stops at a special id",
            "what follows is text, too",
            lambda ids: bytes(ids[: next((n for n, i in enumerate(ids) if i > 255), len(ids))]).decode(
                "utf-8", "ignore"
            ),
        ),
        Mutant(
            "special ids wrap around",
            "256 is no byte 0",
            lambda ids: bytes(i % 256 for i in ids).decode("utf-8", "ignore"),
        ),
        Mutant(
            "nothing if anything is wrong",
            "only what is not UTF-8 vanishes",
            lambda ids: (lambda b: b.decode() if b.decode("utf-8", "ignore").encode() == b else "")(
                bytes(i for i in ids if i < 256)
            ),
        ),
        Mutant(
            "byte by byte",
            "a character's bytes must be decoded together",
            lambda ids: "".join(bytes([i]).decode("utf-8", "ignore") for i in ids if i < 256),
        ),
        Mutant(
            "a space for special ids",
            "they stand for nothing",
            lambda ids: bytes(i if i < 256 else 32 for i in ids).decode("utf-8", "ignore"),
        ),
        Mutant(
            "backwards",
            "in order",
            lambda ids: bytes(i for i in reversed(ids) if i < 256).decode("utf-8", "ignore"),
        ),
        Mutant(
            "cut at what is wrong",
            "what follows is text, too",
            lambda ids: _valid_beginning(bytes(i for i in ids if i < 256)),
        ),
    ),
    alternatives=(
        lambda ids: b"".join(bytes([i]) for i in ids if 0 <= i <= 255).decode(errors="ignore"),
        lambda ids: str(bytearray([*filter((256).__gt__, ids)]), "utf-8", "ignore"),
    ),
)

# --- day15.stream -------------------------------------------------------------------------------------------


def _stream(chunks: list[bytes]) -> list[str]:

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [*(decoder.decode(c) for c in chunks), decoder.decode(b"", final=True)]


def _stream_cases() -> list[tuple[Any, ...]]:
    smile = "🙂".encode()
    return [
        ([b"ab", b"c"],),
        ([smile[:1], smile[1:3], smile[3:] + b"!"],),
        ([b"x" + smile[:2]],),
        ([b"\xc3", b"\xa9\xc3", b"\xa9"],),
        ([b"\xff", b"a"],),
        ([],),
    ]


def _stream_half(fn: Any) -> None:
    smile = "🙂".encode()
    parts = fn([smile[:2], smile[2:]])
    if any("�" in p for p in parts):
        raise Wrong(
            "half a character is shown: hold its bytes back until the rest comes",
            f"the two halves of 🙂 gave {parts}",
        )
    if "".join(parts) != "🙂":
        raise Wrong(
            "a character is lost: bytes held back belong to the next chunk",
            f"the two halves of 🙂 gave {parts}",
        )


def _chunked(errors: str, held: bool = False) -> Any:
    def stream(chunks: list[bytes]) -> list[str]:
        return [*(c.decode("utf-8", errors) for c in chunks), ""]

    return stream


STREAM = Exercise(
    name="day15.stream",
    title="never half a character",
    stub='''
def stream(chunks):
    """What can be shown after each chunk of bytes: a list with a str a chunk, and one for the end.

    Bytes of an unfinished character are held back for the next chunk. What can never become a character is
    shown as "\\ufffd", at the end too.
    """
    raise NotImplementedError
''',
    solution=StreamDecoder,
    reference=_stream,
    steps=(
        same_form(_stream, _stream_cases, "a list of str"),
        leaves_inputs(_stream_cases),
        Step("holds half a character back", _stream_half),
        equals(_stream, _stream_cases, 0),
    ),
    hints=(
        "Keep a buffer of bytes that could still become a character (at most three).",
        "The codecs module has incremental decoders: they keep that buffer for you.",
        'decoder = codecs.getincrementaldecoder("utf-8")("replace"); decoder.decode(b"", final=True) at the end.',
    ),
    cases=_stream_cases,
    mutants=(
        Mutant("half a character is shown", "hold its bytes back until the rest comes", _chunked("replace")),
        Mutant("a character is lost", "bytes held back belong to the next chunk", _chunked("ignore")),
        Mutant(
            "everything at the end",
            "show what is whole at once",
            lambda cs: [*("" for _ in cs), b"".join(cs).decode("utf-8", "replace")],
        ),
        Mutant(
            "the end is forgotten",
            "bytes still held back at the end are shown as �",
            lambda cs: [*_stream(cs)[:-1], ""],
        ),
        Mutant("no last entry", "one str a chunk and one for the end", lambda cs: _stream(cs)[:-1]),
        Mutant(
            "everything so far",
            "only what is new",
            lambda cs: (
                [b"".join(cs[: i + 1]).decode("utf-8", "ignore") for i in range(len(cs))] + [_stream(cs)[-1]]
            ),
        ),
        Mutant(
            "one chunk late",
            "show what is whole at once",
            lambda cs: (lambda s: ["", *s[:-2], "".join(s[-2:])] if len(s) > 1 else s)(_stream(cs)),
        ),
        Mutant("latin-1", "UTF-8", lambda cs: [*(c.decode("latin-1") for c in cs), ""]),
        Mutant(
            "invalid bytes dropped",
            "what can never become a character is shown as �",
            lambda cs: [s.replace("�", "") for s in _stream(cs)],
        ),
        Mutant(
            "only ASCII at once",
            "é is whole after its second byte",
            lambda cs: (
                lambda s: (
                    ["".join(c for c in x if ord(c) < 128) for x in s[:-1]]
                    + [s[-1] + "".join(c for x in s[:-1] for c in x if ord(c) > 127)]
                )
            )(_stream(cs)),
        ),
    ),
    alternatives=(
        lambda cs: (lambda d: [*[d.decode(c) for c in cs], d.decode(b"", True)])(
            codecs.getincrementaldecoder("utf8")(errors="replace")
        ),
        lambda cs: _by_prefix(cs),
    ),
)


def _by_prefix(chunks: list[bytes]) -> list[str]:
    """Decode all bytes so far, hold back an unfinished end, show what is new."""
    shown, out, data = "", [], b""
    for chunk in chunks:
        data += chunk
        for held in range(4):
            head, tail = data[: len(data) - held], data[len(data) - held :]
            if not held or _unfinished(tail):
                text = head.decode("utf-8", "replace")
                if held or not any(_unfinished(data[len(data) - n :]) for n in (1, 2, 3) if n <= len(data)):
                    break
        out.append(text[len(shown) :])
        shown = text
    return [*out, data.decode("utf-8", "replace")[len(shown) :]]


def _unfinished(tail: bytes) -> bool:
    try:
        tail.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return False


EXERCISES = (ENCODE, DECODE, STREAM)
