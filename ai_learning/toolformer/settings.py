"""The paper's thresholds by tool (Schick et al. 2023, section 4.1 and appendix A)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How calls of one tool are sampled and filtered.

    Raises:
        ValueError: a value out of its range.
    """

    tau_s: float = 0.05
    """τ_s: a call may begin where p(<API>) is greater"""
    tau_f: float = 1.0
    """τ_f: a call is kept when L⁻ − L⁺ is at least this, in nats"""
    k: int = 5
    """places in a document, those with the greatest p(<API>)"""
    m: int = 5
    """calls sampled at each place"""

    def __post_init__(self) -> None:
        if not 0 <= self.tau_s <= 1:
            raise ValueError(f"tau_s={self.tau_s} is a probability: from 0 to 1")
        if math.isnan(self.tau_f):
            raise ValueError(f"tau_f={self.tau_f} is no number: no call would be kept")
        for name in ("k", "m"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


DEFAULT = Settings()
"""of tools in general"""
RARE = Settings(tau_s=0.0, tau_f=0.5, k=20, m=10)
"""of tools for which few documents are left after the pre-filter: calculator and translation"""
PAPER: dict[str, Settings] = {"Calculator": RARE, "MT": RARE}


def settings_of(settings: "Settings | Mapping[str, Settings] | None", tool: str) -> Settings:
    """What holds for a tool: its own, those for all, or the paper's."""
    if isinstance(settings, Settings):
        return settings
    return (PAPER if settings is None else settings).get(tool, DEFAULT)
