"""Malformed calls: every one is an error that names the argument, none is silent.

First each argument of every dialect in turn, in the words of that dialect; then a table
of calls of everything else that is public; then scalars of NumPy and JAX, which are
valid wherever a number is.
"""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rmsprop_jax import (
    convert,
    decay,
    diagnostics,
    dialects,
    rmsprop,
    rounding,
    scale_by_rms,
    sharding,
    storage,
)
from rmsprop_jax.checkpoint import Checkpoints

FACTORIES = {
    **dialects.DIALECTS,
    "rmsprop": rmsprop,
    "scale_by_rms": scale_by_rms,
}
NOTHING = ["x", b"x", [0.1], {}, object(), 1j, np.array(["a"]), jnp.ones(2, bool)]
NUMBERS = [float("nan"), float("inf"), -1, lambda: 1, lambda a, b: 1]
# What an argument needs beside it; what is free for the user's own use.
BESIDE = {
    "nesterov": {"momentum": 0.9},
    "cautious": {"momentum": 0.9},
    "caution": {"momentum": 0.9},
    "accumulator_dtype": {"momentum": 0.9},
    "mu_dtype": {"centered": True},
    "weight_decay_mask": {"weight_decay": 0.1},
    "weight_decay_mode": {"weight_decay": 0.1},
    "corrected_weight_decay": {"weight_decay": 0.1, "decoupled_decay": True},
}
FREE = {
    ("bitsandbytes", "args"): NOTHING,
    ("bitsandbytes", "mu_dtype"): NOTHING,  # it has no centring: that is refused first
    **{(name, "name"): [NOTHING[0]] for name in ("tf1", "keras", "tf_keras", "paddle")},
    **{(name, "weight_decay_mask"): NOTHING[3:4] for name in FACTORIES},  # {}
}
RATES = ("lr", "learning_rate", "step_size")
# Numbers without a range, or without an effect.
ANY = {**{rate: [-1] for rate in RATES}, "ema_momentum": NUMBERS}


def told(name, call, kind=(TypeError, ValueError, NotImplementedError, OSError)):
    """Whether a call raises and its error names what is wrong; otherwise what came."""
    try:
        found = call()
    except kind as error:
        text = str(error)
        named = rf"`{re.escape(name)}\b|^{name}(?= |\[|\.)"  # or the path of a leaf
        return None if re.search(named, text) else text
    return f"silent: {found!r:.60}"


def called(value, factory):
    """A factory, its parameters, and the arguments that it must get, all `value`."""
    parameters = inspect.signature(factory).parameters
    needed = {p.name: value for p in parameters.values() if p.default is p.empty}
    return factory, parameters, needed


@pytest.mark.filterwarnings("ignore:bitsandbytes")
@pytest.mark.parametrize("dialect", FACTORIES)
def test_every_argument_in_the_words_of_its_dialect(dialect):
    factory, parameters, needed = called(0.1, FACTORIES[dialect])
    wrong, tried = {}, 0
    for name, parameter in parameters.items():
        beside = BESIDE.get(name, {})
        beside = {key: x for key, x in beside.items() if key in parameters}
        is_number = isinstance(parameter.default, float) or name in needed
        free = FREE.get((dialect, name), [])
        for value in [*NOTHING, *(NUMBERS if is_number else [])]:
            if any(value is x for x in (*free, *ANY.get(name, []))):
                continue
            call = partial(factory, **{**needed, **beside, name: value})
            tried += 1
            if said := told(name, call):
                wrong[name, str(value)[:20]] = said
    assert not wrong
    assert tried > 30


SCALARS = (np.float16, np.float32, np.float64, jnp.float32, jnp.bfloat16)
INTEGERS = (np.int8, np.uint8, np.int64, jnp.int32, jnp.uint8)


