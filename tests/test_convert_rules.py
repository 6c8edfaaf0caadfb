"""The ready rules: what they know, what they ask, and that they do nothing besides."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_convert_weights import source

from rmsprop_jax import convert

RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}


def sizes(gates, start=""):
    shapes = {"weight_ih": (3,), "weight_hh": (5,), "bias_ih": (), "bias_hh": ()}
    return {f"{start}{n}_l0": (5 * gates, *s) for n, s in shapes.items()}


def zeros(shapes):
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_tree_with_leaves_for_both_biases_keeps_both_and_writes_both(kind):
    shapes = sizes(RECURRENT[kind])
    content = source(shapes)
    restored = convert.load(content, zeros(shapes))
    jax.tree.map(np.testing.assert_array_equal, restored.params, content["model"])
    assert not any(group.joined for group in restored.groups)
    moved = jax.tree.map(lambda x: x + 1, restored.params)
    back = convert.export(restored.state, moved, "torch", restored.groups, like=content)
    jax.tree.map(np.testing.assert_array_equal, back["model"], moved)
    one = zeros({n: s for n, s in shapes.items() if n != "bias_ih_l0"})
    with pytest.raises(ValueError, match=r"extra bias_ih_l0 .*no leaf takes it"):
        convert.load(content, one)


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_twin_is_joined_for_an_lstm_only(kind):
    content = source(sizes(RECURRENT[kind], "rnn."))
    cell = {"LSTM": nnx.OptimizedLSTMCell, "GRU": nnx.GRUCell, "RNN": nnx.SimpleCell}
    rnn = nnx.RNN(cell[kind](3, 5, rngs=nnx.Rngs(0)))
    tree = {"rnn": nnx.as_pure(nnx.state(rnn, nnx.Param))}
    load = partial(convert.load, content, tree)
    if kind != "LSTM":
        with pytest.raises(ValueError, match=r"extra rnn\.bias_hh_l0 .*no leaf takes"):
            load()
        return
    state = content["optimizer"]["state"]
    state[3] = dict(state[2])
    (group,) = load().groups
    assert {n: set(np.unique(x)) for n, x in group.joined.items()} == {
        "rnn/cell/dense_h/bias": {2.0}
    }


@pytest.mark.parametrize("size", [(4, 4), (4, 6)])
def test_transposed_convolutions_are_known_or_asked_for(size):
    torch = pytest.importorskip("torch")
    inside, outside = size
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.ConvTranspose2d(inside, outside, 3, padding=1))
    x = torch.randn(2, inside, 5, 5)
    expected = np.moveaxis(net(x).detach().numpy(), 1, -1)
    shapes = {"0.weight": (inside, outside, 3, 3), "0.bias": (outside,)}
    content = source(shapes)
    content["model"] = {n: p.detach().numpy() for n, p in net.named_parameters()}
    for plain in (False, True):
        model = nnx.Sequential(
            nnx.ConvTranspose(
                inside, outside, (3, 3), padding="SAME",
                transpose_kernel=plain, rngs=nnx.Rngs(0),
            )
        )  # fmt: skip
        tree = nnx.as_pure(nnx.state(model, nnx.Param))
        load = partial(convert.load, content)
        paths = () if plain else ("layers/0/kernel",)
        rule = convert.torch_to_flax(transposed=paths)
        found = [load(model), load(tree, weights=rule)]
        if inside == outside:
            with pytest.raises(ValueError, match=r"Say which .*transposed=\('layers"):
                load(tree)
            other = load(tree, weights=convert.torch_to_flax(transposed=()))
            same = np.array_equal(
                *(r.params["layers"][0]["kernel"] for r in (other, found[0]))
            )
            assert same == plain
        else:
            found.append(load(tree))  # shapes tell
        for restored in found:
            nnx.update(model, restored.params)
            y = model(jnp.asarray(x.numpy().transpose(0, 2, 3, 1)))
            np.testing.assert_allclose(y, expected, atol=1e-5)
        back = convert.export(
            found[1].state, found[1].params, "torch", found[1].groups,
            like=content, weights=rule,
        )  # fmt: skip
        for name, array in content["model"].items():
            np.testing.assert_array_equal(back["model"][name], array)


NET = {"conv.weight": (4, 1, 3, 3), "fc.weight": (5, 256), "out.weight": (2, 5)}
LEAVES = {
    "conv": {"kernel": jnp.zeros((3, 3, 1, 4))},
    "fc": {"kernel": jnp.zeros((256, 5))},
    "out": {"kernel": jnp.zeros((5, 2))},
}


def test_a_dense_layer_behind_a_convolution_asks_what_it_reads():
    content = source(NET)
    load = partial(convert.load, content, LEAVES)
    with pytest.raises(ValueError, match="fc/kernel has 256 inputs") as error:
        load()
    assert "channels_first={'fc/kernel': (C, H, W)}" in str(error.value)
    assert "{'fc/kernel': None}" in str(error.value)
    weight = content["model"]["fc.weight"]
    image = weight.reshape(5, 4, 8, 8).transpose(2, 3, 1, 0).reshape(256, 5)
    for given, expected in (
        ({"fc/kernel": (4, 8, 8)}, image),
        ({"fc/kernel": None}, weight.T),
        ({}, weight.T),
    ):
        rule = convert.torch_to_flax(channels_first=given)
        restored = load(weights=rule, strict=True)
        np.testing.assert_array_equal(restored.params["fc"]["kernel"], expected)
        back = convert.export(
            restored.state, restored.params, "torch", restored.groups,
            like=content, weights=rule,
        )  # fmt: skip
        np.testing.assert_array_equal(back["model"]["fc.weight"], weight)


UNMATCHED = {
    "rename": (convert.torch_to_flax({"nope": "fc"}), "`rename` has 'nope', which"),
    "channels_first": (
        convert.torch_to_flax(channels_first={"fc7/kernel": (4, 8, 8)}),
        "`channels_first` has 'fc7/kernel', which is no part of the tree",
    ),
    "a wrong image": (
        convert.torch_to_flax(channels_first={"fc/kernel": (8, 8, 4)}),
        "and the convolutions have [1, 4] channels",
    ),
    "transposed": (
        convert.torch_to_flax(channels_first={}, transposed=("up",)),
        "`transposed` has 'up', which is no part of the tree",
    ),
    "a path": (
        {"fc9/kernel": "fc.weight"}, "has 'fc9/kernel', which is no part of the tree"
    ),
    "same": (convert.same({"nope": "fc"}), "`rename` has 'nope', which"),
    "leave_out": (None, "`leave_out` names nope"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNMATCHED)
def test_an_argument_that_matches_nothing_is_an_error(name):
    weights, words = UNMATCHED[name]
    left = {"leave_out": ["nope"]} if name == "leave_out" else {}
    with pytest.raises(ValueError) as error:
        convert.load(source(NET), LEAVES, weights=weights, **left)
    assert words in str(error.value)


def test_an_order_that_names_and_shapes_do_not_tell_is_assumed_or_refused():
    content = source({f"{i}.weight": (4, 4) for i in (2, 0, 1)})
    del content["optimizer"]["param_groups"][0]["param_names"]
    tree = {"layers": {i: {"kernel": jnp.zeros((4, 4))} for i in range(3)}}
    restored = convert.load(content, tree)
    assert restored.assumed == (
        "the optimizer's order of parameters is that of the model's",
    )
    mean = content["optimizer"]["state"][0]["grad_avg"]
    np.testing.assert_array_equal(restored.state[0].mu["layers"][2]["kernel"], mean.T)
    with pytest.raises(ValueError, match="`strict` allows no assumptions"):
        convert.load(content, tree, strict=True)
    names = ["2.weight", "0.weight", "1.weight"]
    assert convert.load(content, tree, names=names, strict=True).assumed == ()
    many = source({f"{i}.weight": (4, 4) for i in sorted(map(str, range(11)))})
    del many["optimizer"]["param_groups"][0]["param_names"]
    tree = {"layers": {i: {"kernel": jnp.zeros((4, 4))} for i in range(11)}}
    with pytest.raises(
        ValueError, match=r"in alphabetical order, 0\.weight, 1\.weight, 10"
    ):
        convert.load(many, tree)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_without_state_waits_for_its_first_gradient(momentum):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    net[0].requires_grad_(False)
    options = {"lr": 0.01, "alpha": 0.9, "weight_decay": 0.1, "momentum": momentum}
    optimizer = torch.optim.RMSprop(net.parameters(), **options)

    def step(*layers):
        for layer, value in layers:
            for p in net[layer].parameters():
                p.grad = torch.full_like(p, value)
        optimizer.step()

    def tree(values):
        return {
            "layers": {
                i: {
                    "kernel": jnp.asarray(values(layer.weight).T),
                    "bias": jnp.asarray(values(layer.bias)),
                }
                for i, layer in enumerate(net)
            }
        }

    step((1, 0.5))
    now = partial(tree, lambda p: p.detach().numpy())
    restored = convert.load(
        {"model": net.state_dict(), "optimizer": optimizer.state_dict()}, now()
    )
    assert restored.assumed[-1].startswith("layers/0/bias, layers/0/kernel: without")
    frozen = tree(lambda p: p.detach().numpy())["layers"][0]
    params, state = restored.params, restored.state

    def ours(*layers):
        values = dict(layers)
        filled = {
            i: jax.tree.map(partial(jnp.full_like, fill_value=values.get(i, 0.0)), p)
            for i, p in params["layers"].items()
        }
        return {"layers": filled}

    for layers in (
        [(1, 0.25)],
        [(1, 1.0)],
        [(0, 0.5), (1, -1.0)],
        [(0, 0.1), (1, 1.0)],
    ):
        if len(layers) == 2:
            net[0].requires_grad_(True)
        step(*layers)
        updates, state = restored.optimizer.update(ours(*layers), state, params)
        params = optax.apply_updates(params, updates)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), params, now())
        if len(layers) == 1:
            jax.tree.map(np.testing.assert_array_equal, params["layers"][0], frozen)
