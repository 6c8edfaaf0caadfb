"""Kills a training process with SIGKILL at random moments, and resumes it each time.

    python tests/kill.py --kills 100

It trains the demo's model on handwritten digits with a checkpoint after every step, so
most kills meet a save; some come sooner, in the start, compilation or restoring. A run
that ends must have the parameters, the optimizer's state and the position in the data
of an uninterrupted one, bit for bit; when one has ended another begins, until there
were enough kills.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from rmsprop_jax import rmsprop
from rmsprop_jax.checkpoint import Checkpoints
from rmsprop_jax.lab import tasks
from rmsprop_jax.lab.models import DigitsNet

STEPS, BATCH, SEED = 60, 32, 0
EARLY = 0.25  # the part of the kills that do not wait for the first step
LONGEST = 0.6  # seconds between the start, or the first step, and a kill

# Children inherit imports and data, which take seconds. No device is in use yet.
TASK = tasks.digits()
PROCESSES = multiprocessing.get_context("fork")


def train(folder, cache, pipe):
    """Trains, or goes on; says at which step, and at last what came out."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    model = DigitsNet(rngs=nnx.Rngs(params=SEED))
    tx = rmsprop(
        optax.cosine_decay_schedule(0.01, STEPS),
        momentum=0.9,
        centered=True,
        nu_dtype="uint8",
        mu_dtype="bfloat16",
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def update(model, optimizer, inputs, targets):
        grads = nnx.grad(lambda m: tasks.metrics(m(inputs), targets)[0])(model)
        optimizer.update(model, grads)

    generator, position, done = np.random.default_rng(SEED), {"order": []}, 0
    with Checkpoints(folder, settings={"steps": STEPS, "seed": SEED}) as checkpoints:
        if restored := checkpoints.restore(model, optimizer):
            done, position = restored.step, restored.position
            generator.bit_generator.state = position["generator"]
        for step in range(done + 1, STEPS + 1):
            order = position["order"]
            if len(order) < BATCH:
                order = generator.permutation(len(TASK.train.inputs)).tolist()
            batch = np.asarray(order[:BATCH])
            update(
                model, optimizer, TASK.train.inputs[batch], TASK.train.targets[batch]
            )
            position = {
                "order": order[BATCH:],
                "generator": generator.bit_generator.state,
            }
            checkpoints.save(step, model, optimizer, position)
            if step == done + 1:
                pipe.send(done)
        if done == STEPS:
            pipe.send(done)
    leaves = jax.tree.leaves((nnx.state(model), nnx.state(optimizer)))
    result = hashlib.sha256(str(position).encode())
    for leaf in leaves:
        result.update(np.asarray(leaf).tobytes())
    pipe.send(result.hexdigest())


def start(folder, cache):
    """A process that trains, and the end of the pipe where it is heard."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=train, args=(folder, cache, theirs))
    process.start()
    theirs.close()
    return process, ours


def result_of(process, pipe):
    """The step that it began with, and what came out."""
    heard = []
    try:
        while len(heard) < 2:
            heard.append(pipe.recv())
    except EOFError:
        process.join()
        raise SystemExit(f"FAILED: it ended with {process.exitcode}") from None
    process.join()
    return heard


def endure(wanted, folder, on_kill):
    """Kills as often as wanted; returns how many kills runs have survived to the bit.

    Args:
      wanted: the number of kills.
      folder: for the runs.
      on_kill: called with whether the kill cut off a save, and the step that the run
        was known to have reached.
    """
    generator, cache = random.Random(SEED), folder / "cache"
    _, expected = result_of(*start(folder / "uninterrupted", cache))
    killed = survived = 0
    while killed < wanted:
        run, reached, of_this_run = folder / f"run-after-{killed}", 0, 0
        while killed < wanted:
            process, pipe = start(run, cache)
            late = generator.random() >= EARLY
            if late:
                reached = heard_step(pipe, reached)
            process.join(generator.uniform(0, LONGEST))
            if process.exitcode == 0:
                break
            if process.exitcode is not None:
                raise SystemExit(f"FAILED: it ended with {process.exitcode}")
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed, of_this_run = killed + 1, of_this_run + 1
            on_kill(late and any(run.glob("*-tmp")), reached)
        begun, result = result_of(*start(run, cache))
        survived += of_this_run if begun >= reached and result == expected else 0
    return survived


def heard_step(pipe, reached):
    """The step that a process begins with, which may not be less than before."""
    done = pipe.recv()
    if done < reached:
        raise SystemExit(f"FAILED: it began at {done}, after a run had at {reached}")
    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, metavar="N")
    wanted = parser.parse_args().kills
    cut = []
    columns = (TextColumn("kill -9"), BarColumn(30), MofNCompleteColumn())
    note = TextColumn("{task.fields[note]}")
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, TimeElapsedColumn(), note, console=console) as progress,
    ):
        row = progress.add_task("", total=wanted, note="the run to compare with")

        def on_kill(in_save, reached):
            cut.append(in_save)
            note = f"{sum(cut)} in a save; step {reached} of {STEPS}"
            progress.update(row, advance=1, note=note)

        survived = endure(wanted, Path(folder), on_kill)
    print(f"survived {survived} of {len(cut)} kills, {sum(cut)} of them in a save")
    return 0 if survived == wanted else 1


if __name__ == "__main__":
    sys.exit(main())
