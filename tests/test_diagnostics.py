"""Diagnostics: against NumPy in float64, at planted cases, wherever optimizers go."""

import io
import json
import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.tree_utils as otu
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from rmsprop_jax import (
    diagnostics,
    dialects,
    rmsprop,
    scale_by_rms,
    sharding,
    storage,
)
from table import DTYPES, abstract, assert_close, rms_of, tree, x64

NU_DTYPES = ("float32", "bfloat16", "uint16", "uint8")
QUANTILES = np.asarray(diagnostics.QUANTILES)
last_of = partial(otu.tree_get, key="diagnostics")
watch_all = partial(diagnostics.watch, also=diagnostics.ALSO)


def wide(x):
    return np.asarray(x, np.complex128 if jnp.iscomplexobj(x) else np.float64)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=1e-30)


def trained(tx, params, steps=3, scale=1.0):
    """Parameters before the last step, its gradients and updates, and the state."""
    state, update = tx.init(params), jax.jit(tx.update)
    for seed in range(steps):
        grads = jax.tree.map(
            lambda p, seed=seed: (p * scale * (seed + 1)).astype(p.dtype), params
        )
        before = params
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return before, grads, updates, state


def assert_as_in_float64(found, state, grads, updates, params, rate, eps, inside):
    """The whole of what is promised, leaf by leaf and in total."""
    rms = rms_of(state)
    parts = [jax.tree.leaves(t) for t in (rms.nu, grads, updates, params)]
    parts.append(jax.tree.leaves(getattr(rms, "mu", None)) or [None] * len(parts[0]))
    leaves = list(zip(*parts, strict=True))
    for i in range(-1, len(leaves)):
        rows = leaves if i < 0 else leaves[i : i + 1]
        row = found.total if i < 0 else jax.tree.map(lambda x, i=i: x[i], found.leaves)
        nu, g, u, p = (
            np.concatenate([wide(storage.decode(r[k])).ravel() for r in rows])
            if k == 0
            else np.concatenate([wide(r[k]).ravel() for r in rows])
            for k in range(4)
        )
        row = jax.device_get(row)
        d = np.sqrt(nu + eps) if inside else np.sqrt(nu) + eps
        rates = np.quantile(rate / d, QUANTILES)
        close(row.effective_rate[[0, -1]], rates[[0, -1]])
        # Between two elements an octave apart NumPy has what is between: so by rank.
        near = [np.quantile(rate / d, QUANTILES, method=m) for m in ("lower", "higher")]
        assert (row.effective_rate > near[0] / 2.0001).all()
        assert (row.effective_rate < near[1] * 2.0001).all()
        close(row.eps_dominates, np.mean(nu < eps if inside else np.sqrt(nu) < eps))
        close(row.update_rms, np.sqrt(np.mean(np.abs(u) ** 2)))
        close(row.update_to_param, np.linalg.norm(u) / np.linalg.norm(p))
        assert row.skipped == (~np.isfinite(np.abs(g))).sum()
        if parts[4][0] is not None:
            mu = np.concatenate([wide(r[4]).ravel() for r in rows])
            close(row.signal_to_noise, np.sum(np.abs(mu) ** 2) / np.sum(nu))
    each = storage.sizes(state)
    assert found.total.state_bytes == sum(each.values())
    scalars = sum(size for size in each.values() if size == 4)
    assert sum(found.leaves.state_bytes) >= sum(each.values()) - scalars


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("nu_dtype", NU_DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_is_that_of_float64(dtype, nu_dtype, centered):
    inside = centered == (nu_dtype in ("uint8", "float32"))
    with x64(dtype):
        options = {"eps": 1e-4, "eps_in_sqrt": inside}
        tx = rmsprop(0.1, nu_dtype=nu_dtype, centered=centered, **options)
        params, grads, updates, state = trained(tx, tree(dtype), scale=0.03)
        found = jax.jit(partial(diagnostics.values, learning_rate=0.1, **options))(
            state, grads, updates, params
        )
        assert {x.dtype.name for x in jax.tree.leaves(found)} == {"float32"}
        assert_as_in_float64(found, state, grads, updates, params, 0.1, 1e-4, inside)


@pytest.mark.parametrize("size", [1, 2, 1000, 100_000])
def test_quantiles_are_right_within_an_octave_and_mostly_much_better(size):
    rng = np.random.default_rng(0)
    for spread in (0.0, 0.5, 3.0):
        nu = np.float32(np.exp(rng.normal(-8, spread, size)) ** 2)
        state = scale_by_rms(eps=1e-8).init(jnp.zeros(size))._replace(nu=nu)
        found = diagnostics.values(state, quantiles=(0.0, 0.01, 0.25, 0.5, 0.9, 1.0))
        rates = 1 / np.sqrt(nu.astype(float) + 1e-8)
        exact = np.quantile(rates, (0.0, 0.01, 0.25, 0.5, 0.9, 1.0))
        ratio = np.asarray(found.total.effective_rate) / exact
        close(ratio[[0, -1]], 1, 3e-5)
        if size >= 1000:
            assert (np.maximum(ratio, 1 / ratio) < 2).all()
        if size == 100_000:
            assert (np.abs(ratio - 1) < 0.17).all(), (spread, ratio)


def test_planted_epsilon_dominates_where_it_does():
    nu = jnp.asarray([1e-10, 1e-9, 1e-3, 1.0])
    state = scale_by_rms().init(nu)._replace(nu=nu)
    for eps, inside, part in (
        (1e-8, True, 0.5), (1e-9, True, 0.25), (0.0, True, 0.0), (10.0, True, 1.0),
        (2e-5, False, 0.25), (1e-4, False, 0.5), (0.1, False, 0.75),
    ):  # fmt: skip
        found = diagnostics.values(state, eps=eps, eps_in_sqrt=inside)
        assert found.total.eps_dominates == part
        assert found.leaves.eps_dominates.tolist() == [part]


@pytest.mark.parametrize("lowest", [2.0**-44, 2.0**-60])
def test_planted_codes_at_both_ends_of_one_byte_are_counted(lowest):
    form = storage.uint8(lowest)
    params = {"a": jnp.ones(8), "b": jnp.ones(4)}
    nu = {
        "a": jnp.asarray([0, 0, 0, 255, 255, 7, 254, 1], jnp.uint8),
        "b": jnp.full(4, 128, jnp.uint8),
    }
    state = scale_by_rms(nu_dtype=form).init(params)._replace(nu=nu)
    found = diagnostics.values(state, nu_dtype=form, eps=0.0)
    assert found.leaves.at_lowest.tolist() == [3 / 8, 0]
    assert found.leaves.at_highest.tolist() == [2 / 8, 0]
    close(found.total.at_lowest, 3 / 12)
    close(found.total.effective_rate[-1], lowest**-0.5)
    close(found.leaves.state_bytes, [8, 4])


@pytest.mark.parametrize("nu_dtype", ["float32", "bfloat16", "uint16"])
def test_zero_infinite_and_nan_are_the_ends_of_other_dtypes(nu_dtype):
    state = scale_by_rms(nu_dtype=nu_dtype).init(jnp.zeros(5))
    nu = jnp.asarray([0, jnp.inf, jnp.nan, 1, 2])
    if nu_dtype == "uint16":
        bits = jax.lax.bitcast_convert_type(nu, jnp.uint32)
        nu = (bits >> 15).astype(jnp.uint16)
    found = diagnostics.values(state._replace(nu=nu.astype(nu_dtype)))
    close(found.total.at_lowest, 0.2)
    close(found.total.at_highest, 0.4)
    assert np.isfinite(found.total.effective_rate).all()


def test_gradients_that_are_not_finite_are_counted_and_were_skipped():
    params = {"a": jnp.ones(4), "b": jnp.ones(3)}
    grads = {"a": jnp.asarray([1.0, jnp.nan, jnp.inf, 1e30]), "b": jnp.ones(3)}
    tx = watch_all(rmsprop)(0.1, skip_nonfinite=True)
    updates, state = tx.update(grads, tx.init(params), params)
    found = last_of(state)
    assert found.leaves.skipped.tolist() == [3, 0]
    assert found.total.skipped == 3
    assert (updates["a"][1:] == 0).all()
    close(found.leaves.update_rms[0], 0.1 / np.sqrt(0.1) / 2)


def test_constant_gradients_centred_are_all_signal():
    tx = scale_by_rms(0.9, centered=True)
    noise = np.random.default_rng(0).normal(size=(400, 2, 200))
    grads = jnp.asarray(noise * [[[0.0], [1.0]]] + [[[3.0], [0.1]]], jnp.float32)
    state = tx.init({"constant": grads[0, 0], "noisy": grads[0, 1]})
    for g in grads:
        _, state = tx.update({"constant": g[0], "noisy": g[1]}, state)
    found = diagnostics.values(state)
    assert found.leaves.signal_to_noise[0] > 1e6
    assert found.leaves.signal_to_noise[1] < 0.3
    assert diagnostics.values(scale_by_rms().init(grads)).total.signal_to_noise is None


@pytest.mark.optimized
def test_counts_do_not_stop_where_float32_does():
    size = 2**24 + 3000
    state = scale_by_rms(nu_dtype="uint8").init(jnp.zeros(size))
    found = jax.jit(diagnostics.values)(state)
    assert found.total.at_lowest == 1
    assert found.total.eps_dominates == 1


WATCHED = {
    "rmsprop": (rmsprop, {"learning_rate": 0.1}, 0.1, 1e-8, True),
    "schedule": (
        rmsprop,
        {"learning_rate": lambda count: 0.1 * (count + 1), "eps": 1e-4},
        0.3, 1e-4, True,
    ),
    "torch": (dialects.torch, {"lr": 0.1, "eps": 1e-3}, 0.1, 1e-3, False),
    "keras": (dialects.keras, {"learning_rate": 0.1}, 0.1, 1e-7, True),
    "optax": (optax.rmsprop, {"learning_rate": 0.1, "eps_in_sqrt": False}, 0.1, 1e-8,
              False),
    "alone": (scale_by_rms, {"eps": 1e-2}, 1.0, 1e-2, True),
    "injected": (optax.inject_hyperparams(rmsprop),
                 {"learning_rate": lambda count: 0.1 * (count + 1)}, 0.3, 1e-8, True),
}  # fmt: skip


@pytest.mark.promotion
@pytest.mark.parametrize("name", WATCHED)
def test_watch_knows_the_call_and_changes_no_bit_of_the_updates(name):
    factory, arguments, rate, eps, inside = WATCHED[name]
    made = watch_all(factory)
    tx, plain = made(**arguments), factory(**arguments)
    params, grads, updates, state = trained(tx, tree("float32"))
    expected = trained(plain, tree("float32"))
    assert_close(updates, expected[2])
    assert_close(state.inner_state, expected[3])
    found = diagnostics.values(
        state.inner_state, grads, updates, params,
        learning_rate=rate, eps=eps, eps_in_sqrt=inside,
    )  # fmt: skip
    jax.tree.map(partial(close, tolerance=1e-6), last_of(state), found)


def test_a_schedule_of_a_dialect_that_translates_is_followed():
    tx = diagnostics.watch(dialects.keras)(optax.linear_schedule(0.4, 0.2, 2))
    *_, state = trained(tx, tree("float32"), steps=2)
    plain = diagnostics.values(state.inner_state, eps=1e-7)
    close(last_of(state).total.effective_rate, 0.3 * plain.total.effective_rate)


@pytest.mark.promotion
def test_a_rate_that_was_changed_in_an_injected_state_is_followed():
    params = tree("float32")
    tx = diagnostics.watch(optax.inject_hyperparams(rmsprop))(0.1)
    state = tx.init(params)
    state.inner_state.hyperparams["learning_rate"] = jnp.float32(0.3)
    _, state = tx.update(params, state, params)
    plain = diagnostics.values(state.inner_state)
    close(last_of(state).total.effective_rate, 0.3 * plain.total.effective_rate)


def labelled(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "a" if "w" in jax.tree_util.keystr(path) else "b", params
    )


AROUND = {
    "chain": lambda watched: optax.chain(optax.clip(1.0), watched(0.1)),
    "masked": lambda watched: optax.masked(watched(0.1), {"w": True, "b": True,
                                                          "s": False}),
    "partition": lambda watched: optax.partition(
        {"a": watched(0.1), "b": optax.sgd(0.1)}, labelled
    ),
    "inject": lambda watched: optax.inject_hyperparams(watched)(0.1),
    "multi_steps": lambda watched: optax.MultiSteps(
        watched(0.1), 2
    ).gradient_transformation(),
    "finite": lambda watched: optax.apply_if_finite(watched(0.1), 3),
}  # fmt: skip


@pytest.mark.promotion
@pytest.mark.parametrize("options", [{}, {"also": diagnostics.ALSO}])
@pytest.mark.parametrize("name", AROUND)
def test_it_is_found_in_every_wrapper_and_never_changes_shape(name, options):
    tx = AROUND[name](diagnostics.watch(rmsprop, **options))
    params = tree("bfloat16")
    state = tx.init(params)
    shapes = jax.eval_shape(tx.init, jax.eval_shape(lambda: params))
    assert abstract(state) == abstract(shapes)

    def step(state, grads):
        return tx.update(grads, state, params)[1], otu.tree_get(state, "diagnostics")

    grads = jax.tree.map(lambda p: jnp.stack([p] * 4), params)
    after, history = jax.jit(partial(jax.lax.scan, step))(state, grads)
    assert abstract(after) == abstract(state)
    assert (last_of(after).total.effective_rate > 0).all()
    logged = diagnostics.to_log(after)
    seen = {"masked": {"w", "b"}, "partition": {"w"}}.get(name, {"w", "b", "s"})
    assert {key.rsplit("/", 1)[1] for key in logged} == {*seen, "total"}
    assert all(type(value) is float for value in logged.values())
    assert ("rms/update_rms/total" in logged) == bool(options)
    json.dumps(logged)
    mapped = otu.tree_map_params(
        tx, lambda x: x, state, transform_non_params=lambda x: x
    )
    assert abstract(mapped) == abstract(state)
    assert history.total.eps_dominates.shape == (4,)


def test_a_partition_of_two_is_seen_whole_by_values():
    params = tree("float32")
    tx = optax.partition({"a": rmsprop(0.1), "b": rmsprop(0.1)}, labelled)
    state = trained(tx, params)[-1]
    assert set(diagnostics.names(state)) == set(params)
    whole = trained(rmsprop(0.1), params)[-1]
    found, expected = (diagnostics.values(s, params).total for s in (state, whole))
    close(found.effective_rate, expected.effective_rate)


def test_a_parameter_without_a_gradient_has_no_update():
    tx = watch_all(rmsprop)(0.1)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    grads = {"a": jnp.ones(2), "b": None}
    _, state = tx.update(grads, tx.init(params), params)
    assert abstract(state) == abstract(tx.init(params))
    assert last_of(state).leaves.update_rms[1] == 0
    assert last_of(state).leaves.skipped.tolist() == [0, 0]


def test_vmap_over_the_rate_and_over_runs():
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), tree("float32"))

    def run(rate, params):
        return last_of(trained(watch_all(rmsprop)(rate), params)[-1])

    rates = jnp.asarray([0.1, 0.2])
    found = jax.vmap(run)(rates, params)
    for i in range(2):
        one = run(rates[i], jax.tree.map(lambda p, i=i: p[i], params))
        jax.tree.map(lambda a, b, i=i: close(a[i], b), found, one)


