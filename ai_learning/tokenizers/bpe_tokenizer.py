"""``BPETokenizer``: a vocabulary, its merges and how text is split, with every way to use them."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing

from ..errors import InputError
from . import fast, special
from .pretokenize import SplitPattern, split_pattern, splitter
from .special import SpecialSet
from .word_encoder import MergeTable, WordEncoder

if TYPE_CHECKING:
    from .encode_files import EncodeReport
    from .fast import FastEncoder
    from .streaming import StreamDecoder

END_OF_TEXT = "<|endoftext|>"
_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>")
_MOST_IDS, _HOLES = 2**24, 8  # vocabularies may leave ids out, but not nearly all
_SHORT_TEXT = 400  # characters: below, a dictionary lookup a word beats preparing a compiled call
_WARM_UP = 2**18  # characters encoded in plain Python before the compiled path is worth loading (0.3 s)


class UnknownTokenError(InputError, KeyError):
    """An id or a token that the vocabulary does not have."""

    __str__ = ValueError.__str__  # KeyError would show the message in quotes


class BPETokenizer:
    """Byte-pair encoding over bytes, as GPT-2, GPT-3 and GPT-4 use it.

    Args:
        vocab: id → bytes. All 256 single bytes must be there; ids may have gaps.
        merges: pairs of tokens in the order they were learned.
        special_tokens: text → id, or texts only: those that ``vocab`` holds keep their id, the others get
            the next free ones.
        pattern: how text is split into words: ``"gpt2"``, ``"gpt4"`` (tiktoken's cl100k_base),
            ``"gpt4-original"``, ``"nanochat"``, a regular expression of your own, or ``None`` for no
            splitting.
        whole_words: a word that is itself a token is that token, whether merges reach it or not
            (Hugging Face's ``ignore_merges``). tiktoken does so; for a trained vocabulary it changes nothing.
        plain_tokens: those of ``special_tokens`` that any text may hold, and that are their id wherever they
            stand: Hugging Face's added tokens with ``special=False``, such as Qwen's ``<think>``.

    Attributes:
        vocab: id → bytes, special tokens included.
        merges: pairs of bytes, the earliest learned first.
        special_tokens: text → id.
        plain_tokens: those of them that are recognised in any text, and refused in none.
        pattern: the ``SplitPattern`` in use.

    Raises:
        InputError: a vocabulary, merges and special tokens that do not fit together.

    Example:
        >>> tokenizer = BPETokenizer.train(["low lower lowest low low"], 260, special_tokens=())
        >>> tokenizer.merges
        [(b'l', b'o'), (b'lo', b'w'), (b' ', b'low'), (b' low', b'e')]
        >>> tokenizer.decode(tokenizer.encode("slow, né"))
        'slow, né'
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Iterable[tuple[bytes, bytes]],
        special_tokens: Mapping[str, int] | Iterable[str] = (),
        pattern: str | SplitPattern | None = "gpt2",
        *,
        whole_words: bool = False,
        plain_tokens: Iterable[str] = (),
    ) -> None:
        self.pattern = split_pattern(pattern)
        self.merges: list[tuple[bytes, bytes]] = list(map(tuple, merges))  # type: ignore[arg-type]
        self.vocab = dict(vocab)
        self.special_tokens = special.number(self.vocab, special_tokens)
        self.vocab |= {i: text.encode() for text, i in self.special_tokens.items()}
        self.whole_words = whole_words
        self.plain_tokens = frozenset(plain_tokens)
        if unknown := self.plain_tokens - self.special_tokens.keys():
            raise InputError(f"plain_tokens={sorted(unknown)} are not among the special_tokens")
        if not self.vocab or min(self.vocab) < 0:
            raise InputError("token ids must be 0 or more, and there must be some")
        self.vocab_size = max(self.vocab) + 1
        if self.vocab_size > max(_MOST_IDS, _HOLES * len(self.vocab)):  # ids are places in lists
            raise InputError(f"id {max(self.vocab)} is too large for {len(self.vocab)} tokens")
        self._special_names = frozenset(self.special_tokens)
        self._special_ids = {i: text for text, i in self.special_tokens.items()}
        # ordinary tokens only: special ones are never merged into
        ordinary = {i: token for i, token in self.vocab.items() if i not in self._special_ids}
        self._ids = {token: i for i, token in ordinary.items()}
        if len(self._ids) < len(ordinary):
            i, token = next((i, token) for i, token in ordinary.items() if self._ids[token] != i)
            raise InputError(f"ids {i} and {self._ids[token]} are both {token!r}: every token needs one id")
        self._table = self._merge_table()
        self._words = WordEncoder(self._table, splitter(self.pattern))
        self._fast: FastEncoder | None = None
        self._fast_refused = False
        self._fingerprint = ""
        self._slow_characters = 0
        self._decode_list: list[bytes | None] | None = None

    def _merge_table(self) -> MergeTable:
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        if missing:
            raise InputError(
                f"the vocabulary lacks {len(missing)} of the 256 single bytes, the first 0x{missing[0]:02x}: "
                "text with them could not be encoded"
            )
        ids = self._ids
        try:
            table = MergeTable(
                [ids[bytes([byte])] for byte in range(256)],
                [ids[left] for left, _ in self.merges],
                [ids[right] for _, right in self.merges],
                [ids[left + right] for left, right in self.merges],
                {token: i for token, i in ids.items() if token} if self.whole_words else None,
            )
        except KeyError as error:
            rank, (left, right) = next(
                (rank, pair)
                for rank, pair in enumerate(self.merges)
                if error.args[0] in (*pair, pair[0] + pair[1])
            )
            raise InputError(
                f"merge {rank} ({left!r}, {right!r}) needs the token {error.args[0]!r}, "
                "which the vocabulary does not have"
            ) from None
        if len(set(self.merges)) < len(self.merges):
            last = {pair: rank for rank, pair in enumerate(self.merges)}
            rank, (left, right) = next((i, pair) for i, pair in enumerate(self.merges) if last[pair] != i)
            raise InputError(f"merge {rank} ({left!r}, {right!r}) is there twice")
        return table

    def with_special_tokens(self, special_tokens: Mapping[str, int] | Iterable[str]) -> "BPETokenizer":
        """The same vocabulary and merges with these special tokens instead (minbpe registers them so).

        Args:
            special_tokens: as in the constructor: text → id, or texts that get the next free ids.
        """
        ordinary = {i: token for i, token in self.vocab.items() if i not in self._special_ids}
        names = special.number(dict(ordinary), special_tokens)
        return BPETokenizer(
            ordinary, self.merges, names, self.pattern, whole_words=self.whole_words,
            plain_tokens=self.plain_tokens & names.keys(),
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"BPETokenizer({self.vocab_size} ids, {len(self.merges)} merges, pattern={self.pattern.name!r}, "
            f"special_tokens={self.special_tokens})"
        )

    def __reduce__(self) -> tuple:
        given = (self.vocab, self.merges, self.special_tokens, self.pattern)
        return _rebuild, (*given, self.whole_words, self.plain_tokens)

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document: ``<|endoftext|>`` or a like special token; ``None`` without one."""
        return next((self.special_tokens[name] for name in _END_NAMES if name in self.special_tokens), None)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of everything that decides which ids a text gets."""
        if not self._fingerprint:
            digest = hashlib.sha256(b"BPETokenizer/1\0" + self.pattern.regex.encode())
            digest.update(json.dumps([sorted(self.special_tokens.items()), self.whole_words]).encode())
            digest.update("".join(sorted(self.plain_tokens)).encode())
            for i, token in sorted(self.vocab.items()):
                digest.update(b"%d %s\n" % (i, token.hex().encode()))
            table = self._table
            for left, right, new in zip(table.left, table.right, table.new, strict=True):
                digest.update(b"%d %d %d\n" % (left, right, new))
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    @property
    def n_vocab(self) -> int:
        """``vocab_size`` by tiktoken's name."""
        return self.vocab_size

    @property
    def max_token_value(self) -> int:
        """The greatest id."""
        return self.vocab_size - 1

    @property
    def eot_token(self) -> int | None:
        """``eos_id`` by tiktoken's name."""
        return self.eos_id

    @property
    def special_tokens_set(self) -> set[str]:
        """The texts of the special tokens, which another's text must not hold."""
        return self.special_tokens.keys() - self.plain_tokens

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id.

        Raises:
            UnknownTokenError: not in the vocabulary.
        """
        token = self.vocab.get(token_id)
        if token is None:
            raise UnknownTokenError(f"id {token_id} is not in this vocabulary of {self.vocab_size} ids")
        return token

    def token_id(self, token: str | bytes) -> int:
        """The id of a token given by its text or bytes, special tokens included.

        Raises:
            UnknownTokenError: no token has these bytes.
        """
        raw = token.encode() if isinstance(token, str) else bytes(token)
        found = self._ids.get(raw)
        if found is None:
            found = self.special_tokens.get(raw.decode("utf-8", "replace"))
        if found is None:
            raise UnknownTokenError(f"{token!r} is not one token of this vocabulary")
        return found

    encode_single_token = token_id
    decode_single_token_bytes = token_bytes

    # --- encoding -------------------------------------------------------------------------------------------

    def encode(
        self,
        text: str,
        *,
        allowed_special: SpecialSet = (),
        disallowed_special: SpecialSet = "all",
        dropout: float = 0.0,
        seed: int | random.Random | None = None,
    ) -> list[int]:
        """Ids of ``text``; its special tokens by tiktoken's rules.

        Lone surrogates, which UTF-8 cannot express, become U+FFFD; a pair of them becomes its character.

        Args:
            text: any string.
            allowed_special: special tokens whose text becomes their id: names, or ``"all"``.
            disallowed_special: texts that raise: names, or ``"all"`` that are not allowed. With ``()`` the
                text of special tokens is encoded like any other.
            dropout: BPE-dropout: the probability of leaving out a merge, to regularise training.
            seed: of the dropout; a ``random.Random`` goes on where it is.

        Raises:
            InputError: the text holds a disallowed special token, or ``dropout`` is not in [0, 1].
        """
        content = self._searchable(text)
        allowed = self._allowed(text, content, allowed_special, disallowed_special)
        if dropout:
            return self._encode_dropout(text, allowed, dropout, seed)
        if not allowed:
            return self._ordinary_list(text, content)
        ids: list[int] = []
        for piece, is_special in special.segments(text, allowed):
            if is_special:
                ids.append(self.special_tokens[piece])
            else:
                ids += self._ordinary_list(piece, piece)
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of ``text`` with nothing special in it: the text of special tokens is text.

        (``plain_tokens`` are not special in this sense.)
        """
        if self.plain_tokens:
            return self.encode(text, disallowed_special=())
        return self._ordinary_list(text, text)

    def _ordinary_list(self, text: str, content: str | bytes) -> list[int]:
        encoder = self._encoder_for(content)
        if encoder is None:
            try:
                return self._words.encode(text)
            except UnicodeEncodeError:
                return self._words.encode(fast.without_surrogates(text))
        return encoder.encode_list(content)

    def encode_to_numpy(
        self, text: str, *, allowed_special: SpecialSet = (), disallowed_special: SpecialSet = "all"
    ) -> np.ndarray:
        """``encode`` into an array: (n,) uint32. The fastest way."""
        content = self._searchable(text)
        allowed = self._allowed(text, content, allowed_special, disallowed_special)
        if not allowed:
            return self._ordinary_array(text, content)
        parts = [
            np.array([self.special_tokens[piece]], np.uint32)
            if is_special
            else self._ordinary_array(piece, piece)
            for piece, is_special in special.segments(text, allowed)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes, UTF-8 or not, with nothing special in them; ``decode_bytes`` gives them back.

        As in tiktoken: all from the first byte that is no UTF-8, and the word it stands in, is one word.
        """
        try:
            return self.encode_ordinary(data.decode())
        except UnicodeDecodeError as error:
            end = error.start
        words = [ids for _, ids in self._words.words(data[:end].decode())]
        ids = [i for word in words for i in word]
        kept = len(ids) - len(words[-1]) if words else 0
        if kept < len(ids) and self._is_blank(ids[kept]):  # white space before the break belongs to it
            while kept and self._is_blank(ids[kept - 1]):
                kept -= 1
        rest = b"".join(self.vocab[i] for i in ids[kept:]) + data[end:]
        whole = self._ids.get(rest)
        return ids[:kept] + ([whole] if whole is not None else self._table.encode_word(rest))

    def _is_blank(self, token_id: int) -> bool:
        return not self.vocab[token_id].strip(b" \n\t")

    def encode_utf8(self, data: bytes, dtype: np.typing.DTypeLike = np.uint32) -> np.ndarray:
        """Ids of valid UTF-8 with nothing special in it: (n,) of ``dtype``, which all ids must fit."""
        encoder = self._encoder_for(data)
        if encoder is None:
            return np.array(self._words.encode(data.decode()), dtype)
        return encoder.encode_as(data, np.dtype(dtype))

    def _ordinary_array(self, text: str, content: str | bytes) -> np.ndarray:
        encoder = self._encoder_for(content)
        if encoder is None:
            return np.array(self._ordinary_list(text, content), np.uint32)
        return encoder.encode(content)

    def encode_batch(
        self,
        texts: Sequence[str],
        num_workers: int | None = None,
        *,
        allowed_special: SpecialSet = (),
        disallowed_special: SpecialSet = "all",
    ) -> list[list[int]]:
        """``encode`` of each text, over threads (the compiled path leaves the interpreter lock).

        Args:
            texts: any number of strings.
            num_workers: threads; ``None`` takes as many as there are cores once there is work for them.
            allowed_special: as in ``encode``.
            disallowed_special: as in ``encode``.
        """
        from .batch import encode_batch

        for text in texts:
            self._allowed(text, self._searchable(text), allowed_special, disallowed_special)
        allowed, _ = self.resolve_special(allowed_special, disallowed_special)
        return encode_batch(self, texts, num_workers, allowed)

    def encode_ordinary_batch(self, texts: Sequence[str], num_workers: int | None = None) -> list[list[int]]:
        """``encode_ordinary`` of each text."""
        return self.encode_batch(texts, num_workers, disallowed_special=())

    def encode_iterable(
        self,
        chunks: Iterable[str],
        *,
        allowed_special: SpecialSet = "all",
        disallowed_special: SpecialSet = "all",
    ) -> Iterator[int]:
        """Ids of a text that arrives in pieces (lines of a file, say), in bounded memory.

        The ids are those of the whole text, however it is cut. A stream is taken for a corpus: unlike in
        ``encode``, special tokens in it are used unless ``allowed_special`` says otherwise.
        """
        from .streaming import encode_iterable

        return encode_iterable(self, chunks, allowed_special, disallowed_special)

    def encode_files(
        self,
        paths: str | Path | Iterable[str | Path],
        out: str | Path,
        num_workers: int | None = None,
        **options: Any,
    ) -> "EncodeReport":
        """Files into a token file, in bounded memory; options are those of ``encode_files.encode_files``."""
        from .encode_files import encode_files

        return encode_files(self, paths, out, num_workers, **options)

    def encode_with_offsets(
        self,
        text: str,
        *,
        unit: Literal["character", "byte"] = "character",
        allowed_special: SpecialSet = (),
        disallowed_special: SpecialSet = "all",
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and the (start, end) of each in ``text``.

        Args:
            text: any string.
            unit: positions in characters of ``text``, or in bytes of its UTF-8. A token that holds only a
                part of a character spans that whole character.
            allowed_special: as in ``encode``.
            disallowed_special: as in ``encode``.
        """
        from .offsets import spans

        ids = self.encode(text, allowed_special=allowed_special, disallowed_special=disallowed_special)
        return ids, spans([self.vocab[i] for i in ids], text, unit)

    def _encode_dropout(
        self, text: str, allowed: frozenset[str], dropout: float, seed: int | random.Random | None
    ) -> list[int]:
        if not 0 <= dropout <= 1:
            raise InputError(f"dropout={dropout} is a probability: it must be from 0 to 1")
        generator = seed if isinstance(seed, random.Random) else random.Random(seed)
        split = splitter(self.pattern)
        ids: list[int] = []
        for piece, is_special in special.segments(fast.without_surrogates(text), allowed):
            if is_special:
                ids.append(self.special_tokens[piece])
                continue
            for word in split(piece):
                ids += self._table.encode_word_dropout(word.encode(), dropout, generator)
        return ids

    def _searchable(self, text: str) -> str | bytes:
        """``text``, in UTF-8 if it is long and not ASCII: so it is encoded, and searched faster, anyway."""
        if not isinstance(text, str):
            raise InputError(f"text must be a str, not {type(text).__name__}: decode bytes first")
        return text if len(text) < _SHORT_TEXT or text.isascii() else fast.utf8(text)

    def _allowed(
        self, text: str, content: str | bytes, allowed: SpecialSet, disallowed: SpecialSet
    ) -> frozenset[str]:
        """The special tokens to use in ``text``; raises where it holds one that is disallowed."""
        use, refused = self.resolve_special(allowed, disallowed)
        if any(special.occurs(token, content) for token in refused):
            special.refuse(text, refused)
        return frozenset(token for token in use if special.occurs(token, content))

    def resolve_special(
        self, allowed: SpecialSet, disallowed: SpecialSet
    ) -> tuple[frozenset[str], frozenset[str]]:
        """What ``allowed_special`` and ``disallowed_special`` mean: the tokens to use, the text to refuse."""
        use, refused = special.resolve(allowed, disallowed, self._special_names)
        use &= self._special_names
        if self.plain_tokens:
            return use | self.plain_tokens, refused - self.plain_tokens
        return use, refused

    def _encoder_for(self, text: str | bytes) -> "FastEncoder | None":
        """The compiled encoder where it is worth it; ``None`` for little text: plain Python is quicker."""
        if len(text) < _SHORT_TEXT and self.pattern.family != "none":
            return None
        if self._fast is None:
            if not fast.can_compile(self):
                return None
            self._slow_characters += len(text)
            if self._slow_characters < _WARM_UP and not fast.is_loaded():
                return None
            self._fast = fast.make_encoder(self)
        return self._fast

    def prepare(self) -> bool:
        """Load or compile the fast path now rather than on first large use; whether there is one."""
        if self._fast is None and fast.can_compile(self):
            self._fast = fast.make_encoder(self)
        return self._fast is not None

    # --- decoding -------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """Text of ``ids``; ``errors`` as in ``bytes.decode`` for bytes that are no UTF-8.

        Raises:
            UnknownTokenError: an id that is not in the vocabulary.
        """
        return str(self._decoded(ids), "utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of ``ids``, special tokens included as their text.

        Raises:
            UnknownTokenError: an id that is not in the vocabulary.
        """
        return bytes(self._decoded(ids))

    def _decoded(self, ids: Iterable[int]) -> bytes | memoryview:
        if not isinstance(ids, (list, tuple, np.ndarray)):
            ids = list(ids)
        if len(ids) >= _SHORT_TEXT:
            if self._fast is None and (fast.is_loaded() or len(ids) >= _WARM_UP):
                self.prepare()
            if self._fast is not None:
                decoded = self._fast.decode(ids)
                if decoded is not None:
                    return decoded
        if isinstance(ids, np.ndarray):
            ids = ids.tolist()
        if self._decode_list is None:
            self._decode_list = [self.vocab.get(i) for i in range(self.vocab_size)]
        try:
            if ids and min(ids) >= 0:  # a negative index would wrap around
                return b"".join(map(self._decode_list.__getitem__, ids))  # type: ignore[arg-type]
        except (IndexError, TypeError):
            pass
        return b"".join(map(self.token_bytes, ids))

    def decode_batch(self, batch: Iterable[Iterable[int]], errors: str = "replace") -> list[str]:
        """``decode`` of each."""
        return [self.decode(ids, errors) for ids in batch]

    def decode_tokens_bytes(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each id."""
        return [self.token_bytes(i) for i in ids]

    def decode_with_offsets(self, ids: Iterable[int]) -> tuple[str, list[int]]:
        """Text and, for each id, the index of the character it starts in (tiktoken's method of that name)."""
        from .offsets import first_characters

        tokens = self.decode_tokens_bytes(ids)
        return b"".join(tokens).decode("utf-8", "strict"), first_characters(tokens)

    def stream_decoder(self, errors: str = "replace") -> "StreamDecoder":
        """A decoder to feed ids one at a time; it never shows half a character."""
        from .streaming import StreamDecoder

        return StreamDecoder(self, errors)

    # --- training -------------------------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        pattern: str | SplitPattern | None = "gpt2",
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        num_workers: int | None = None,
        **options: Any,
    ) -> "BPETokenizer":
        """Learn a vocabulary of ``vocab_size`` ids, special tokens included, from an iterable of texts.

        Options (``min_frequency``, ``tie_break``, ``counts_file``, ``progress`` …) are those of
        ``training.train``.
        """
        from .training import train

        return train(
            texts,
            vocab_size,
            pattern=pattern,
            special_tokens=special_tokens,
            num_workers=num_workers,
            **options,
        )

    @classmethod
    def train_from_files(
        cls,
        paths: str | Path | Iterable[str | Path],
        vocab_size: int,
        *,
        pattern: str | SplitPattern | None = "gpt2",
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        num_workers: int | None = None,
        **options: Any,
    ) -> "BPETokenizer":
        """The same from files of any size, in bounded memory; each file is a text of its own."""
        from .training import train_from_files

        return train_from_files(
            paths,
            vocab_size,
            pattern=pattern,
            special_tokens=special_tokens,
            num_workers=num_workers,
            **options,
        )

    # --- files ----------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, for ``load`` and Hugging Face's AutoTokenizer."""
        from .formats import save_folder

        save_folder(self, folder)

    @classmethod
    def from_gpt2_files(
        cls,
        vocab_json: str | Path,
        merges_txt: str | Path,
        *,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        pattern: str | SplitPattern | None = "gpt2",
    ) -> "BPETokenizer":
        """Read GPT-2's vocab.json and merges.txt (also called encoder.json and vocab.bpe)."""
        from .formats import read_gpt2_files

        return read_gpt2_files(vocab_json, merges_txt, special_tokens, pattern)

    def to_gpt2_files(
        self, vocab_json: str | Path, merges_txt: str | Path, *, version_line: bool = True
    ) -> None:
        """Write vocab.json and merges.txt, the latter with or without its ``#version`` line."""
        from .formats import write_gpt2_files

        write_gpt2_files(self, vocab_json, merges_txt, version_line)

    @classmethod
    def from_tokenizer_json(cls, path: str | Path) -> "BPETokenizer":
        """Read Hugging Face's tokenizer.json."""
        from .formats import read_tokenizer_json

        return read_tokenizer_json(path)

    def to_tokenizer_json(self, path: str | Path) -> None:
        """Write Hugging Face's tokenizer.json."""
        from .formats import write_tokenizer_json

        write_tokenizer_json(self, path)

    @classmethod
    def from_tiktoken_file(
        cls,
        path: str | Path,
        pattern: str | SplitPattern | None = "gpt4",
        *,
        special_tokens: Mapping[str, int] | Iterable[str] = (),
    ) -> "BPETokenizer":
        """Read a tiktoken rank file; it names neither pattern nor special tokens, so you do."""
        from .formats import read_tiktoken

        return read_tiktoken(path, pattern, special_tokens)

    def to_tiktoken_file(self, path: str | Path) -> None:
        """Write a tiktoken rank file (``tiktoken.load.load_tiktoken_bpe`` opens it)."""
        from .formats import write_tiktoken

        write_tiktoken(self, path)

    @classmethod
    def from_minbpe_file(cls, path: str | Path) -> "BPETokenizer":
        """Read minbpe's ``.model``."""
        from .formats import read_minbpe

        return read_minbpe(path)

    def to_minbpe_file(self, path: str | Path, *, renumber: bool = False) -> None:
        """Write minbpe's ``.model``; with ``renumber`` even if its numbering changes ids."""
        from .formats import write_minbpe

        write_minbpe(self, path, renumber)


def _rebuild(
    vocab: dict[int, bytes],
    merges: list[tuple[bytes, bytes]],
    special_tokens: dict[str, int],
    pattern: SplitPattern,
    whole_words: bool,
    plain_tokens: frozenset[str],
) -> BPETokenizer:
    return BPETokenizer(
        vocab, merges, special_tokens, pattern, whole_words=whole_words, plain_tokens=plain_tokens
    )
