"""The runs in this folder, and how to take them again with the frameworks themselves.

  python tests/golden/record.py --framework torch --check

Each case of index.json is a run of one framework: `native_kwargs` is what its optimizer
was built with, `stream` names the parameters and the gradients that it was fed, in
streams.npz. The framework's own .npz has the path that the parameters took, the
learning rate of each step if there is a schedule, and the accumulators after the last
step. All are flat: the leaves one after another.
"""

import argparse
import functools
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
INDEX = json.loads((FOLDER / "index.json").read_text())
CASES = INDEX["cases"]
TOLERANCE = {"float64": 1e-12, "float32": 4e-6}
RATES = "lr", "learning_rate", "step_size"  # what frameworks call the learning rate


@functools.cache
def arrays(name):
    """The arrays of a file of this folder."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def stream(case):
    """The parameters and the gradients that a case starts from."""
    of, key = arrays("streams"), f"{case['stream']}|{case['dtype']}|"
    return of[key + "params0"], of[key + "grads"]


def rates(case):
    """The learning rate of each step, or None where it is the one in the arguments."""
    return arrays(case["framework"]).get(f"{case['id']}|lr")


def stored(case):
    """The path and the accumulators that a case led to."""
    of = arrays(case["framework"])
    ends = {name: of[f"{case['id']}|{name}"] for name in case["accumulators"]}
    return of[f"{case['id']}|params"], ends


def split(flat):
    """The leaves of a flat array."""
    shapes = INDEX["leaves"].values()
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def flat(leaves):
    """What `split` split."""
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def relative_error(actual, expected):
    """The largest error of an element, relative to its largest value in the run."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    if not np.isfinite(actual).all():
        return np.inf
    error, size = np.abs(actual - expected).max(0), np.abs(expected).max(0)
    return np.max(error / np.where(size == 0, 1e-300, size))


# A runner takes the leaves and the arguments of an optimizer. It returns a function
# that takes a step, from gradients and a learning rate to the leaves, and one that
# returns the accumulators, by our names for them, each a list of leaves.


def _torch_optimizer(load, v="square_avg"):
    names = {"v": v, "mg": "grad_avg", "mom": "momentum_buffer"}

    def start(params, options):
        import torch

        leaves = [torch.nn.Parameter(torch.tensor(p)) for p in params]
        optimizer = load()(leaves, **options)

        def step(grads, rate):
            optimizer.param_groups[0]["lr"] = rate
            for leaf, g in zip(leaves, grads, strict=True):
                leaf.grad = torch.tensor(g)
            optimizer.step()
            return [leaf.detach().numpy() for leaf in leaves]

        def accumulators():
            states = [optimizer.state[leaf] for leaf in leaves]
            kept = {a: n for a, n in names.items() if n in states[0]}
            return {a: [s[n].numpy() for s in states] for a, n in kept.items()}

        return step, accumulators

    return start


def _alone(name):
    """Imports a module without what its packages import, which may be missing."""
    parts, bare = name.split("."), {}
    for package in (".".join(parts[: i + 1]) for i in range(len(parts) - 1)):
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        if package not in sys.modules:
            bare[package] = importlib.util.module_from_spec(spec)
            sys.modules[package] = bare[package]
    try:
        return importlib.import_module(name)
    finally:
        for package in bare:
            del sys.modules[package]


def keras(params, options, backend=None):
    """Runs Keras 3 on a backend: one to a process, and by default what it runs on."""
    if backend is not None:
        os.environ.setdefault("KERAS_BACKEND", backend)
    import keras

    if backend not in (None, keras.config.backend()):
        raise ImportError(f"Keras runs on {keras.config.backend()}, not on {backend}.")
    keras.config.set_floatx(params[0].dtype.name)  # the learning rate's dtype
    leaves = [keras.Variable(p, dtype=p.dtype.name) for p in params]
    optimizer = keras.optimizers.RMSprop(**options)
    optimizer.build(leaves)

    def numpy(variables):
        return [np.array(keras.ops.convert_to_numpy(x)) for x in variables]

    def step(grads, rate):
        optimizer.learning_rate = rate
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in grads], leaves)
        return numpy(leaves)

    def accumulators():
        kept = {
            "v": optimizer._velocities,
            "mg": optimizer._average_gradients,
            "mom": optimizer._momentums,
        }
        return {name: numpy(parts) for name, parts in kept.items() if parts}

    return step, accumulators