def test_sharded_arrays_give_the_same_values_and_none_is_gathered():
    params = {"w": jnp.ones((16, 8)) * jnp.arange(1.0, 9), "b": jnp.arange(8.0)}
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    specs = {"w": P("x", "y"), "b": P("y")}
    placed = {
        k: jax.device_put(p, NamedSharding(mesh, specs[k])) for k, p in params.items()
    }
    tx = watch_all(rmsprop)(0.1, nu_dtype="uint8")
    state = tx.init(placed)
    compiled = jax.jit(tx.update).lower(placed, state, placed).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-(?:gather|to-all)\(", text)
    assert all(np.prod([int(n) for n in s.split(",") if n]) <= 8 for s in gathered)
    _, sharded = compiled(placed, state, placed)
    _, whole = tx.update(params, tx.init(params), params)
    jax.tree.map(close, last_of(sharded), last_of(whole))


def test_the_gradient_goes_through_a_watched_step():
    params = {"w": jnp.arange(1.0, 4)}

    def loss(rate, watched):
        tx = watch_all(rmsprop)(rate) if watched else rmsprop(rate)
        updates, _ = tx.update(params, tx.init(params), params)
        return jnp.sum((params["w"] + updates["w"]) ** 2)

    close(jax.grad(loss)(0.1, True), jax.grad(loss)(0.1, False))


def bytes_of(function, *arguments, donated=()):
    compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
    return compiled.cost_analysis()["bytes accessed"]


ROWS, COLUMNS = 1024, 2048  # large enough that the few results do not count


@pytest.mark.optimized
@pytest.mark.parametrize("nu_dtype", NU_DTYPES)
def test_what_is_read_is_read_once(nu_dtype):
    params = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32)
    size = params.size
    state = jax.eval_shape(rmsprop(0.1, nu_dtype=nu_dtype).init, params)
    nu = state[0].nu.dtype.itemsize * size
    assert bytes_of(diagnostics.values, state) <= 1.01 * nu
    apart = bytes_of(diagnostics.values, state, params, params)
    assert apart <= 1.01 * (nu + 2 * 4 * size)
    # What is lost is a count of pairs, for which CPUs read both once more.
    everything = bytes_of(diagnostics.values, state, params, params, params)
    assert everything <= 1.01 * (nu + (3 + 2) * 4 * size)


