"""Ctrl-C ends a command within two seconds, with status 130 and one line.

Python alone does not: a KeyboardInterrupt waits while XLA compiles, is lost in a
callback of the garbage collector (JAX has one), and is a traceback while modules are
imported. So a thread waits for the signal, leaves the command a second to clean up, and
ends the process. The package imports this module first, which guards the import of JAX
too, and does nothing in other programs than its own commands.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

STATUS = 130
"""The exit status of a process that Ctrl-C ended: 128 + SIGINT."""

LINE = "rmsprop-jax: interrupted\n"

_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar hides

_guarded = threading.Event()
_cleans_up = threading.Event()
_came = threading.Event()
_ending = threading.Lock()


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Where Ctrl-C is a KeyboardInterrupt, and the end of the process afterwards.

    It is the end also where the exception was lost, or became another one, on its way.
    """
    _guard()
    sys.unraisablehook = _unless_interrupted
    _cleans_up.set()
    try:
        yield
    except KeyboardInterrupt:
        _came.set()
    finally:
        _cleans_up.clear()
        if _came.is_set():
            _end()
        if _guarded.is_set():
            # The work is done. Python removes its handlers before it ends itself, and
            # the signal would kill it then, without a line.
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _guard() -> None:
    """Starts the thread that waits for Ctrl-C."""
    is_main = threading.current_thread() is threading.main_thread()
    if _guarded.is_set() or os.name != "posix" or not is_main:
        return
    _guarded.set()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGINT, _interrupt)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(reading,), daemon=True).start()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _came.set()
    if _cleans_up.is_set():
        raise KeyboardInterrupt


def _wait(reading: int) -> None:
    while os.read(reading, 1) != bytes([signal.SIGINT]):
        pass  # another signal
    if _cleans_up.is_set():
        threading.Event().wait(1.0)
    _end()


def _end() -> NoReturn:
    """Ends the process without Python's clean-up, which crashes while XLA computes."""
    with _ending:  # not released: the line is written once
        with contextlib.suppress(OSError):
            os.write(2, ((_SHOW_CURSOR if os.isatty(2) else "") + LINE).encode())
        os._exit(STATUS)


def _unless_interrupted(error: "sys.UnraisableHookArgs") -> None:
    if not issubclass(error.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(error)


def _is_command() -> bool:
    """Whether this process is `rmsprop-jax` or `python -m rmsprop_jax`."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # only while the modules of `python -m` are imported
        after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :]
        return after[:1] == ["rmsprop_jax"]
    return os.path.basename(program) == "rmsprop-jax"


if _is_command():
    _guard()
