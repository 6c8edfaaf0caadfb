"""Trains the digits model on the devices of one or of several processes.

    python tests/distributed.py {data,zero} OUT [PROCESSES INDEX PORT]

What differs between a laptop, a TPU pod slice and a cluster of GPUs is how the program
is started. Every process runs this; the first writes the parameters to OUT.
"""

import sys
from functools import partial

import jax

STEPS, BATCH = 12, 64


def main(kind, out, processes="1", index="0", port="0"):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4 // int(processes))
    if processes != "1":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(index))

    import numpy as np
    from flax import nnx
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    from rmsprop_jax.lab.models import DigitsNet
    from rmsprop_jax.lab.tasks import digits

    task = digits()
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    graphdef, params = nnx.split(DigitsNet(rngs=nnx.Rngs(0)))
    params = jax.device_put(params, NamedSharding(mesh, P()))
    train = {"data": data_parallel, "zero": with_zero}[kind](graphdef, params, mesh)
    order = np.random.default_rng(0).permutation(len(task.train.inputs))
    for step in range(STEPS):
        rows = order[step * BATCH : (step + 1) * BATCH]
        batch = [
            jax.make_array_from_callback(
                x[rows].shape, NamedSharding(mesh, P("data")), partial(part, x[rows])
            )
            for x in (task.train.inputs, task.train.targets)
        ]
        params = train(*batch)
    if jax.process_index() == 0:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        np.savez(out, *leaves)


def part(x, index):
    return x[index]


def loss_of(graphdef):
    from flax import nnx

    from rmsprop_jax.lab.tasks import metrics

    def loss(params, inputs, targets):
        return metrics(nnx.merge(graphdef, params)(inputs), targets)[0]

    return loss


def transformation():
    from rmsprop_jax import rmsprop

    # In float32: of a sum that differs in its last bit, a narrow code may be another.
    return rmsprop(3e-3, momentum=0.5)


def data_parallel(graphdef, params, mesh):
    """Arrays are global, and XLA sums the gradients."""
    import optax

    from rmsprop_jax import sharding

    loss, tx = loss_of(graphdef), transformation()
    state = sharding.init(tx, params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, inputs, targets):
        grads = jax.grad(loss)(params, inputs, targets)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return stateful(step, params, state)


def with_zero(graphdef, params, mesh):
    """Each device has its own examples and its own part of the state."""
    import optax
    from jax.sharding import PartitionSpec as P

    from rmsprop_jax import sharding

    loss, tx = loss_of(graphdef), sharding.zero(transformation(), "data")
    state = tx.init(params)
    specs = sharding.specs(state)

    @partial(jax.jit, donate_argnums=(0, 1))
    @partial(
        jax.shard_map, mesh=mesh, out_specs=(P(), specs),
        in_specs=(P(), specs, P("data"), P("data")),
    )  # fmt: skip
    def step(params, state, inputs, targets):
        own = jax.lax.pcast(params, "data", to="varying")
        grads = jax.grad(loss)(own, inputs, targets)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return stateful(step, params, state)


def stateful(step, params, state):
    """Returns a function of the batch that keeps parameters and state."""
    kept = [params, state]

    def train(inputs, targets):
        kept[:] = step(*kept, inputs, targets)
        return kept[0]

    return train


if __name__ == "__main__":
    main(*sys.argv[1:])
