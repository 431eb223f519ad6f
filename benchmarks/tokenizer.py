"""Our BPE beside its peers: CPU time of one thread, interleaved in one run, ids compared.

    python benchmarks/tokenizer.py --append benchmarks/RESULTS_tokenizer.md

Peers that are not installed are left out: tiktoken, tokenizers, gigatoken, fastokens, rustbpe.
GPT-2's vocabulary is looked for in ``../shared/data`` (see ``--vocab``); without it one is trained.
"""

import argparse
import contextlib
import datetime
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ai_learning.tokenizers import BPETokenizer, fast
from ai_learning.tokenizers.fast_encoder import FastEncoder
from ai_learning.tokenizers.pretokenize import PATTERNS

Job = Callable[[], object]
PARTS = ("encode", "files", "train")


def optional(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def interleaved(jobs: dict[str, Job], repeat: int) -> dict[str, float]:
    """Best CPU seconds of each job, run in turns so that noise hits all alike."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(repeat):
        for name, job in jobs.items():
            gc.collect()
            started = cpu_seconds()
            job()
            best[name] = min(best[name], cpu_seconds() - started)
    return best


def stdlib_source(limit: int) -> str:
    """Source files of the standard library, tests included where they are installed."""
    parts, size = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts or size >= limit:
            continue
        try:
            parts.append(path.read_bytes().decode("utf-8"))
        except UnicodeDecodeError:
            continue
        size += len(parts[-1])
    return "\n".join(parts)[:limit]


def multilingual(n_words: int = 120_000) -> str:
    """Made-up words in twelve scripts, as often as words are (Zipf): Python brings no such real text."""
    generator = random.Random(0)
    scripts = [
        "абвгдежзиклмнопрстуфхцчшыья", "αβγδεζηθικλμνξοπρστυφχψω", "abcdefghilmnoprstuvzéèêàçùïô",
        "abcdefghiklmnoprstuwzäöüß", "abcdeghiklmnoprstuyâêôơưđáàảãạ", "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
        "אבגדהוזחטיכלמנסעפצקרשת", "कखगघचछजझटठडढणतथदधनपफबभमयरलवशसहािीुूेैोौ",
        "กขคงจชซดตถทนบปพฟมยรลวสหอะาิีุูเแโ",
        "가나다라마바사아자차카타파하고노도로모보소",
        "あいうえおかきくけこさしすせそたちつてとなにぬねの",
        "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出",
    ]  # fmt: skip
    words = []
    for letters in scripts:
        words.append(["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(3000)])
    weights = [1 / (rank + 1) for rank in range(3000)]
    sentences, written = [], 0
    while written < n_words:
        language = generator.randrange(len(scripts))
        n = generator.randint(4, 20)
        space = "" if language >= 10 else " "
        sentences.append(
            space.join(generator.choices(words[language], weights, k=n)) + generator.choice(".,?!。\n")
        )
        written += n
    return " ".join(sentences)


def encoders(tokenizer: BPETokenizer, folder: Path):
    """Peers with the same vocabulary: name → (encode to their own kind, ids as an array)."""
    peers = {}
    if tiktoken := optional("tiktoken"):
        ranks = {
            token: i for i, token in tokenizer.vocab.items() if i not in tokenizer.special_tokens.values()
        }
        encoding = tiktoken.Encoding(
            "ours",
            pat_str=PATTERNS["gpt2"].regex,
            mergeable_ranks=ranks,
            special_tokens=tokenizer.special_tokens,
        )
        peers["tiktoken"] = encoding
    tokenizer.save(folder)
    file = str(folder / "tokenizer.json")
    if hf := optional("tokenizers"):
        peers["HF tokenizers"] = hf.Tokenizer.from_file(file)
    if gigatoken := optional("gigatoken"):
        peers["gigatoken"] = gigatoken.Tokenizer(file)
    if fastokens := optional("fastokens"):
        peers["fastokens"] = fastokens.Tokenizer.from_file(file)
    return peers


def bench_encode(tokenizer, peers, name, text, repeat, rows):
    size = len(text.encode())
    expected = tokenizer.encode_to_numpy(text)
    as_list = expected.tolist()
    lines = text.split("\n")
    documents = ["\n".join(lines[i : i + 40]) for i in range(0, len(lines), 40)]
    fresh: list[FastEncoder] = []

    def cold():
        fresh[-1].encode(text)

    jobs: dict[str, Job] = {
        "ours, array": lambda: tokenizer.encode_to_numpy(text),
        "ours, list": lambda: tokenizer.encode_ordinary(text),
        "ours, documents of 40 lines": lambda: [
            tokenizer.encode_ordinary(document) for document in documents
        ],
        "ours, plain Python warm": lambda: tokenizer._words.encode(text),
    }
    same = {}
    if peer := peers.get("tiktoken"):
        same["tiktoken"] = np.array_equal(peer.encode_to_numpy(text), expected)
        jobs["tiktoken, array"] = lambda: peer.encode_to_numpy(text)
        jobs["tiktoken, list"] = lambda: peer.encode_ordinary(text)
        jobs["tiktoken, documents of 40 lines"] = lambda: [peer.encode_ordinary(d) for d in documents]
    if hf := peers.get("HF tokenizers"):
        same["HF tokenizers"] = hf.encode(text).ids == as_list
        jobs["HF tokenizers"] = lambda: hf.encode(text)
    if giga := peers.get("gigatoken"):
        same["gigatoken"] = np.array_equal(np.asarray(giga.encode(text)), expected)
        jobs["gigatoken"] = lambda: giga.encode(text)
        jobs["gigatoken, documents of 40 lines"] = lambda: [giga.encode(document) for document in documents]
    if fastokens := peers.get("fastokens"):
        same["fastokens"] = list(fastokens.encode_ordinary(text).ids) == as_list
        jobs["fastokens"] = lambda: fastokens.encode_ordinary(text)
    best = interleaved(jobs, repeat)
    cold_times = []
    for seeded in (True, False):
        times = []
        for _ in range(max(5, repeat)):
            fresh.append(FastEncoder(tokenizer, seeded=seeded))
            started = cpu_seconds()
            cold()
            times.append(cpu_seconds() - started)
        cold_times.append(min(times))
    best["ours, array, no text seen yet"] = cold_times[0]
    best["ours, array, empty word cache"] = cold_times[1]
    reference = best.get("tiktoken, array", best["ours, array"])
    references = {
        "ours, list": "tiktoken, list",
        "ours, documents of 40 lines": "tiktoken, documents of 40 lines",
        "ours, plain Python warm": "tiktoken, list",
    }
    for job, seconds in sorted(best.items(), key=lambda item: item[1]):
        base = best.get(references.get(job, ""), reference)
        ids = same.get(job.split(",")[0], True)
        rows.append(
            (
                f"encode {name}",
                job,
                f"{size / seconds / 1e6:.1f}",
                f"{base / seconds:.2f}",
                "yes" if ids else "NO",
            )
        )

    decode: dict[str, Job] = {
        "ours, list": lambda: tokenizer.decode(as_list),
        "ours, array": lambda: tokenizer.decode(expected),
    }
    if peer:
        decode["tiktoken, list"] = lambda: peer.decode(as_list)
    if giga:
        decode["gigatoken, list"] = lambda: giga.decode(as_list)
        decode["gigatoken, array"] = lambda: giga.decode(expected)
    best = interleaved(decode, repeat)
    reference = best.get("tiktoken, list", best["ours, list"])
    for job, seconds in sorted(best.items(), key=lambda item: item[1]):
        rows.append(
            (f"decode {name}", job, f"{size / seconds / 1e6:.1f}", f"{reference / seconds:.2f}", "yes")
        )


def train_once(which: str, vocab_size: int, path: str) -> None:
    """One training in this process; prints CPU seconds, MB above the start, a digest of the tokens."""
    import hashlib

    text = Path(path).read_bytes().decode()
    pattern = PATTERNS["gpt2"].oniguruma

    def peak():
        status = Path("/proc/self/status")  # on Linux; ru_maxrss begins with what the parent process had
        if status.exists():
            return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    if which.startswith("ours"):
        rule = "rustbpe" if which.endswith("rustbpe") else "hf"

        def run():
            return BPETokenizer.train(
                [text],
                vocab_size,
                special_tokens=(),
                num_workers=1,
                compiled="plain" not in which,
                tie_break=rule,
            )

        if "plain" not in which:
            BPETokenizer.train([text[:100_000]], 400, num_workers=1, compiled=True)  # load the kernels
    elif which == "rustbpe":
        import rustbpe

        run_on = rustbpe.Tokenizer()

        def run():
            run_on.train_from_iterator(iter([text]), vocab_size, pattern=pattern)
            return run_on
    else:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        hf = Tokenizer(models.BPE())
        hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )

        def run():
            hf.train_from_iterator([text], trainer)
            return hf

    before, times = peak(), []
    for _ in range(3):
        started = cpu_seconds()
        result = run()
        times.append(cpu_seconds() - started)
        if len(times) == 1:
            memory = peak() - before
    if which.startswith("ours"):
        tokens = [left + right for left, right in result.merges]
    elif which == "rustbpe":
        tokens = [bytes(token) for token, _ in result.get_mergeable_ranks()][256:]
    else:
        from ai_learning.tokenizers.alphabet import from_printable

        tokens = [
            from_printable(left) + from_printable(right)
            for left, right in json.loads(result.to_str())["model"]["merges"]
        ]
    digest = hashlib.sha256(b"\n".join(token.hex().encode() for token in tokens)).hexdigest()
    print(json.dumps({"seconds": min(times), "first": times[0], "memory": memory, "digest": digest}))


def bench_train(rows, source: str, sizes, repeat):
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8", newline="") as file:
        file.write(source)
        file.flush()
        megabytes = len(source.encode()) / 1e6
        for size in sizes:
            found: dict[str, list[dict]] = {}
            contestants = ["ours", "ours rustbpe"]
            contestants += ["rustbpe"] * bool(optional("rustbpe")) + ["HF tokenizers"] * bool(
                optional("tokenizers")
            )
            for _ in range(repeat):  # in turns; a process each, for the memory
                for which in contestants:
                    command = [sys.executable, __file__, "--train-once", which, str(size), file.name]
                    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    found.setdefault(which, []).append(json.loads(output.splitlines()[-1]))
            best = {which: min(run["seconds"] for run in runs) for which, runs in found.items()}
            for which, seconds in best.items():
                owner = {"ours": "HF tokenizers", "ours rustbpe": "rustbpe"}.get(which)
                same = (
                    owner is None
                    or owner not in found
                    or found[owner][0]["digest"] == found[which][0]["digest"]
                )
                ratios = ", ".join(
                    f"{best[peer] / seconds:.1f} × {peer}"
                    for peer in ("rustbpe", "HF tokenizers")
                    if which.startswith("ours") and peer in best
                )
                memory = min(run["memory"] for run in found[which])
                rows.append(
                    (
                        f"train {size:,} on {megabytes:.1f} MB",
                        which,
                        f"{seconds:.3f} CPU-s ({min(run['first'] for run in found[which]):.3f} the first of "
                        f"three times), {memory:.0f} MB above the text",
                        ratios,
                        "yes" if same else "NO",
                    )
                )


def bench_small_train(source: str, rows) -> None:
    """What plain Python takes, where the compiled path is not loaded or cannot be."""
    text = source[:1_000_000]
    jobs: dict[str, Job] = {
        "ours, plain Python": lambda: BPETokenizer.train([text], 8192, num_workers=1, compiled=False)
    }
    if fast.has_numba():
        jobs["ours, compiled"] = lambda: BPETokenizer.train([text], 8192, num_workers=1, compiled=True)
        jobs["ours, compiled"]()
    for name, seconds in interleaved(jobs, 3).items():
        rows.append(("train 8,192 on 1 MB of code", name, f"{seconds:.3f} CPU-s", "", "yes"))


def bench_files(tokenizer, source: str, rows, repeat):
    """``encode_files`` by wall time, since that is what a second worker is for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source.txt"
        path.write_text(source * 4, encoding="utf-8", newline="")
        out = Path(folder) / "out.tokens"
        best = {1: float("inf"), 2: float("inf")}
        for _ in range(repeat):
            for workers in best:
                started = time.perf_counter()
                tokenizer.encode_files(path, out, workers)
                best[workers] = min(best[workers], time.perf_counter() - started)
        size = path.stat().st_size
    for workers, seconds in best.items():
        ratio = f"{best[1] / seconds:.2f} × one worker"
        rows.append(
            (
                f"encode_files, {size / 1e6:.0f} MB",
                f"{workers} worker(s), wall time",
                f"{size / seconds / 1e6:.0f}",
                ratio,
                "yes",
            )
        )


def hardware() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--train-once":
        train_once(sys.argv[2], int(sys.argv[3]), sys.argv[4])
        return
    for variable in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS"):  # before any peer is imported
        os.environ.setdefault(variable, "1")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    parser.add_argument(
        "--vocab", type=Path, default=shared, help="folder with gpt2_vocab.json and gpt2_merges.txt"
    )
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--train-bytes", type=int, default=32_000_000)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; all when left out"
    )
    parser.add_argument("--append", type=Path, help="append the table to this file")
    options = parser.parse_args()

    source = stdlib_source(options.train_bytes)
    if (options.vocab / "gpt2_vocab.json").is_file():
        tokenizer = BPETokenizer.from_gpt2_files(
            options.vocab / "gpt2_vocab.json", options.vocab / "gpt2_merges.txt"
        )
        prose = (options.vocab / "tinyshakespeare.txt").read_text(encoding="utf-8")
    else:
        from ai_learning.text import read_text

        prose = read_text("builtin:reference")
        tokenizer = BPETokenizer.train([source[:5_000_000], prose], 50257)
    started = time.process_time()
    tokenizer.prepare()
    loading = time.process_time() - started
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        peers = encoders(tokenizer, Path(folder)) if "encode" in options.parts else {}
        for name, text in (
            ("prose", prose),
            ("code", source[:3_000_000]),
            ("multilingual (made up)", multilingual()),
        ):
            if peers:
                bench_encode(tokenizer, peers, name, text, options.repeat, rows)
    if "files" in options.parts:
        bench_files(tokenizer, source, rows, 5)
    if "train" in options.parts:
        bench_small_train(source, rows)
        bench_train(rows, source, (8192, 32768), 1)

    versions = {}
    for name in ("tiktoken", "tokenizers", "gigatoken", "fastokens", "rustbpe", "numba", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    lines = [
        f"## {datetime.date.today()}",
        "",
        f"{hardware()}; {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        "CPU time of one thread unless said otherwise, interleaved, best of "
        f"{options.repeat}; kernels loaded from disk and cache seeded in {loading:.2f} CPU-s.",
        "",
        f"    python benchmarks/tokenizer.py --repeat {options.repeat} --parts {' '.join(options.parts)}",
        "",
        "| what | who | MB/s | × tiktoken (the same kind of result) | same ids |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    print("\n".join(lines))
    if options.append:
        old = (
            options.append.read_text(encoding="utf-8")
            if options.append.exists()
            else "# Tokenizer benchmarks\n"
        )
        options.append.write_text(old.rstrip() + "\n\n" + "\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