@pytest.mark.optimized
def test_watching_the_state_costs_a_step_one_more_pass_over_nu():
    params = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32)

    def whole(tx):
        def step(state, params, grads):
            updates, state = tx.update(grads, state, params)
            return state, optax.apply_updates(params, updates)

        state = jax.eval_shape(tx.init, params)
        return bytes_of(step, state, params, params, donated=(0, 1))

    nu = 4 * params.size
    watched = diagnostics.watch(rmsprop)(0.1)
    assert whole(watched) - whole(rmsprop(0.1)) <= 1.01 * nu


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_on_tpus_too():
    pytest.importorskip("libtpu")
    program = """
from rmsprop_jax import diagnostics, rmsprop
from rmsprop_jax.bench import ahead, targets
devices = targets.tpu("v5e:2x2")[:1]
for nu, centered in (("float32", False), ("uint8", False), ("float32", True)):
    state, everything = (
        diagnostics.watch(rmsprop, also=also) for also in ((), diagnostics.ALSO)
    )
    for make in (rmsprop, state, everything):
        tx = make(0.1, nu_dtype=nu, centered=centered)
        print(ahead.facts(tx, "float32", devices)["bytes_per_parameter"])
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.reshape([float(line) for line in run.stdout.split()], (3, 3))
    # Centred, nu is read twice and mu once.
    for passes, rest, row in zip((4, 1, 12), (12, 12, 16), found, strict=True):
        plain, state, everything = row
        assert state - plain <= passes + 0.03
        assert everything - state <= rest + 0.03


def history_of(params, steps=6):
    tx = watch_all(rmsprop)(0.1)
    state, history = tx.init(params), []
    for _ in range(steps):
        _, state = tx.update(params, state, params)
        history.append(last_of(state))
    return state, history


def drawn(figure):
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    assert len(buffer.getvalue()) > 5000
    return figure


def test_the_table_has_a_row_for_each_leaf_and_the_total():
    state, _ = history_of(tree("float32"))
    console = Console(file=io.StringIO(), width=200)
    console.print(diagnostics.table(state))
    printed = console.file.getvalue()
    rows = [line.split()[0] for line in printed.splitlines() if "%" in line]
    assert rows == ["b", "s", "w", "total"]
    rms = f"{last_of(state).total.update_rms:.2e}"
    assert rms.replace("e-0", "e-").replace("e+0", "e+") in printed
    narrow = Console(file=io.StringIO(), width=60)
    narrow.print(diagnostics.table(state))
    for text in (printed, narrow.file.getvalue()):
        assert "…" not in text, "a number was cut"


def test_pictures_of_a_history_as_a_list_and_as_a_scan_returns_it():
    state, history = history_of(tree("float32"))
    axes = drawn(diagnostics.picture(state, history)).axes[0]
    assert [line.get_label() for line in axes.lines] == ["b", "s", "w"]
    median = [h.leaves.effective_rate[2, 2] for h in history]
    close(axes.lines[2].get_ydata(), median)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *history)
    again = drawn(diagnostics.picture(state, stacked, steps=range(10, 70, 10))).axes[0]
    close(again.lines[2].get_ydata(), median)
    assert again.lines[2].get_xdata().tolist() == list(range(10, 70, 10))
    layers = {f"layer{i}": jnp.ones(3) * i for i in range(30)}
    many, history = history_of(layers, steps=2)
    rows = drawn(diagnostics.picture(many, history)).axes[0]
    assert len(rows.get_yticks()) == 30
    assert all(float(tick).is_integer() for tick in rows.get_xticks())


@pytest.mark.parametrize("module", ["rich", "matplotlib"])
def test_without_an_extra_one_line_says_what_to_install(module, monkeypatch):
    state, history = history_of(tree("float32"), steps=1)
    show = {
        "rich": lambda: diagnostics.table(state),
        "matplotlib": lambda: diagnostics.picture(state, history),
    }
    for name in [m for m in sys.modules if m.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf"needs {module}.*: pip install '.*\[demo\]'"
    ):
        show[module]()


def test_a_flax_model_has_readable_names():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    state = diagnostics.watch(rmsprop)(0.1).init(params)
    assert set(diagnostics.names(state)) == {"bias", "kernel"}
    single = diagnostics.watch(rmsprop)(0.1).init(jnp.ones(3))
    assert "rms/at_lowest/params" in diagnostics.to_log(single)


def held(also=diagnostics.ALSO):
    """A model's optimizer of NNX and a TrainState, after the same two steps."""
    make = diagnostics.watch(rmsprop, also=also)
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, make(0.1, centered=True), wrt=nnx.Param)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    train = TrainState.create(apply_fn=None, params=params, tx=make(0.1, centered=True))
    for _ in range(2):
        grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
        optimizer.update(model, grads)
        train = train.apply_gradients(grads=nnx.to_pure_dict(grads))
    return optimizer, train


