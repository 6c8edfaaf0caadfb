"""Files that are complete or not there."""

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path in the target's folder, and moves it there at the end.

    If the block raises, the target is as it was and nothing is left behind.

    Raises:
      FileNotFoundError: if the folder is not there.
    """
    path = Path(os.path.realpath(target))  # a link stays one
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}: make it first.")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(source: str | os.PathLike[str]) -> Iterator[None]:
    """Says in one way that a file is not what its name says, whoever finds it out.

    Raises:
      ValueError: if the block fails for anything but a missing file or package.
    """
    try:
        yield
    except (ValueError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and type(error) is not OSError:
            raise  # FileNotFoundError and the like
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{Path(source).name} is damaged, or is not what its name says: {reason}"
        ) from error


def needed(module: str, what: str, install: str) -> Any:
    """Returns a module that is not a dependency of the package.

    Raises:
      ImportError: that says what needs it and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module}: pip install {install}") from error


def nest(content: dict[Any, Any], path: list[Any], value: Any) -> None:
    """Puts a value into nested dictionaries, making those on its path."""
    *parents, last = path
    for key in parents:
        content = content.setdefault(key, {})
    content[last] = value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
