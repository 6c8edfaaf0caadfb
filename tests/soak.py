"""A long soak of checkpoints; says of each trial how many were survived.

    python tests/soak.py --kills 200 --corruptions 400 --reads 500 --checkpoints 20000

The figures in the docstring of `rmsprop_jax.checkpoint` are those of such a run. Kills
are those of kill.py. Corruptions change one file of the newest of two checkpoints, any
file in any of eight ways. Reads go on beside a process that writes and keeps one. The
last trial keeps all its checkpoints in one folder, and reads every one.
"""

import argparse
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import kill
import numpy as np

from rmsprop_jax import rmsprop
from rmsprop_jax.checkpoint import Checkpoints, _digests, _reading

TX = rmsprop(0.1, momentum=0.9, nu_dtype="uint8")
SEED = 0


def content(step):
    """Parameters and a state that no other step has."""
    params = {"w": jnp.full((4, 3), step, jnp.float32), "b": jnp.arange(3) + step}
    state = jax.tree.map(lambda x: x + jnp.asarray(step % 7, x.dtype), STATE)
    return params, state


STATE = None  # made where JAX may start


def begin():
    global STATE
    STATE = TX.init({"w": jnp.ones((4, 3)), "b": jnp.ones(3)})


def is_right(found):
    """Whether all that came back is that of its step."""
    leaves = zip(
        jax.tree.leaves((found.params, found.opt_state)),
        jax.tree.leaves(content(found.step)),
        strict=True,
    )
    same = all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in leaves)
    return same and found.position == {"step": found.step}


def flip(path, other, generator):
    data = bytearray(path.read_bytes() or b"\0")
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


def truncate(path, other, generator):
    path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size or 1)])


def lengthen(path, other, generator):
    path.write_bytes(path.read_bytes() + generator.randbytes(4096))


def zero(path, other, generator):
    path.write_bytes(bytes(path.stat().st_size))


def remove(path, other, generator):
    path.unlink()


def make_old(path, other, generator):
    path.write_bytes(other.read_bytes() if other.exists() else b"")


def make_folder(path, other, generator):
    path.unlink()
    path.mkdir()


def add(path, other, generator):
    (path.parent / f"{generator.randrange(9)}.new").write_bytes(b"new")


DAMAGES = (flip, truncate, lengthen, zero, remove, make_old, make_folder, add)


def corruptions(times, folder):
    generator, survived, told = random.Random(SEED), 0, 0
    with Checkpoints(folder / "whole") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, *content(step), {"step": step})
    for trial in range(times):
        copy = folder / "damaged"
        shutil.copytree(folder / "whole", copy)
        files = [path for path in sorted((copy / "2").rglob("*")) if path.is_file()]
        path = generator.choice(files)
        damage = DAMAGES[trial % len(DAMAGES)]
        damage(path, copy / "1" / path.relative_to(copy / "2"), generator)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = Checkpoints(copy).restore(*content(0))
        warned = any("Damaged checkpoint" in str(w.message) for w in caught)
        told += warned
        survived += is_right(found) and found.step == (1 if warned else 2)
        shutil.rmtree(copy)
    return survived, f"{told} were told, the others changed nothing that is restored"


def write(folder, times):
    begin()
    with Checkpoints(folder, keep=1) as checkpoints:
        for step in range(times):
            checkpoints.save(step, *content(step), {"step": step})


def reads(times, folder):
    """As many restores as asked for, beside a process that writes all the while."""
    tried = survived = 0
    seen = set()
    processes = multiprocessing.get_context("spawn")
    while tried < times:
        run = folder / str(tried)
        writer = processes.Process(target=write, args=(run, times))
        writer.start()
        while writer.is_alive() and tried < times:
            try:
                found = Checkpoints(run).restore(*content(0))
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                tried += 1
                continue
            if found is None:  # before the first one
                time.sleep(0.01)
                continue
            tried += 1
            seen.add((run, found.step))
            survived += is_right(found)
        writer.kill()
        writer.join()
    return survived, f"{len(seen)} checkpoints were seen"


def checkpoints(times, folder):
    """Keeps all in one folder; reads the newest now and then, and each at the end."""
    survived = 0
    with Checkpoints(folder / "all", keep=times) as all_of_them:
        for step in range(times):
            all_of_them.save(step, *content(step), {"step": step})
            if step % 1000 == 999:
                found = all_of_them.restore(*content(0))
                assert found.step == step
                assert is_right(found)
                print(f"{step + 1} of {times} checkpoints", file=sys.stderr, flush=True)
    for step in Checkpoints(folder / "all").steps:
        path = folder / "all" / str(step)
        whole = _digests.damage(path) is None
        found = _reading.read(path, *content(0), None)
        survived += whole and found.step == step and is_right(found)
    return survived, "each was read"


def kills(times, folder):
    in_save = []
    survived = kill.endure(times, folder, lambda cut, reached: in_save.append(cut))
    return survived, f"{sum(in_save)} in a save"


TRIALS = (kills, corruptions, reads, checkpoints)  # kill.py forks, so JAX starts later


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for trial, usual in zip(TRIALS, (20, 80, 50, 50), strict=True):
        parser.add_argument(f"--{trial.__name__}", type=int, default=usual, metavar="N")
    wanted = vars(parser.parse_args())
    failed = False
    for trial in TRIALS:
        times = wanted[trial.__name__]
        if not times:
            continue
        if trial is not kills:
            begin()
        with tempfile.TemporaryDirectory() as folder:
            survived, note = trial(times, Path(folder))
        print(f"{trial.__name__}: survived {survived} of {times}; {note}", flush=True)
        failed |= survived < times
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
