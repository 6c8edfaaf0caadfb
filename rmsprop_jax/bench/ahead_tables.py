"""The tables of `rmsprop-jax bench --tpu` and `--gpu`."""

from typing import Any

from ..lab import tables as terminal
from ..lab.tables import table


def show(found: dict[str, Any]) -> None:
    """Prints a table for each topology, dtype of parameters, and model."""
    for name, topology in found["topologies"].items():
        devices, each = topology["devices"], topology["parameters_per_device"]
        terminal.findings(
            f"{name}: {devices} × {topology['device']}, {each:,} parameters each"
        )
        for dtype, rows in topology["by_dtype"].items():
            terminal.show(_facts(f"parameters and gradients in {dtype}", rows))
        for model, cell in topology["models"].items():
            title = f"{model}: {cell['parameters']:,} parameters, "
            terminal.show(_facts(f"{title}{cell['leaves']} leaves", cell["rows"]))
    terminal.notes(
        "bytes: that the program accesses, per parameter (on GPUs: of all that its "
        "kernels name); limit: parameters, gradients and state, each once",
        "narrow: nu in uint8, mu or the momentum in bfloat16",
        "7B layer: a schedule and decoupled weight decay of matrices; ours with one "
        "byte, skip_nonfinite and round_params; clipping reads gradients twice",
        "kernels: those on arrays as large as a leaf; small: others, such as counts",
        "temporaries: bytes; on GPUs scalars, indices of rows, and 256 for the "
        "addresses of what each kernel writes",
        "cycles: the compiler's estimate, which it makes for TPUs alone",
    )


def _facts(title: str, rows: dict[str, Any]) -> Any:
    # A TPU runs a program as one; on a GPU each kernel is a launch of its own.
    on_tpu = all(facts["cycles"] for facts in rows.values())
    headers = ["bytes\neach", "limit", "ker-\nnels", *["small"] * (not on_tpu)]
    headers += ["tempo-\nraries", "GiB a\ndevice", "collec-\ntives"]
    headers += ["cycles /\nOptax's"] * on_tpu
    shown = table(title, [""], headers)
    for row, facts in rows.items():
        cells = [
            row, f"{facts['bytes_per_parameter']:.2f}", f"{facts['limit']:.2f}",
            facts["kernels"], *[facts["small_kernels"]] * (not on_tpu),
            facts["temporary_bytes"], f"{facts['bytes_per_device'] / 2**30:.2f}",
            facts["collectives"],
            *[f"{facts.get('cycles_ratio', 0):.3f}"] * on_tpu,
        ]  # fmt: skip
        style = None if row.startswith("optax") else "bold"
        shown.add_row(*map(str, cells), style=style)
    return shown