@pytest.mark.filterwarnings("ignore:bitsandbytes")
@pytest.mark.parametrize("dialect", FACTORIES)
def test_scalars_of_numpy_and_jax_are_numbers(dialect):
    factory, parameters, needed = called(0.125, FACTORIES[dialect])
    x = jnp.ones(2)

    def step(**call):
        tx = factory(**needed, **call)
        return tx.update(x, tx.init(x), x)[0]

    for name, parameter in parameters.items():
        beside = {k: v for k, v in BESIDE.get(name, {}).items() if k in parameters}
        if isinstance(parameter.default, bool):
            if (dialect, name) in (("bitsandbytes", "centered"), ("keras", "use_ema")):
                continue
            for flag in (np.bool_(True), np.asarray(True), jnp.asarray(True), 1):
                np.testing.assert_array_equal(
                    step(**beside, **{name: flag}), step(**beside, **{name: True})
                )
        elif isinstance(parameter.default, float):
            for kind in (*SCALARS, np.longdouble, np.asarray, jnp.asarray):
                step(**beside, **{name: kind(0.25)})
    rate = next(n for n in parameters if n in (*RATES, "decay"))
    needed.pop(rate, None)
    value = 0 if rate == "decay" else 1
    for kind in INTEGERS:
        np.testing.assert_allclose(step(**{rate: kind(value)}), step(**{rate: value}))


NAN = float("nan")
W = jnp.ones(3)
TREE = {"w": jnp.ones((2, 3)), "b": W}
TX = rmsprop(0.1)
STATE = TX.init(W)
BATCHES = jnp.ones((5, 3))


def step(tx, params=W, gradients=None, state=None):
    gradients = params if gradients is None else gradients
    return tx.update(gradients, tx.init(params) if state is None else state, params)


def on_a_mesh():
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec())


def loss(w, x):
    return jnp.mean((w * x) ** 2)


def sweep(rates=(0.1,), loss=loss, make=rmsprop, batches=BATCHES, **options):
    return diagnostics.sweep_rates(loss, W, make, rates, batches, **options)


def saved(step=1, params=W, state=STATE, position=None, **options):
    with Checkpoints("never-made", **options) as checkpoints:
        checkpoints.save(step, params, state, position)


def masked(mask):
    return lambda: step(rmsprop(0.1, weight_decay=0.1, weight_decay_mask=mask), TREE)


def arrays(name, **options):
    """An array of two where a number belongs, for a leaf without axes and one of 3."""

    def call(x, params):
        return step(rmsprop(**{"learning_rate": 0.1, name: x, **options}), params)

    return [
        (name, partial(call, x, params))
        for x in (jnp.full(2, 0.5), np.full((2, 1), 0.5))
        for params in (jnp.float32(1), W)
    ]


