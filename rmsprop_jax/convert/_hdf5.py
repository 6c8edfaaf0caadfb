"""HDF5 files, which are checked before anything in them is read or written."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import _files


@contextlib.contextmanager
def opened(file: Path | io.BytesIO, name: str, mode: str = "r") -> Iterator[Any]:
    """Gives the content of an HDF5 file that has no other file's bytes in it.

    Args:
      file: the path, or the bytes.
      name: the name to call it by.
      mode: "r", or "r+" to write into it.

    Raises:
      ImportError: if h5py is not installed.
      ValueError: if it refers to other files, or would become too large in memory.
    """
    h5py = _files.needed("h5py", f"Opening {name}", extra="convert")
    is_bytes = isinstance(file, io.BytesIO)
    stored = file.getbuffer().nbytes if is_bytes else file.stat().st_size
    with h5py.File(file, mode) as content:
        _files.check_growth(name, stored, _bytes_of(h5py, content, name))
        yield content


def _bytes_of(h5py: Any, content: Any, name: str) -> int:
    """Returns how many bytes all data sets have in memory. None of them is read.

    Raises:
      ValueError: if something in it lies in another file: reading would disclose that
        file's bytes, and writing would change them.
    """
    total, groups = 0, [content]
    seen = {h5py.h5o.get_info(content.id).addr}
    while groups:
        group = groups.pop()
        for key in group:
            link = group.get(key, getlink=True)
            place = f"{group.name.rstrip('/')}/{key}"
            if not isinstance(link, h5py.HardLink):
                raise ValueError(_elsewhere(name, place))
            child = group[key]
            address = h5py.h5o.get_info(child.id).addr
            if isinstance(child, h5py.Group):
                if address in seen:
                    raise ValueError(
                        f"{name} has the group {place} in two places, or in itself."
                    )
                seen.add(address)
                groups.append(child)
            elif isinstance(child, h5py.Dataset):
                if child.external or child.is_virtual:
                    raise ValueError(_elsewhere(name, place))
                total += child.size * child.dtype.itemsize if child.size else 0
    return total


def _elsewhere(name: str, place: str) -> str:
    return (
        f"{name} keeps {place} behind a link or in another file, which is neither read "
        "nor written: save the model again, into one file."
    )
