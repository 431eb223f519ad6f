"""``ai-learning web``: the playground, on this machine only unless told otherwise."""

from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import load_gpt, open_tokenizer
from ..errors import InputError
from ..train import pick_device
from .common import console, parse


@dataclass(frozen=True)
class Web:
    """Serve a page with a model's tokens, next-token probabilities and text."""

    checkpoint: Path = Path("runs/demo/gpt1_tiny_pretrain.pt")
    """a .pt file of pretrain, finetune or demo"""
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
    if options.checkpoint == Web.checkpoint and not options.checkpoint.exists():
        raise InputError(
            f"no checkpoint at {options.checkpoint}: run `ai-learning demo`, or give --checkpoint"
        )
    model, checkpoint = load_gpt(options.checkpoint, pick_device(options.device))
    tokenizer = open_tokenizer(checkpoint, options.checkpoint)

    import uvicorn

    from ..web.app import allowed_hosts, create_app

    app = create_app(model, tokenizer, str(options.checkpoint), allowed_hosts(options.host))
    shown = f"[{options.host}]" if ":" in options.host else options.host  # IPv6
    console.print(f"open http://{shown}:{options.port} (Ctrl-C ends it)", markup=False)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
