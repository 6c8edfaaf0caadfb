"""The command line: options, errors, interruptions and the files it leaves."""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import rmsprop_jax
from rmsprop_jax import _files, _install, cli
from rmsprop_jax.convert import command as convert
from rmsprop_jax.demo import bf16, sweeps
from rmsprop_jax.demo import command as demo
from rmsprop_jax.lab import options

pytestmark = pytest.mark.optimized

OPTIONS = (
    *("--task", "digits", "--steps", "6", "--seeds", "2", "--batch-size", "8"),
    *("--optimizers", "rmsprop,sgd", "--lrs", "1e-2,1e-3"),
    *("--decay", "0.8", "--momentum", "0.5", "--centered"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run: the folder, and what went to standard output and error."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    command = [sys.executable, "-m", "rmsprop_jax", "demo", *OPTIONS, "--out", str(out)]
    # Errors for our warnings, too: a person should see none.
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=True, env=environment
    )
    return out, done.stdout, done.stderr


def test_resume_gives_the_results_of_one_run_or_says_what_differs(
    finished, tmp_path, capsys
):
    """Of the first optimizer alone, then of both: the first is not trained again."""
    kept = ("--checkpoint-dir", str(tmp_path / "kept"), "--out", str(tmp_path))

    def run(*options):
        status = cli.main(["demo", *OPTIONS, *options])
        return status, capsys.readouterr().err

    status, error = run("--out", str(tmp_path), "--resume")
    assert (status, error.count("\n")) == (2, 1)
    assert "--resume: needs --checkpoint-dir" in error
    assert run(*kept, "--resume", "--optimizers", "rmsprop")[0] == 0
    status, error = run(*kept)
    assert (status, error.count("\n")) == (2, 1)
    assert "has checkpoints: add --resume" in error
    status, error = run(*kept, "--resume", "--seeds", "3", "--lrs", "0.5", "--quiet")
    assert (status, error.count("\n")) == (1, 1)
    assert "`lrs` was [0.001, 0.01], is [0.5]; `seeds` was 2, is 3" in error
    assert run(*kept, "--resume")[0] == 0
    timed = ("compile_seconds", "seconds_per_step_and_run")
    results = [
        json.loads((folder / "results.json").read_text())["tasks"]["digits"]
        for folder in (finished[0], tmp_path)
    ]
    for optimizer in (o for task in results for o in task["optimizers"].values()):
        for key in timed:
            del optimizer[key]
    assert results[0] == results[1]


def test_results_are_json_of_what_was_asked_for(finished):
    out, stdout, _ = finished

    def refuse(constant):
        raise AssertionError(constant)

    text = (out / "results.json").read_text(encoding="utf-8")
    results = json.loads(text, parse_constant=refuse)
    assert results["options"]["decay"] == 0.8
    assert results["options"]["momentum"] == 0.5
    assert results["options"]["centered"] is True
    assert results["versions"]["rmsprop_jax"] == rmsprop_jax.__version__
    assert 0 < results["compile_seconds"] < results["seconds"]
    (task,) = results["tasks"].values()
    assert task["verdict"] in stdout
    assert list(task["optimizers"]) == ["rmsprop", "sgd"]
    for optimizer in task["optimizers"].values():
        rates = optimizer["learning_rates"]
        losses = optimizer["final_validation_loss_by_rate_and_seed"]
        assert rates == [1e-3, 1e-2]
        means = [sum(row) / len(row) for row in losses]
        best = means.index(min(means))
        assert optimizer["best_learning_rate"] == rates[best]
        assert optimizer["curve_steps"] == list(range(7))
        assert optimizer["curve_validation_loss_by_step_and_seed"][-1] == losses[best]
        assert len(optimizer["test_loss_by_seed"]) == 2
        assert all(0 <= x <= 1 for x in optimizer["test_accuracy_by_seed"])
        assert optimizer["seconds_per_step_and_run"] > 0
    # nu, mu and the momentum, each in float32.
    per_parameter = task["optimizers"]["rmsprop"]["state_bytes_per_parameter"]
    assert 12 <= per_parameter < 12.1
    assert task["optimizers"]["sgd"]["state_bytes_per_parameter"] == 0


def test_the_folder_has_the_results_and_a_picture_and_nothing_else(finished):
    out, stdout, _ = finished
    assert sorted(p.name for p in out.iterdir()) == ["curves.png", "results.json"]
    from matplotlib.image import imread

    pixels = imread(out / "curves.png")
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    assert pixels.std() > 0.05
    assert str(out / "curves.png") in stdout


def test_output_that_is_piped_is_plain_and_whole(finished):
    _, stdout, stderr = finished
    assert "\x1b" not in stdout + stderr
    assert "…" not in stdout
    assert "± " in stdout
    assert "† at the edge of its grid" in stdout
    assert all("6 steps" in line for line in stderr.splitlines())
    assert [line.split()[:2] for line in stderr.splitlines()] == [
        ["digits", "RMSProp"],
        ["digits", "SGD"],
    ]


def test_version_and_module_are_the_console_script():
    done = subprocess.run(
        [sys.executable, "-m", "rmsprop_jax", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"rmsprop-jax {rmsprop_jax.__version__}"
    assert not done.stderr


def test_a_batch_is_no_larger_than_the_training_data(tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--task=digits", "--batch-size=1001", f"--out={out}"]
    assert cli.main(["demo", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--batch-size" in line
    assert "1000" in line
    assert "got 1001" in line
    assert not out.exists()


def test_help_lists_commands_and_options(capsys):
    assert cli.main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert cli.main(["demo", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "example: rmsprop-jax demo" in shown
    assert "RMSProp alone" in shown
    assert cli.main([]) == 2


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("--decay", "1.5", "a number in [0, 1)"),
        ("--decay", "nan", "a number in [0, 1)"),
        ("--momentum", "1", "a number in [0, 1)"),
        ("--eps", "-1", "a number, at least 0"),
        ("--steps", "0", "a whole number, at least 1"),
        ("--steps", "2.5", "a whole number, at least 1"),
        ("--seeds", "none", "a whole number, at least 1"),
        ("--batch-size", "-3", "a whole number, at least 1"),
        ("--optimizers", "adam,foo", "names from rmsprop,sgd,adagrad,adam"),
        ("--lrs", "1e-3,0", "numbers greater than 0"),
        ("--lrs", "1e-3,,1", "numbers greater than 0"),
        ("--task", "images", "digits"),
        ("--out", __file__, "a folder"),
        ("--out", __file__ + "/inside", "a folder"),
    ],
)
def test_bad_options_get_one_line(option, value, accepted, capsys):
    assert cli.main(["demo", f"{option}={value}"]) == 2
    stdout, stderr = capsys.readouterr()
    assert not stdout
    assert stderr.count("\n") == 1
    assert f"argument {option}" in stderr
    assert value in stderr
    assert accepted in stderr


def test_a_batch_larger_than_the_training_set_gets_one_line(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["demo", "--task=digits", "--batch-size=1001", f"--out={out}"]
    assert cli.main(arguments) == 2
    stdout, stderr = capsys.readouterr()
    assert not stdout
    assert stderr.count("\n") == 1
    for part in ("--batch-size", "at most 1000", "digits", "got 1001"):
        assert part in stderr
    assert not out.exists()


def test_a_batch_may_be_the_whole_training_set(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "sweep", interrupt)
    arguments = ["demo", "--task=digits", "--batch-size=1000", f"--out={tmp_path}"]
    assert cli.main(arguments) == 130, "the training did not begin"


def test_names_of_optimizers_may_have_blanks_and_capitals(tmp_path):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    out = str(tmp_path / "new" / "folder")
    parsed = parser.parse_args(["--optimizers", "rmsprop, Adam,adam", "--out", out])
    assert parsed.optimizers == ["rmsprop", "adam"]
    assert parsed.out == Path(out)
    assert not list(tmp_path.iterdir()), "the folder that was tried is still there"


@pytest.mark.parametrize("name", demo.FILES)
def test_a_folder_in_a_file_s_place_is_refused_before_training(name, tmp_path, capsys):
    (tmp_path / name).mkdir()
    assert cli.main(["demo", f"--out={tmp_path}"]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert f"{tmp_path / name} is a folder" in stderr
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("bench", "speed.json"), ("bench", "speed.png"),
        ("bench storage", "tracking.json"), ("bench --gpu=h100", "gpu.json"),
        ("claims scales", "results.json"), ("claims scales", "scales.png"),
        ("demo", "bf16.png"),
    ],
)  # fmt: skip
def test_a_folder_in_the_place_of_a_result_is_refused_before_the_work(
    command, name, tmp_path, monkeypatch, capsys
):
    module = importlib.import_module(cli.COMMANDS[command.split()[0]][0])
    monkeypatch.setattr(module, "run", interrupt)
    (tmp_path / name).mkdir()
    assert cli.main([*command.split(), f"--out={tmp_path}"]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert f"{tmp_path / name} is a folder" in stderr
    (tmp_path / name).rmdir()
    assert cli.main([*command.split(), f"--out={tmp_path}"]) == 130, "it did not begin"


@pytest.mark.parametrize("target", ["", "nowhere/state.safetensors"])
def test_a_target_that_cannot_be_written_is_refused_before_the_work(
    target, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(convert, "run", interrupt)
    assert cli.main(["convert", "run.pt", str(tmp_path / target)]) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "argument target: " in stderr
    assert cli.main(["convert", "run.pt", str(tmp_path / "state.safetensors")]) == 130


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_says_how_long_it_takes(command, monkeypatch, capsys):
    duration = cli.COMMANDS[command][2]
    assert cli.main([command, "--help"]) == 0
    assert f"takes {duration}" in capsys.readouterr().out
    module = importlib.import_module(cli.COMMANDS[command][0])
    monkeypatch.setattr(module, "run", interrupt)
    arguments = [command, *(["a.pt", "b.safetensors"] if command == "convert" else [])]
    for quiet, shown in (
        (["--quiet"], ""),
        ([], f"rmsprop-jax {command}: {duration}\n"),
    ):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        assert cli.main([*arguments, *quiet]) == 130
        stderr = capsys.readouterr().err
        assert stderr == shown + "rmsprop-jax: interrupted\n"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "no entry"), 2, "a folder to write to, got"),
    ],
)
def test_a_folder_that_takes_no_files_is_refused_before_training(
    error, status, words, tmp_path, monkeypatch, capsys
):
    def refuse(**options):
        assert options["dir"].is_dir()
        raise error

    monkeypatch.setattr(options.tempfile, "NamedTemporaryFile", refuse)
    assert cli.main(["demo", f"--out={tmp_path / 'new' / 'folder'}"]) == status
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert words in stderr
    assert not list(tmp_path.iterdir())


def test_unknown_commands_and_options_get_one_line(capsys):
    for arguments in (["dance"], ["demo", "--stepz", "3"], ["demo", "--step", "3"]):
        assert cli.main(arguments) == 2
        stderr = capsys.readouterr().err
        assert stderr.count("\n") == 1
        assert arguments[-2 if len(arguments) > 1 else 0] in stderr


@pytest.mark.parametrize("package", ["rich", "matplotlib", "scipy", "sklearn"])
def test_a_missing_extra_says_what_to_install(package, tmp_path):
    # In a process of its own: here the package has long been imported.
    program = (
        f"import sys; sys.modules[{package!r}] = None; from rmsprop_jax import cli; "
        f"sys.exit(cli.main(['demo', '--task=digits', '--out={tmp_path / 'out'}']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert _install.command("demo") in done.stderr
    assert package in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_ctrl_c_while_training_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    (tmp_path / "results.json").write_text("older")
    monkeypatch.setattr(bf16, "train", interrupt)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "older"
    assert "interrupted" in capsys.readouterr().err


def test_ctrl_c_ends_the_process_without_a_crash(tmp_path):
    """A real signal, once the training has begun: XLA's threads are at work."""
    out = tmp_path / "out"
    command = [sys.executable, "-u", "-c", SIGNALLED, "demo", "--task=digits"]
    done = subprocess.run(
        [*command, "--seeds=1", "--lrs=0.01", "--steps=100000", f"--out={out}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "rmsprop-jax: interrupted\n"
    assert not out.exists()


# The command line, but with a Ctrl-C in the middle of the first stretch of training.
SIGNALLED = """
import os, signal, sys, threading
from rmsprop_jax import cli
from rmsprop_jax.lab import program, training

def compiled(*args):
    made = program.compiled(*args)

    def advance(*args):
        if args[-1] > 0:  # none of its steps is done while it compiles
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        return made.advance(*args)

    return made._replace(advance=advance)

training.compiled = compiled
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("body", "status", "last"),
    [
        ("wait()", 130, "rmsprop-jax: interrupted"),
        ("while True:\n        with suppress(KeyboardInterrupt): wait()", 130,
         "rmsprop-jax: interrupted"),
        ("try: wait()\n    except KeyboardInterrupt: raise ValueError", 130,
         "rmsprop-jax: interrupted"),
        ("del gc.callbacks[:]; gc.callbacks.append(lambda *_: wait()); gc.collect(); "
         "later.join(); time.sleep(60)", 130, "rmsprop-jax: interrupted"),
        ("raise ValueError('of ours')", 1, "ValueError: of ours"),
        ("return 3", 3, ""),
    ],
    ids=["raised", "lost", "another", "in gc", "no interrupt", "done"],
)  # fmt: skip
def test_ctrl_c_ends_it_whatever_becomes_of_the_exception(body, status, last):
    program = f"""
import gc, os, signal, sys, threading, time
from contextlib import suppress
from rmsprop_jax import cli

later = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))

def wait():
    later.ident or later.start()
    time.sleep(60)

def run(argv):
    {body}

cli._run = run
sys.exit(cli.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1:] == ([last] if last else [])
    assert status == 1 or "Traceback" not in done.stderr


@pytest.mark.slow
def test_ctrl_c_at_thirty_moments(tmp_path):
    """While modules are imported, programs traced and compiled, and nets trained.

    Earlier than the first of them it is Python itself that starts.
    """
    small = ("--task=digits", "--steps=20", "--seeds=2", "--lrs=1e-2")
    command = [sys.executable, "-m", "rmsprop_jax", "demo", *small, f"--out={tmp_path}"]
    alive, late = 0, []
    for moment in np.geomspace(0.25, 8, 30):
        process = subprocess.Popen(
            [*command, "--optimizers=rmsprop"], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        time.sleep(moment)
        alive += process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.perf_counter()
        _, stderr = process.communicate(timeout=60)
        if process.returncode:
            late.append(time.perf_counter() - began)
            assert process.returncode == 130, (moment, stderr)
            assert stderr.endswith("rmsprop-jax: interrupted\n"), (moment, stderr)
            assert "Traceback" not in stderr, (moment, stderr)
    assert alive >= 10
    assert max(late) < 4, late  # 2 by itself; the tests beside it take their part


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_failure_while_writing_leaves_what_was_there(tmp_path, monkeypatch, error):
    (tmp_path / "results.json").write_text("older")
    write_bytes = Path.write_bytes

    def half(path, data):
        write_bytes(path, data[: len(data) // 2])
        if "results" in path.name:
            raise error
        return len(data) // 2

    monkeypatch.setattr(Path, "write_bytes", half)
    contents = {"curves.png": b"picture", "results.json": b"newer"}
    with pytest.raises(error):
        _files.write(tmp_path, contents)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "older"
    with pytest.raises(error):
        _files.write(tmp_path / "new" / "folder", contents)
    assert not (tmp_path / "new").exists()


def test_a_folder_in_a_file_s_place_leaves_what_was_there(tmp_path):
    (tmp_path / "curves.png").write_text("older")
    (tmp_path / "results.json").mkdir()
    contents = {"curves.png": b"picture", "results.json": b"newer"}
    with pytest.raises(IsADirectoryError):
        _files.write(tmp_path, contents)
    assert (tmp_path / "curves.png").read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 2


def test_writing_replaces_what_was_there(tmp_path):
    (tmp_path / "results.json").write_text("older")
    _files.write(tmp_path, {"results.json": b"newer"})
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_bytes() == b"newer"
