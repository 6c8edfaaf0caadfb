"""Files that would do harm are refused before anything in them is used."""

import io
import json
import os
import stat
import tracemalloc
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmsprop_jax import convert, dialects
from rmsprop_jax.convert import _files, _hdf5

h5py = pytest.importorskip("h5py")
PARAMS = {"d": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
NAMES = ["d/kernel", "d/bias"]
GIVEN = {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-7, "weight_decay": None}


def write_h5(file, velocity=None):
    """A Keras file of weights whose first velocity the test makes."""
    with h5py.File(file, "w") as content:
        stored = content.create_group("optimizer/vars")
        arrays = [np.int64(3), np.float32(0.1), np.full((2, 3), 0.5), np.full(3, 0.5)]
        for i, value in enumerate(arrays):
            if i != 2 or velocity is None:
                stored[str(i)] = np.asarray(value)
        layer = content.create_group("layers/dense/vars")
        layer.attrs["name"] = "d"
        layer["0"], layer["1"] = np.zeros((2, 3)), np.zeros(3)
        if velocity is not None:
            velocity(stored)
    return file


def outside(folder):
    """Ways to keep a velocity in another file, and that file."""
    secret, other = folder / "secret.bin", folder / "other.h5"
    secret.write_bytes(np.full(6, 7.0).tobytes())
    with h5py.File(other, "w") as file:
        file["x"] = np.full((2, 3), 7.0)
    places = [(str(secret), 0, 48)]
    layout = h5py.VirtualLayout((2, 3), float)
    layout[...] = h5py.VirtualSource(str(other), "x", (2, 3))
    return (secret, other), {
        "storage": lambda g: g.create_dataset("2", (2, 3), float, external=places),
        "link": lambda g: g.update({"2": h5py.ExternalLink(str(other), "x")}),
        "virtual": lambda g: g.create_virtual_dataset("2", layout),
        "elsewhere": lambda g: (
            g.update({"2": np.ones((2, 3))}),
            g.create_dataset("/a/b/c", (6,), float, external=places),
        ),
    }


@pytest.mark.parametrize("way", ["storage", "link", "virtual", "elsewhere"])
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_a_file_that_refers_to_another_is_neither_read_nor_written(
    way, suffix, tmp_path
):
    others, ways = outside(tmp_path)
    path = write_h5(tmp_path / "m.weights.h5", ways[way])
    if suffix == ".keras":
        config = {"compile_config": {"optimizer": {"class_name": "RMSprop"}}}
        zipped = tmp_path / "m.keras"
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("config.json", json.dumps(config))
            archive.write(path, "model.weights.h5")
        path = zipped
    before = [other.read_bytes() for other in others]
    with pytest.raises(ValueError, match="in another file"):
        convert.load(path, PARAMS, names=NAMES, **GIVEN)
    state = dialects.keras().init(PARAMS)
    arguments = (state, PARAMS, "keras", {"learning_rate": 0.1})
    with pytest.raises(ValueError, match="in another file"):
        convert.save(tmp_path / f"out{suffix}", *arguments, names=NAMES, like=path)
    assert [other.read_bytes() for other in others] == before
    assert not (tmp_path / f"out{suffix}").exists()


def test_a_group_inside_itself_is_not_walked_for_ever(tmp_path):
    path = write_h5(tmp_path / "m.weights.h5")
    load = partial(convert.load, params=PARAMS, names=NAMES, learning_rate=0.1, **GIVEN)
    load(path)
    with h5py.File(path, "r+") as file:
        file["soft"] = h5py.SoftLink("/")
    with pytest.raises(ValueError, match="/soft behind a link"):
        load(path)
    with h5py.File(path, "r+") as file:
        del file["soft"]
    for place in ("layers/again", "optimizer/again"):
        with h5py.File(path, "r+") as file:
            file[place] = file["layers"]
        with pytest.raises(ValueError, match=f"group /{place} in two places"):
            load(path)
        with h5py.File(path, "r+") as file:
            del file[place]


def zeros_in_chunks(group):
    shape = (1 << 12, 1 << 12)
    group.create_dataset("2", shape, "f4", chunks=shape, compression="gzip")
    group["2"][...] = 0


def bombs(folder):
    """Small files that become large, and the function that reads each."""
    large = np.zeros(1 << 25, np.float32)
    yield write_h5(folder / "chunks.weights.h5", zeros_in_chunks)
    yield write_h5(
        folder / "unwritten.weights.h5",
        lambda group: group.create_dataset("2", (1 << 16, 1 << 16), "f4"),
    )
    with zipfile.ZipFile(folder / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", large.tobytes())
    yield folder / "m.keras"
    np.savez_compressed(folder / "s.npz", **{"nu/w": large})
    yield folder / "s.npz"


def test_a_small_file_that_becomes_large_is_not_unpacked(tmp_path):
    for path in bombs(tmp_path):
        assert path.stat().st_size < 1 << 20
        with pytest.raises(ValueError, match=r"would become [\d,]+ in memory"):
            convert.load(path, PARAMS, names=NAMES, **GIVEN)


def test_a_small_file_of_torch_that_becomes_large_is_not_unpacked(tmp_path):
    torch = pytest.importorskip("torch")
    view = torch.zeros(1).expand(1 << 16, 1 << 16)  # of four bytes
    torch.save({"optimizer": {"state": {0: {"square_avg": view}}}}, tmp_path / "v.pt")
    torch.save({"w": torch.zeros(1 << 25)}, tmp_path / "large.pt")
    with (
        zipfile.ZipFile(tmp_path / "large.pt") as old,
        zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    for name in ("v.pt", "z.pt"):
        assert (tmp_path / name).stat().st_size < 1 << 20
        with pytest.raises(ValueError, match="would become"):
            convert.load(tmp_path / name, PARAMS)


def test_an_archive_that_lies_about_its_size_is_read_as_far_as_it_says(tmp_path):
    path = tmp_path / "lie.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1 << 24))
    octets = bytearray(path.read_bytes())
    start = octets.index(b"PK\x01\x02") + 24  # the directory's uncompressed size
    octets[start : start + 4] = (100).to_bytes(4, "little")
    path.write_bytes(octets)
    tracemalloc.start()
    with zipfile.ZipFile(path) as archive, pytest.raises(zipfile.BadZipFile):
        _files.unzipped(archive, "a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_bytes_are_checked_as_files_are(tmp_path):
    file = io.BytesIO()
    _, ways = outside(tmp_path)
    write_h5(file, ways["link"])
    with (
        pytest.raises(
            ValueError, match="/optimizer/vars/2 behind a link or in another file"
        ),
        _hdf5.opened(file, "m.weights.h5"),
    ):
        pass


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a pipe"])
def test_only_regular_files_are_replaced(kind, tmp_path):
    target = tmp_path / "x.safetensors"
    if kind == "folder":
        target.mkdir()
    elif kind == "device":  # of its own: what this tests would replace a real one
        try:
            os.mknod(target, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except OSError:
            pytest.skip("only root makes devices")
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        os.mkfifo(tmp_path / "pipe")
        os.symlink(tmp_path / "pipe", target)
    before = stat.S_IFMT(target.stat().st_mode)
    state = dialects.torch(lr=0.1).init(PARAMS)
    with pytest.raises(ValueError, match="only regular files are replaced"):
        convert.save(target, state, PARAMS, "torch", {"lr": 0.1})
    assert stat.S_IFMT(target.stat().st_mode) == before


def description(**changes):
    group = {"hyperparameters": {"lr": 0.1}, "names": NAMES}
    about = {"dialect": "torch", "step": 3, "groups": [group], "missing": []}
    about = {**about, "is_ours": True, **changes}
    return json.dumps({k: v for k, v in about.items() if v != "absent"})


DAMAGED = {
    "no JSON": "{",
    "a list": "[]",
    **{
        f"no {key}": description(**{key: "absent"}) for key in json.loads(description())
    },
    "step is text": description(step="3"),
    "groups is a number": description(groups=3),
    "no groups": description(groups=[]),
    "a group without names": description(groups=[{"hyperparameters": {}}]),
    "names is a number": description(groups=[{"hyperparameters": {}, "names": 1}]),
    "hyperparameters is a list": description(
        groups=[{"hyperparameters": [], "names": NAMES}]
    ),
    "unknown dialect": description(dialect="nosuch"),
    "another name": description(groups=[{"hyperparameters": {}, "names": ["x"]}]),
    "a name too few": description(groups=[{"hyperparameters": {}, "names": NAMES[:1]}]),
    "a name twice": description(
        groups=[{"hyperparameters": {}, "names": [*NAMES, NAMES[0]]}]
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_descriptions_of_ours_are_sentences(damage, tmp_path):
    from safetensors.numpy import save_file

    arrays = {"nu/d/kernel": np.zeros((2, 3)), "nu/d/bias": np.zeros(3)}
    path = tmp_path / "s.safetensors"
    save_file(arrays, path, {"rmsprop_jax": description()})
    shapes = jax.eval_shape(lambda: PARAMS)
    assert convert.load(path, shapes).step == 3
    save_file(arrays, path, {"rmsprop_jax": DAMAGED[damage]})
    with pytest.raises(ValueError, match=r"s\.safetensors is damaged|one of rmsprop,"):
        convert.load(path, shapes)


@pytest.mark.parametrize("name", ["nosuch.pt", "nosuch.safetensors", "nosuch", "no.h5"])
def test_a_file_that_is_not_there_is_said_to_be_absent(name, tmp_path, capsys):
    from rmsprop_jax.cli import main

    paths = [str(tmp_path / name), str(tmp_path / "out.safetensors")]
    assert main(["convert", *paths]) == 2
    error = capsys.readouterr().err
    assert f"error: There is no file {tmp_path / name}" in error
    with pytest.raises(FileNotFoundError, match="There is no file"):
        convert.load(tmp_path / name, PARAMS)
