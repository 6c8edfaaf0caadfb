"""Checkpoints as people have them: other names, other optimizers, parts that lack."""

import json
import os
import types
from functools import partial

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from rmsprop_jax import convert, decay, dialects, rmsprop
from rmsprop_jax.convert import (
    _bitsandbytes,
    _files,
    _keras,
    _ours,
    _torch,
    _torch_files,
)
from rmsprop_jax.convert._keras_layers import described

PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
GIVEN = {"learning_rate": 0.1, "decay": 0.9, "eps": 1e-8}


def gradient(seed, like=PARAMS):
    noise = jax.random.normal(jax.random.key(seed), (4, 3))
    return jax.tree.map(lambda x: noise[: x.shape[0]].reshape(-1)[: x.size], like) | (
        {"w": noise, "b": noise[0]}
    )


def after(tx, steps, params=PARAMS):
    state = tx.init(params)
    with jax.numpy_dtype_promotion("standard"):  # Optax relies on it
        for seed in range(steps):
            _, state = tx.update(gradient(seed), state, params)
    return state


def next_step(tx, state):
    with jax.numpy_dtype_promotion("standard"):
        return tx.update(gradient(99), state, PARAMS)[0]


def assert_goes_on(tx, state, restored, **tolerances):
    close = partial(
        np.testing.assert_allclose, **({"rtol": 2e-6, "atol": 1e-6} | tolerances)
    )
    expected = next_step(tx, state)
    jax.tree.map(close, next_step(restored.optimizer, restored.state), expected)


def numbered(group=None, **shapes):
    """A torch state dictionary of ones, of parameters by name."""
    state = {
        i: {"step": 3, "square_avg": np.full(shape, 0.5, np.float32)}
        for i, shape in enumerate(shapes.values())
    }
    group = {"lr": 0.1, "alpha": 0.9, "foreach": None} if group is None else group
    return {"state": state, "param_groups": [{**group, "params": list(state)}]}


# LSTMs


def test_an_lstm_of_torch_s_two_biases_computes_the_same_here_and_back(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    theirs = torch.nn.LSTM(3, 5, batch_first=True)
    x = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    optimizer = torch.optim.RMSprop(theirs.parameters(), lr=0.01)
    theirs(torch.tensor(x))[0].pow(2).sum().backward()
    optimizer.step()
    expected = theirs(torch.tensor(x))[0].detach().numpy()
    model = {f"lstm.{name}": value for name, value in theirs.state_dict().items()}
    path = tmp_path / "lstm.pt"
    torch.save({"model": model, "optimizer": optimizer.state_dict()}, path)
    ours = nn.RNN(nn.OptimizedLSTMCell(5))
    params = ours.init(jax.random.key(0), jnp.asarray(x))["params"]
    rule = convert.torch_to_flax({"cell": "lstm.l0"})
    restored = convert.load(path, params, rule=rule)
    output = partial(np.testing.assert_allclose, desired=expected, atol=1e-6)
    output(ours.apply({"params": restored.params}, jnp.asarray(x)))

    def written(**like):
        save = partial(convert.export, rule=rule, **like)
        return save(restored.state, restored.params, "torch", restored.groups)

    back = written(like=path)["model"]
    np.testing.assert_array_equal(back["lstm.bias_ih_l0"], model["lstm.bias_ih_l0"])
    again = torch.nn.LSTM(3, 5, batch_first=True)
    tensors = {k.removeprefix("lstm."): v for k, v in back.items()}
    again.load_state_dict(tensors)
    output(again(torch.tensor(x))[0].detach().numpy())


# torch files by other names


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("model_state_dict", "optimizer_state_dict"), ("state_dict", "optimizer")],
)
def test_files_by_the_names_that_people_give_are_read_and_written(
    model, optimizer, tmp_path
):
    weight = np.arange(6, dtype=np.float16).reshape(2, 3)
    content = {
        model: {"fc.weight": weight},
        optimizer: numbered(w=(2, 3)),
        "epoch": 3,
    }
    params = {"fc": {"kernel": jnp.zeros((3, 2), jnp.float16)}}
    restored = convert.load(content, params)
    np.testing.assert_array_equal(restored.params["fc"]["kernel"], weight.T)
    save = partial(convert.export, restored.state, dialect="torch", like=content)
    moved = jax.tree.map(lambda x: x + 1, restored.params)
    back = save(params=moved, hyperparameters=restored.groups)
    np.testing.assert_array_equal(back[model]["fc.weight"], weight + 1)
    assert back[model]["fc.weight"].dtype == np.float16
    assert back["epoch"] == 3
    assert optimizer in back
    _torch.save(tmp_path / "c.safetensors", back)
    again = convert.load(tmp_path / "c.safetensors", params, names=["fc.weight"])
    jax.tree.map(np.testing.assert_array_equal, again.params, moved)
    content[model] = {"other.weight": weight}
    with pytest.raises(ValueError, match=r"model has no fc\.weight"):
        save(params=moved, hyperparameters=restored.groups, names=["fc.weight"])
    shapes = jax.eval_shape(lambda: moved)  # the optimizer's state alone
    save(params=shapes, hyperparameters=restored.groups, names=["fc.weight"])


