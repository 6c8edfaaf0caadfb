"""What a newcomer does in minutes, with the README and `help` alone.

Of five such tasks these are three: an import swapped under an old checkpoint, a call of
torch ported, a CNN's run continued. The other two, bfloat16 with one-byte state and
effective rates in a log, are recipes of the README, which test_readme.py runs.
"""

import ast
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, serialization
from flax.training.train_state import TrainState

import rmsprop_jax
from golden.record import CASES, relative_error, stored, stream

pytestmark = [pytest.mark.promotion, pytest.mark.optimized]

MODULES = [getattr(rmsprop_jax, name) for name in rmsprop_jax.__all__]
SHOWN = (Path(__file__).parent.parent / "README.md").read_text() + "\n".join(
    inspect.getdoc(value) or ""
    for module in (rmsprop_jax, *MODULES)
    for value in (module, *map(module.__dict__.get, getattr(module, "__all__", ())))
)


def is_ours(value):
    """Whether it is a function or a module of the package."""
    where = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return callable(value) | inspect.ismodule(value) and where.startswith("rmsprop_jax")


def run(script, **names):
    """Runs a script whose calls of ours, keyword by keyword, the documents show."""
    exec(script, names)
    ours = [name for name, value in names.items() if is_ours(value)]
    assert ours
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in ours:
            called = ast.unparse(node.func)
            assert called + "(" in SHOWN
            for keyword in node.keywords:
                text = inspect.getdoc(eval(called, names))
                assert re.search(rf"\b{keyword.arg}\b", text)
    return names


SWAPPED = """
from rmsprop_jax import rmsprop

tx = rmsprop(0.01, momentum=0.9)
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
state = serialization.from_bytes(state, saved)
for _ in range(5):
    state = step(state)
"""


def test_an_import_is_swapped_under_an_old_checkpoint_in_a_linen_loop():
    x = jax.random.normal(jax.random.key(0), (32, 3))
    y = x @ jnp.array([[1.0], [-2.0], [3.0]])
    model = linen.Dense(1)
    params = model.init(jax.random.key(1), x)["params"]

    @jax.jit
    def step(state):
        def loss(params):
            return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    old = TrainState.create(
        apply_fn=model.apply, params=params, tx=optax.rmsprop(0.01, momentum=0.9)
    )
    for _ in range(5):
        old = step(old)
    saved = serialization.to_bytes(old)
    found = run(
        SWAPPED, TrainState=TrainState, serialization=serialization, model=model,
        params=params, saved=saved, step=step,
    )["state"]  # fmt: skip
    for _ in range(5):
        old = step(old)
    assert int(found.step) == 10
    for ours, theirs in zip(*map(jax.tree.leaves, (found, old)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


PORTED = """
from rmsprop_jax import dialects

tx = dialects.torch(lr=0.01, alpha=0.99, eps=1e-08, momentum=0.5)
state = tx.init(params)
path = [params]
for grads in gradients:
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    path.append(params)
"""


def test_a_call_of_torch_is_ported():
    (case,) = (case for case in CASES if case["id"] == "torch/momentum=0.5/float32")
    assert case["native_kwargs"] == {
        "lr": 0.01, "alpha": 0.99, "eps": 1e-08, "momentum": 0.5,
    }  # fmt: skip
    params, gradients = map(jnp.asarray, stream(case))
    path = run(PORTED, optax=optax, params=params, gradients=gradients)["path"]
    expected, _ = stored(case)
    assert relative_error(path, expected) < 4e-6


CONTINUED = """
from flax import nnx
from rmsprop_jax import convert

class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), padding="VALID", rngs=rngs)
        self.fc = nnx.Linear(144, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.fc(x.reshape(x.shape[0], -1))

model = Net(nnx.Rngs(0))
rule = convert.torch_to_flax(channels_first={"fc/kernel": (4, 6, 6)})
restored = convert.load("run.pt", model, weights=rule)
optimizer = convert.resume(model, restored)

@nnx.jit
def step(model, optimizer):
    loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
    optimizer.update(model, grads)
    return loss

losses = [float(step(model, optimizer)) for _ in range(10)]
"""


def test_the_run_of_a_torch_cnn_goes_on(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    layers = {
        "conv": torch.nn.Conv2d(1, 4, 3), "relu": torch.nn.ReLU(),
        "flat": torch.nn.Flatten(), "fc": torch.nn.Linear(144, 10),
    }  # fmt: skip
    theirs = torch.nn.Sequential()
    for name, layer in layers.items():
        theirs.add_module(name, layer)
    optimizer = torch.optim.RMSprop(theirs.parameters(), lr=1e-3, momentum=0.9)
    x, y = torch.randn(6, 1, 8, 8), torch.randn(6, 10)

    def torch_step():
        optimizer.zero_grad()
        loss = (theirs(x) - y).pow(2).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(5):
        torch_step()
    states = {"model": theirs.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(states, "run.pt")
    images = jnp.asarray(x.numpy()).transpose(0, 2, 3, 1)
    found = run(CONTINUED, jnp=jnp, x=images, y=jnp.asarray(y.numpy()))
    expected = [torch_step() for _ in range(10)]
    np.testing.assert_allclose(found["losses"], expected, rtol=1e-4)
    assert int(found["optimizer"].step[...]) == 15
