"""The tables of `rmsprop-jax bench --tpu`."""

from typing import Any

from rich.console import Console

from .speed_tables import _table


def show(found: dict[str, Any]) -> None:
    """Prints a table for each topology and dtype of parameters."""
    console = Console(highlight=False)
    for name, topology in found["topologies"].items():
        chips, each = topology["chips"], topology["parameters_per_chip"]
        console.print(
            f"{name}: {chips} chips of {topology['device']}, {each:,} parameters each",
            style="bold",
        )
        for dtype, rows in topology["by_dtype"].items():
            table = _table(
                f"parameters and gradients in {dtype}", "bytes\neach", "limit",
                "ker-\nnels", "tempo-\nraries", "GiB a\nchip", "collec-\ntives",
                "cycles /\nOptax's",
            )  # fmt: skip
            for row, facts in rows.items():
                table.add_row(
                    row, f"{facts['bytes_per_parameter']:.2f}", f"{facts['limit']:.2f}",
                    str(facts["kernels"]), str(facts["temporary_bytes"]),
                    f"{facts['bytes_per_chip'] / 2**30:.2f}",
                    str(facts["collectives"]), f"{facts['cycles_ratio']:.3f}",
                    style=None if row.startswith("optax") else "bold",
                )  # fmt: skip
            console.print(table)
    for note in (
        "bytes: that the program accesses, per parameter; limit: parameters, gradients "
        "and state, each once",
        "narrow: nu in uint8, mu or the momentum in bfloat16",
        "kernels: fusions as large as the parameters; cycles: the compiler's estimate",
    ):
        console.print(note, style="dim", soft_wrap=True)