def test_tied_weights_stay_tied(tmp_path):
    torch = pytest.importorskip("torch")
    table = torch.arange(15.0).reshape(5, 3)
    model = {"emb.weight": table, "out.weight": table, "buffer": table.clone()}
    optimizer = _torch_files.as_tensors(torch, numbered(w=(5, 3)))
    content = {"model": model, "optimizer": optimizer}
    torch.save(content, tmp_path / "tied.pt")
    params = {"emb": {"embedding": jnp.zeros((5, 3))}}
    load = partial(convert.load, tmp_path / "tied.pt", params, names=["emb.weight"])
    restored = load()
    convert.save(
        tmp_path / "back.pt",
        restored.state,
        jax.tree.map(lambda x: x + 1, restored.params),
        "torch",
        restored.groups,
        like=tmp_path / "tied.pt",
        names=["emb.weight"],
    )
    back = torch.load(tmp_path / "back.pt")["model"]
    assert torch.equal(back["out.weight"], table + 1)
    assert torch.equal(back["buffer"], table)


@pytest.mark.parametrize("name", ["bfloat16", "float64"])
def test_torch_gets_its_own_dtypes_back(name, tmp_path):
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    layer = torch.nn.Linear(3, 2).to(dtype)
    optimizer = torch.optim.RMSprop(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 3, dtype=dtype)).sum().backward()
    optimizer.step()
    content = {"model": layer.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "c.pt")
    kind = jnp.bfloat16 if name == "bfloat16" else jnp.float32
    params = {"kernel": jnp.zeros((3, 2), kind), "bias": jnp.zeros(2, kind)}
    restored = convert.load(tmp_path / "c.pt", params)
    assert restored.params["bias"].dtype == kind
    convert.save(
        tmp_path / "back.pt",
        restored.state,
        restored.params,
        "torch",
        restored.groups,
        like=tmp_path / "c.pt",
    )
    back = torch.load(tmp_path / "back.pt")
    assert back["model"]["weight"].dtype == dtype
    if name == "bfloat16":
        assert torch.equal(back["model"]["weight"], layer.weight)
    optimizer.load_state_dict(back["optimizer"])


def test_a_parameter_of_any_name_is_found_under_its_own():
    content = numbered(scale=(), log_std=(3,), weight=(2, 3))
    params = {"scale": 0.0, "log_std": np.zeros(3), "fc": {"kernel": np.zeros((3, 2))}}
    params = jax.tree.map(jnp.asarray, params)
    names = ["scale", "log_std", "fc.weight"]
    places = dict(convert.load(content, params, names=names).places)
    assert {path: place.name for path, place in places.items()} == {
        "scale": "scale",
        "log_std": "log_std",
        "fc/kernel": "fc.weight",
    }
    rule = {"scale": "scale", "log_std": "log_std", "fc/kernel": "head"}
    names[2] = "head"
    places = dict(convert.load(content, params, names=names, rule=rule).places)
    assert places["fc/kernel"].axes == (1, 0)


def test_two_leaves_that_would_share_an_entry_are_named():
    content = numbered(weight=(3,))
    params = {"n": {"scale": jnp.zeros(3), "gate": jnp.zeros(3)}}
    rule = {"n/scale": "n.weight", "n/gate": "n.weight"}
    load = partial(convert.load, content, params, names=["n.weight"], rule=rule)
    with pytest.raises(
        ValueError, match=r"ambiguous n\.weight\[0\]: of n/gate and of n/s"
    ):
        load()
    twice = {"a/b": jnp.ones(3), "a": {"b": jnp.ones(3)}}
    with pytest.raises(ValueError, match="Two leaves of the tree have one path: a/b"):
        convert.load(content, twice, names=["n.weight"])


