"""Command lines of `key=value` words for scripts/, checked against a dataclass.

The dataclass declares the options: field names are the keys, annotations the types, train.ranges the allowed values,
and the comments next to the fields the text of `--help`. A field without default is required. A field whose type is a
dataclass must not be frozen, because OmegaConf could not set its keys.
Mistakes are reported in one line on stderr with exit status 2.
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
SYNTAX_ERRORS = (
    "LexerNoViableAlt|mismatched input|no viable alternative|extraneous input|token recognition|Ambiguous value"
)
EXPLAINED = (EvalConfig, DataConfig, ModelConfig)  # their comments explain the keys that scripts share with them


def command(script: str, *words: str) -> str:
    """The command line of a script, quoted so that it can be pasted into a shell."""
    return f"python scripts/{script}.py {shlex.join(words)}"


def override(key: str, value: object) -> str:
    """The word that sets a key of train/run.py to `value`, quoted if Hydra's grammar requires it."""
    text = str(value)
    return f"{key}={text}" if re.fullmatch(r"[\w./:@%+-]+", text, re.ASCII) else f'{key}="{_escaped(text)}"'


def _escaped(text: str) -> str:
    return re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), text)


def launcher(ranks: int) -> tuple[str, ...]:
    """The arguments of `python` before a script that start it in `ranks` processes on this machine."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}") if ranks > 1 else ()


class Failure(SystemExit):
    """Ends the process after its reason, `message`, was printed in one line."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(status)
        self.message = message


def fail(message: object, status: int = 2) -> NoReturn:
    """Print the message as one line on stderr and end the process. Status 2 means a mistake in the command line."""
    line = " ".join(str(message).split())
    print_error(line)
    raise Failure(line, status)


def print_help(page: str) -> None:
    """Print a page of help. No error is raised if the reader closes the pipe, as in `--help | head`."""
    try:
        print(page, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail either


def parse(schema: type[T], argv: Sequence[str] | None = None) -> T:
    """An instance of the dataclass `schema`, filled from `key=value` words (the process's own by default).

    Ends the process with one line on stderr for a mistake, and after printing the help for `--help`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    schema_fields = fields(cast(Any, schema))
    if {"-h", "--help"} & set(words):
        print_help(usage.page(sys.modules[schema.__module__].__doc__ or "", schema, EXPLAINED))
        raise SystemExit(0)
    for word in words:
        _check_key(word, [field.name for field in schema_fields])
    try:
        values = expand_home(OmegaConf.to_container(_values(words, schema_fields)))
        config = OmegaConf.merge(OmegaConf.structured(schema), values)
    except OmegaConfBaseException as error:
        fail(f"{error.full_key}: {first_line(error)}")
    if missing := sorted(OmegaConf.missing_keys(config)):
        fail(f"missing {', '.join(f'{key}=...' for key in missing)}")
    options = cast(T, OmegaConf.to_object(config))
    with one_line_errors():
        check_values(options)
    return options


def expand_home(value: Any) -> Any:
    """`value` with the user's home folder for "~" at the beginning of its strings, the keys of mappings included."""
    if isinstance(value, dict):
        return {expand_home(key): expand_home(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [expand_home(entry) for entry in value]
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111  raises for no user


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Report a ValueError or OSError raised inside in one line and end the process; EVS_TRACE=1 shows the traceback."""
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
    """Call `main(parse(schema))`; a ValueError or OSError is printed in one line without a traceback."""
    options = parse(schema, argv)
    hide_library_bars()
    with one_line_errors():
        main(options)


def refuse_unused(options: Any, keys: Sequence[str], reason: str) -> None:
    """Raise ValueError if one of `keys`, which would be ignored for `reason`, does not have its default value."""
    defaults = {field.name: field.default for field in fields(options)}
    for key in keys:
        value = getattr(options, key)
        if value != defaults[key] and value != []:
            raise ValueError(f"{key}={value} has no effect {reason}")


def suggest(word: str, choices: Sequence[str]) -> str:
    """`; did you mean ...?` if one of the choices is similar to `word`, else a list of all choices."""
    close = get_close_matches(word, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(choices)}"


def _check_key(word: str, keys: list[str]) -> None:
    key, equals, _ = word.partition("=")
    if not equals:
        fail(f"{word!r}: write arguments as key=value")
    if key.split(".")[0] not in keys:
        fail(f"unknown argument {key!r}{suggest(key, keys)}")


def _values(words: list[str], schema_fields: Sequence[Field[Any]]) -> DictConfig:
    """The values of the words: those of string fields unchanged, all others parsed as YAML."""
    pairs = [word.partition("=") for word in words]
    strings = {field.name for field in schema_fields if field.type in (str, "str")}
    optional = {field.name for field in schema_fields if str(field.type) == "str | None"}
    strings |= {key for key, _, value in pairs if key in optional and value != "null"}
    values = OmegaConf.from_cli(["".join(pair) for pair in pairs if pair[0] not in strings])
    values.update({key: value for key, _, value in pairs if key in strings})
    return values


def config_error(error: Exception, words: Sequence[str], keys: Sequence[str]) -> str:
    """An error of Hydra or OmegaConf in one line: the mistake, its cause, and the most similar of the valid `keys`."""
    if syntax := _syntax_error(error, words):
        return syntax
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
            close = [match for match in get_close_matches(key, keys, n=3) if not key.startswith(match)]
            return message + (
                f"; did you mean {close[0]!r}?" if close else "; see train/config.py and configs/ for all keys"
            )
    return message


def _syntax_error(error: Exception, words: Sequence[str]) -> str | None:
    """The message for a word that Hydra's grammar rejects, with the quotes that it needs; None for other errors."""
    if not isinstance(error, HydraException) or not re.search(SYNTAX_ERRORS, str(error)):
        return None
    rejected = getattr(error, "override", None) or str(error)
    word = next((word for word in words if word in str(rejected)), str(rejected).splitlines()[0])
    key, _, value = word.partition("=")
    return f"{word} cannot be parsed: quote values with special characters: " + shlex.quote(
        f'{key}="{_escaped(value)}"'
    )


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys of a configuration."""
    for key in node:
        child = None if OmegaConf.is_missing(node, key) else node[key]
        if child and OmegaConf.is_dict(child):
            yield from leaves(child, f"{prefix}{key}.")
        else:
            yield prefix + key
