"""Files that are written whole or not at all, and packages that may be absent."""

import contextlib
import errno
import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import _install


@contextlib.contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path in the target's folder, and moves it there at the end.

    If the block raises, the target is as it was and nothing is left behind.

    Raises:
      FileNotFoundError: if the folder is not there.
      ValueError: if the target is there and is no regular file.
    """
    path = Path(os.path.realpath(target))  # a link stays one
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}: make it first.")
    if path.exists() and not path.is_file():
        raise ValueError(
            f"{path} is a folder, a pipe or a device; only regular files are replaced: "
            "give another path."
        )
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


def write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes files by name into a folder, made if need be, its parents too.

    None is moved to its own name before all are complete; a failure until then leaves
    what was there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in contents:
            if (folder / name).is_dir():
                # A move onto it would fail, perhaps after another has succeeded.
                raise IsADirectoryError(
                    errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name)
                )
        with contextlib.ExitStack() as moves:
            for name, data in contents.items():
                moves.enter_context(replacing(folder / name)).write_bytes(data)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def needed(module: str, what: str, install: str = "", extra: str = "") -> Any:
    """Returns a module that is not a dependency of the package.

    Args:
      module: its name.
      what: needs it, in words.
      install: what to give to pip.
      extra: of this package, in its place.

    Raises:
      ImportError: that says what needs it and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        how = _install.command(extra) if extra else f"pip install {install}"
        raise ImportError(f"{what} needs {module}: {how}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
