"""Options that several commands have, and how they say what is wrong."""

import argparse
import contextlib
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import _install

EXTRA = ("matplotlib", "mnist1d", "orbax", "rich", "scipy", "sklearn")
"""The packages that only the extras bring."""


def number(
    kind: Callable[[str], Any], accepted: str, holds: Callable[[Any], bool]
) -> Callable[[str], Any]:
    """Returns a converter for argparse that accepts finite numbers of a kind."""

    def convert(string: str) -> Any:
        try:
            value = kind(string)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {accepted}, got {string!r}")
        return value

    return convert


def names_of(accepted: Iterable[str]) -> Callable[[str], list[str]]:
    """Returns a converter of names separated by commas, capitals or not.

    It returns them in the order of `accepted`, each once.
    """

    def convert(string: str) -> list[str]:
        named = {name.strip().lower() for name in string.split(",")}
        if not named <= {name.lower() for name in accepted}:
            raise argparse.ArgumentTypeError(
                f"must be names from {','.join(accepted)}, separated by commas, got "
                f"{string!r}"
            )
        return [name for name in accepted if name.lower() in named]

    return convert


def rates(string: str) -> list[float]:
    """Converts learning rates separated by commas; returns them ascending."""
    # Larger ones are infinite in float32.
    accepted = "numbers greater than 0, less than 1e38, separated by commas"
    rate = number(float, accepted, lambda x: 0 < x < 1e38)
    try:
        return sorted({rate(part) for part in string.split(",")})
    except argparse.ArgumentTypeError:
        message = f"must be {accepted}, got {string!r}"
        raise argparse.ArgumentTypeError(message) from None


def add_seeds(parser: argparse.ArgumentParser, of: str) -> None:
    """Adds `--seeds` to a command that needs two at least."""
    parser.add_argument(
        "--seeds", metavar="N", help=of,
        type=number(int, "a whole number, at least 2", lambda x: x >= 2),
    )  # fmt: skip


def add_output(
    parser: Any, default: str, files: Sequence[str], quiet: str = "print the tables"
) -> None:
    """Adds the options of a command that writes results.

    Args:
      parser: the parser, or a group of it.
      default: the folder where there is no `--out`.
      files: the names of what is written there.
      quiet: what `--quiet` still does.
    """
    parser.add_argument(
        "--out", type=folder(files), default=default, metavar="FOLDER",
        help=f"for {' and '.join(files)} (default: {default}); results of other "
        "options stay there under another name",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help=f"{quiet} alone")


def folder(files: Sequence[str] = ()) -> Callable[[str], Path]:
    """Returns a converter that refuses, before any work, what cannot be written to.

    The folder is made and written to, and nothing of that is left.

    Args:
      files: names in it that must not be folders.
    """

    def convert(string: str) -> Path:
        path = Path(string)
        made = []
        try:
            missing = [p for p in (path, *path.parents) if not p.exists()]
            nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
            if not nearest.is_dir():
                raise NotADirectoryError(None, f"{nearest} is a file")
            made = missing
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path):
                pass
            for name in files:
                if (path / name).is_dir():
                    raise IsADirectoryError(None, f"{path / name} is a folder")
        except OSError as error:
            raise argparse.ArgumentTypeError(
                f"must be a folder to write to, got {string!r}: {error.strerror}"
            ) from None
        finally:
            for each in made:
                with contextlib.suppress(OSError):
                    each.rmdir()
        return path

    return convert


def needed(error: ModuleNotFoundError, extra: str) -> str:
    """Says what to install; raises the error if it is not about an extra's package."""
    if error.name is None or error.name.split(".")[0] not in EXTRA:
        raise error
    return f"needs {error.name}: {_install.command(extra)}"


def fail(command: str, message: object, status: int = 1) -> int:
    """Prints an error in one line and returns the exit status."""
    print(f"rmsprop-jax {command}: error: {message}", file=sys.stderr)
    return status
