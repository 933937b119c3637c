"""How a script is started in several processes of this machine."""

from __future__ import annotations


def launcher(ranks: int) -> tuple[str, ...]:
    """What stands before the script on Python's command line; nothing for one process."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}") if ranks > 1 else ()
