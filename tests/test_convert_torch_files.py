"""Files that people have of torch, as the libraries that save them lay them out."""

import argparse
import json
import pathlib
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmsprop_jax import convert
from rmsprop_jax.convert import _torch_files

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPES = {
    "layers": {
        i: {"kernel": jnp.zeros((n, m)), "bias": jnp.zeros(m)}
        for i, (n, m) in enumerate([(4, 5), (5, 3)])
    }
}


def trained(**options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3))
    optimizer = torch.optim.RMSprop(model.parameters(), 0.01, momentum=0.9, **options)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def lightning(model, optimizer, path):
    """As Lightning 2.6 writes it; its module holds the model as an attribute."""
    content = {
        "epoch": 2, "global_step": 3, "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"net.{k}": v for k, v in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"x": {"best": None}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 2, "base_lrs": [0.01]}],
        "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.01},
    }  # fmt: skip
    torch.save(content, path)
    return path


def timm(model, optimizer, path):
    """As timm's CheckpointSaver writes it, by itself where it is installed."""
    args = argparse.Namespace(
        model="net", lr=0.01, output=pathlib.Path("out"), seed=np.int64(3)
    )
    try:
        from timm.utils.checkpoint_saver import CheckpointSaver
    except ImportError:
        content = {"epoch": 1, "arch": "net", "optimizer": optimizer.state_dict()}
        content |= {"version": 2, "args": args, "metric": np.float64(0.5)}
        torch.save({**content, "state_dict": model.state_dict()}, path)
        return path
    saver = CheckpointSaver(model, optimizer, args, checkpoint_dir=str(path.parent))
    saver._save(str(path), 1, np.float64(0.5))
    return path


def trainer(model, optimizer, folder):
    """As Hugging Face's Trainer writes it."""
    from safetensors.torch import save_file

    folder.mkdir()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save({"last_epoch": 3, "base_lrs": [0.01]}, folder / "scheduler.pt")
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    return folder


def sharded(model, optimizer, folder):
    """The same with the model in two files."""
    from safetensors.torch import save_file

    (trainer(model, optimizer, folder) / "model.safetensors").unlink()
    shards = {}
    for i in "01":
        name = f"model-{i}.safetensors"
        part = {k: v for k, v in model.state_dict().items() if k[0] == i}
        save_file(part, folder / name, {"format": "pt"})
        shards |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return folder


def stable_baselines(model, optimizer, path, kind="torch.optim.rmsprop.RMSprop"):
    """As Stable-Baselines3 2.9 writes it."""
    policy = {"optimizer_class": f"<class '{kind}'>", ":serialized:": "gAWV"}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_kwargs": policy}))
        archive.writestr("pytorch_variables.pth", b"")
        for name, state in (("policy", model), ("policy.optimizer", optimizer)):
            torch.save(state.state_dict(), path.with_suffix(".part"))
            archive.write(path.with_suffix(".part"), f"{name}.pth")
        archive.writestr("_stable_baselines3_version", "2.9.2")
    return path


