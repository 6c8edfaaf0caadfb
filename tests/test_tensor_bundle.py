"""TensorFlow checkpoints: TensorFlow's own samples, round trips, and damage."""

import os
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rmsprop_jax.convert import _tensor_bundle as bundle

SAMPLES = Path(__file__).parent / "golden" / "checkpoints"
DTYPES = [
    *(np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.bool_),
    *(np.int8, np.int16, np.int32, np.int64),
    *(np.uint8, np.uint16, np.uint32, np.uint64),
    *(np.complex64, np.complex128),
]
INDEX, DATA = ".index", ".data-00000-of-00001"


def assert_same(actual, expected):
    assert list(actual) == sorted(expected)
    for name, tensor in actual.items():
        assert tensor.dtype == np.asarray(expected[name]).dtype, name
        assert tensor.shape == np.shape(expected[name]), name
        assert tensor.tobytes() == np.asarray(expected[name]).tobytes(), name


@pytest.fixture
def saved(tmp_path):
    tensors = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "step": 7}
    bundle.write(tmp_path / "model", tensors)
    return tmp_path / "model"


def change(path, edit):
    octets = bytearray(path.read_bytes())
    edit(octets)
    path.write_bytes(octets)


def entry(code=1, shape=(), **fields):
    dims = b"".join(bundle._field(2, bundle._field(1, size)) for size in shape)
    message = bundle._field(1, code) + bundle._field(2, dims)
    return message + b"".join(bundle._field(int(n[1:]), v) for n, v in fields.items())


HEADER = bundle._field(1, 1) + bundle._field(3, bundle._field(1, 1))


@pytest.mark.parametrize("sample", ["tf1_momentum", "tf1_centered"])
@pytest.mark.parametrize("suffix", ["", INDEX])
def test_reads_what_tensorflow_wrote(sample, suffix):
    with np.load(SAMPLES / sample / "checkpoint_tensors.npz") as expected:
        tensors = bundle.read(str(SAMPLES / sample / "model.ckpt-10") + suffix)
        assert_same(tensors, dict(expected))
    assert all(tensor.flags.writeable for tensor in tensors.values())


@pytest.mark.parametrize("sample", ["tf1_momentum", "tf1_centered"])
def test_writes_the_bytes_that_tensorflow_writes(sample, tmp_path):
    original = SAMPLES / sample / "model.ckpt-10"
    bundle.write(tmp_path / "model.index", bundle.read(original))
    for part in INDEX, DATA:
        written = (tmp_path / f"model{part}").read_bytes()
        assert written == Path(f"{original}{part}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(dtype, tmp_path):
    shapes = {
        "scalar": (),
        "empty": (0,),
        "hollow": (3, 0, 2),
        "one": (1,),
        "é": (3, 5),
    }
    tensors = {
        name: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        for name, shape in shapes.items()
    }
    tensors["strided"] = tensors["é"].T[::2]
    bundle.write(tmp_path / "m", tensors)
    assert_same(bundle.read(tmp_path / "m"), tensors)


def test_every_dtype_has_tensorflow_s_number():
    numbers = [19, 1, 2, 14, 10, 6, 5, 3, 9, 4, 17, 22, 23, 8, 18]  # types.proto
    expected = {
        np.dtype(dtype).name: number
        for dtype, number in zip(DTYPES, numbers, strict=True)
    }
    assert expected == bundle._CODES


def test_foreign_byte_order_is_written_as_little_endian(tmp_path):
    bundle.write(tmp_path / "m", {"a": np.array([1, 2], ">f4")})
    assert_same(bundle.read(tmp_path / "m"), {"a": np.array([1, 2], "<f4")})


def test_no_tensors(tmp_path):
    bundle.write(tmp_path / "m", {})
    assert bundle.read(tmp_path / "m") == {}


@pytest.mark.parametrize("block_bytes", [100, 4096, 1 << 18])
def test_many_names_over_several_blocks(block_bytes, tmp_path, monkeypatch):
    blocks, build = [], bundle._build_block
    monkeypatch.setattr(bundle, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(
        bundle, "_build_block", lambda *args: blocks.append(args) or build(*args)
    )
    tensors = {
        f"model/layer_{i}/{part}": np.full((i % 4, 2), i, np.float32)
        for i in range(250)
        for part in ("kernel/RMSProp", "kernel/RMSProp_1")
    }
    bundle.write(tmp_path / "m", tensors)
    assert_same(bundle.read(tmp_path / "m"), tensors)
    meta_and_index = 2
    assert (len(blocks) - meta_and_index > 1) == (block_bytes < 1 << 18)


def test_shared_prefixes_are_stored_once_in_sixteen_names(tmp_path):
    tensors = {"x" * 1000 + str(i): np.float32(i) for i in range(160)}
    bundle.write(tmp_path / "m", tensors)
    assert_same(bundle.read(tmp_path / "m"), tensors)
    assert (tmp_path / "m.index").stat().st_size < 15_000


def test_several_shards_and_skipped_tensors(tmp_path):
    shards = [np.arange(3, dtype=np.float32), np.arange(4, dtype=np.float32)]
    entries = [(b"", bundle._field(1, 2) + bundle._field(3, bundle._field(1, 1)))]
    entries.append((b"_CHECKPOINTABLE_OBJECT_GRAPH", entry(7, f5=9)))
    for i, tensor in enumerate(shards):
        bundle.write(tmp_path / "part", {"x": tensor})
        os.replace(tmp_path / f"part{DATA}", tmp_path / f"m.data-0000{i}-of-00002")
        checksum = bundle._checksum(tensor.view(np.uint8)).to_bytes(4, "little")
        message = entry(1, tensor.shape, f3=i, f5=tensor.nbytes) + b"\x35" + checksum
        entries.append((b"x%d" % i, message))
    entries += [(b"z_resource", entry(20)), (b"z_variant", entry(21))]
    (tmp_path / "m.index").write_bytes(bundle._build_table(entries))
    assert_same(bundle.read(tmp_path / "m"), {"x0": shards[0], "x1": shards[1]})
    os.remove(tmp_path / "m.data-00001-of-00002")
    with pytest.raises(FileNotFoundError, match=r"m\.data-00001-of-00002"):
        bundle.read(tmp_path / "m")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 31, 32, 33, 1000, 1003])
