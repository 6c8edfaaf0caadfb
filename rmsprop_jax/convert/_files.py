"""Files that are no larger than they say, and are what their names say."""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._files import needed as needed
from .._files import replacing as replacing

# Unpacked, a file may have this many times its bytes, or this many bytes at all.
GROWTH, SMALL = 20, 1 << 26


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


def nest(content: dict[Any, Any], path: list[Any], value: Any) -> None:
    """Puts a value into nested dictionaries, making those on its path."""
    *parents, last = path
    for key in parents:
        content = content.setdefault(key, {})
    content[last] = value