# what is not RMSProp, or not the one that was said

FOREIGN = {
    "torch's Adam": ({"lr": 1, "betas": (0.9, 0.99), "amsgrad": False}, {}, "not RMSP"),
    "AdEMAMix": ({"lr": 1, "betas": (0.9, 0.99, 0.9)}, {}, "not RMSProp"),
    "bitsandbytes' Adam": (
        {"lr": 1, "betas": (0.9, 0.99)},
        {"state1": np.ones(3), "state2": np.ones(3)},
        "not RMSProp's state: it has .*state2",
    ),
    "bitsandbytes' Lion": (
        {"lr": 1, "betas": (0.9, 0.99)},
        {"state1": -np.ones(3)},
        "not RMSProp: w has negative values",
    ),
    "timm, said to be sb3": (
        {"lr": 1, "alpha": 0.9, "decoupled_decay": False},
        {},
        "`framework` is 'sb3', and the file is of 'timm'",
    ),
    "torch, said to be sb3": (
        {"lr": 1, "alpha": 0.9, "foreach": None},
        {},
        "`framework` is 'sb3', and the file is of 'torch'",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_state_of_another_optimizer_is_refused(name):
    group, entry, message = FOREIGN[name]
    content = numbered(group, w=(3,))
    content["state"][0] = {"step": 1, **(entry or {"square_avg": np.ones(3)})}
    said = {"framework": "sb3"} if "said" in name else {}
    with pytest.raises(ValueError, match=message):
        convert.load(content, {"w": jnp.ones(3)}, names=["w"], **said)


@pytest.mark.parametrize("make", [optax.adam, optax.adabelief, optax.novograd])
def test_other_states_of_optax_are_refused(make, tmp_path):
    state = after(make(0.1), 3)
    with pytest.raises(ValueError, match="not RMSProp: it has a Scale"):
        convert.load(state, PARAMS, **GIVEN)
    if make is optax.adam:  # in a file its fields are those of the centred RMSProp
        path = tmp_path / "adam.msgpack"
        path.write_bytes(flax.serialization.to_bytes(state))
        with pytest.raises(ValueError, match="It may be Adam's"):
            convert.load(path, PARAMS, **GIVEN)


def test_our_state_whose_keys_were_sorted_is_not_taken_for_optax_s():
    content = flax.serialization.to_state_dict(after(rmsprop(0.1, centered=True), 3))
    content["0"] = {key: content["0"][key] for key in sorted(content["0"])}
    with pytest.raises(ValueError, match="a state of rmsprop_jax, not of Optax"):
        convert.load(content, PARAMS, **GIVEN)


def test_a_trace_is_taken_where_optax_has_it():
    rms, rate = optax.scale_by_rms(0.9), optax.scale_by_learning_rate(0.1)
    trace = optax.trace(0.9)
    given = GIVEN | {"momentum": 0.9}
    for tx in (
        optax.rmsprop(0.1, momentum=0.9),
        optax.chain(optax.clip(9.0), optax.chain(rms, rate, trace)),
        optax.chain(rms, optax.chain(rate, trace)),
    ):
        state = after(tx, 3)
        restored = convert.load(state, PARAMS, **given)
        assert_goes_on(tx, state, restored)
    for tx in (
        optax.chain(rms, trace, rate),
        optax.chain(trace, rms, rate),
        optax.chain(rms, optax.chain(trace, rate)),
    ):
        with pytest.raises(ValueError, match=r"is not where optax\.rmsprop has it"):
            convert.load(after(tx, 3), PARAMS, **given)


RMS = optax.rmsprop(0.1)
MEMBERS = {
    "none": (RMS, None),
    "clipping and decay": (
        optax.chain(optax.clip(0.1), optax.add_decayed_weights(0.1), RMS),
        "0 (no state), 1 (no state)",
    ),
    "decay after it": (
        optax.chain(RMS, optax.add_decayed_weights(0.1)), "1 (no state)"
    ),
    "ema": (optax.chain(RMS, optax.ema(0.9)), "1 (count, ema)"),
    "a schedule before it": (
        optax.chain(optax.scale_by_schedule(jnp.cos), RMS), "0 (count)"
    ),
    "MultiSteps": (optax.MultiSteps(RMS, 2), "mini_step, acc_grads, skip_state"),
    "apply_if_finite": (optax.apply_if_finite(RMS, 3), "notfinite_count, last_finite"),
    "injected": (optax.inject_hyperparams(optax.rmsprop)(learning_rate=0.1), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", MEMBERS)
def test_members_of_a_chain_that_have_no_place_are_said(kind):
    tx, words = MEMBERS[kind]
    load = partial(convert.load, after(tx, 4), PARAMS, **GIVEN)
    said, *rest = load(eps_in_sqrt=True).assumed or (None,)
    assert (said is None, rest) == (words is None, [])
    assert words is None or said.startswith(words)
    if words is not None:
        with pytest.raises(ValueError, match="chain them around it"):
            load(eps_in_sqrt=True, strict=True)
    assert "`eps_in_sqrt` is True, by default" in load().assumed[-1]


@pytest.mark.promotion
def test_what_a_state_of_optax_holds_is_not_asked_for():
    injected = optax.inject_hyperparams(optax.rmsprop)
    constant = after(injected(learning_rate=0.25, decay=0.5, eps=1e-3), 2)
    found = convert.load(constant, PARAMS).hyperparameters
    assert [found[n] for n in ("learning_rate", "decay")] == [0.25, 0.5]
    scheduled = after(injected(learning_rate=optax.linear_schedule(0.1, 0.0, 9)), 2)
    with pytest.raises(ValueError, match="does not hold `learning_rate` of"):
        convert.load(scheduled, PARAMS)
    assert convert.load(after(optax.MultiSteps(RMS, 2), 4), PARAMS, **GIVEN).step == 2
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=RMS).replace(step=5)
    content = flax.serialization.to_state_dict(state) | {"batch_stats": PARAMS}
    restored = convert.load(content, PARAMS, **GIVEN, eps_in_sqrt=True, strict=True)
    assert (restored.step, restored.left_out) == (5, ("the entry 'batch_stats'",))
    trained = {"w": True, "b": False}
    masked = optax.masked(RMS, trained).init(dict.fromkeys(trained, PARAMS["w"]))
    with pytest.raises(ValueError, match="b, which is masked out"):
        convert.load(masked, dict.fromkeys(trained, PARAMS["w"]), **GIVEN)
    restored = convert.load(masked, {"w": PARAMS["w"]}, **GIVEN)
    assert restored.left_out == ("b, which is masked out",)
    both = optax.partition({"x": RMS, "y": RMS}, {"a": "x", "b": "y"})
    with pytest.raises(ValueError, match="pass each label's"):
        convert.load(both.init({"a": jnp.ones(2), "b": jnp.ones(2)}), PARAMS, **GIVEN)


def test_a_folder_of_orbax_is_read(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tx = optax.chain(optax.clip(9.0), optax.rmsprop(0.1, momentum=0.9))
    state = after(tx, 3)
    ours = after(rmsprop(0.1, centered=True), 3)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step, opt_state in enumerate((state, ours)):
            content = {"opt_state": opt_state, "params": PARAMS, "step": 3}
            manager.save(step, args=ocp.args.StandardSave(content))
    given = GIVEN | {"momentum": 0.9}
    for folder in (tmp_path / "run" / "0", tmp_path / "run" / "0" / "default"):
        restored = convert.load(folder, PARAMS, **given)
        assert_goes_on(tx, state, restored)
        assert restored.step == 3
        jax.tree.map(np.testing.assert_array_equal, restored.params, PARAMS)
    with pytest.raises(ValueError, match="a state of rmsprop_jax, not of Optax"):
        convert.load(tmp_path / "run" / "1", PARAMS, **GIVEN)
    with pytest.raises(ValueError, match="several checkpoints of Orbax: pass one"):
        convert.load(tmp_path / "run", PARAMS, **given)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="say what it is with `framework`"):
        convert.load(tmp_path / "none", PARAMS, **given)


@pytest.mark.parametrize("framework", ["keras", "tf1", "optax"])
def test_a_file_is_not_read_as_what_its_name_contradicts(framework, tmp_path):
    (tmp_path / "run.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=f"'{framework}', and run.pt is a file of to"):
        convert.load(tmp_path / "run.pt", PARAMS, framework=framework)


# steps


def test_bias_correction_goes_by_the_accumulator_s_own_count():
    corrected = optax.rmsprop(0.1, bias_correction=True)
    outer = optax.scale_by_schedule(lambda count: 1.0)
    gathered = optax.MultiSteps(corrected, 3).gradient_transformation()
    state = after(optax.chain(outer, gathered), 6)
    restored = convert.load(state, PARAMS, **GIVEN, bias_correction=True)
    assert restored.step == 2
    assert_goes_on(corrected, state[1].inner_opt_state, restored)
    fresh = convert.load(corrected.init(PARAMS), PARAMS, **GIVEN, bias_correction=True)
    assert fresh.step == 0
    assert_goes_on(corrected, corrected.init(PARAMS), fresh)
    native = convert.export(fresh.state, PARAMS, "optax", fresh.hyperparameters)
    assert np.isfinite(native[0].nu["w"]).all()


def test_a_schedule_needs_to_know_its_step():
    constant = after(optax.rmsprop(0.1, momentum=0.9), 6)
    schedule = optax.linear_schedule(0.1, 0.0, 12)
    given = GIVEN | {"momentum": 0.9}
    assert convert.load(constant, PARAMS, **given).step is None
    given["learning_rate"] = schedule
    with pytest.raises(ValueError, match=r"`learning_rate` is a schedule.*pass `step`"):
        convert.load(constant, PARAMS, **given)
    restored = convert.load(constant, PARAMS, step=6, **given)
    scheduled = optax.rmsprop(schedule, momentum=0.9)
    state = list(after(scheduled, 6))
    state[0], state[2] = constant[0], constant[2]
    assert_goes_on(scheduled, tuple(state), restored)
    slots = {"w/RMSProp": np.ones(3), "w/RMSProp_1": np.zeros(3)}
    given = {"learning_rate": 0.1, "decay": 0.9, "momentum": 0.9, "epsilon": 1e-3}
    params = {"w": jnp.ones(3)}
    assert convert.load(slots, params, **given).step is None
    back = convert.load({**slots, "global_step": 5}, params, **given)
    assert back.step == 5


def test_tf1_s_slots_are_found_by_the_optimizer_s_name():
    slots = {"w/Mine": np.full(3, 0.5), "w/Mine_1": np.zeros(3), "global_step": 2}
    given = {"learning_rate": 0.1, "decay": 0.9, "momentum": 0.9, "epsilon": 1e-3}
    load = partial(convert.load, slots, {"w": jnp.ones(3)}, framework="tf1", **given)
    with pytest.raises(ValueError, match="give it as `name`"):
        load()
    restored = load(name="Mine")
    np.testing.assert_array_equal(restored.state[0].nu["w"], 0.5)
    back = convert.export(restored.state, {"w": jnp.ones(3)}, "tf1", restored.groups)
    assert {"w/Mine", "w/Mine_1"} <= set(back)


def test_slots_that_begin_with_a_number_are_found_by_the_first():
    slots = {"w/RMSProp_6": np.full(3, 0.5), "w/RMSProp_7": np.zeros(3)}
    given = {"learning_rate": 0.1, "decay": 0.9, "momentum": 0.9, "epsilon": 1e-3}
    load = partial(convert.load, slots, {"w": jnp.ones(3)}, **given)
    with pytest.raises(ValueError, match="give it as `name`"):
        load()
    restored = load(name="RMSProp_6")
    np.testing.assert_array_equal(restored.state[0].nu["w"], 0.5)
    shapes = {"w": jax.ShapeDtypeStruct((3,), "f4")}  # the variable is not in it
    back = convert.export(restored.state, shapes, "tf1", restored.groups, like=slots)
    np.testing.assert_array_equal(back["w/RMSProp_6"], 0.5)


# our own file


def test_our_file_keeps_a_small_variance_beside_a_large_mean(tmp_path):
    tx = rmsprop(0.1, 0.9, centered=True)
    params = {"w": jnp.ones(1000)}
    state = tx.init(params)
    for seed in range(300):
        noise = jax.random.normal(jax.random.key(seed), (1000,))
        _, state = tx.update({"w": 1000 + 0.3 * noise}, state, params)
    path = tmp_path / "s.safetensors"
    hyperparameters = {"learning_rate": 0.1, "decay": 0.9, "centered": True}
    convert.save(path, state, params, "rmsprop", hyperparameters)
    again = convert.load(path, params).state
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_our_file_keeps_scalars_complex_numbers_and_dtypes(tmp_path):
    params = {"a": jnp.float32(2.0), "w": jnp.ones(3, jnp.complex64)}
    options = {
        "learning_rate": jnp.float32(0.1),
        "decay": 0.9,
        "nu_dtype": jnp.uint16,
        "momentum": 0.9,
        "accumulator_dtype": "bfloat16",
    }
    tx = rmsprop(**options)
    grads = {"a": jnp.float32(3.0), "w": jnp.asarray([1, 2j, 3], jnp.complex64)}
    _, state = tx.update(grads, tx.init(params), params)
    path = tmp_path / "s.safetensors"
    convert.save(path, state, params, "rmsprop", options)
    again = convert.load(path, params)
    jax.tree.map(np.testing.assert_array_equal, again.state, state)
    assert again.hyperparameters["nu_dtype"] == "uint16"


def test_what_our_file_cannot_keep_is_given_again(tmp_path):
    path = tmp_path / "s.safetensors"
    options = {"learning_rate": 0.1, "decay": decay.debiased(0.9)}
    state = after(rmsprop(**options), 2)
    convert.save(path, state, PARAMS, "rmsprop", options)
    with pytest.raises(ValueError, match="does not hold `decay`"):
        convert.load(path, PARAMS)
    restored = convert.load(path, PARAMS, decay=options["decay"])
    assert_goes_on(rmsprop(**options), state, restored)
    masked = {"learning_rate": 0.1, "weight_decay": 0.1}
    masked["weight_decay_mask"] = jax.tree.map(lambda x: np.bool_(True), PARAMS)
    state = after(rmsprop(**masked), 2)
    with pytest.raises(ValueError, match="`weight_decay_mask` cannot be kept"):
        convert.save(path, state, PARAMS, "rmsprop", masked)


def test_a_link_stays_one(tmp_path):
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    real.write_bytes(b"old")
    os.symlink(real, link)
    state = dialects.torch().init(PARAMS)
    convert.save(link, state, PARAMS, "torch", {"lr": 0.1})
    assert link.is_symlink()
    assert _ours.is_ours(real)


# hyperparameters


def test_hyperparameters_that_are_not_the_run_s_are_refused(tmp_path):
    options = {"lr": 0.1, "momentum": 0.9}
    state = after(dialects.torch(**options), 2)
    save = partial(convert.save, tmp_path / "s.safetensors", state, PARAMS, "torch")
    for wrong, message in (
        ({"learning_rate": 0.1}, "torch has no argument `learning_rate`"),
        ({"lr": -1.0, "momentum": 0.9, "alpha": 7}, "`alpha` must be in"),
        ({"lr": 0.1}, "has no `momentum`, and `state` one"),
        ({**options, "centered": True}, "`centered` is True .* no mean gradient"),
        (({"lr": 0.1}, {"lr": 0.2}), r"`Restored\.groups`"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            save(wrong)
    assert list(tmp_path.iterdir()) == []
    save(options)
    with pytest.raises(ValueError, match="`centered` is True"):
        convert.load(tmp_path / "s.safetensors", PARAMS, centered=True)
    with pytest.raises(ValueError, match="`lr` has 1 values, for 2 parameter groups"):
        convert.load(two_groups(), PARAMS, names=["w", "b"], lr=(0.1,))


def two_groups():
    content = numbered(w=(4, 3), b=(3,))
    (group,) = content["param_groups"]
    groups = [{**group, "params": [i], "lr": 0.1 + i} for i in (0, 1)]
    return {**content, "param_groups": groups}


def test_one_group_is_not_written_over_two():
    state = dialects.torch().init(PARAMS)
    with pytest.raises(ValueError, match="`like` has 2 parameter groups"):
        convert.export(
            state, PARAMS, "torch", {"lr": 0.1}, like=two_groups(), names=["w", "b"]
        )


@pytest.mark.parametrize("pure", [False, True])
def test_several_groups_go_on_in_nnx(pure):
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    )
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "1.weight": (2, 4), "1.bias": (2,)}
    content = numbered(**shapes)
    (group,) = content["param_groups"]
    content["param_groups"] = [
        {**group, "params": [0, 1], "lr": 0.0},
        {**group, "params": [2, 3], "lr": 0.5},
    ]
    params = nnx.state(model, nnx.Param)
    params = nnx.as_pure(params) if pure else params
    restored = convert.load(content, params, names=list(shapes))
    optimizer = nnx.Optimizer(model, restored.optimizer, wrt=nnx.Param)
    nnx.update(optimizer.opt_state, nnx.state(restored.state))
    before = nnx.as_pure(nnx.state(model, nnx.Param))
    grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((2, 3))) ** 2))(model)
    optimizer.update(model, grads)
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), before, nnx.as_pure(nnx.state(model))
    )
    assert moved["layers"][0] == {"kernel": False, "bias": False}
    assert moved["layers"][1] == {"kernel": True, "bias": True}
    step = jnp.abs(nnx.as_pure(nnx.state(model))["layers"][1]["bias"])
    assert float(step.max()) > 0.1  # nu is 0.5, not 0


