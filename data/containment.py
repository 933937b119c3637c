"""The one place where whatever goes wrong with a sample becomes a reason to leave it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from data.types import MediaError, RowError


@contextmanager
def contained(name: str) -> Iterator[None]:
    """A MediaError that begins with `name` for every exception inside: of decoder, image library, processor, memory.

    What already says why a sample cannot be used goes through as it is. A mistake of ours that strikes every sample
    goes through here too: data.max_bad_fraction shows it.
    """
    try:
        yield
    except (MediaError, RowError):
        raise
    except Exception as error:
        raise MediaError(f"{name}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The class of an exception and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
