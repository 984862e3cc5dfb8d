"""A finished network as two files: its weights as safetensors, and what rebuilds it as JSON; no Ray to load it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from tas_ray.choices import Architecture, Candidates
from tas_ray.results import write_atomically
from tas_ray.space import SpaceConfig

WEIGHTS_FILE = "network.safetensors"
ARCHITECTURE_FILE = "architecture.json"


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What a network's weights fit into, and what it expects of images."""

    space: SpaceConfig
    architecture: Architecture
    classes: int
    image_size: int
    mean: tuple[float, ...]
    """Per channel, in units of white: the network was trained on (pixels - mean) / std."""
    std: tuple[float, ...]
    """Per channel, in units of white."""

    def build(self) -> nn.Module:
        """The network, its weights freshly initialized."""
        return self.space.load(classes=self.classes, image_size=self.image_size).build(self.architecture)


def save_network(folder: Path, network: nn.Module, blueprint: Blueprint) -> None:
    """Writes both files, each atomically."""
    weights = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    write_atomically(folder / WEIGHTS_FILE, safetensors.torch.save(weights))
    save_blueprint(folder, blueprint)


def save_blueprint(folder: Path, blueprint: Blueprint) -> None:
    """Writes the description alone, atomically."""
    fields = asdict(blueprint) | {"architecture": dict(blueprint.architecture)}
    write_atomically(folder / ARCHITECTURE_FILE, (json.dumps(fields, indent=2) + "\n").encode())


def load_network(folder: str | Path) -> nn.Module:
    """The network that `save_network` wrote, in evaluation mode, on the CPU.

    Raises:
        ValueError: a file is missing or damaged, or the weights do not fit the architecture.
    """
    network = load_blueprint(folder).build()
    path = Path(folder) / WEIGHTS_FILE
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the weights of {ARCHITECTURE_FILE} beside it: {error}") from error
    return network.eval()


def load_blueprint(folder: str | Path) -> Blueprint:
    """The description of the network in `folder`; ValueError if it is missing or damaged."""
    path = Path(folder) / ARCHITECTURE_FILE
    try:
        fields = json.loads(path.read_text())
        space = fields["space"]
        if space["candidates"] is not None:
            given = space["candidates"]
            options = {name: tuple(values) for name, values in given["options"].items()}
            given |= {"ratios": tuple(given["ratios"]), "freeze": tuple(given["freeze"]), "options": options}
            space["candidates"] = Candidates(**given)
        return Blueprint(
            space=SpaceConfig(**space),
            architecture=Architecture(fields["architecture"]),
            classes=fields["classes"],
            image_size=fields["image_size"],
            mean=tuple(fields["mean"]),
            std=tuple(fields["std"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not describe a network ({type(error).__name__}: {error}); a finished trial's folder "
            f"has {ARCHITECTURE_FILE} and {WEIGHTS_FILE}"
        ) from error
