"""What one rank does for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


def on_main(engine: Accelerator, function: Callable[[], T]) -> T | None:
    """`function()` on the main rank, None on the others; its ValueError or OSError ends all, and is raised there."""
    result, failed = None, None
    if engine.is_main_process:
        try:
            result = function()
        except (ValueError, OSError) as error:
            failed = error
    if broadcast_object_list([failed is not None])[0]:
        raise failed or SystemExit(2)  # the main rank says why
    return result


def shared(engine: Accelerator, items: Sequence[Any]) -> Sequence[Any]:
    """This rank's part of work that any of them could do."""
    return items[engine.process_index :: engine.num_processes]


def collected(rows: list[Any]) -> list[Any]:
    """All ranks' rows, on every rank."""
    return list(gather_object(rows))
