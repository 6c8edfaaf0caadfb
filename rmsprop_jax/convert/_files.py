"""Files that are complete or not there, and no larger than they say."""

import contextlib
import importlib
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import _install

# Unpacked, a file may have this many times its bytes, or this many bytes at all.
GROWTH, SMALL = 20, 1 << 26


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


def check_growth(name: str, stored: int, unpacked: int) -> None:
    """Checks how large a file becomes in memory, before anything in it is unpacked.

    Args:
      name: the file's name.
      stored: its bytes.
      unpacked: the bytes that its headers announce.

    Raises:
      ValueError: if they are too many for a file of that size.
    """
    if unpacked > max(SMALL, GROWTH * stored):
        raise ValueError(
            f"{name} has {stored:,} bytes and would become {unpacked:,} in memory, "
            "which may be an attack: if you trust it, unpack it yourself and pass its "
            "content."
        )


def check_zip(path: Path) -> None:
    """Checks how large an archive becomes, if the file is one.

    Raises:
      ValueError: if it is too large for its file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        check_growth(path.name, path.stat().st_size, unpacked)


def unzipped(archive: zipfile.ZipFile, entry: str) -> bytes:
    """Returns an archive's entry, and no more bytes than the archive announces."""
    with archive.open(entry) as file:
        return file.read(archive.getinfo(entry).file_size)


def rezipped(path: Path, old: bytes, new: Mapping[str, bytes]) -> None:
    """Writes an archive like another one, with other bytes for some of its entries."""
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(io.BytesIO(old)) as archive,
        zipfile.ZipFile(temporary, "w") as target,
    ):
        for entry in archive.infolist():
            name = entry.filename
            target.writestr(
                entry, new[name] if name in new else unzipped(archive, name)
            )


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
