"""Other tools' tokenizer files, read and written: Hugging Face, GPT-2, tiktoken, minbpe.

Every reader names the place where a file is wrong, in one line.
"""

import base64
import binascii
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import atomic_path, write_text
from .alphabet import from_printable, to_printable
from .base import CONFIG_FILE, TOKENIZER_FILE
from .bpe_tokenizer import END_OF_TEXT, BPETokenizer
from .pretokenize import SplitPattern, split_pattern
from .word_encoder import MergeTable

# --- reading text and JSON ----------------------------------------------------------------------------------


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"no file at {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: name the file in it") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"
        ) from None


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path))
    except RecursionError:
        raise InputError(f"{path} is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a JSON {type(data).__name__}, not an object")
    return data


def _vocab_bytes(entries: Mapping[str, Any], where: str, special: Iterable[str]) -> dict[int, bytes]:
    """A printable vocabulary as id → bytes; ``special`` tokens are plain text."""
    plain = set(special)
    vocab: dict[int, bytes] = {}
    for text, i in entries.items():
        if not isinstance(i, int) or isinstance(i, bool) or i < 0:
            raise InputError(f"{where}: the id of {text!r} is {i!r}, not a number from 0")
        try:
            token = text.encode() if text in plain else from_printable(text)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if i in vocab:
            raise InputError(f"{where}: id {i} belongs to both {vocab[i]!r} and {token!r}")
        vocab[i] = token
    return vocab


# --- GPT-2: vocab.json + merges.txt -------------------------------------------------------------------------


def read_gpt2_files(
    vocab_json: str | Path,
    merges_txt: str | Path,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    pattern: str | SplitPattern | None = "gpt2",
) -> BPETokenizer:
    """Read GPT-2's two files. Special tokens that the vocabulary does not hold are left out.

    Raises:
        InputError: missing or damaged files, or two that do not belong together.
    """
    entries = _read_json(vocab_json)
    special = [text for text in special_tokens if text in entries]
    vocab = _vocab_bytes(entries, str(vocab_json), special)
    merges = []
    lines = _read_text(merges_txt).split("\n")
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise InputError(f"{merges_txt}, line {number}: expected two tokens and a space, found {line!r}")
        try:
            merges.append((from_printable(parts[0]), from_printable(parts[1])))
        except InputError as error:
            raise InputError(f"{merges_txt}, line {number}: {error}") from None
    return _build(f"{vocab_json} and {merges_txt}", vocab, merges, special, pattern)


def write_gpt2_files(
    tokenizer: BPETokenizer, vocab_json: str | Path, merges_txt: str | Path, version_line: bool = True
) -> None:
    """Write vocab.json and merges.txt."""
    lines = ["#version: 0.2"] if version_line else []
    lines += [f"{to_printable(left)} {to_printable(right)}" for left, right in tokenizer.merges]
    if not version_line and lines and lines[0].startswith("#version"):
        raise InputError("the first merge would read as a #version line: write it with that line")
    write_text(vocab_json, json.dumps(_printable_vocab(tokenizer), ensure_ascii=False))
    write_text(merges_txt, "\n".join(lines) + "\n")


def _printable_vocab(tokenizer: BPETokenizer) -> dict[str, int]:
    special = {i: text for text, i in tokenizer.special_tokens.items()}
    return {
        special[i] if i in special else to_printable(token): i for i, token in sorted(tokenizer.vocab.items())
    }


def _build(
    where: str,
    vocab: dict[int, bytes],
    merges: list[tuple[bytes, bytes]],
    special: Mapping[str, int] | Iterable[str],
    pattern: str | SplitPattern | None,
    whole_words: bool = False,
    plain: Iterable[str] = (),
) -> BPETokenizer:
    try:
        return BPETokenizer(vocab, merges, special, pattern, whole_words=whole_words, plain_tokens=plain)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


# --- Hugging Face: tokenizer.json ---------------------------------------------------------------------------


