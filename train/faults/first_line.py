"""Errors of other libraries in one line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
