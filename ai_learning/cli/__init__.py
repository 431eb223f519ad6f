"""The command ``ai-learning``: one file a family of commands, imported only when it is asked for."""

import importlib
import io
import os
import signal
import sys
import warnings

from ..errors import did_you_mean

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "train, sample and fine-tune a small GPT-1 here and now, and write a report"),
    "lessons": ("lessons", "the lessons in their order; copy one to work on"),
    "tokenizer": ("tokenizer", "train, encode, decode, show, convert and measure tokenizers"),
    "data": ("data", "prepare: turn text into a token file"),
    "pretrain": ("pretrain", "train a GPT on text"),
    "finetune": ("finetune", "fine-tune a GPT: a task head, all weights, LoRA or QLoRA"),
    "generate": ("generate", "continue a prompt"),
    "evaluate": ("evaluate", "perplexity and bits per byte of a text, accuracy on a task"),
    "export": ("export", "a checkpoint as a folder that transformers opens; merge adapters; push to the hub"),
    "toolformer": ("toolformer", "tools: annotate text with calls, train on it, write with tools, evaluate"),
    "inspect": ("inspect", "attention, residual stream, logit lens and per-token loss of a text, as plots"),
    "reflexion": ("reflexion", "an agent that reflects on its failures: run, report, doctor, demo"),
    "web": ("web", "a page on this machine: tokens, attention, next token, training, adapters, agents"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; bad input is one line on stderr and exit code 2, Ctrl-C is 130."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0 if args else 2
    if args[0] == "--version":
        from .. import __version__

        print(f"ai-learning {__version__}")
        return 0
    name, *rest = args
    if name not in COMMANDS:
        print(f"ai-learning: error: no command {name!r}; {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character shows "?"
            stream.reconfigure(errors="replace")
    warnings.showwarning = lambda message, *_, **__: print(
        f"ai-learning: warning: {message}", file=sys.stderr
    )
    return _run(name, rest)


def _run(name: str, args: list[str]) -> int:
    # GNU OpenMP's threads spin while they wait, and where something else wants the cores small models train
    # ten times slower. A short spin is as fast on an idle machine. It must be set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        module = importlib.import_module(f".{COMMANDS[name][0]}", __name__)
        return int(module.main(args) or 0)
    except SystemExit as stop:  # how tyro ends after --help and after a mistyped flag
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return _fail(name, "interrupted", 130)
    except BrokenPipeError:  # `ai-learning generate … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:
        if os.environ.get("AI_LEARNING_DEBUG"):
            raise
        return _fail(name, " ".join(str(error).split()), 2)
    except Exception as error:
        code = getattr(error, "exit_code", None)  # train.Interrupted: importing it here would import torch
        if code is None:
            raise
        return _fail(name, str(error), code)


def _fail(name: str, message: str, code: int) -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:  # one of many processes, most of which fail alike
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends all once one is gone: not before this
        from ..distributed import first_to_say

        if not first_to_say(message):
            return code
    print(
        f"ai-learning {name}: error: {message}" if code == 2 else f"ai-learning {name}: {message}",
        file=sys.stderr,
    )
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ai-learning COMMAND [options]",
            "",
            *lines,
            "",
            "`ai-learning COMMAND --help` shows every option with its default.",
            "With AI_LEARNING_DEBUG=1 an error shows where it arose.",
        ]
    )