def tf1(params, options, hyper_as_python_float=False):
    """Runs TF1's with tensors of the variables' dtype, or with floats as they are."""
    import tensorflow as tf

    dtype = params[0].dtype

    def hyper(value):
        is_float = isinstance(value, float) and not hyper_as_python_float
        return tf.constant(value, dtype) if is_float else value

    leaves = [tf.Variable(p) for p in params]
    options, now = {name: hyper(value) for name, value in options.items()}, []
    options["learning_rate"] = lambda: hyper(now[-1])
    optimizer = tf.compat.v1.train.RMSPropOptimizer(**options)
    return _tensorflow_steps(optimizer, leaves, now.append)


def _tf_keras(params, options):
    import tensorflow as tf
    import tf_keras

    optimizer = tf_keras.optimizers.legacy.RMSprop(**options)
    leaves = [tf.Variable(p) for p in params]
    return _tensorflow_steps(
        optimizer, leaves, functools.partial(setattr, optimizer, "learning_rate")
    )


def _tensorflow_steps(optimizer, leaves, set_rate):
    import tensorflow as tf

    def step(grads, rate):
        set_rate(rate)
        optimizer.apply_gradients(zip(map(tf.constant, grads), leaves, strict=True))
        return [leaf.numpy() for leaf in leaves]

    def accumulators():
        names = {"v": "rms", "mg": "mg", "mom": "momentum"}
        own = optimizer.get_slot_names()
        return {
            a: [optimizer.get_slot(leaf, name).numpy() for leaf in leaves]
            for a, name in names.items()
            if name in own
        }

    return step, accumulators


def _paddle(params, options):
    import paddle

    paddle.set_device("cpu")
    paddle.set_default_dtype(params[0].dtype.name)  # the learning rate's dtype
    leaves = [paddle.to_tensor(p, stop_gradient=False) for p in params]
    optimizer = paddle.optimizer.RMSProp(parameters=leaves, **options)

    def step(grads, rate):
        optimizer.set_lr(rate)
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = paddle.to_tensor(g)
        optimizer.step()
        return [leaf.numpy() for leaf in leaves]

    def accumulators():
        names = {"v": "mean_square", "mg": "mean_grad", "mom": "momentum"}
        return {
            a: [optimizer._get_accumulator(name, leaf).numpy() for leaf in leaves]
            for a, name in names.items()
        }

    return step, accumulators


def _mlx(params, options):
    import mlx.core as mx
    import mlx.optimizers

    leaves = {str(i): mx.array(p) for i, p in enumerate(params)}
    optimizer = mlx.optimizers.RMSprop(**options)

    def step(grads, rate):
        optimizer.learning_rate = rate
        named = {str(i): mx.array(g) for i, g in enumerate(grads)}
        leaves.update(optimizer.apply_gradients(named, leaves))
        return [np.array(leaf) for leaf in leaves.values()]

    return step, lambda: {"v": [np.array(optimizer.state[i]["v"]) for i in leaves]}


def _optax(params, options):
    import jax
    import optax

    now = []
    options = options | {"learning_rate": lambda count: now[-1]}
    with jax.enable_x64(True):
        optimizer = optax.rmsprop(**options)
        carry = [list(map(jax.numpy.asarray, params))]
        carry.append(optimizer.init(carry[0]))

    def step(grads, rate):
        now.append(rate)
        with jax.enable_x64(True):
            updates, carry[1] = optimizer.update(grads, carry[1], carry[0])
            carry[0] = optax.apply_updates(carry[0], updates)
        return carry[0]

    def accumulators():
        rms, *rest = carry[1]
        kept = {"v": rms.nu, "mg": getattr(rms, "mu", None)}
        kept["mom"] = next((s.trace for s in rest if hasattr(s, "trace")), None)
        return {name: leaves for name, leaves in kept.items() if leaves is not None}

    return step, accumulators


def _jax_example(params, options):
    import jax
    from jax.example_libraries import optimizers

    now = []
    options = options | {"step_size": lambda count: now[-1]}
    momentum = options.pop("momentum", 0)
    if momentum:
        make = functools.partial(optimizers.rmsprop_momentum, momentum=momentum)
        names = "params", "v", "mom"
    else:
        make, names = optimizers.rmsprop, ("params", "v")
    with jax.enable_x64(True):
        init, update, get_params = make(**options)
        states = [init(list(map(jax.numpy.asarray, params)))]

    def step(grads, rate):
        now.append(rate)
        with jax.enable_x64(True):
            states.append(update(len(now) - 1, grads, states[-1]))
            return get_params(states[-1])

    def accumulators():
        leaves = optimizers.unpack_optimizer_state(states[-1])
        parts = zip(*(leaf.subtree for leaf in leaves), strict=True)
        kept = dict(zip(names, parts, strict=True))
        del kept["params"]
        return kept

    return step, accumulators