def test_what_holds_a_state_is_opened():
    optimizer, train = held()
    forms = {
        "train state": train,
        "its state": train.opt_state,
        "optimizer": optimizer,
        "its opt_state": optimizer.opt_state,
        "nnx.state": nnx.state(optimizer.opt_state),
        "nnx.state of all": nnx.state(optimizer),
        "nnx.as_pure": nnx.as_pure(optimizer.opt_state),
        "as_pure of nnx.state": nnx.as_pure(nnx.state(optimizer)),
        "dictionary": nnx.to_pure_dict(nnx.state(optimizer)),
    }
    logged = {name: diagnostics.to_log(form) for name, form in forms.items()}
    for name, form in forms.items():
        assert logged[name] == logged["train state"], name
        assert diagnostics.table(form).row_count == 3
        assert diagnostics.names(form) == ["bias", "kernel"]
        drawn(diagnostics.picture(form, [last_of(train.opt_state)]))
        if "nnx.state" in name or name == "dictionary":
            with pytest.raises(ValueError, match=r"nnx\.as_pure"):
                diagnostics.values(form)
        else:
            found = diagnostics.values(form, learning_rate=0.1)
            jax.tree.map(close, found.leaves[:5], last_of(train.opt_state).leaves[:5])
    assert "nnx.state" in diagnostics.table.__doc__


