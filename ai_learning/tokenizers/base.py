"""What every tokenizer can do, and how one is found again on disk."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..errors import InputError

CONFIG_FILE = "tokenizer_config.json"  # names the class, as in Hugging Face folders
TOKENIZER_FILE = "tokenizer.json"  # Hugging Face's format, written by BPETokenizer


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. ``eos_id`` ends a document; ``fingerprint`` tells two tokenizers apart."""

    @property
    def vocab_size(self) -> int:
        """Number of ids: every id is in ``range(vocab_size)``."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, or ``None``."""

    @property
    def fingerprint(self) -> str:
        """A short hash of everything that decides which ids a text gets."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of ``ids``: needed where a token ends in the middle of a character."""

    def save(self, folder: Path | str) -> None:
        """Write what ``load`` needs into ``folder``."""


def encode_own(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text of one's own, a corpus or a prompt: a BPE tokenizer's special tokens in it are those.

    (`BPETokenizer.encode` refuses them where nobody allows them, as tiktoken does: a stranger's text could
    otherwise end a document. To the other tokenizers they are text.)
    """
    from .bpe_tokenizer import BPETokenizer

    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.encode(text, allowed_special="all")
    return tokenizer.encode(text)


def load(folder: Path | str) -> Tokenizer:
    """Open the tokenizer that ``save`` (or Hugging Face) left in ``folder``.

    Raises:
        InputError: nothing there that this library knows.
    """
    folder = Path(folder)
    config_path = folder / CONFIG_FILE
    config: dict = {}
    if config_path.is_file():
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{config_path} is not valid JSON: {error}") from None
        if not isinstance(config, dict):
            raise InputError(f"{config_path} must hold a JSON object, not {json.dumps(config)[:50]}")
    if config.get("tokenizer_class") == "ByteTokenizer":
        from .bytes import ByteTokenizer

        return ByteTokenizer(errors=config.get("errors", "ignore"))
    if config.get("tokenizer_class") == "OpenAIGPTTokenizer" and (folder / "merges.txt").is_file():
        from .gpt1 import GPT1Tokenizer

        return GPT1Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")
    if (folder / TOKENIZER_FILE).is_file():
        from .bpe_tokenizer import BPETokenizer

        return BPETokenizer.from_tokenizer_json(folder / TOKENIZER_FILE)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():  # GPT-2's own files
        from .bpe_tokenizer import BPETokenizer

        return BPETokenizer.from_gpt2_files(folder / "vocab.json", folder / "merges.txt")
    raise InputError(
        f"no tokenizer in {folder}: expected {TOKENIZER_FILE}, vocab.json with merges.txt, or "
        f"a {CONFIG_FILE} that names ByteTokenizer"
    )
