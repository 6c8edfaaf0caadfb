"""`rmsprop-jax bench plan`: does a large model fit, compiled for TPUs ahead of time."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from .. import _install
from ..demo.command import add_output, needed
from .plan_models import DTYPES, LAYOUTS, MODELS, OPTIMIZERS, TOY, WHOLES
from .speed import names_of

CHIPS = (16, 64, 256)

TOPOLOGIES = {
    "v5e": ("v5e:4x4", "v5e:8x8", "v5e:16x16"),
    "v6e": ("v6e:4x4", "v6e:8x8", "v6e:16x16"),
    "v5p": ("v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8"),
}
"""Of as many chips each; what fits into one generation's memory fits into the next."""

DESCRIPTION = """\
What a chip holds for a whole update of a large model (parameters, gradients, optimizer
state, and what the update needs besides; no activations), and into which TPUs that
fits: for Adam and ours, replicated, with ZeRO and fully sharded. Compiled ahead of time
with abstract parameters, which needs libtpu but no TPU. Writes plan.json.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--models", type=names_of(MODELS), metavar="NAMES",
        help=f"separated by commas (default: {','.join(MODELS)})",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0],
        help=f"of parameters and gradients (default: {DTYPES[0]})",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="a toy on 16 chips, to see that it runs"
    )
    add_output(parser, "rmsprop-jax-bench")


def run(arguments: argparse.Namespace) -> int:
    """Compiles, prints the table, writes the file; returns the exit status."""
    began = time.perf_counter()
    if arguments.quick and arguments.models:
        return _fail("argument --models: does not go with --quick", status=2)
    try:
        from . import plan_tables, results
        from .progress import live

        with live(arguments.quiet) as show:
            found = _measured(arguments, show)
    except ModuleNotFoundError as error:
        if error.name == "libtpu":
            return _fail(f"needs libtpu: {_install.command('tpu')}")
        return _fail(needed(error, "bench"))
    plan_tables.show(found)
    seconds = time.perf_counter() - began
    try:
        content = results.content("plan", found, arguments.quick, seconds)
        path = results.write(arguments.out, "plan", content)
    except OSError as error:
        return _fail(f"could not write to {arguments.out}: {error}")
    if not arguments.quiet:
        print(f"{path}, after {seconds:.0f} seconds")
    return 0


def _measured(arguments: argparse.Namespace, show: Any) -> dict[str, Any]:
    import jax

    from . import plan_models, plan_programs

    named = {name: MODELS[name] for name in arguments.models or MODELS}
    models = TOY if arguments.quick else named
    capacity = {
        name: plan_programs.capacity(topologies[0])
        for name, topologies in TOPOLOGIES.items()
    }
    # Half the time of the compiler; the memory is the same within 0.1 %.
    jax.config.update("jax_optimization_level", "O1")
    found: dict[str, Any] = {
        "settings": {
            "dtype": arguments.dtype, "layouts": LAYOUTS, "wholes_on_wires": WHOLES,
            "capacity": capacity, "topologies": TOPOLOGIES, "optimization_level": "O1",
        },
        "models": {}, "rows": [],
    }  # fmt: skip
    for name, model in models.items():
        params = plan_models.shapes(model, arguments.dtype)
        found["models"][name] = model._asdict() | {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params))
        }
        cells = list(_cells(CHIPS[:1] if arguments.quick else CHIPS))
        with show(name, len(cells)) as on_step:
            for index, (layout, chips, optimizer) in enumerate(cells):
                at = {gen: TOPOLOGIES[gen][CHIPS.index(chips)] for gen in capacity}
                facts = plan_programs.planned(
                    layout, OPTIMIZERS[optimizer], params, chips, at, capacity
                )
                cell = {"layout": layout, "chips": chips, "optimizer": optimizer}
                found["rows"].append({"model": name} | cell | facts)
                on_step(index + 1)
    return found


def _cells(counts: tuple[int, ...]) -> Iterator[tuple[str, int, str]]:
    """Yields layouts, chips and optimizers; a replica is the same on any number."""
    for layout in LAYOUTS:
        for chips in counts[:1] if layout == "replicated" else counts:
            for optimizer in OPTIMIZERS:
                yield layout, chips, optimizer


def _fail(message: str, status: int = 1) -> int:
    print(f"rmsprop-jax bench plan: error: {message}", file=sys.stderr)
    return status