def _torch():
    return importlib.import_module("torch").optim.RMSprop


def _bitsandbytes():
    return importlib.import_module("bitsandbytes").optim.RMSprop


def _timm():
    return _alone("timm.optim.rmsprop_tf").RMSpropTF


def _sb3():
    module = "stable_baselines3.common.sb2_compat.rmsprop_tf_like"
    return _alone(module).RMSpropTFLike


RUNNERS = {
    "torch": _torch_optimizer(_torch),
    "timm": _torch_optimizer(_timm),
    "sb3": _torch_optimizer(_sb3),
    "bnb32": _torch_optimizer(_bitsandbytes, v="state1"),
    "mlx": _mlx,
    "tf1": tf1,
    "keras": functools.partial(keras, backend="tensorflow"),
    "keras_torch": functools.partial(keras, backend="torch"),
    "tf_keras_legacy": _tf_keras,
    "paddle": _paddle,
    "optax": _optax,
    "jax_example": _jax_example,
}


def run(runner, options, params, grads, rates=None):
    """The path of the parameters, and the accumulators after the last step."""
    step, accumulators = runner(split(params), options)
    if rates is None:
        (name,) = (name for name in RATES if name in options)
        rates = [options[name]] * len(grads)
    path = [params]
    for g, rate in zip(grads, rates, strict=True):
        path.append(flat(step(split(g), float(rate))))
    return np.array(path), {name: flat(x) for name, x in accumulators().items()}


def record(case, of_steps=rates):
    """Runs a case with the framework itself."""
    runner = RUNNERS[case["framework"]]
    if case.get("hyper_as_python_float"):
        runner = functools.partial(runner, hyper_as_python_float=True)
    path, ends = run(runner, case["native_kwargs"], *stream(case), of_steps(case))
    return path, {name: ends[name] for name in case["accumulators"]}


def new_rates(case):
    """The learning rates of a first recording: its schedule as torch's runs have it."""
    if case["schedule"] == "const":
        return None
    like = next(
        other
        for other in CASES
        if other["framework"] == "torch" and other["schedule"] == case["schedule"]
    )
    return rates(like) / first_rate(like) * first_rate(case)


def first_rate(case):
    return next(case["native_kwargs"][n] for n in RATES if n in case["native_kwargs"])


def record_new(framework, folder=FOLDER):
    """Records the cases of a framework that has no file yet."""
    named = {}
    for case in (case for case in CASES if case["framework"] == framework):
        path, ends = record(case, new_rates)
        named |= {f"{case['id']}|{name}": end for name, end in ends.items()}
        named[f"{case['id']}|params"] = path
        if case["schedule"] != "const":
            named[f"{case['id']}|lr"] = new_rates(case)
    write_npz(folder / f"{framework}.npz", named)


def differences(case, path, ends):
    """How far a path and accumulators are from those of a case.

    The accumulators of gradients of both signs keep fewer digits than the path.
    """
    expected, expected_ends = stored(case)
    off = (relative_error([ends[name]], [end]) for name, end in expected_ends.items())
    return relative_error(path, expected), max(off)


def write_npz(path, named):
    """Writes arrays to a file, whole or not at all."""
    temporary = path.with_suffix(".partial.npz")
    np.savez_compressed(temporary, allow_pickle=False, **named)
    temporary.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", required=True, choices=RUNNERS)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compare with the files")
    action.add_argument("--write", action="store_true", help="rewrite the file")
    action.add_argument("--new", action="store_true", help="make the first file")
    arguments = parser.parse_args()
    if arguments.new:
        record_new(arguments.framework)
        return
    named, errors = dict(arrays(arguments.framework)), {}
    for case in CASES:
        if case["framework"] == arguments.framework:
            path, ends = record(case)
            errors.setdefault(case["dtype"], []).append(differences(case, path, ends))
            named[f"{case['id']}|params"] = path
            named |= {f"{case['id']}|{name}": end for name, end in ends.items()}
    failed = False
    for dtype, each in errors.items():
        paths, ends = zip(*each, strict=True)
        equal = sum(error == (0, 0) for error in each)
        print(
            f"{arguments.framework}, {dtype}: {equal} of {len(each)} runs equal to the "
            f"bit, paths within {max(paths):.1e}, accumulators within {max(ends):.1e}"
        )
        failed |= max(paths) > TOLERANCE[dtype] or max(ends) > 10 * TOLERANCE[dtype]
    if arguments.write:
        write_npz(FOLDER / f"{arguments.framework}.npz", named)
    elif failed:
        sys.exit("Some differ by more than the tolerance.")


if __name__ == "__main__":
    main()
