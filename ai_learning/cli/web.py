"""``ai-learning web``: the page, on this machine only unless told otherwise."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..device import pick_device
from ..errors import InputError
from ..tokenizers import Tokenizer, load
from .common import DEMO_MODEL, console, open_language_model, parse


@dataclass(frozen=True)
class Web:
    """Serve a page that shows a model at work: tokens, attention, next token, training, adapters, agents."""

    checkpoint: str = DEMO_MODEL
    """a .pt file of pretrain, finetune or demo, a Hugging Face folder, or a hub name"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none or its own has been moved"""
    tokenizers: tuple[Path, ...] = ()
    """folders of further tokenizers to compare with; those below --runs are found by themselves"""
    adapters: tuple[Path, ...] = ()
    """folders of further LoRA adapters (PEFT's format); those below --runs are found by themselves"""
    agents: tuple[Path, ...] = ()
    """Toolformer's candidates and Reflexion's traces; those below --runs are found by themselves"""
    runs: Path = Path("runs")
    """folder of runs; what the page trains goes into its subfolder `web`"""
    host: str = "127.0.0.1"
    """address to listen on; any other than loopback lets the network in"""
    port: int = 8000
    """port to listen on"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Web, args, "web")
    if not 0 < options.port < 65536:
        raise InputError(f"port={options.port} must be from 1 to 65535")
    with listen(options.host, options.port) as listener:
        bench = make_bench(options)

        import uvicorn

        from ..web.app import create_app
        from ..web.guard import allowed_hosts

        app = create_app(bench, allowed_hosts(options.host))
        listener.listen()  # from now on who asks is let wait; somebody else may have been faster
        shown = f"[{options.host}]" if ":" in options.host else options.host  # IPv6
        console.print(f"open http://{shown}:{options.port} (Ctrl-C ends it)", markup=False)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)
        # Not uvicorn.run, which keeps an interruption to itself.
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, which shows a bad address before a model is opened; it accepts nobody yet.

    Raises:
        InputError: the address is none of this machine's, or taken.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that just ended holds no port
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot listen on {host}, port {port}: {reason}; give another") from None
    return listener


def make_bench(options: Web) -> Any:
    """The models, tokenizers and files that the options name.

    Raises:
        InputError: one of them cannot be opened.
    """
    from ..web.bench import Bench, Opened

    if options.checkpoint == DEMO_MODEL and not Path(DEMO_MODEL).exists():
        raise InputError(f"no checkpoint at {DEMO_MODEL}: run `ai-learning demo`, or give --checkpoint")
    device = pick_device(options.device)
    model, tokenizer, _ = open_language_model(options.checkpoint, options.tokenizer, device)
    for folder in options.adapters:
        if not (folder / "adapter_config.json").is_file():
            raise InputError(f"{folder} holds no adapter_config.json: give the folder of an adapter")
    for place in options.agents:
        if not place.exists():
            raise InputError(f"no file or folder at {place}: give --agents one that is there")
    source = options.checkpoint
    return Bench(
        Opened(source, model, tokenizer, source),
        tokenizers=find_tokenizers(options),
        runs=options.runs,
        adapters={str(folder): folder for folder in find_adapters(options)},
        agents=options.agents,
        device=str(device),
    )


def find_adapters(options: Web) -> list[Path]:
    """Those given, and those below the runs; the page's own are found by the page."""
    patterns = ("*/adapter_config.json", "*/*/adapter_config.json")
    found = sorted(file.parent for pattern in patterns for file in options.runs.glob(pattern))
    return [*options.adapters, *(folder for folder in found if folder not in options.adapters)][:50]


def find_tokenizers(options: Web) -> dict[str, Tokenizer]:
    """Those given, and BPE ones below the runs; each once, by its folder."""
    given = {str(folder): load(folder) for folder in options.tokenizers}
    known = {tokenizer.fingerprint for tokenizer in given.values()}
    for file in sorted([*options.runs.glob("*/tokenizer.json"), *options.runs.glob("*/*/tokenizer.json")])[
        :50
    ]:
        try:
            tokenizer = load(file.parent)
        except (InputError, OSError):  # someone else's, or half written
            continue
        if tokenizer.fingerprint not in known:
            known.add(tokenizer.fingerprint)
            given[str(file.parent)] = tokenizer
    return given
