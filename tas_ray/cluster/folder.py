"""A run's folder: claimed by one driver at a time, and with the settings it was made by."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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


def kept_sweep(folder: Path) -> Sweep:
    """The settings the run in this folder was begun with.

    Raises:
        ValueError: there is no run in it, another version began it, it was renamed, or it has a method whose class is
            in no module that was imported.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no {CONFIG_FILE}")
    try:
        stored = json.loads(path.read_text())["config"]
        sweep = _rebuilt(Sweep, stored)
        if json.loads(json.dumps(_plain(sweep))) != stored:
            raise ValueError("it does not come back as it was")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the settings in {path} cannot be read ({type(error).__name__}: {error}): they are of another version, or "
            "of classes outside this package; in a program, pass the sweep itself"
        ) from error
    assert isinstance(sweep, Sweep)
    if sweep.run != folder.absolute().name:
        raise ValueError(f"the run {sweep.run} lies in {folder}: give the folder its name back")
    return replace(sweep, storage=folder.absolute().parent)


def _rebuilt(hint: Any, value: Any) -> Any:
    """What `_plain` was given, from what it made of it and its annotation."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, dict) and "class" in value:
        kind = _class_named(value["class"], options)
        hints = typing.get_type_hints(kind)
        return kind(
            **{field.name: _rebuilt(hints[field.name], value[field.name]) for field in dataclasses.fields(kind)}
        )
    if isinstance(value, dict):
        (kind,) = (option for option in options if issubclass(typing.get_origin(option) or option, Mapping))
        arguments = typing.get_args(kind)
        return {name: _rebuilt(arguments[1], item) for name, item in value.items()} if arguments else kind(value)
    if isinstance(value, list):
        (kind,) = (option for option in options if typing.get_origin(option) is tuple)
        return tuple(_rebuilt(typing.get_args(kind)[0], item) for item in value)
    return Path(value) if isinstance(value, str) and Path in options else value


def _class_named(name: str, options: Sequence[Any]) -> Any:
    """The dataclass of this name among the options and all that inherit from them."""
    found: list[Any] = [option for option in options if dataclasses.is_dataclass(option)]
    for kind in found:  # grows meanwhile
        if kind.__name__ == name:
            return kind
        found += kind.__subclasses__()
    raise ValueError(f"there is no class {name}")


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