# The word that the error has in backticks, and the call.
CALLS = [
    # rmsprop, scale_by_rms: arguments that need or exclude each other
    ("momentum", lambda: rmsprop(0.1, nesterov=True)),
    ("momentum", lambda: rmsprop(0.1, cautious=True)),
    ("momentum", lambda: rmsprop(0.1, accumulator_dtype="float32")),
    ("centered", lambda: rmsprop(0.1, mu_dtype="float32")),
    ("weight_decay", lambda: rmsprop(0.1, weight_decay_mask={"a": True})),
    ("weight_decay", lambda: rmsprop(0.1, weight_decay_mode="decoupled")),
    ("weight_decay_mode", lambda: rmsprop(0.1, weight_decay_mode="L2")),
    ("bias_correction", lambda: rmsprop(0.1, decay.power(), bias_correction=True)),
    ("nu_dtype", lambda: rmsprop(0.1, nu_dtype="float16")),
    ("nu_dtype", lambda: rmsprop(0.1, nu_dtype=np.float32(0.5))),
    ("nu_dtype", lambda: rmsprop(0.1, nu_dtype=jnp.ones(3))),
    ("mu_dtype", lambda: rmsprop(0.1, centered=True, mu_dtype="uint8")),
    ("accumulator_dtype", lambda: rmsprop(0.1, momentum=0.9, accumulator_dtype=7)),
    ("learning_rate", lambda: rmsprop(lr=0.1)),
    ("decay", lambda: rmsprop(0.1, decya=0.9)),
    ("learning_rate", lambda: rmsprop(lambda count: None)),
    ("learning_rate", lambda: rmsprop(lambda count: "x")),
    ("learning_rate", lambda: rmsprop(optax.sgd(0.1))),
    ("decay", lambda: rmsprop(0.1, lambda count: 1.5)),
    ("eps", lambda: rmsprop(0.1, eps=lambda count: 1e-8)),
    # masks
    ("weight_decay_mask", masked({"x": True})),
    ("weight_decay_mask", masked({"w": 1.0, "b": 0.0})),
    ("weight_decay_mask", masked({"w": jnp.array(True), "b": jnp.array(False)})),
    ("weight_decay_mask", masked("w")),
    ("weight_decay_mask", masked(lambda: 1)),
    ("weight_decay_mask", masked(lambda params: None)),
    ("weight_decay_mask", masked(lambda params: params)),
    # states
    ("momentum", lambda: step(rmsprop(0.1, momentum=0.9), state=STATE)),
    ("momentum", lambda: step(TX, state=rmsprop(0.1, momentum=0.9).init(W))),
    ("nu_dtype", lambda: step(TX, state=rmsprop(0.1, nu_dtype="uint8").init(W))),
    ("nu_dtype", lambda: step(rmsprop(0.1, nu_dtype="uint8"), state=STATE)),
    ("centered", lambda: step(rmsprop(0.1, centered=True), state=STATE)),
    ("learning_rate", lambda: step(rmsprop(lambda count: 0.1), state=STATE)),
    ("rmsprop", lambda: TX.update(W, None)),
    ("rmsprop", lambda: TX.update(W, STATE[0])),
    ("rmsprop", lambda: TX.update(STATE, W)),
    ("scale_by_rms", lambda: step(scale_by_rms(), state=STATE)),
    ("weight_decay", lambda: rmsprop(0.1, weight_decay=0.1).update(W, STATE)),
    # arrays that are too large
    *arrays("learning_rate"),
    *arrays("decay"),
    *arrays("eps"),
    *arrays("eps", eps_in_sqrt=False),
    *arrays("initial_scale"),
    *arrays("momentum"),
    *arrays("weight_decay"),
    *arrays("weight_decay", weight_decay_mode="independent"),
    ("learning_rate", lambda: step(rmsprop(lambda count: jnp.ones(2)))),
    ("learning_rate", lambda: step(rmsprop(lambda count: jnp.ones(2)), jnp.ones(()))),
    ("decay", lambda: step(rmsprop(0.1, lambda count: jnp.full(2, 0.5)))),
    # decay
    *[
        ("decay", lambda f=f, x=x: f(x))
        for f in (decay.constant, decay.debiased)
        for x in (1.0, -1, NAN, "x", None, True, [0.9], decay.power())
    ],
    *[("exponent", lambda x=x: decay.power(x)) for x in (0, -1, NAN, "x", None, True)],
    # storage and rounding
    *[("lowest", lambda x=x: storage.uint8(x)) for x in (0, -1, NAN, "x", True, None)],
    *[("tree", lambda x=x: storage.decode(x)) for x in ([1, 2], "x", {"a": 1.0})],
    *[
        ("tree", lambda x=x: storage.encode(x, "uint8"))
        for x in ([1.0], jnp.ones(2, jnp.uint16))
    ],
    *[
        ("nu_dtype", lambda x=x: storage.encode(W, x))
        for x in ("int8", "x", 3, np.ones(2))
    ],
    ("nu_dtype", lambda: storage.decode(W, "float16")),
    ("state", lambda: storage.sizes("x")),
    ("state", lambda: storage.sizes({"a": object()})),
    *[
        ("seed", lambda x=x: rounding.round_params(x))
        for x in ("x", 1.5, True, None, jnp.ones(2, int))
    ],
    ("form", lambda: rounding.round_params(form="nearest")),
    *[("shape", lambda x=x: rounding.random_bits(x, 0, 0)) for x in (3, "ab", (1.5,))],
    *[("step", lambda x=x: rounding.random_bits((2,), x, 0)) for x in (1.5, "x", -1)],
    *[("seed", lambda x=x: rounding.random_bits((2,), 0, x)) for x in (1.5, "x", None)],
    # sharding
    *[
        ("axis_name", lambda x=x: sharding.zero(TX, x))
        for x in (None, 0, (), ["data"], ("data", 1), ("data", "data"))
    ],
    ("tx", lambda: sharding.zero("data", "data")),
    ("tx", lambda: sharding.zero(rmsprop, "data")),
    ("tx", lambda: sharding.zero_state(rmsprop, W, "data")),
    ("tx", lambda: sharding.init(W, TX)),
    ("tx", lambda: sharding.state_sharding(rmsprop, W, on_a_mesh())),
    ("tx", lambda: sharding.left_whole(None, W, on_a_mesh(), zero_axis="data")),
    ("shardings", lambda: sharding.init(TX, TREE, {"w": on_a_mesh()})),
    ("shardings", lambda: sharding.init(TX, W)),
    ("zero_axis", lambda: sharding.init(TX, W, on_a_mesh(), zero_axis="x")),
    *[
        ("max_norm", lambda x=x: sharding.clip_by_global_norm(x, "data"))
        for x in (-1, NAN, "1", None)
    ],
    ("axis_name", lambda: sharding.clip_by_global_norm(1.0, None)),
    # diagnostics
    ("factory", lambda: diagnostics.watch(TX)),
    ("eps", lambda: diagnostics.watch(optax.sgd)),
    *[("also", lambda x=x: diagnostics.watch(rmsprop, also=x)) for x in (("x",), 3)],
    ("also", lambda: diagnostics.watch(rmsprop, also="params")),
    *[
        ("quantiles", lambda x=x: diagnostics.watch(rmsprop, quantiles=x))
        for x in ((2,), "a", (), 0.5, (NAN,), (None,))
    ],
    *[
        (name, lambda name=name, x=x: diagnostics.values(STATE, **{name: x}))
        for name, values in {
            "eps": (-1, NAN, "x"),
            "learning_rate": ("x", NAN, lambda count: 0.1, [0.1]),
            "nu_dtype": ("foo",),
            "quantiles": ((2,),),
        }.items()
        for x in values
    ],
    *[
        ("rates", lambda x=x: sweep(x))
        for x in ([], [0.0], ["x"], [NAN], [[0.1, 0.2]], [1e39], [1e-50], None)
    ],
    ("batches", lambda: sweep(batches=jnp.float32(1))),
    ("batches", lambda: sweep(batches=(BATCHES, jnp.ones(4)))),
    ("make_tx", lambda: sweep(make=TX)),
    ("loss", lambda: sweep(loss=lambda w, x: w * x)),
    *[("at_once", lambda x=x: sweep(at_once=x)) for x in (0, 1.5, "x", True)],
    # checkpoint
    *[
        ("step", lambda x=x: saved(x))
        for x in (1.5, 2.0, "3", True, None, NAN, -1, 10**30, np.float32(3))
    ],
    *[("keep", lambda x=x: saved(keep=x)) for x in (0, 1.5, True, None, "x")],
    *[("folder", lambda x=x: Checkpoints(x)) for x in (None, 3, "", "gs://x", b"x")],
    *[("settings", lambda x=x: saved(settings=x)) for x in ([1], "abc", 3)],
    *[
        ("position", lambda x=x: saved(position=x))
        for x in (object(), np.ones(2), {"a": NAN}, {1: 2}, {2}, 1j)
    ],
    # convert
    *[
        ("step", lambda x=x: convert.migrate(STATE, TX, W, step=x))
        for x in (-1, -5, 1.5, "x", True, 2**40, 2**31, NAN)
    ],
    *[("state", lambda x=x: convert.migrate(x, TX, W)) for x in ({}, None, "x", W)],
    *[
        ("tx", lambda x=x: convert.migrate(STATE, x, W))
        for x in (rmsprop, None, "x", optax.sgd(0.1))
    ],
    *[
        ("decay", lambda x=x: convert.migrate(STATE, TX, W, decay=x))
        for x in (1.5, "x", NAN, True, -0.1)
    ],
    ("b1", lambda: convert.migrate(STATE, TX, W, b1=1.0)),
    ("learning_rate", lambda: convert.migrate(STATE, TX, W, learning_rate=-1.0)),
    ("nu_dtype", lambda: convert.migrate(STATE, TX, W, nu_dtype="foo")),
    ("old_nu_dtype", lambda: convert.migrate(STATE, TX, W, old_nu_dtype=3)),
    ("old_tx", lambda: convert.migrate(STATE, TX, W, old_tx=rmsprop)),
    ("hyperparameters", lambda: convert.export(STATE, W, "torch", None)),
    ("hyperparameters", lambda: convert.export(STATE, W, "torch", "x")),
    ("lr", lambda: convert.export(STATE, W, "torch", {"learning_rate": 0.1})),
    ("dialect", lambda: convert.export(STATE, W, "tourch", {})),
    ("framework", lambda: convert.load({"state": {}}, W, framework="tourch")),
]

