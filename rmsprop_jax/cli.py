"""The command line: `rmsprop-jax COMMAND`, or `python -m rmsprop_jax COMMAND`."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__, _interrupt

# By name: the module, which has `add_arguments(parser)` and `run(arguments) -> int`
# and is imported only when its command is used, one line of help, and how long the
# command takes, from results files of a machine with two cores.
COMMANDS = {
    "demo": (
        "rmsprop_jax.demo.command",
        "compare RMSProp with SGD, Adagrad and Adam on two small tasks, and in bf16",
        "about a minute on two CPU cores",
    ),
    "convert": (
        "rmsprop_jax.convert.command",
        "move an optimizer's state between torch, Keras, TF1, Optax and JAX",
        "seconds, and as long as reading and writing the files",
    ),
    "bench": (
        "rmsprop_jax.bench.command",
        "measure speed on this device or, ahead of time, on TPUs; and more",
        "4 minutes on two CPU cores, a minute or two for each TPU or GPU that is not "
        "here; storage 16 minutes",
    ),
    "claims": (
        "rmsprop_jax.claims.command",
        "test what is said of RMSProp, each claim with a verdict",
        "five minutes on two CPU cores (rnn more than two of them, and bf16 besides); "
        "--full hours",
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One line: the usage of a command with many options would bury the error.
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status.

    Args:
      argv: the arguments after the program's name; by default those of the process.
    """
    if argv is None:
        with _interrupt.cleaning_up():
            return _run(sys.argv[1:])
    try:
        return _run(argv)
    except KeyboardInterrupt:
        sys.stderr.write(_interrupt.LINE)
        return _interrupt.STATUS


def _run(argv: Sequence[str]) -> int:
    _replace_what_cannot_be_encoded()
    try:
        parser = _parser(argv)
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return 2
        refusal = _refusal(arguments)
        if refusal is not None:
            parser.error(refusal)
        if sys.stderr.isatty() and not arguments.quiet:
            duration = COMMANDS[arguments.command][2]
            print(f"rmsprop-jax {arguments.command}: {duration}", file=sys.stderr)
        return arguments.run(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0


def _refusal(arguments: argparse.Namespace) -> str | None:
    """Returns why an output could not be written, as far as that shows before."""
    folder = getattr(arguments, "out", None)
    if folder is not None:
        for path in (*folder.glob("*.json"), *folder.glob("*.png")):
            if path.is_dir():
                return f"argument --out: {path} is a folder, where a file would go"
    target = getattr(arguments, "target", None)
    if target is not None:
        if Path(target).is_dir():
            return f"argument target: {target} is a folder"
        if not os.access(Path(target).parent, os.W_OK):
            return f"argument target: {Path(target).parent} is no folder to write to"
    return None


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Returns the parser, with the options of the command that `argv` names."""
    parser = _Parser(
        prog="rmsprop-jax",
        description="RMSProp for JAX: the commands of the package rmsprop_jax.",
        epilog="example: rmsprop-jax demo --task digits --seeds 3",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"rmsprop-jax {__version__}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    named = next((word for word in argv if not word.startswith("-")), None)
    for name, (module_name, summary, duration) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == named:
            module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.epilog = f"{command.epilog or ''}\ntakes {duration}".lstrip()
            command.set_defaults(run=module.run)
    return parser


def _replace_what_cannot_be_encoded() -> None:
    """Lets a terminal or a pipe without UTF-8 show "?" for "±" rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
