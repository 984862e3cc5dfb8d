"""What a cluster has, and how many processes of one size fit into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from tas_ray.cluster.config import Resources

Amounts = Mapping[str, float]
"""By Ray's names of resources, such as {"CPU": 8, "GPU": 1}."""


def alive_nodes() -> list[dict[str, float]]:
    """What each living node of the connected cluster has in total."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fitting(need: Amounts, nodes: Sequence[Amounts]) -> int:
    """How many processes that need so much the nodes hold at once."""
    return sum(
        min(_copies(node.get(name, 0.0), amount, name == "GPU") for name, amount in need.items()) for node in nodes
    )


def check_resources(resources: Resources, nodes: Sequence[Amounts]) -> int:
    """The number of trials that fit the nodes at once, at least 1.

    Raises:
        ValueError: not even one trial fits, however long it waits: a worker is larger than every node, or there is
            no room for all of its workers.
    """
    need = resources.per_worker
    room = fitting(need, nodes)
    if trials := room // resources.least_workers:
        return trials
    raise ValueError(
        f"a trial needs {resources.least_workers} worker(s) of {_told(need, need)}, but {_room(room, need, nodes)}. "
        "Ask for fewer or smaller workers (--resources), or add nodes"
    )


def check_slots(slots: int, need: Amounts, nodes: Sequence[Amounts]) -> None:
    """ValueError if the nodes could never hold so many slots of an evolutionary search at once."""
    needed = {name: amount for name, amount in need.items() if amount}
    if not needed or any(amount < 0 for amount in needed.values()):
        raise ValueError(f'a slot needs some of the cluster, such as {{"CPU": 1}}, not {dict(need)}')
    room = fitting(needed, nodes)
    if slots > room:
        raise ValueError(
            f"{slots} slots of {_told(needed, needed)} each are asked for, but {_room(room, needed, nodes)}. "
            "Ask for fewer or smaller slots, or add nodes"
        )


def _copies(there: float, amount: float, whole: bool) -> int:
    """How often an amount fits; a share of something whole, such as a GPU, does not reach over two of them."""
    if whole and amount < 1:
        return int(there) * int(1 / amount + 1e-9)
    return int(there / amount + 1e-9)


def _room(room: int, need: Amounts, nodes: Sequence[Amounts]) -> str:
    shapes = ", ".join(_told(node, need) for node in nodes) or "no node"
    return f"this cluster has room for {room}: its nodes have {shapes}"


def _told(amounts: Amounts, names: Amounts) -> str:
    return " + ".join(f"{amounts.get(name, 0.0):g} {name}" for name in names)