def test_leaves_whose_paths_read_alike_are_told_apart():
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.full(3, 2.0)}, "total": jnp.ones(1)}
    state, _ = history_of(params, steps=1)
    assert diagnostics.names(state) == ["a/b", "'a/b'", "'total'"]
    other = {"x": params["a/b"], "a": params["a"], "z": params["total"]}
    again, _ = history_of(other, steps=1)
    jax.tree.map(close, last_of(state).total, last_of(again).total)
    logged = diagnostics.to_log(state)
    assert logged["rms/state_bytes/a/b"] == 3 * 4
    assert logged["rms/state_bytes/'a/b'"] == 2 * 4
    assert logged["rms/state_bytes/total"] > logged["rms/state_bytes/'total'"] == 4
    assert diagnostics.table(state).row_count == 4


FLAGS = ["jax_debug_nans", "jax_debug_infs", "jax_numpy_rank_promotion"]


@pytest.mark.promotion  # Optax's own
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("flag", FLAGS)
def test_under_the_flags_that_find_mistakes(flag, compiled):
    before = getattr(jax.config, flag)
    trees = {
        "zeros": {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)},
        "numbers": tree("float32"),
        "none": {},
        "no elements": {"w": jnp.zeros((0, 3)), "b": jnp.ones(2)},
    }
    try:
        jax.config.update(flag, "raise" if "rank" in flag else True)
        for name, params in trees.items():
            tx = watch_all(rmsprop)(0.1, centered=name == "zeros")
            update = jax.jit(tx.update) if compiled else tx.update
            state = tx.init(params)
            for grads in (jax.tree.map(jnp.ones_like, params), params):
                updates, state = update(grads, state, params)
            found = diagnostics.values(state, params, updates, params)
            for x in jax.tree.leaves((found, last_of(state))):
                assert np.isfinite(x).all()
        # Squared it is infinite, which is what is counted.
        large = {"w": jnp.full(3, 1e30)}
        state = rmsprop(0.1).init(large)
        assert diagnostics.values(state, large).total.skipped == 3
    finally:
        jax.config.update(flag, before)


