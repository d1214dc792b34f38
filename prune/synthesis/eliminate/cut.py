"""Cut: the writer's tokens ran out before its instruction ended."""

from __future__ import annotations

from prune.synthesis.languages import tag


def cut(reply: str, *, template: str) -> str | None:
    """Why a reply that was truncated holds no whole instruction; one whose closing tag is there was whole before."""
    return None if f"</{tag(template)}>" in reply else "stops where its tokens ran out"