def trace_of(state):
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.TraceState))
    (trace,) = (node.trace for node in nodes if isinstance(node, optax.TraceState))
    return trace


def test_translation_goes_by_the_rate_that_goes_on():
    keras = {"learning_rate": 0.1, "momentum": 0.9, "clipnorm": 1.0}
    state = after(dialects.keras(**keras), 3)
    slower = keras | {"learning_rate": 0.05}
    same = convert.translate(state, PARAMS, "keras", keras, "keras", slower)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    torch = {"lr": 0.05, "momentum": 0.9, "eps": 1e-7, "alpha": 0.9}
    with pytest.warns(UserWarning, match="clipping say"):
        moved = convert.translate(state, PARAMS, "keras", keras, "torch", torch)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6),
        trace_of(moved),
        jax.tree.map(lambda b: -b / 0.05, trace_of(state)),
    )
    stopped = (state, PARAMS, "keras", keras, "torch", torch | {"lr": 0.0})
    with pytest.raises(ValueError, match="the learning rate is 0 at step 3"):
        convert.translate(*stopped, step=3)
    plain, torch = after(dialects.torch(lr=0.1), 3), {"lr": 0.1}
    move = partial(convert.translate, plain, PARAMS, "torch", torch)
    for to, counted in (
        ({"learning_rate": jnp.cos, "decay": 0.99}, "learning_rate"),
        ({"learning_rate": 0.1, "decay": 0.99, "bias_correction": True}, "bias"),
    ):
        with pytest.raises(ValueError, match=f"`{counted}.* does not count them: give"):
            move("optax", to)
        with pytest.warns(UserWarning, match="goes on with another rule"):
            assert (
                optax.tree_utils.tree_get_all_with_path(
                    move("optax", to, step=3), "count"
                )[0][1]
                == 3
            )