def read_tokenizer_json(path: str | Path) -> BPETokenizer:
    """Read tokenizer.json: byte-level BPE with one split pattern.

    Post-processors, which put tokens around a text, are not applied: ``encode`` adds nothing.

    Raises:
        InputError: missing, damaged, or a kind of tokenizer that is not byte-level BPE.
    """
    data = _read_json(path)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "merges" not in model:
        kind = model.get("type") if isinstance(model, dict) else None
        raise InputError(f"{path}: model type {kind!r}; only byte-level BPE can be read")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if model.get(key):
            raise InputError(f"{path}: model.{key}={model[key]!r} is not byte-level BPE")
    if model.get("byte_fallback"):
        raise InputError(f"{path}: model.byte_fallback is not byte-level BPE")
    if data.get("normalizer"):
        raise InputError(
            f"{path}: normalizer {data['normalizer'].get('type')!r} would change text before encoding"
        )
    try:
        pattern = _read_pre_tokenizer(data.get("pre_tokenizer"))
        added = {str(token["content"]): int(token["id"]) for token in data.get("added_tokens") or []}
        plain = [
            str(token["content"])
            for token in data.get("added_tokens") or []
            if not token.get("special", True)
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{path}: {error}") from None
        raise InputError(f"{path}: pre_tokenizer or added_tokens is damaged ({error!r})") from None
    for token in data.get("added_tokens") or []:
        asked = [name for name in ("lstrip", "rstrip", "single_word") if token.get(name)]
        if asked:
            warnings.warn(
                f"{path}: the token {token['content']!r} has {asked[0]}, which is not followed here: beside "
                "spaces and words its text may get other ids",
                stacklevel=3,
            )
    entries = model.get("vocab")
    if not isinstance(entries, dict):
        raise InputError(f"{path}: model.vocab is missing or no object")
    vocab = _vocab_bytes(entries, str(path), added)
    merges = []
    for rank, merge in enumerate(model["merges"]):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2:
            raise InputError(f"{path}: merge {rank} is {merge!r}, not two tokens")
        try:
            merges.append((from_printable(parts[0]), from_printable(parts[1])))
        except (InputError, TypeError) as error:
            raise InputError(f"{path}: merge {rank}: {error}") from None
    return _build(str(path), vocab, merges, added, pattern, bool(model.get("ignore_merges")), plain)


def _read_pre_tokenizer(data: dict[str, Any] | None) -> SplitPattern:
    steps = (data or {}).get("pretokenizers") or ([data] if data else [])
    pattern: SplitPattern | None = None
    byte_level = False
    for step in steps:
        kind = step.get("type")
        if kind == "Split":
            if step.get("behavior") != "Isolated" or step.get("invert") or pattern is not None:
                raise InputError("only one Split step with behavior 'Isolated' can be read")
            target = step["pattern"]
            if "Regex" not in target:
                raise InputError("a Split step by a fixed string cannot be read")
            pattern = split_pattern(target["Regex"])
        elif kind == "ByteLevel":
            if step.get("add_prefix_space"):
                raise InputError("add_prefix_space=true would change text before encoding")
            byte_level = True
            if step.get("use_regex", True):
                if pattern is not None:
                    raise InputError("two split patterns after each other cannot be read")
                pattern = split_pattern("gpt2")
        else:
            raise InputError(f"pre_tokenizer step {kind!r} cannot be read")
    if not byte_level:
        raise InputError("no ByteLevel pre_tokenizer: only byte-level BPE can be read")
    return pattern or split_pattern(None)


def write_tokenizer_json(tokenizer: BPETokenizer, path: str | Path) -> None:
    """Write tokenizer.json, which ``tokenizers`` and transformers' ``AutoTokenizer`` open."""
    write_text(path, json.dumps(tokenizer_json(tokenizer), ensure_ascii=False, indent=1) + "\n")


def tokenizer_json(tokenizer: BPETokenizer) -> dict[str, Any]:
    """The content of tokenizer.json."""
    pattern = tokenizer.pattern
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": pattern.name == "gpt2",
    }
    pre_tokenizer: dict[str, Any] = byte_level
    if pattern.name != "gpt2" and pattern.regex:
        split = {
            "type": "Split",
            "pattern": {"Regex": pattern.oniguruma},
            "behavior": "Isolated",
            "invert": False,
        }
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    as_it_stands = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **as_it_stands, "special": text not in tokenizer.plain_tokens}
            for text, i in added
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": tokenizer.whole_words,
            "vocab": _printable_vocab(tokenizer),
            "merges": [[to_printable(left), to_printable(right)] for left, right in tokenizer.merges],
        },
    }


def save_folder(tokenizer: BPETokenizer, folder: str | Path) -> None:
    """Write tokenizer.json and the tokenizer_config.json that AutoTokenizer wants beside it."""
    folder = Path(folder)
    write_tokenizer_json(tokenizer, folder / TOKENIZER_FILE)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "fingerprint": tokenizer.fingerprint,
    }
    if tokenizer.eos_id is not None:
        config["eos_token"] = tokenizer.vocab[tokenizer.eos_id].decode()
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


# --- tiktoken: one "base64 rank" a line ---------------------------------------------------------------------


def read_tiktoken(
    path: str | Path,
    pattern: str | SplitPattern | None = "gpt4",
    special_tokens: Mapping[str, int] | Iterable[str] = (),
) -> BPETokenizer:
    """Read a rank file. It holds no merges: each is found by encoding its token with the ranks below.

    Raises:
        InputError: missing or damaged.
    """
    vocab: dict[int, bytes] = {}
    seen: dict[bytes, int] = {}
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            encoded, rank_text = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(rank_text)
        except (ValueError, binascii.Error):
            raise InputError(
                f"{path}, line {number}: expected base64 and a rank, found {line[:60]!r}"
            ) from None
        if rank < 0 or not token:
            raise InputError(f"{path}, line {number}: rank {rank} of the token {token!r} cannot be used")
        if rank in vocab or token in seen:
            other = vocab[rank] if rank in vocab else seen[token]
            raise InputError(
                f"{path}, line {number}: {token!r} with rank {rank} is there already as {other!r}"
            )
        vocab[rank] = token
        seen[token] = rank
    merges, whole_words = merges_from_ranks(vocab, str(path))
    return _build(str(path), vocab, merges, special_tokens, pattern, whole_words)


