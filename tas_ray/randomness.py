"""Seeds derived from names and numbers, so that a draw can be repeated without any stored random state."""

import hashlib
import operator

import torch


def seed_of(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on the value, the type and the order of every part.

    The same parts give the same seed in every process, on every machine and under every Python version;
    `seed_of("a", 1)`, `seed_of("a", "1")`, `seed_of(1, "a")` and `seed_of("a1")` all differ.
    Raises `TypeError` for a part that is neither an integer nor a string.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        kind, text = ("s", part) if isinstance(part, str) else ("i", str(operator.index(part)))
        encoded = text.encode()
        digest.update(f"{kind}{len(encoded)}:".encode() + encoded)
    return int.from_bytes(digest.digest(), "big") >> 1


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """Return a new generator on `device`, seeded by `seed_of(*parts)`."""
    return torch.Generator(device).manual_seed(seed_of(*parts))