def test_the_update_of_a_parameter_that_is_zero_is_all_that_it_becomes():
    params = {"a": jnp.zeros(3), "b": jnp.full(3, 1e-30), "c": jnp.ones(3)}
    updates = {"a": jnp.full(3, -0.1), "b": jnp.zeros(3), "c": jnp.full(3, 0.5)}
    state = rmsprop(0.1).init(params)
    found = diagnostics.values(state, updates=updates, params=params)
    close(found.leaves.update_to_param, [1, 0, 0.5])
    close(found.total.update_to_param, np.sqrt((3 * 0.01 + 3 * 0.25) / 3))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.promotion  # Optax's own
def test_updates_that_rounding_loses_are_counted(compiled):
    params = {
        "narrow": jnp.ones((2, 4), jnp.bfloat16),
        "wide": jnp.ones(8),
        "complex": jnp.ones(2, jnp.complex64),
    }
    values = [1e-3, -1e-3, 0.0, 1e-2, -3e-3, 1e-9, 0.5, 3e-3]
    updates = {
        "narrow": jnp.asarray(values).reshape(2, 4),
        "wide": jnp.asarray(values),
        "complex": jnp.asarray([1e-9, 1e-9 + 1j]),
    }

    def look(params, updates):
        state = rmsprop(0.1).init(params)
        applied = optax.apply_updates(params, updates)
        return diagnostics.values(state, updates=updates, params=params), applied

    found, applied = (jax.jit(look) if compiled else look)(params, updates)
    lost = jax.tree.map(lambda u, p, q: (u != 0) & (p == q), updates, params, applied)
    assert diagnostics.names(rmsprop(0.1).init(params)) == ["complex", "narrow", "wide"]
    close(found.leaves.lost, [jnp.mean(x) for x in jax.tree.leaves(lost)])
    close(found.leaves.lost, [1 / 2, 4 / 8, 1 / 8])
    close(found.total.lost, 6 / 18)