@pytest.mark.parametrize("piece", [8, 64, 1 << 20])
def test_checksum_is_that_of_a_loop_over_bits(size, piece, monkeypatch):
    monkeypatch.setattr(bundle, "_CRC_BYTES", piece)
    octets = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    crc = 0xFFFFFFFF
    for octet in octets.tolist():
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (crc & 1) * 0x82F63B78
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert bundle._checksum(octets) == masked


def test_checksum_is_crc32c():
    crc = 0xE3069283  # the published check value
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert bundle._checksum(np.frombuffer(b"123456789", np.uint8)) == masked


@pytest.mark.parametrize("part", [INDEX, DATA])
def test_missing_file_is_named(part, saved):
    os.remove(f"{saved}{part}")
    with pytest.raises(FileNotFoundError, match=rf"model\{part}"):
        bundle.read(saved)


def test_no_damage_to_the_index_goes_unnoticed(saved):
    expected, path = bundle.read(saved), Path(f"{saved}.index")
    intact = path.read_bytes()
    for i in range(len(intact)):
        for mask in 0x01, 0x80, 0xFF:
            change(
                path,
                lambda octets, i=i, mask=mask: octets.__setitem__(i, octets[i] ^ mask),
            )
            try:
                tensors = bundle.read(saved)
            except ValueError as error:
                message = str(error)
            else:  # bytes without a meaning, as those that fill the footer
                assert_same(tensors, expected)
                message = str(path)
            assert message.startswith(str(path)), i
            path.write_bytes(intact)


def test_truncated_index(saved):
    path = Path(f"{saved}.index")
    intact = path.read_bytes()
    for size in range(len(intact)):
        path.write_bytes(intact[:size])
        with pytest.raises(ValueError, match=r"model\.index: no magic .* truncated"):
            bundle.read(saved)
    path.write_bytes(intact[-20:])
    with pytest.raises(ValueError, match=r"model\.index: no magic .* truncated"):
        bundle.read(saved)
    path.write_bytes(intact[-48:])
    with pytest.raises(ValueError, match=r"model\.index: truncated: a block .* again"):
        bundle.read(saved)


def test_damaged_tensor_is_named(saved):
    change(Path(f"{saved}{DATA}"), lambda octets: octets.__setitem__(24, 8))
    with pytest.raises(
        ValueError, match=r"'step' has a wrong checksum: .*model\.data-0.* again"
    ):
        bundle.read(saved)


def test_truncated_tensor_is_named(saved):
    change(Path(f"{saved}{DATA}"), lambda octets: octets.__delitem__(slice(30, None)))
    with pytest.raises(
        ValueError, match=r"'step' ends at byte 32 of .*data-0.* truncated at byte 30"
    ):
        bundle.read(saved)


def test_damaged_block(saved):
    change(Path(f"{saved}.index"), lambda octets: octets.__setitem__(20, 0))
    with pytest.raises(ValueError, match=r"model\.index: a block's checksum .* again"):
        bundle.read(saved)