NET = {"layers/0": "net.0", "layers/1": "net.1"}
NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]
MAKERS = {
    "lightning": (lightning, "run.ckpt", {"rule": convert.torch_to_flax(NET)}),
    "timm": (timm, "checkpoint-1.pth.tar", {}),
    "trainer": (trainer, "checkpoint-3", {"names": NAMES}),
    "sharded": (sharded, "checkpoint-3", {"names": NAMES}),
    "sb3": (stable_baselines, "a2c.zip", {}),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_files_of_libraries_are_read_and_written(kind, tmp_path):
    make, name, given = MAKERS[kind]
    model, optimizer = trained()
    path = make(model, optimizer, tmp_path / name)
    restored = convert.load(path, SHAPES, **given)
    assert (restored.dialect, restored.step) == ("torch", 3)
    if kind in ("lightning", "timm"):
        assert "the entry 'epoch'" in restored.left_out
    for i, layer in enumerate(model):
        square = optimizer.state[layer.weight]["square_avg"].T
        nu = restored.state[0].nu["layers"][i]["kernel"]
        np.testing.assert_array_equal(nu, square)
        ours = restored.params["layers"][i]["kernel"]
        np.testing.assert_array_equal(ours, layer.weight.detach().T)
    back = tmp_path / f"back-{name}"
    if path.is_dir():
        back.mkdir()
    moved = jax.tree.map(lambda x: x + 1, restored.params)
    save = partial(convert.save, back, restored.state, moved, "torch", restored.groups)
    save(like=path, **given)
    before, after = (_torch_files.load(p) for p in (path, back))
    at = _torch_files.parts_of(after)
    optimizer.load_state_dict(_torch_files.as_tensors(torch, at.optimizer))
    for name, value in _torch_files.parts_of(before).model.items():
        assert np.allclose(at.model[name], value + 1, atol=1e-6)
    for key, value in before.items():
        if key not in (at.optimizer_at[0], at.model_at[0], *_torch_files.MARKS):
            assert after[key] == value, key
    if kind == "sb3":
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(back) as new:
            assert old.namelist() == new.namelist()
            assert old.read("data") == new.read("data")


def test_a_folder_whose_names_have_no_order_asks_for_them(tmp_path):
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(2)))
    optimizer = torch.optim.RMSprop(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    folder = trainer(model, optimizer, tmp_path / "checkpoint-1")
    params = {"layers": {i: {"kernel": jnp.zeros((4, 4))} for i in range(2)}}
    with pytest.raises(ValueError, match="does not name them: pass `names`"):
        convert.load(folder, params)


def test_the_rmsprop_of_an_archive_is_what_its_description_says(tmp_path):
    model, optimizer = trained()
    for group in optimizer.param_groups:
        for key in ("foreach", "maximize", "capturable", "differentiable"):
            del group[key]
    load = partial(convert.load, params=SHAPES)
    tf_like = "stable_baselines3.common.sb2_compat.rmsprop_tf_like.RMSpropTFLike"
    path = stable_baselines(model, optimizer, tmp_path / "tf.zip", tf_like)
    assert load(path).dialect == "sb3"
    with pytest.raises(ValueError, match='pass framework="sb3"'):
        load(stable_baselines(model, optimizer, tmp_path / "other.zip"))


@pytest.mark.parametrize("start", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_all_names_is_left_away_and_put_back(start):
    model, optimizer = trained()
    weights = {start + k: v for k, v in model.state_dict().items()}
    content = {"model": weights, "optimizer": optimizer.state_dict()}
    restored = convert.load(content, SHAPES)
    moved = jax.tree.map(lambda x: x + 1, restored.params)
    back = convert.export(restored.state, moved, "torch", restored.groups, like=content)
    assert list(back["model"]) == list(weights)
    for name, value in weights.items():
        assert torch.allclose(back["model"][name], value + 1)
    names = [start + name for name in NAMES]
    alone = convert.load(optimizer.state_dict(), SHAPES, names=names)
    jax.tree.map(np.testing.assert_array_equal, alone.state, restored.state)


def test_one_of_several_optimizers_has_to_be_chosen():
    model, optimizer = trained()
    state = optimizer.state_dict()
    content = {"net": model.state_dict(), "G": state, "D": state, "epoch": 3}
    with pytest.raises(ValueError, match=r"several optimizers, \['G'\], \['D'\]: pass"):
        convert.load(content, SHAPES)
    del content["D"]  # any name will do for one
    assert convert.load(content, SHAPES).params is not None


def test_objects_are_named_and_not_run(tmp_path):
    class Config:
        """What a file cannot have in it."""

    Config.__qualname__ = "Config"
    globals()["Config"] = Config
    model, optimizer = trained()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**content, "config": Config()}, tmp_path / "run.pt")
    match = r"holds test_convert_torch_files\.Config .* pass what torch\.load returns"
    with pytest.raises(ValueError, match=match):
        convert.load(tmp_path / "run.pt", SHAPES)
    loaded = torch.load(tmp_path / "run.pt", weights_only=False)
    assert convert.load(loaded, SHAPES).step == 3


def test_arguments_and_numpy_s_values_are_read(tmp_path):
    model, optimizer = trained()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    content["args"] = argparse.Namespace(lr=0.1, out=pathlib.Path("x"), n=np.int32(3))
    content["best"] = [np.float32(0.5), np.float64(1.5), np.bool_(True)]
    content["history"] = np.arange(3.0)
    torch.save(content, tmp_path / "run.pt")
    read = _torch_files.load(tmp_path / "run.pt")
    assert read["args"] == content["args"]
    assert read["best"] == content["best"]
    assert convert.load(tmp_path / "run.pt", SHAPES).step == 3


def test_a_folder_that_is_none_of_ours_is_said_to_be_one(tmp_path):
    with pytest.raises(ValueError, match="nor a folder of Hugging Face's Trainer"):
        convert.load(tmp_path, SHAPES)
