"""What is said about installing: from the clone or wheel at hand, not from an index."""

import importlib.metadata
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from rmsprop_jax import _install

ROOT = Path(__file__).parent.parent


def test_in_a_clone_the_command_names_it():
    assert _install.command("demo") == f"pip install '{ROOT}[demo]'"


class Installed:
    """A distribution that pip has noted down, or not."""

    def __init__(self, url):
        self.url = url

    def read_text(self, name):
        assert name == "direct_url.json"
        return None if self.url is None else json.dumps({"url": self.url})


@pytest.mark.parametrize("noted", ["wheel", "gone", "https", None, "nothing"])
def test_installed_it_names_the_wheel_that_is_still_there(noted, tmp_path, monkeypatch):
    monkeypatch.setattr(_install, "__file__", str(tmp_path / "lib" / "x" / "y.py"))
    wheel = tmp_path / "a folder" / "rmsprop_jax-0.2.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    urls = {
        "wheel": wheel.as_uri(),
        "gone": (tmp_path / "gone.whl").as_uri(),
        "https": "https://example.org/rmsprop_jax.whl",
    }

    def distribution(name):
        if noted == "nothing":
            raise importlib.metadata.PackageNotFoundError(name)
        return Installed(urls.get(noted))

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    expected = (
        f"pip install '{wheel}[demo]'"
        if noted == "wheel"
        else "pip install '.[demo]' in a clone of rmsprop_jax"
    )
    assert _install.command("demo") == expected


def texts():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if name.endswith((".py", ".md", ".ipynb", ".toml")):
            yield name, (ROOT / name).read_text()


def test_nothing_says_that_an_index_has_it():
    """Whoever registers the name there would be run."""
    index = re.compile(r"""pip install[^\n]*["' ]rmsprop-jax""")
    extras = re.compile(r"rmsprop-jax\[")
    for name, text in texts():
        if name in ("tests/test_install.py", "pyproject.toml"):
            continue
        assert not index.search(text), name
        assert not extras.search(text), name


def test_one_place_names_the_project_s_address():
    """There is none yet, so nothing shows one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    addresses = project.get("urls", {}).values()
    for name, text in texts():
        for found in re.findall(r"https?://[^\s\"')]*rmsprop[-_]jax[^\s\"')]*", text):
            if name != "tests/test_install.py":
                assert any(found.startswith(a) for a in addresses), (name, found)