# bitsandbytes


@pytest.mark.parametrize("block", [256, 2048])
def test_eight_bit_state_is_read_in_the_blocks_that_it_was_written_in(block):
    value = np.abs(np.random.default_rng(0).normal(size=(70, 100))).astype(np.float32)
    qmap = np.linspace(0, 1, 256, dtype=np.float32)
    codes = _bitsandbytes.quantised(value, qmap, block)
    assert codes["absmax1"].size == -(-7000 // block)
    read = _bitsandbytes.dequantised(codes)
    np.testing.assert_allclose(read, value, atol=value.max() / 255)
    with pytest.raises(ValueError, match="7000 elements has 3 scales"):
        _bitsandbytes.dequantised(codes | {"absmax1": np.ones(3)})


# Keras


def test_a_layer_without_scale_keeps_its_own_variables():
    class Group(dict):
        attrs = types.MappingProxyType({"name": "bn"})
        name = "/layers/bn"

    def places(**options):
        layer = {"class_name": "BatchNormalization"}
        model = {"config": {"layers": [{**layer, "config": {"name": "bn", **options}}]}}
        variables = Group({str(i): np.zeros(3) for i in range(4 - len(options))})
        return described(model, {"layers": Group(bn=Group(vars=variables))})

    found, order, classes = places(scale=False)
    assert found["bn/beta"] == "layers/bn/vars/0"
    assert found["bn/moving_mean"] == "layers/bn/vars/1"
    assert order == ["bn/beta"]
    assert classes["bn/beta"] == "BatchNormalization"
    assert places()[0]["bn/beta"] == "layers/bn/vars/1"
    assert described({}, {}) == ({}, None, {})


def test_weights_that_keras_overwrites_by_averages_are_refused():
    config = {"use_ema": True, "ema_overwrite_frequency": 2}
    with pytest.raises(ValueError, match="ema_overwrite_frequency"):
        _keras._rmsprop_config({"class_name": "RMSprop", "config": config})


# files and the command


def command(*words):
    from rmsprop_jax.cli import main

    return main(["convert", *map(str, words)])


BROKEN = ("x.safetensors", "x.keras", "x.weights.h5", "x.msgpack", "x.npz", "x.index")


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("content", [b"", b"xx", b"PK\x03\x04rubbish"])
def test_a_broken_file_is_said_to_be_one_in_one_line(name, content, tmp_path, capsys):
    if name == "x.index":
        pytest.importorskip("tensorflow")
    (tmp_path / name).write_bytes(content)
    assert command(tmp_path / name, tmp_path / "out.safetensors") == 2
    error = capsys.readouterr().err
    assert error.startswith("rmsprop-jax convert: error: ")
    assert error.count("\n") == 1
    assert "damaged" in error or "truncated" in error
    assert "allow_pickle" not in error
    assert len(list(tmp_path.iterdir())) == 1


def test_a_broken_torch_file_does_not_advise_to_run_its_code(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "x.pt").write_bytes(b"xx")
    for name in ("module.pt", "list.pt", "x.pt"):
        assert command(tmp_path / name, tmp_path / "out.safetensors") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "weights_only" not in error
        assert name in error


def write_run(folder):
    content = {
        "model": {"fc.weight": np.ones((2, 8), np.float32)},
        "optimizer": numbered(w=(2, 8)),
    }
    content["optimizer"]["state"][0]["square_avg"] += np.arange(16.0).reshape(2, 8)
    _torch.save(folder / "run.safetensors", content)
    return content


def test_the_command_goes_there_and_back_without_parameters(tmp_path, capsys):
    write_run(tmp_path)
    source, ours = tmp_path / "run.safetensors", tmp_path / "s.safetensors"
    given = ("--set", "lr=.25", "--names", "fc.weight")
    assert command(source, ours, *given) == 0
    assert "lr=0.25" in capsys.readouterr().out
    params = {"fc": {"kernel": jnp.zeros((8, 2))}}
    restored = convert.load(ours, params)  # in torch's layout still
    np.testing.assert_array_equal(
        restored.state[0].nu["fc"]["kernel"], 0.5 + np.arange(16).reshape(2, 8).T
    )
    back = tmp_path / "back.safetensors"
    assert command(ours, back, "--like", source) == 0
    before, now = (_torch.load(path)["optimizer"] for path in (source, back))
    np.testing.assert_array_equal(
        now["state"][0]["square_avg"], before["state"][0]["square_avg"]
    )
    assert now["param_groups"][0]["lr"] == 0.25


def test_the_command_takes_a_flattened_image_apart(tmp_path):
    content = write_run(tmp_path)
    np.savez(tmp_path / "params.npz", **{"fc/kernel": np.zeros((8, 2), np.float32)})
    ours = tmp_path / "s.safetensors"
    options = ("--params", tmp_path / "params.npz", "--channels-first")
    assert command(tmp_path / "run.safetensors", ours, *options, "fc/kernel=2,2,2") == 0
    params = {"fc": {"kernel": jnp.zeros((8, 2))}}
    nu = convert.load(ours, params).state[0].nu["fc"]["kernel"]
    square = content["optimizer"]["state"][0]["square_avg"].reshape(2, 2, 2, 2)
    assert nu.reshape(2, 2, 2, 2)[1, 0, 1, 0] == square[0, 1, 1, 0]


def test_the_command_writes_nothing_that_could_not_go_on(tmp_path, capsys):
    write_run(tmp_path)
    source, target = tmp_path / "run.safetensors", tmp_path / "s.safetensors"
    for words, message in (
        (("--set", "alpha=7"), "`alpha` must be in"),
        (("--set", "nosuch=1"), "no argument `nosuch`"),
        (("--set", "centered=True"), "`centered` is True"),
        (("--framework", "sb3"), "`framework` is 'sb3'"),
        (("--params", tmp_path / "none.npz"), "none.npz"),
    ):
        assert command(source, target, *words) == 2
        assert message in capsys.readouterr().err
    assert command(source, tmp_path / "s.keras", "--like", source) == 2
    assert "does not look like a file of torch" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_file_is_not_written_under_another_framework_s_name(tmp_path):
    state = dialects.optax(0.1).init(PARAMS)
    for name in ("s.npz", "s.pt", "s"):
        with pytest.raises(ValueError, match=r"name it \.msgpack"):
            convert.save(
                tmp_path / name, state, PARAMS, "optax", {"learning_rate": 0.1}
            )
    assert list(tmp_path.iterdir()) == []


def test_reading_lets_missing_files_be_missing(tmp_path):
    with (
        pytest.raises(FileNotFoundError),
        _files.reading(tmp_path / "x"),
    ):
        (tmp_path / "x").read_bytes()
    with (
        pytest.raises(ValueError, match="x is damaged, or is not what its name says: "),
        _files.reading(tmp_path / "x"),
    ):
        json.loads("{}")["a"]
