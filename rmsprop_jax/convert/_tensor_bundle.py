"""TensorFlow V2 checkpoints ("tensor bundles"), read and written without TensorFlow.

`PREFIX.index` is a sorted table of protocol buffers: a `BundleHeaderProto` under the
empty key, then one `BundleEntryProto` per tensor name. The tensors' bytes lie in the
shards `PREFIX.data-0000i-of-0000n`. The format's sources:

* https://github.com/tensorflow/tensorflow/tree/master/tensorflow/core/util/tensor_bundle
* https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto
* https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

import functools
import itertools
import math
import operator
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np
from numpy.typing import ArrayLike

# The numbers of tensorflow/core/framework/types.proto.
_CODES = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "complex64": 8,
    "int64": 9,
    "bool": 10,
    "bfloat16": 14,
    "uint16": 17,
    "complex128": 18,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}
_DTYPES = {code: name for name, code in _CODES.items()}
_NOT_NUMERIC = {7, 20, 21}  # string, resource, variant

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER_BYTES = 48
_BLOCK_BYTES = 1 << 18  # TensorFlow's, as is the interval: its files come out the same
_RESTART_INTERVAL = 16
_CRC_BYTES = 1 << 20  # larger pieces leave the processor's caches
_SEED = np.array([0x641F6454], "<u4").view(np.uint8)  # takes a CRC from 0 to all ones

_COPY_AGAIN = "copy the checkpoint again from where it was saved"
_SAVE_AGAIN = "load it in TensorFlow and save it again"


def read(prefix: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the numeric tensors; strings, resources and variants are left out.

    Args:
      prefix: The checkpoint's path without `.index` and `.data-...`, or its `.index`.

    Raises:
      FileNotFoundError: The index or a shard is missing.
      ValueError: A file is damaged, or holds what is not supported here.
    """
    prefix = os.fspath(prefix).removesuffix(".index")
    with open(f"{prefix}.index", "rb") as file:
        table = file.read()
    try:
        entries = {key: list(_parse_fields(val)) for key, val in _parse_table(table)}
        shards = _check_header(dict(entries.pop(b"", [])))
        for key, fields in entries.items():
            if 7 in dict(fields):
                raise ValueError(
                    f"tensor {key.decode()!r} is partitioned into slices, not"
                    f" supported; {_SAVE_AGAIN} in one piece, without a partitioner"
                )
        tensors = {
            key.decode(): _read_tensor(prefix, shards, key.decode(), dict(fields))
            for key, fields in entries.items()
            if dict(fields).get(1) not in _NOT_NUMERIC
        }
    except (IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{prefix}.index: malformed; {_COPY_AGAIN}") from error
    except ValueError as error:
        raise ValueError(f"{prefix}.index: {error}") from None
    return tensors


def write(prefix: str | os.PathLike[str], tensors: Mapping[str, ArrayLike]) -> None:
    """Writes a checkpoint of one shard: as a whole, or on an error not at all.

    Args:
      prefix: As for `read`. The folder must exist.
      tensors: An array for each name, of a dtype that `read` can return.

    Raises:
      ValueError: A name is empty, or a dtype is not supported.
    """
    prefix = os.fspath(prefix).removesuffix(".index")
    index, data = f"{prefix}.index", f"{prefix}.data-00000-of-00001"
    new_index, new_data, old_data = (
        f"{path}.{secrets.token_hex(8)}.tmp" for path in (index, data, data)
    )
    replaces = os.path.exists(data)
    entries = [(b"", _field(1, 1) + _field(3, _field(1, 1)))]  # one shard, version 1
    try:
        with open(new_data, "xb") as file:
            for name in sorted(tensors):
                entries.append(_write_tensor(file, data, name, tensors[name]))
            file.flush()
            os.fsync(file.fileno())
        with open(new_index, "xb") as file:
            file.write(_build_table(entries))
            file.flush()
            os.fsync(file.fileno())
        try:
            if replaces:
                os.replace(data, old_data)
            os.replace(new_data, data)
            os.replace(new_index, index)
        except BaseException:
            with suppress(FileNotFoundError):
                os.replace(old_data, data) if replaces else os.remove(data)
            raise
    finally:
        for path in (new_data, new_index):
            with suppress(FileNotFoundError):
                os.remove(path)
    if replaces:
        os.remove(old_data)


def _check_header(header: dict[int, Any]) -> int:
    if not header.get(1):
        raise ValueError(f"no header, so not of TensorFlow; {_COPY_AGAIN}")
    if header.get(2):
        raise ValueError(f"big-endian, not supported; {_SAVE_AGAIN} on another machine")
    if dict(_parse_fields(header.get(3, b""))).get(2, 0) > 1:
        raise ValueError(f"of a later version, not supported; {_SAVE_AGAIN} with 2.21")
    return header[1]


def _read_tensor(
    prefix: str, shards: int, name: str, entry: dict[int, Any]
) -> np.ndarray:
    code, shard, start, size, checksum = (entry.get(i, 0) for i in (1, 3, 4, 5, 6))
    if (dtype := _DTYPES.get(code)) is None:
        raise ValueError(
            f"tensor {name!r} has dtype {code} of TensorFlow's types.proto, not"
            f" supported; {_SAVE_AGAIN} as float32"
        )
    dims = [value for number, value in _parse_fields(entry.get(2, b"")) if number == 2]
    shape = tuple(dict(_parse_fields(dim)).get(1, 0) for dim in dims)
    if size != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(
            f"tensor {name!r} is {dtype} of shape {shape}, but has {size} bytes;"
            f" {_COPY_AGAIN}"
        )
    path = f"{prefix}.data-{shard:05d}-of-{shards:05d}"
    if (end := os.path.getsize(path)) < start + size:
        raise ValueError(
            f"tensor {name!r} ends at byte {start + size} of {path}, which is truncated"
            f" at byte {end}; {_COPY_AGAIN}"
        )
    octets = np.fromfile(path, np.uint8, size, offset=start)
    if _checksum(octets) != checksum:
        raise ValueError(
            f"tensor {name!r} has a wrong checksum: {path} is damaged, or of another"
            f" checkpoint; {_COPY_AGAIN}"
        )
    return octets.view(dtype).reshape(shape)


def _write_tensor(
    file: BinaryIO, path: str, name: str, tensor: ArrayLike
) -> tuple[bytes, bytes]:
    array = np.asarray(tensor)
    dtype = array.dtype.name
    if not name:
        raise ValueError(f"{path}: the name of a tensor is empty; give it one")
    if dtype not in _CODES:
        raise ValueError(
            f"{path}: tensor {name!r} has dtype {dtype}, not supported; convert it to"
            f" one of {', '.join(_CODES)}"
        )
    octets = np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8)
    shape = b"".join(_field(2, _field(1, size)) for size in array.shape)
    entry = _field(1, _CODES[dtype]) + _field(2, shape) + _field(4, file.tell())
    entry += _field(5, octets.size) + _varint(6 << 3 | 5)
    file.write(octets.data)
    return name.encode(), entry + _checksum(octets).to_bytes(4, "little")


