"""Error lines on stderr that do not continue the line of a progress bar."""

from __future__ import annotations

import os
import sys


def print_error(message: str) -> None:
    """Print `error: MESSAGE` on a line of its own."""
    if tqdm := sys.modules.get("tqdm"):
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()  # ends its line
    shared_terminal = int(os.environ.get("WORLD_SIZE", 1)) > 1  # another rank may have drawn a bar
    print("\n" * shared_terminal + f"error: {message}", file=sys.stderr, flush=True)
