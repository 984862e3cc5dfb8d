"""Which code made a result: versions of the packages and the commit."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

VERSION = "0.1.0"
"""Version of this package."""

PACKAGES = ("torch", "ray")


def versions() -> dict[str, str]:
    """Versions of this package, Python, and the packages results depend on."""
    return {
        "tas_ray": VERSION,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The git commit of the checkout this code runs from, `+` behind it if files differ; None outside of one."""
    folder = Path(__file__).parent
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