def merges_from_ranks(vocab: Mapping[int, bytes], where: str) -> tuple[list[tuple[bytes, bytes]], bool]:
    """The merges that made each token, and whether some token has none (it only stands for a whole word).

    Encoded with the merges of lower rank, a trained token falls into exactly the two parts it was made from.
    """
    ids = {token: i for i, token in vocab.items()}
    missing = [byte for byte in range(256) if bytes([byte]) not in ids]
    if missing:
        raise InputError(
            f"{where}: {len(missing)} of the 256 single bytes are missing, the first 0x{missing[0]:02x}"
        )
    table = MergeTable([ids[bytes([byte])] for byte in range(256)], [], [], [])
    merges, unreachable = [], False
    for rank, token in sorted(vocab.items()):
        if len(token) == 1:
            continue
        parts = table.encode_word(token)
        if len(parts) != 2:
            unreachable = True
            continue
        table.rank[parts[0], parts[1]] = len(table.new)
        table.new.append(rank)
        merges.append((vocab[parts[0]], vocab[parts[1]]))
    return merges, unreachable


def write_tiktoken(tokenizer: BPETokenizer, path: str | Path) -> None:
    """Write a rank file; special tokens, which the format does not have, are left to whoever opens it.

    Raises:
        InputError: ids that do not rise with the merges: tiktoken takes the id for the rank.
    """
    new_ids = [tokenizer.token_id(left + right) for left, right in tokenizer.merges]
    falling = next((i for i in range(1, len(new_ids)) if new_ids[i] < new_ids[i - 1]), None)
    if falling is not None:
        raise InputError(
            f"merge {falling} makes id {new_ids[falling]} after id {new_ids[falling - 1]}: a tiktoken file "
            f"takes ids "
            "for ranks and cannot hold that; use tokenizer.json"
        )
    special = set(tokenizer.special_tokens.values())
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for i, token in sorted(tokenizer.vocab.items()):
            if i not in special:
                file.write(base64.b64encode(token) + b" %d\n" % i)


# --- minbpe: .model -----------------------------------------------------------------------------------------


def read_minbpe(path: str | Path) -> BPETokenizer:
    """Read minbpe's .model: version, pattern, special tokens, then one pair of ids a line.

    Raises:
        InputError: missing or damaged.
    """
    lines = _read_text(path).split("\n")
    if not lines or lines[0].strip() != "minbpe v1":
        raise InputError(f"{path}, line 1: expected 'minbpe v1', found {lines[0][:40]!r}")
    try:
        pattern = split_pattern(lines[1].strip() or None)
        n_special = int(lines[2])
    except (IndexError, ValueError) as error:
        raise InputError(f"{path}: lines 2 and 3 must be a pattern and a number ({error})") from None
    special: dict[str, int] = {}
    for number in range(4, 4 + n_special):
        text, _, i = lines[number - 1].strip().rpartition(" ") if number <= len(lines) else ("", "", "")
        if not text or not i.isdigit():
            raise InputError(f"{path}, line {number}: expected a special token and its id")
        special[text] = int(i)
    vocab = {i: bytes([i]) for i in range(256)}
    merges = []
    for number, line in enumerate(lines[3 + n_special :], start=4 + n_special):
        if not line.strip():
            continue
        try:
            left, right = (vocab[int(part)] for part in line.split())
        except (KeyError, ValueError):
            raise InputError(f"{path}, line {number}: {line[:40]!r} is not a pair of known ids") from None
        vocab[len(vocab)] = left + right
        merges.append((left, right))
    return _build(str(path), vocab, merges, special, pattern)


def write_minbpe(tokenizer: BPETokenizer, path: str | Path, renumber: bool = False) -> None:
    """Write minbpe's .model, which numbers the bytes by value and merge i as 256 + i.

    Raises:
        InputError: the ids are numbered otherwise and ``renumber`` does not allow for it; a special token
            with white space, which minbpe cannot read back.
    """
    ids = {bytes([i]): i for i in range(256)}
    for i, (left, right) in enumerate(tokenizer.merges):
        ids[left + right] = 256 + i
    moved = next((token for token, i in ids.items() if tokenizer.token_id(token) != i), None)
    if moved is not None and not renumber:
        raise InputError(
            f"minbpe would give {moved!r} the id {ids[moved]} in place of {tokenizer.token_id(moved)}: "
            f"convert with "
            "renumber=True (--renumber) if ids may change"
        )
    special = dict(tokenizer.special_tokens)
    if renumber:
        special = {text: 256 + len(tokenizer.merges) + i for i, text in enumerate(special)}
    bad = next((text for text in special if text.split() != [text]), None)
    if bad is not None:
        raise InputError(f"minbpe cannot read a special token with white space: {bad!r}")
    lines = ["minbpe v1", tokenizer.pattern.regex, str(len(special))]
    lines += [f"{text} {i}" for text, i in special.items()]
    lines += [f"{ids[left]} {ids[right]}" for left, right in tokenizer.merges]
    write_text(path, "\n".join(lines) + "\n")
