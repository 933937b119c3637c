"""Command lines of `key=value` words for scripts/, checked against a dataclass.

A dataclass is the whole declaration: field names are the keys, annotations the types, train.ranges what their values
may be, the comments beside them what `--help` says; a field without default is required. A field that is itself a
dataclass must not be frozen (OmegaConf would refuse to set its keys).
Mistakes end in one line on stderr and exit status 2.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.progress import hide_library_bars
from train import usage
from train.config import DataConfig, EvalConfig, ModelConfig
from train.faults.first_line import first_line
from train.faults.full_disk import FULL, write_error
from train.faults.printing import print_error
from train.ranges import check_values
from train.removed import replacement

T = TypeVar("T")
UNREAD = "LexerNoViableAlt|mismatched input|no viable alternative|extraneous input|token recognition|Ambiguous value"
EXPLAINED = (EvalConfig, DataConfig, ModelConfig)  # what explains the keys that scripts take over from them


def command(script: str, *words: str) -> str:
    """The command line of a script, quoted so that it can be pasted into a shell."""
    return f"python scripts/{script}.py {shlex.join(words)}"


def override(key: str, value: object) -> str:
    """The word that sets a key of train/run.py to any text, quoted if Hydra would not read it as it stands."""
    text = str(value)
    return f"{key}={text}" if re.fullmatch(r"[\w./:@%+-]+", text, re.ASCII) else f'{key}="{_escaped(text)}"'


def _escaped(text: str) -> str:
    return re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text)


def launcher(ranks: int) -> tuple[str, ...]:
    """What stands before a script on Python's command line to start it in several processes of this machine."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}") if ranks > 1 else ()


class Failure(SystemExit):
    """The end of a process that has said why in one line."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(status)
        self.message = message


def fail(message: object, status: int = 2) -> NoReturn:
    """End the process with the message as one line on stderr. Status 2: the command was wrong."""
    line = " ".join(str(message).split())
    print_error(line)
    raise Failure(line, status)


def show(page: str) -> None:
    """Print a page of help, as much of it as is read: `--help | head` ends quietly."""
    try:
        print(page, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when the process ends


def parse(schema: type[T], argv: Sequence[str] | None = None) -> T:
    """An instance of the dataclass `schema`, filled from `key=value` words (the process's own by default)."""
    words = list(sys.argv[1:] if argv is None else argv)
    known = fields(cast(Any, schema))
    if {"-h", "--help"} & set(words):
        show(usage.page(sys.modules[schema.__module__].__doc__ or "", schema, EXPLAINED))
        raise SystemExit(0)
    for word in words:
        _check_key(word, [field.name for field in known])
    try:
        config = OmegaConf.merge(OmegaConf.structured(schema), _values(words, known))
    except OmegaConfBaseException as error:
        fail(f"{error.full_key}: {first_line(error)}")
    if missing := sorted(OmegaConf.missing_keys(config)):
        fail(f"missing {', '.join(f'{key}=...' for key in missing)}")
    options = cast(T, OmegaConf.to_object(config))
    with one_line_errors():
        check_values(options)
    return options


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A mistake of the user (ValueError, OSError) ends the process with one line; EVS_TRACE=1 shows where it arose."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("EVS_TRACE") == "1":
            raise
        fail(_reason(error))


def _reason(error: ValueError | OSError) -> object:
    if isinstance(error, OSError) and error.errno in FULL and error.filename:
        return write_error(error, Path(error.filename))
    return error


def run(main: Callable[[T], object], schema: type[T], argv: Sequence[str] | None = None) -> None:
    """`main(parse(schema))`, where a mistake of the user (ValueError, OSError) is one line, not a trace."""
    options = parse(schema, argv)
    hide_library_bars()
    with one_line_errors():
        main(options)


def suggest(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` when a known word is close, else the known ones."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _check_key(word: str, known: list[str]) -> None:
    key, equals, _ = word.partition("=")
    if not equals:
        fail(f"{word!r} is not of the form key=value")
    if key.split(".")[0] not in known:
        fail(f"unknown argument {key!r}{suggest(key, known)}")


def _values(words: list[str], known: Sequence[Field[Any]]) -> DictConfig:
    """The words' values: a text's as it stands, any other's read as YAML."""
    texts = {field.name for field in known if field.type in (str, "str")}
    maybe = {field.name for field in known if str(field.type) == "str | None"}
    texts |= {key for key, _, value in (word.partition("=") for word in words) if key in maybe and value != "null"}
    pairs = [word.partition("=") for word in words]
    values = OmegaConf.from_cli(["".join(pair) for pair in pairs if pair[0] not in texts])
    values.update({key: value for key, _, value in pairs if key in texts})
    return values


def config_error(error: Exception, words: Sequence[str], known: Sequence[str]) -> str:
    """Hydra's and OmegaConf's many lines as one: the fault, its cause, and the nearest of the `known` keys."""
    if unread := _unread(error, words):
        return unread
    lines = str(error).splitlines()
    message = first_line(error)
    if error.__cause__ is not None and (cause := first_line(error.__cause__)) not in message:
        message += f" ({cause})"
    if advice := replacement(str(error)):
        return f"{message}; {advice}"
    if options := [line.strip() for line in lines if line.startswith("\t") and "=" not in line]:
        return f"{message}; available: {', '.join(options)}"
    for key in (word.partition("=")[0].lstrip("+~") for word in words):
        if key and (f"'{key}'" in message or f"'{key.rpartition('.')[2]}'" in message):
            close = [match for match in get_close_matches(key, known, n=3) if not key.startswith(match)]
            return message + (
                f"; did you mean {close[0]!r}?" if close else "; see train/config.py and configs/ for all keys"
            )
    return message


def _unread(error: Exception, words: Sequence[str]) -> str | None:
    """The line for a word that Hydra's grammar does not take, with the quotes that it needs."""
    if not isinstance(error, HydraException) or not re.search(UNREAD, str(error)):
        return None
    named = getattr(error, "override", None) or str(error)
    word = next((word for word in words if word in str(named)), str(named).splitlines()[0])
    key, _, value = word.partition("=")
    return f"{word} cannot be read: quote a value with spaces, signs or letters: " + shlex.quote(
        f'{key}="{_escaped(value)}"'
    )


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a configuration."""
    for key in node:
        child = None if OmegaConf.is_missing(node, key) else node[key]
        if child and OmegaConf.is_dict(child):
            yield from leaves(child, f"{prefix}{key}.")
        else:
            yield prefix + key
