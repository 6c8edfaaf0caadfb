"""SHA-256 of the files of a checkpoint, as `sha256sum --check` reads them.

Zarr's chunks and JSON have no checksums: of bits flipped there, Orbax would return
other numbers without a word.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "SHA256SUMS"

# Orbax writes these last, and needs neither in order to restore.
_LATER = {NAME, "_CHECKPOINT_METADATA", "commit_success.txt"}


def write(folder: Path) -> None:
    """Writes the digests of all files of a folder into it."""
    names = list(_names(folder))
    with ThreadPoolExecutor() as threads:
        digests = threads.map(lambda name: _digest(folder / name), names)
        lines = [f"{d}  {name}\n" for d, name in zip(digests, names, strict=True)]
    with (folder / NAME).open("w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path) -> str | None:
    """Returns what is wrong with a folder, None if it is as it was written."""
    try:
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
        listed = {
            name: digest for digest, _, name in (x.partition("  ") for x in lines)
        }
        found = set(_names(folder))
    except FileNotFoundError:
        return f"it has no {NAME}"
    except (OSError, UnicodeDecodeError) as error:
        return f"{NAME} cannot be read: {error}"
    if missing := sorted(listed.keys() - found):
        return f"{missing[0]} is missing"
    if unknown := sorted(found - listed.keys()):
        return f"{unknown[0]} is not in {NAME}"

    def is_whole(name: str) -> bool:
        try:
            return _digest(folder / name) == listed[name]
        except OSError:
            return False

    with ThreadPoolExecutor() as threads:
        whole = list(threads.map(is_whole, listed))
    changed = [name for name, is_so in zip(listed, whole, strict=True) if not is_so]
    return f"{changed[0]} is not what was written" if changed else None


def missing(folder: Path) -> bool:
    """Whether a file that a folder's digests list is not there."""
    try:
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return True
    return not all((folder / line.partition("  ")[2]).is_file() for line in lines)


def _names(folder: Path) -> Iterator[str]:
    """Yields the files of a checkpoint; not hidden ones, which others may leave."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in _LATER and not path.name.startswith("."):
            yield name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
