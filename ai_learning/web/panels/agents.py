"""Agents: what Toolformer's filter kept and dropped, and a Reflexion run trial by trial."""

from typing import Any

from fastapi import APIRouter

from ..bench import Bench


def router(bench: Bench) -> APIRouter:
    """The panel's questions."""
    api = APIRouter(prefix="/api/agents")

    @api.get("")
    def overview() -> dict[str, Any]:
        """What can be opened."""
        return {"toolformer": [], "reflexion": []}

    return api
