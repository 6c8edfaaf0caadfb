"""What to type for an extra of this package: it comes from where the package came."""

import importlib.metadata
import json
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


def command(extra: str) -> str:
    """Returns the command that installs an extra, from the clone or the wheel.

    No index has the package: whoever registered its name there would be run.
    """
    source = _source()
    if source is None:
        return f"pip install '.[{extra}]' in a clone of rmsprop_jax"
    return f"pip install '{source}[{extra}]'"


def _source() -> Path | None:
    """Returns the clone, or what pip has noted down (PEP 610), if it is still there."""
    clone = Path(__file__).parent.parent
    if (clone / "pyproject.toml").is_file():
        return clone
    try:
        noted = importlib.metadata.distribution("rmsprop-jax").read_text(
            "direct_url.json"
        )
    except importlib.metadata.PackageNotFoundError:
        return None
    url = urlsplit(json.loads(noted or "{}").get("url", ""))
    path = Path(url2pathname(url.path))
    return path if url.scheme == "file" and path.exists() else None