@pytest.mark.parametrize("options", [{}, {"nu_dtype": "uint8"}, {"centered": True}])
def test_padding_of_zero_does_not_count(options):
    params = {"w": jnp.arange(1.0, 36).reshape(5, 7), "b": jnp.arange(1.0, 4)}
    tx = rmsprop(0.1, eps=1e-6, initial_scale=0.5, **options)
    mesh = jax.make_mesh((8,), ("data",))
    split = sharding.zero(tx, "data")
    with jax.set_mesh(mesh):
        state = split.init(params)
    specs = sharding.specs(state)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), specs), out_specs=(P(), specs))
    def step(params, state):
        own = jax.lax.pcast(params, "data", to="varying")
        return split.update(own, state, params)

    updates, state = step(params, state)
    expected, whole = tx.update(params, tx.init(params), params)
    seen = (params, expected, params)
    one = diagnostics.values(whole, *seen, eps=1e-6)
    for values in (diagnostics.values, jax.jit(diagnostics.values)):
        found = values(state, params, updates, params, eps=1e-6)
        one = one._replace(
            leaves=one.leaves._replace(state_bytes=found.leaves.state_bytes),
            total=one.total._replace(state_bytes=found.total.state_bytes),
        )
        jax.tree.map(partial(close, tolerance=1e-4), found, one)
    with pytest.raises(ValueError, match="give `params`"):
        diagnostics.values(state)
    flat = {name: p.ravel()[:3] for name, p in params.items()}
    with pytest.raises(ValueError, match="`params` has no leaf for b"):
        diagnostics.values(state, params={"w": params["w"]})
    with pytest.raises(ValueError, match="shape"):
        diagnostics.values(whole, params=flat)


X = jnp.asarray(np.random.default_rng(0).normal(size=(40, 16, 3)), jnp.float32)
BATCHES = (X, X @ jnp.asarray([1.0, -2.0, 3.0]))
RATES = (1e-3, 1e-1, 1e-2, 1e25)


def squares(w, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2)


@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_the_sweep_is_each_run_by_itself(at_once):
    found = diagnostics.sweep_rates(
        squares, jnp.zeros(3), rmsprop, RATES, BATCHES, at_once=at_once
    )
    for rate, losses in zip(RATES[:3], found.losses, strict=False):
        w, tx = jnp.zeros(3), rmsprop(rate)
        state = tx.init(w)
        for i, expected in enumerate(losses):
            batch = jax.tree.map(lambda x, i=i: x[i], BATCHES)
            value, g = jax.value_and_grad(squares)(w, batch)
            close(value, expected, 1e-3)
            updates, state = tx.update(g, state, w)
            w = optax.apply_updates(w, updates)
    assert found.diverged.tolist() == [False, False, False, True]
    assert found.suggestion == 0.1
    close(found.final[:3], found.losses[:3, -4:].mean(1))


def test_a_run_that_ends_above_its_start_or_was_once_infinite_diverged():
    def found_with(scales):
        make = partial(rmsprop, skip_nonfinite=True)
        return diagnostics.sweep_rates(
            lambda w, scale: scale * (w - 1) ** 2, jnp.zeros(()), make, [0.01, 30.0],
            scales,
        )  # fmt: skip

    found = found_with(jnp.ones(40))
    assert np.isfinite(found.losses).all()
    assert found.diverged.tolist() == [False, True]
    assert found.suggestion == 0.01
    once = found_with(jnp.ones(40).at[20].set(jnp.inf))
    assert once.final[0] < once.losses[0, 0]
    assert once.diverged.tolist() == [True, True]


