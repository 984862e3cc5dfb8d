"""A run's folder: claimed by one driver at a time, and with the settings it was made by."""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tas_ray.cluster.config import Sweep
from tas_ray.provenance import commit, versions
from tas_ray.results import write_atomically

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
_MAY_CHANGE = ("resources", "storage")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds the folder for this process, making it if need be; given up when the process ends, however it ends.

    Raises:
        ValueError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise ValueError(
            f"the run cannot be stored in {folder}: {error}. Give another `storage`, a folder this user may write"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is working on {folder}: wait for it, or give this sweep another `run`"
            ) from error
        yield


def keep_config(sweep: Sweep) -> None:
    """Writes the settings, versions and commit of a new run; compares them for one that goes on.

    Raises:
        ValueError: the run was started with other settings than these (resources and the place may differ).
    """
    path = sweep.folder / CONFIG_FILE
    config = _plain(sweep)
    if not path.exists():
        document = {"config": config, "versions": versions(), "commit": commit()}
        write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
        return
    try:
        stored = json.loads(path.read_text())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give this sweep another `run`") from error
    before, now = dict(_leaves(stored)), dict(_leaves(json.loads(json.dumps(config))))
    differing = [
        f"{name}: {before.get(name, 'absent')} there, {now.get(name, 'absent')} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, "absent") != now.get(name, "absent") and name.partition(".")[0] not in _MAY_CHANGE
    ]
    if differing:
        raise ValueError(
            f"{sweep.folder} holds a run with other settings: {'; '.join(differing)}. "
            "Give this sweep another `run`, or the same settings to go on with that one"
        )


def _plain(value: Any) -> Any:
    """Nested dataclasses as what JSON can say, each with the name of its class."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield name, value
        return
    for key, item in items:
        yield from _leaves(item, f"{name}.{key}" if name else str(key))