CODES = rmsprop(0.1, nu_dtype="uint8").init(W)
NARROW = jnp.ones(3, jnp.bfloat16)
ROUND, KEEP = rounding.round_params(), rounding.round_params(form="remainder")
WATCHED = diagnostics.watch(rmsprop)(0.1).init(W)
NOW = diagnostics.values(STATE)
OTHERS = diagnostics.values(rmsprop(0.1).init(TREE))
TORCH = {
    "state": {0: {"step": 3, "square_avg": np.ones(3, np.float32)}},
    "param_groups": [{"lr": 0.1, "alpha": 0.9, "foreach": None, "params": [0]}],
}
on_mesh = partial(sharding.state_sharding, TX, W)
export = partial(convert.export, STATE, W)
translate = partial(convert.translate, STATE, W)
narrow = partial(rmsprop, 0.1, nu_dtype="uint8")


def each(name, call, *values, **keywords):
    """Rows of one argument: what it gets stands where `call` takes it."""
    key = keywords.get("key")
    return [
        (name, partial(call, **{key: x}) if key else partial(call, x)) for x in values
    ]


# Before these were written, 99 of the 231 raised an error without the name, or none.
CALLS += [
    *each("seed", narrow, "x", 1.5, True, None, jnp.ones(2, int), key="seed"),
    *each("round_params", partial(rmsprop, 0.1), "near", 2, W, key="round_params"),
    *each("round_params", lambda rate: rmsprop(rate, round_params=True), None),
    *each("form", rounding.round_params, None, 1, "x", key="form"),
    ("params", lambda: TX.init("x")),
    ("params", lambda: TX.init({"a": object()})),
    *each("gradients", lambda g: TX.update(g, STATE), "x", W[:2], W > 0),
    ("round_params", lambda: ROUND.update(NARROW, ROUND.init(NARROW))),
    ("round_params", lambda: ROUND.update(NARROW, STATE, NARROW)),
    ("form", lambda: KEEP.update(NARROW, ROUND.init(NARROW), NARROW)),
    *each(
        "updates",
        lambda u: ROUND.update(u, ROUND.init(NARROW), NARROW),
        jnp.ones(4),
        jnp.ones(3, int),
    ),
    *each(
        "params",
        lambda p: rounding.merge(p, KEEP.init(NARROW)),
        {"a": NARROW},
        jnp.ones(4, jnp.bfloat16),
        "x",
    ),
    ("round_params", lambda: rounding.merge(W, STATE)),
    *each(
        "round_params",
        lambda after: rounding.merge(W, optax.chain(ROUND, after).init(W)),
        optax.scale(0.5),
        optax.add_decayed_weights(0.1),
    ),
    # storage
    *each(
        "tree",
        storage.decode,
        jnp.ones(2, jnp.int8),
        {"a": W > 0},
        jax.random.key(0),
    ),
    *each("nu_dtype", lambda x: storage.decode(x, storage.uint8(1e-9)), W, NARROW),
    *each("nu_dtype", partial(storage.decode, CODES), "uint16", "float32"),
    *each(
        "nu_dtype",
        lambda x: storage.decode(jnp.ones(2, jnp.uint16), x),
        "uint8",
        storage.uint8(1e-9),
    ),
    *each(
        "tree",
        lambda x: storage.encode(x, "uint8"),
        STATE,
        optax.adam(0.1).init(W),
        jnp.ones(2, int),
        "x",
        CODES[0].nu,
    ),
    *each("state", storage.sizes, 3, [1.0]),
    *each("lowest", storage.uint8, float("inf"), "1e-9", [1.0], np.ones(2), 1j),
    *each("shape", lambda x: rounding.random_bits(x, 0, 0), (-1,), None, (True,)),
    *each(
        "step",
        lambda x: rounding.random_bits((2,), x, 0),
        None,
        True,
        2**40,
        jnp.ones(2, int),
    ),
    # diagnostics
    *each("state", diagnostics.values, W, None, rmsprop, {}),
    *each("state", diagnostics.names, W, "x", {}),
    *each("nu_dtype", partial(diagnostics.values, STATE), "uint8", 3, key="nu_dtype"),
    *each("nu_dtype", partial(diagnostics.values, CODES), "uint16", key="nu_dtype"),
    *each(
        "gradients",
        partial(diagnostics.values, STATE),
        jnp.ones(4),
        "x",
        jnp.ones(3, int),
        {"q": W},
    ),
    *each(
        "updates", partial(diagnostics.values, STATE), {"q": W}, W > 0, key="updates"
    ),
    *each("eps_in_sqrt", partial(diagnostics.values, STATE), "x", 7, key="eps_in_sqrt"),
    *each("eps", partial(diagnostics.values, STATE), W, None, [0.1], key="eps"),
    *each(
        "quantiles",
        partial(diagnostics.values, STATE),
        0.5,
        "x",
        np.ones((2, 2)),
        key="quantiles",
    ),
    *each("state", diagnostics.to_log, STATE, None, {}),
    *each("values", partial(diagnostics.to_log, STATE), 3, {"a": 1}, OTHERS),
    *each("values", partial(diagnostics.table, STATE), 3, STATE, OTHERS),
    ("values", lambda: jax.jit(diagnostics.to_log)(WATCHED)),
    *each("prefix", partial(diagnostics.to_log, WATCHED), 3, None, key="prefix"),
    *each(
        "quantiles", partial(diagnostics.to_log, WATCHED), (0.5,), 3, key="quantiles"
    ),
    *each("history", partial(diagnostics.picture, STATE), [], None, [3], NOW, [OTHERS]),
    *each(
        "steps",
        partial(diagnostics.picture, STATE, [NOW]),
        [1, 2],
        "x",
        key="steps",
    ),
    *each("sweep", diagnostics.rate_picture, 3, [0.1], None),
    *each("losses", diagnostics.best_rate, "x", [], np.ones(3), np.ones((0, 3)), None),
    *each("loss", lambda x: sweep(loss=x), 3, None, lambda w, x: (jnp.sum(w), 0)),
    *each("make_tx", lambda x: sweep(make=x), "x", optax.sgd(0.1)),
    ("make_tx", lambda: sweep(make=lambda rate: 3)),
    *each("batches", lambda x: sweep(batches=x), None, "x"),
    *each("rates", sweep, W > 0, "0.1", {0.1: 1}),
    ("params", lambda: diagnostics.sweep_rates(loss, "x", rmsprop, [0.1], BATCHES)),
    *each("factory", diagnostics.watch, None, "rmsprop"),
    *each("also", partial(diagnostics.watch, rmsprop), None, True, key="also"),
    ("watch", lambda: diagnostics.watch(rmsprop)(0.1).update(W, STATE, W)),
    *each("learning_rate", diagnostics.watch(rmsprop), "x", [0.1]),
    ("learning_rate", lambda: diagnostics.watch(rmsprop)(W).init(W)),
    # sharding
    *each("axis_name", partial(sharding.zero, TX), "", 1.5, ("",), {"data"}),
    *each("axis_name", partial(sharding.zero_state, TX, W), None, "x", "data"),
    *each(
        "axis_name",
        partial(sharding.clip_by_global_norm, 1.0),
        ("d", "d"),
        (),
        3,
        "",
    ),
    *each(
        "max_norm",
        lambda x: sharding.clip_by_global_norm(x, "d"),
        True,
        float("inf"),
        np.ones(2),
        lambda count: 1.0,
    ),
    *each("tree", sharding.specs, "x", {"a": object()}, [rmsprop]),
    *each(
        "zero_axis",
        lambda x: on_mesh(on_a_mesh(), zero_axis=x),
        3,
        (),
        ("data",),
        "x",
    ),
    *each(
        "zero_axis",
        lambda x: sharding.left_whole(TX, W, on_a_mesh(), zero_axis=x),
        None,
        "x",
        0,
    ),
    ("params", lambda: sharding.init(TX, "x", on_a_mesh())),
    ("params", lambda: sharding.init(TX, {"a": 1.0}, on_a_mesh())),
    # checkpoint
    *each(
        "params",
        lambda x: saved(1, {"a": x}),
        "x",
        object(),
        np.datetime64("2020-01-01"),
        jax.nn.relu,
    ),
    *each("opt_state", lambda x: saved(1, W, x), {"a": "x"}, rmsprop),
    *each("settings", lambda x: saved(settings={"a": x}), object(), lambda: 1),
    *each("position", lambda x: saved(position=x), {"a": {1}}, rmsprop, [1j]),
    *each("folder", Checkpoints, np.ones(2), "s3://a/b", ["a"], __file__),
    *each("keep", lambda x: saved(keep=x), -1, NAN, 2**70),
    # convert
    *each("params", partial(convert.migrate, STATE, TX), TREE, "x", jnp.ones(4)),
    *each(
        "old_nu_dtype",
        lambda x: convert.migrate(CODES, TX, W, old_nu_dtype=x),
        "uint16",
        "float32",
    ),
    *each("nu_dtype", lambda x: convert.migrate(STATE, TX, W, nu_dtype=x), "uint8"),
    *each("b1", lambda x: convert.migrate(STATE, TX, W, b1=x), "x", -0.1, NAN),
    *each("decay", lambda state: convert.migrate(state, TX, W), optax.adam(1).init(W)),
    ("step", lambda: convert.migrate(STATE, rmsprop(0.1, bias_correction=True), W)),
    *each("source", lambda x: convert.load(x, W), None, 3, {}, {"a": 1}, []),
    *each("params", partial(convert.load, TORCH), "x", {"a": object()}),
    *each("step", lambda x: convert.load(TORCH, W, step=x), -1, 1.5, "x", 2**40),
    *each("dialect", lambda x: export(x, {}), None, 3),
    *each("state", lambda x: convert.export(x, W, "torch", {}), None, "x"),
    *each("hyperparameters", partial(export, "torch"), [1], {"momentum": 0.9}),
    *each("alpha", lambda x: export("torch", {"alpha": x}), 1.5, "x"),
    *each("step", lambda x: export("keras", {}, step=x), -1, 1.5),
    *each("target", lambda x: convert.save(x, STATE, W, "torch", {}), 3, None),
    *each("to", lambda x: translate("torch", {}, x, {}), "x", None),
    *each("hyperparameters", lambda x: translate("torch", x, "keras", {}), None),
    *each("to_hyperparameters", lambda x: translate("torch", {}, "keras", x), None, 3),
    *each("step", lambda x: translate("torch", {}, "keras", {}, x), -1, 1.5, "x"),
    *each("restored", partial(convert.resume, STATE), 3, None),
    ("target", lambda: convert.resume(3, convert.load(TORCH, {"w": W}, names=["w"]))),
    *each("rename", convert.same, "x", 3, {1: 2}),
    *each("rename", convert.torch_to_flax, "x", 3),
    *each("transposed", partial(convert.same, None), 3, "abc", [1]),
    *each(
        "channels_first",
        partial(convert.torch_to_flax, None),
        3,
        {"a": "x"},
        {"a": 5},
        {"a": (1, 2)},
    ),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_a_malformed_call_names_the_argument(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, call = CALLS[number]
    assert told(name, call) is None
    assert not any(tmp_path.iterdir())  # nothing was begun, either


def test_scalars_of_numpy_and_jax_elsewhere(tmp_path):
    for kind in (*SCALARS, np.asarray, jnp.asarray):
        half = kind(0.5)
        decay.constant(half), decay.debiased(half), decay.power(half)
        storage.uint8(half)
        sharding.clip_by_global_norm(half, "data")
        diagnostics.values(STATE, learning_rate=half, eps=half)
        diagnostics.watch(rmsprop, quantiles=(half,))
        sweep([half])
        convert.migrate(STATE, TX, W, decay=half, learning_rate=half)
    for kind in (*INTEGERS, np.asarray, jnp.asarray):
        rounding.round_params(kind(3))
        rounding.random_bits((kind(2),), kind(1), kind(3))
        sweep(at_once=kind(1))
        Checkpoints(tmp_path, keep=kind(2))
        convert.migrate(STATE, TX, W, step=kind(3))
