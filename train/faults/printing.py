"""Lines on stderr that start at the left, whatever progress bars have drawn before them."""

from __future__ import annotations

import os
import sys


def print_error(message: str) -> None:
    """Print `error: MESSAGE` on a line of its own."""
    if tqdm := sys.modules.get("tqdm"):
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()  # which ends its line
    drawn_by_others = int(os.environ.get("WORLD_SIZE", 1)) > 1  # ranks share a terminal
    print("\n" * drawn_by_others + f"error: {message}", file=sys.stderr, flush=True)