def _parse_table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    footer = table[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or not footer.endswith(_MAGIC):
        raise ValueError(
            "no magic number at its end: truncated, or not of TensorFlow's V2 format;"
            f" {_COPY_AGAIN}"
        )
    _, start = _parse_varint(footer, 0)
    _, start = _parse_varint(footer, start)
    for _, handle in _parse_block(table, footer[start:]):
        yield from _parse_block(table, handle)


def _parse_block(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    start, i = _parse_varint(handle, 0)
    size, _ = _parse_varint(handle, i)
    end = start + size + 1  # a byte after the block tells its compression
    if end + 4 > len(table) - _FOOTER_BYTES:
        raise ValueError(f"truncated: a block lies outside the file; {_COPY_AGAIN}")
    octets = np.frombuffer(table, np.uint8, size + 1, start)
    if _checksum(octets) != int.from_bytes(table[end : end + 4], "little"):
        raise ValueError(f"a block's checksum is wrong; {_COPY_AGAIN}")
    if octets[-1]:
        raise ValueError(f"a block is compressed, not supported; {_SAVE_AGAIN}")
    block, key, i = table[start : end - 1], b"", 0
    restarts = int.from_bytes(block[-4:], "little")
    while i < size - 4 * (restarts + 1):
        shared, i = _parse_varint(block, i)
        unshared, i = _parse_varint(block, i)
        length, i = _parse_varint(block, i)
        key = key[:shared] + block[i : i + unshared]
        yield key, block[i + unshared : i + unshared + length]
        i += unshared + length


def _build_table(entries: list[tuple[bytes, bytes]]) -> bytes:
    table = bytearray()

    def append(block: bytes) -> bytes:
        handle = _varint(len(table)) + _varint(len(block))
        checksum = _checksum(np.frombuffer(block + b"\0", np.uint8))
        table.extend(block + b"\0" + checksum.to_bytes(4, "little"))
        return handle

    handles: list[tuple[bytes, bytes]] = []
    ends = itertools.accumulate(len(key) + len(value) for key, value in entries)
    numbered = zip((end // _BLOCK_BYTES for end in ends), entries, strict=True)
    for _, group in itertools.groupby(numbered, lambda pair: pair[0]):
        block = [entry for _, entry in group]
        handles.append((block[-1][0], append(_build_block(block, _RESTART_INTERVAL))))
    last, handle = handles[-1]
    # Any key after the last one serves; this is the one TensorFlow takes.
    handles[-1] = bytes(octet + 1 for octet in last[:1]), handle
    footer = append(_build_block([], 1)) + append(_build_block(handles, 1))
    return bytes(table) + footer.ljust(_FOOTER_BYTES - len(_MAGIC), b"\0") + _MAGIC


def _build_block(entries: list[tuple[bytes, bytes]], restart_interval: int) -> bytes:
    block, restarts, previous = bytearray(), [0], b""
    for i, (key, value) in enumerate(entries):
        shared = sum(itertools.takewhile(bool, map(operator.eq, previous, key)))
        if i and i % restart_interval == 0:
            restarts.append(len(block))
            shared = 0
        block += _varint(shared) + _varint(len(key) - shared) + _varint(len(value))
        block += key[shared:] + value
        previous = key
    return bytes(block) + np.array([*restarts, len(restarts)], "<u4").tobytes()


def _parse_fields(message: bytes) -> Iterator[tuple[int, Any]]:
    i = 0
    while i < len(message):
        tag, i = _parse_varint(message, i)
        if (kind := tag & 7) == 0:
            value, i = _parse_varint(message, i)
        elif kind == 2:
            size, i = _parse_varint(message, i)
            value, i = message[i : i + size], i + size
        else:
            size = 8 if kind == 1 else 4
            value, i = int.from_bytes(message[i : i + size], "little"), i + size
        if i > len(message):
            raise IndexError
        yield tag >> 3, value


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(value) if value else b""


def _parse_varint(octets: bytes, i: int) -> tuple[int, int]:
    value = shift = 0
    while octets[i] & 0x80:
        value |= (octets[i] & 0x7F) << shift
        i, shift = i + 1, shift + 7
    return value | octets[i] << shift, i + 1


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


def _checksum(octets: np.ndarray) -> int:
    """The masked CRC32C. Zeros before the seed leave a CRC at 0, so any length fits."""
    start = octets.size % _CRC_BYTES
    zeros = np.zeros(-start % 4, np.uint8)
    crc = _crc_from_zero(np.concatenate([zeros, _SEED, octets[:start]]).view(np.uint32))
    for i in range(start, octets.size, _CRC_BYTES):
        words = octets[i : i + _CRC_BYTES].copy().view(np.uint32)
        words[0] ^= crc
        crc = _crc_from_zero(words)
    crc = int(crc) ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_from_zero(words: np.ndarray) -> np.uint32:
    """A CRC is linear: neighbours are added pairwise, the first moved to the second."""
    level = 0
    while words.size > 1:
        if words.size % 2:
            words = np.append(np.uint32(0), words)
        words = _move(level, words[::2]) ^ words[1::2]
        level += 1
    return _move(0, words)[0]


def _move(level: int, crcs: np.ndarray) -> np.ndarray:
    """The CRCs after 2**level further words of zeros."""
    low, high = _move_tables(level)
    return low.take(crcs & 0xFFFF) ^ high.take(crcs >> 16)


@functools.cache
def _move_tables(level: int) -> np.ndarray:
    if level:
        return _move(level - 1, _move_tables(level - 1))
    crcs = np.arange(1 << 16, dtype=np.uint32) << np.array([[0], [16]], np.uint32)
    for _ in range(32):
        crcs = crcs >> 1 ^ (crcs & 1) * np.uint32(0x82F63B78)
    return crcs