def test_the_picture_of_a_sweep_shows_what_diverged():
    found = diagnostics.sweep_rates(squares, jnp.zeros(3), rmsprop, RATES, BATCHES)
    lines = {
        line.get_label(): line
        for line in drawn(diagnostics.rate_picture(found)).axes[0].lines
    }
    assert lines["diverged"].get_xdata().tolist() == [1e25]
    assert lines["suggestion: 0.1"].get_xdata().tolist() == [0.1]
    lost = diagnostics.sweep_rates(squares, jnp.zeros(3), rmsprop, [1e25], BATCHES)
    assert np.isnan(lost.suggestion)
    assert lost.diverged.all()
    drawn(diagnostics.rate_picture(lost))


def test_complex_parameters_descend():
    found = diagnostics.sweep_rates(
        lambda w, _: jnp.sum(jnp.abs(w - (1 + 2j)) ** 2),
        jnp.zeros(2, jnp.complex64), rmsprop, [0.05], jnp.zeros(60),
    )  # fmt: skip
    assert found.losses[0, -1] < 0.05 * found.losses[0, 0]


STATE = scale_by_rms().init(jnp.ones(3))
BAD = {
    "no_state": (lambda: diagnostics.values(optax.adam(0.1).init(STATE.nu)), "`state`"),
    "eps": (lambda: diagnostics.values(STATE, eps=-1.0), "`eps`"),
    "quantiles": (lambda: diagnostics.values(STATE, quantiles=(50,)), "`quantiles`"),
    "made": (lambda: diagnostics.watch(rmsprop(0.1)), "`factory`"),
    "no_eps": (lambda: diagnostics.watch(optax.sgd), "`eps`"),
    "also": (lambda: diagnostics.watch(rmsprop, also=("nu",)), "`also`"),
    "alone": (lambda: diagnostics.watch(rmsprop, also="params"), "name both"),
    "no_values": (lambda: diagnostics.to_log(STATE), "no diagnostics"),
    "no_adam": (lambda: diagnostics.watch(optax.adam)(0.1).init(STATE.nu), "no state"),
    "shape": (lambda: diagnostics.values(STATE, jnp.ones(4)),
              r"`gradients` has shape \(4,\)"),
    "scalar": (lambda: diagnostics.values(STATE, updates=1.0), "`updates` has shape"),
    "foreign": (lambda: diagnostics.values(STATE, params={"w": jnp.ones(3)}),
                "`params` has no leaf for the parameter"),
    "foreign leaf": (lambda: diagnostics.values(
        scale_by_rms().init({"v": jnp.ones(3)}), {"w": jnp.ones(3)}),
        "`gradients` has no leaf for v"),
    "flattened": (lambda: diagnostics.watch(
        lambda eps: optax.flatten(scale_by_rms(eps=eps)), also="gradients"
        )(1e-8).init({"w": jnp.ones(3)}), "`gradients` has no leaf"),
    "two states": (lambda: diagnostics.values((STATE, STATE)), "one at a time"),
    "two rates": (lambda: diagnostics.values(STATE, learning_rate=jnp.ones(2)),
                  "`learning_rate` must be one number"),
    "empty": (lambda: diagnostics.picture(STATE, []), "`history`"),
    "other": (lambda: diagnostics.to_log(
        STATE, diagnostics.values(rmsprop(0.1).init(tree("float32")))
    ), "leaves"),
    "rates": (lambda: diagnostics.sweep_rates(
        squares, jnp.zeros(3), rmsprop, [0.0], BATCHES), "`rates`"),
    "batches": (lambda: diagnostics.sweep_rates(
        squares, jnp.zeros(3), rmsprop, [0.1], ()), "`batches`"),
    "at_once": (lambda: diagnostics.sweep_rates(
        squares, jnp.zeros(3), rmsprop, [0.1], BATCHES, at_once=0), "`at_once`"),
    "at_once_half": (lambda: diagnostics.sweep_rates(
        squares, jnp.zeros(3), rmsprop, [0.1], BATCHES, at_once=1.5), "`at_once`"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_an_error_that_names_it(name):
    call, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert str(caught.value).endswith(".")


def test_an_update_without_the_parameters_it_shall_look_at():
    tx = watch_all(rmsprop)(0.1)
    with pytest.raises(ValueError, match="`watch` needs the parameters"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