def test_compressed_block(saved):
    def compress(octets):
        size = len(octets) - 48
        _, index = bundle._parse_varint(octets[-48:], 0)
        _, index = bundle._parse_varint(octets[-48:], index)
        start, index = bundle._parse_varint(octets[-48:], index)
        octets[size - 5] = 1
        block = np.frombuffer(bytes(octets[start : size - 4]), np.uint8)
        octets[size - 4 : size] = bundle._checksum(block).to_bytes(4, "little")

    change(Path(f"{saved}.index"), compress)
    with pytest.raises(ValueError, match=r"model\.index: a block is compressed.*save"):
        bundle.read(saved)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([(b"", HEADER + b"\x10\x01")], "big-endian, not supported; .* save it again"),
        ([(b"", HEADER + b"\x1a\x02\x10\x02")], "later version, .* save it again"),
        ([(b"a", entry())], "no header"),
        ([(b"", b"\xff")], "malformed"),
        ([(b"", HEADER[:-1])], "malformed"),
        ([(b"", HEADER + b"\x22\x05ab")], "malformed"),
        ([(b"", bundle._field(1, 1) + bundle._field(3, 1))], "malformed"),
        ([(b"", HEADER), (b"a", entry(f4=99, f5=4))], "'a' ends at byte 103 of"),
        ([(b"", HEADER), (b"\x80", entry())], "malformed"),
        ([(b"", HEADER), (b"a", b"\x08\x01")], "'a' is .* has 0 bytes"),
        (
            [(b"", HEADER), (b"\0\xff", entry()), (b"a", entry(f7=b""))],
            "'a' is partitioned into slices, .* without a partitioner",
        ),
        ([(b"", HEADER), (b"a", entry(11))], "'a' has dtype 11 .* save it again"),
        (
            [(b"", HEADER), (b"a", entry(1, (2,), f5=4))],
            r"'a' is float32 of shape \(2,\), but has 4 bytes",
        ),
    ],
)
def test_what_is_not_supported_is_named(entries, message, saved):
    Path(f"{saved}.index").write_bytes(bundle._build_table(entries))
    with pytest.raises(ValueError, match=rf"model\.index: .*({message})"):
        bundle.read(saved)


class Break(Exception):
    """What no code catches by its name."""


def fail(*args, **kwargs):
    raise Break


@pytest.mark.parametrize(
    ("step", "replaces"),
    [
        *[(step, True) for step in (1, 2, 3, "fsync", "table", "dtype", "name")],
        *[(step, False) for step in (1, 2, "fsync", "table", "dtype", "name")],
    ],
)
def test_failing_write_leaves_all_as_it_was(step, replaces, saved, monkeypatch):
    if not replaces:
        for part in INDEX, DATA:
            os.remove(f"{saved}{part}")
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}
    tensors = {"a": np.ones(3), "b": np.ones(2)}
    calls, replace = [], os.replace

    def replace_until(*paths):
        calls.append(paths)
        if len(calls) == step:
            raise Break
        replace(*paths)

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif step == "table":
        monkeypatch.setattr(bundle, "_build_table", fail)
    elif step == "dtype":
        tensors["b"] = np.array(["x"])
    elif step == "name":
        tensors[""] = np.ones(2)
    monkeypatch.setattr(os, "replace", replace_until)
    with pytest.raises((Break, ValueError)):
        bundle.write(saved, tensors)
    monkeypatch.undo()
    assert before == {path.name: path.read_bytes() for path in saved.parent.iterdir()}
    if replaces:
        bundle.read(saved)


def test_write_replaces(saved):
    bundle.write(saved, {"other": np.ones(2)})
    assert_same(bundle.read(saved), {"other": np.ones(2)})
    assert {path.name for path in saved.parent.iterdir()} == {
        f"model{INDEX}",
        f"model{DATA}",
    }


def test_data_reaches_its_name_before_the_index(saved, monkeypatch):
    targets, replace = [], os.replace

    def record(source, target):
        targets.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    bundle.write(saved, {"a": np.ones(2)})
    assert targets[-2:] == [f"model{DATA}", f"model{INDEX}"]


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"m\.data-0.*'a' has dtype str.*float32"):
        bundle.write(tmp_path / "m", {"a": np.array("text")})
    with pytest.raises(ValueError, match=r"m\.data-0.* empty"):
        bundle.write(tmp_path / "m", {"": np.ones(2)})
    assert not list(tmp_path.iterdir())


ARRAYS = st.sampled_from([d for d in DTYPES if d is not ml_dtypes.bfloat16]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    )
)


@settings(max_examples=30, deadline=None, database=None)
@given(st.dictionaries(st.text(min_size=1), ARRAYS, max_size=20))
def test_any_names_and_arrays(tensors):
    with tempfile.TemporaryDirectory() as folder:
        bundle.write(f"{folder}/m", tensors)
        assert_same(bundle.read(f"{folder}/m"), tensors)


def test_tensorflow_reads_what_we_wrote(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tf = pytest.importorskip("tensorflow")
    tensors = {np.dtype(dtype).name: np.ones((2, 3), dtype) for dtype in DTYPES}
    tensors |= {f"layer_{i}/RMSProp": np.full(i % 3, i) for i in range(500)}
    monkeypatch.setattr(bundle, "_BLOCK_BYTES", 4096)
    bundle.write(tmp_path / "m", tensors)
    reader = tf.train.load_checkpoint(str(tmp_path / "m"))
    names = sorted(reader.get_variable_to_shape_map())
    assert_same({name: reader.get_tensor(name) for name in names}, tensors)
