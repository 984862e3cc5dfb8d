"""Milliseconds of any network of a space, from a table of its layers measured on the device that counts.

A layer's time depends on its widths: it is measured at a grid of them and interpolated between. The times of a
network's layers are summed, as the author of MetaPruning (ICCV 2019) did for its latency constraint; a scale and a
constant, fitted to some whole networks, stand for what runs between the layers, and others tell the error.
"""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tas_ray.batchnorm import fold
from tas_ray.choices import Architecture, Size, Width
from tas_ray.cost import Population, Row
from tas_ray.randomness import seed_of
from tas_ray.results import write_atomically
from tas_ray.space import SearchSpace

Milliseconds = Float[np.ndarray, " architectures"]
Widths = tuple[int, ...]
_T = TypeVar("_T")
Timer = Callable[[nn.Module, Tensor], float]
"""How many milliseconds a network takes for a batch of images."""

OnProgress = Callable[[int, int], None]
"""Called with how many times are known, and how many there will be."""

Kind = Literal["conv", "depthwise", "linear"]
Use = Literal["calibration", "check"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WARM_UP = 3
LEAST_SECONDS = 0.001
"""How long a timing lasts, about: shorter calls are timed several at once."""

MOST_CALLS = 1000
MOST_ROUNDS = 20
"""Timings at most, in repeats."""

SHORTER = 0.01
"""By what share a timing has to be shorter to count as such."""

SECONDS_BETWEEN_SAVES = 2.0
TRIES = 100
"""Random architectures drawn for each one wanted, at most."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How the layers and networks of a space are measured."""

    batch_size: int = 32
    """Images that pass at once; the milliseconds are those of the whole batch."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and images."""

    points: int = 5
    """Candidates of each width that layers are measured at, spread evenly, both ends among them."""

    networks: int = 16
    """Whole networks measured to calibrate the sum of layers, and about as many others to tell its error."""

    repeats: int = 20
    """Timings in a row that have to be no shorter before the shortest is believed."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("points", 2), ("networks", 2), ("repeats", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"a latency is measured with {name} of at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Conditions(Measurement):
    """What all times of a table have in common."""

    space: str
    """Name of the search space."""

    device: str
    """What the GPU or CPU calls itself."""

    threads: int
    """That torch computes with on a CPU; `OMP_NUM_THREADS` sets it."""

    torch: str
    """Its version."""


@dataclass(frozen=True, order=True)
class Layer:
    """A layer of certain sizes as it is deployed, its BatchNorm folded into a bias."""

    kind: Kind
    kernel: int
    stride: int
    size: int
    """Height and width of its input."""
    bias: bool
    c_in: int
    c_out: int

    def __str__(self) -> str:
        where = "" if self.kind == "linear" else f" {self.kernel}x{self.kernel} stride {self.stride} at {self.size}"
        return f"{self.kind}{where}, {self.c_in} > {self.c_out}"

    def build(self) -> nn.Module:
        """The layer, its weights random."""
        if self.kind == "linear":
            return nn.Linear(self.c_in, self.c_out, bias=self.bias)
        return nn.Conv2d(
            self.c_in,
            self.c_out,
            self.kernel,
            self.stride,
            padding=self.kernel // 2,
            groups=self.c_in if self.kind == "depthwise" else 1,
            bias=self.bias,
        )

    def shape(self, batch_size: int) -> tuple[int, ...]:
        """The shape of its input."""
        return (batch_size, self.c_in) + (() if self.kind == "linear" else (self.size, self.size))


@dataclass(frozen=True)
class MeasuredNetwork:
    """The milliseconds of a whole network, beside the sum over its layers."""

    architecture: Architecture
    use: Use
    layers_ms: float
    ms: float


@dataclass(frozen=True)
class LatencyTable:
    """Measured times of a space's layers, and of whole networks that calibrate and check their sum."""

    conditions: Conditions
    layers: Mapping[Layer, float]
    """Milliseconds of each."""
    networks: tuple[MeasuredNetwork, ...]

    def cost(self, space: SearchSpace) -> Callable[[Population], Milliseconds]:
        """The function that predicts the milliseconds of each network of a population (columns as `space.choices`).

        It raises ValueError for widths beyond those that were measured.

        Raises:
            ValueError: see `sum_of_layers` and `calibration`.
        """
        total, (constant, scale) = self.sum_of_layers(space), self.calibration
        return lambda population: constant + scale * total(population)

    def sum_of_layers(self, space: SearchSpace) -> Callable[[Population], Milliseconds]:
        """As `cost`, without calibration: the sum of the interpolated times of each network's layers.

        Raises:
            ValueError: the table is of another space, or of other widths, images or classes than this one has.
        """
        if self.conditions.space != space.name:
            raise ValueError(
                f"this table of latencies was measured for {self.conditions.space}, not for {space.name}: "
                "`tas-ray latency` measures one for it"
            )
        grids = [_Grid.of(row, self.conditions.points) for row in space.cost.rows]
        missing = sorted({layer for grid in grids for layer in grid.layers} - set(self.layers))
        if missing:
            raise ValueError(
                f"this table of latencies lacks {len(missing)} layers of {space.name}, such as {missing[0]}: it was "
                "measured for other widths, images or classes; `tas-ray latency` with the same options as here "
                "measures what is missing"
            )
        times = [np.array([self.layers[layer] for layer in grid.layers]).reshape(grid.shape) for grid in grids]
        ends = np.array([(axis[0], axis[-1]) for grid in grids for axis in (grid.c_in, grid.c_out)]).T

        def total(population: Population) -> Milliseconds:
            sizes = space.cost.signature(population)
            if ((sizes > 0) & (sizes < ends[0]) | (sizes > ends[1])).any():
                raise ValueError(
                    f"a network of {space.name} has widths below the least or above the most that were measured: its "
                    "latency is not known"
                )
            latency = np.zeros(len(population))
            for grid, ms, c_in, c_out in zip(grids, times, sizes.T[::2], sizes.T[1::2], strict=True):
                latency += (c_out > 0) * grid.between(ms, c_in, c_out)
            return latency

        return total

    @cached_property
    def calibration(self) -> tuple[float, float]:
        """Constant and scale with the least squares of relative errors, on the networks measured for that.

        Raises:
            ValueError: networks took no longer the longer their layers take.
        """
        networks = [network for network in self.networks if network.use == "calibration"]
        ms = np.array([network.ms for network in networks])
        features = np.array([(1.0, network.layers_ms) for network in networks])
        (constant, scale), *_ = np.linalg.lstsq(features / ms[:, None], np.ones(len(ms)))
        if scale <= 0:
            raise ValueError(
                f"on {self.conditions.device} networks of {self.conditions.space} whose layers take longer took no "
                f"longer: it was busy, or {self.conditions.batch_size} images are too few to tell networks apart; "
                "measure them again, with nothing else running or with larger batches"
            )
        return float(constant), float(scale)

    @property
    def errors(self) -> Float[np.ndarray, " networks"]:
        """How far predictions are from the networks measured as a check, relative to these: 0.1 is 10 % too high."""
        constant, scale = self.calibration
        checks = [network for network in self.networks if network.use == "check"]
        return np.array([(constant + scale * network.layers_ms) / network.ms - 1 for network in checks])

    def write(self, path: Path) -> None:
        """Writes a CSV with a line per time, atomically; the conditions are columns, the same in every line."""
        lines: list[dict[str, Any]] = [{"use": "layer", **asdict(layer), "ms": ms} for layer, ms in self.layers.items()]
        lines += [asdict(network) | {"architecture": network.architecture.to_json()} for network in self.networks]
        times = pd.DataFrame(lines, columns=TIMES).astype({name: COLUMNS[name] for name in TIMES})
        write_atomically(path, times.assign(**asdict(self.conditions)).to_csv(index=False).encode())

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """The table that `write` wrote.

        Raises:
            ValueError: there is no such file, or it is no such table, or its times have different conditions.
        """
        try:
            table = pd.read_csv(path, dtype=COLUMNS)
            conditions = table[CONDITIONS].drop_duplicates().to_dict("records")
            if len(conditions) != 1:
                raise ValueError(f"its times were measured under {len(conditions)} different conditions, not one")
            if not (table["ms"] > 0).all():
                raise ValueError("a time is missing or not positive")
            of_layers = table["use"] == "layer"
            return cls(
                Conditions(**{str(name): value for name, value in conditions[0].items()}),
                dict(_layer(line) for line in table[of_layers].to_dict("records")),
                tuple(_network(line) for line in table[~of_layers].to_dict("records")),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no table of latencies ({type(error).__name__}: {error}); `tas-ray latency` writes one"
            ) from error


SIZES = ("kernel", "stride", "size", "c_in", "c_out")
CONDITIONS = [f.name for f in fields(Conditions)]
TIMES = ["use", *(f.name for f in fields(Layer)), "architecture", "layers_ms", "ms"]
COLUMNS = {
    **dict.fromkeys(("use", "kind", "architecture", "space", "device", "torch", "dtype"), "str"),
    **dict.fromkeys(("batch_size", "points", "networks", "repeats", "threads"), "int64"),
    **dict.fromkeys(SIZES, "Int64"),
    **dict.fromkeys(("layers_ms", "ms"), "float64"),
    "bias": "boolean",
}
"""Types of the columns of a file; a layer has no architecture, a network no sizes."""


def _layer(line: Mapping[Any, Any]) -> tuple[Layer, float]:
    sizes = {name: int(line[name]) for name in SIZES}
    return Layer(kind=line["kind"], bias=bool(line["bias"]), **sizes), float(line["ms"])


def _network(line: Mapping[Any, Any]) -> MeasuredNetwork:
    if line["use"] not in ("calibration", "check"):
        raise ValueError(f"a time is of a layer, or of a network for calibration or check, not {line['use']!r}")
    architecture = Architecture.from_json(line["architecture"])
    return MeasuredNetwork(architecture, line["use"], float(line["layers_ms"]), float(line["ms"]))


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """Times a network: the shortest of many timings, because whatever else a machine does makes them longer only.

    It goes on until `repeats` timings in a row were no shorter, so that it waits for an undisturbed moment.
    """

    device: torch.device
    repeats: int

    def __call__(self, network: nn.Module, images: Tensor) -> float:
        """Milliseconds of one call."""
        self._seconds(network, images, WARM_UP)
        calls = math.ceil(LEAST_SECONDS / min(self._seconds(network, images, 1) for _ in range(WARM_UP)))
        best, vain = math.inf, 0
        for _ in range(MOST_ROUNDS * self.repeats):
            seconds = self._seconds(network, images, min(calls, MOST_CALLS))
            vain = 0 if seconds < (1 - SHORTER) * best else vain + 1
            best = min(best, seconds)
            if vain == self.repeats:
                break
        return 1000 * best

    def _seconds(self, network: nn.Module, images: Tensor, calls: int) -> float:
        """Seconds of one of so many calls in a row."""
        with torch.inference_mode():
            if self.device.type != "cuda":
                began = time.perf_counter()
                for _ in range(calls):
                    network(images)
                return (time.perf_counter() - began) / calls
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize(self.device)
            start.record()
            for _ in range(calls):
                network(images)
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000 / calls


def measure(
    space: SearchSpace,
    settings: Measurement,
    device: torch.device,
    path: Path,
    *,
    on_progress: OnProgress,
    timer: Timer | None = None,
) -> LatencyTable:
    """Measures layers and whole networks of a space on a device that should have nothing else to do.

    What is known already is kept in a file beside `path`, so that the same call goes on after a stop; the finished
    table is written to `path`. Layers come in random order, so that a device that slows down does so for all alike.

    Args:
        timer: takes the times. Left out: a `Stopwatch`.

    Raises:
        ValueError: a file lies there that is no table, or one of other conditions; the space has too few networks; or
            a layer or network does not fit the device's memory.
    """
    rig = _Rig(space, settings, device, timer or Stopwatch(device=device, repeats=settings.repeats))
    draft = path.with_name(f"{path.name}.part")
    known = _known(draft if draft.exists() else path, rig.conditions)
    layers = {layer for row in space.cost.rows for layer in _Grid.of(row, settings.points).layers}
    architectures = _chosen(space, 2 * settings.networks)
    table, saved = known, time.monotonic()
    for table in _measured(space, _shuffled(sorted(layers)), architectures, known, rig):
        on_progress(len(table.layers) + len(table.networks), len(layers | known.layers.keys()) + len(architectures))
        if time.monotonic() - saved >= SECONDS_BETWEEN_SAVES:
            table.write(draft)
            saved = time.monotonic()
    table.write(path)
    draft.unlink(missing_ok=True)
    return table


class _Rig:
    """Puts layers and networks on the device, as they would be deployed, and times them."""

    def __init__(self, space: SearchSpace, settings: Measurement, device: torch.device, timer: Timer) -> None:
        self.space, self.settings, self.device, self.timer = space, settings, device, timer
        self.conditions = Conditions(
            **asdict(settings),
            space=space.name,
            device=_name_of(device),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
        )

    def layer(self, layer: Layer) -> float:
        """Milliseconds of a layer."""
        return self._time(layer.build(), layer.shape(self.settings.batch_size), str(layer))

    def network(self, architecture: Architecture) -> float:
        """Milliseconds of a network."""
        space = self.space
        network = space.build(architecture)
        fold(network)
        shape = (self.settings.batch_size, space.channels, space.image_size, space.image_size)
        return self._time(network, shape, f"a network of {space.name}")

    def _time(self, network: nn.Module, shape: tuple[int, ...], name: str) -> float:
        dtype = DTYPES[self.settings.dtype]
        try:
            network = network.eval().to(self.device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
            images = torch.rand(shape, device=self.device).to(dtype)
            if images.dim() == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            return self.timer(network, images)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{name} and {self.settings.batch_size} images do not fit the memory of {self.conditions.device}: "
                "measure with a smaller batch"
            ) from error


def _measured(
    space: SearchSpace,
    layers: Sequence[Layer],
    architectures: Mapping[Architecture, Use],
    known: LatencyTable,
    rig: _Rig,
) -> Iterator[LatencyTable]:
    """The table with one more time after the other, those known already first."""
    times = dict(known.layers)
    table = LatencyTable(known.conditions, times, ())
    for layer in layers:
        if layer not in times:
            times[layer] = rig.layer(layer)
            yield table
    sums = table.sum_of_layers(space)(space.cost.population(list(architectures))).tolist()
    whole = {network.architecture: network.ms for network in known.networks}
    for (architecture, use), layers_ms in zip(architectures.items(), sums, strict=True):
        ms = whole.get(architecture) or rig.network(architecture)
        table = replace(table, networks=(*table.networks, MeasuredNetwork(architecture, use, layers_ms, ms)))
        yield table


def _known(path: Path, conditions: Conditions) -> LatencyTable:
    """What was measured before."""
    if not path.exists():
        return LatencyTable(conditions, {}, ())
    known = LatencyTable.read(path)
    old, new = asdict(known.conditions), asdict(conditions)
    other = [f"{name} {old[name]} and not {new[name]}" for name in new if old[name] != new[name]]
    if other:
        raise ValueError(f"{path} was measured with {', '.join(other)}: choose another file, or delete this one")
    return known


def _chosen(space: SearchSpace, count: int) -> dict[Architecture, Use]:
    """Different networks and what for: the smallest, the dense one, and genes scattered around levels between them.

    Raises:
        ValueError: there are fewer than 4.
    """
    counts = np.array([len(choice.options) for choice in space.choices], dtype=np.int64)
    chosen = {_identity(space, architecture): architecture for architecture in (space.smallest, space.dense)}
    for number in range(TRIES * count):
        if len(chosen) == count:
            break
        random = np.random.default_rng(seed_of("latency", "networks", number))
        genes = random.binomial(counts - 1, (number % count + 0.5) / count).tolist()
        picked = zip(space.choices, genes, strict=True)
        architecture = Architecture({choice.name: choice.options[gene] for choice, gene in picked})
        chosen.setdefault(_identity(space, architecture), architecture)
    if len(chosen) < 4:
        raise ValueError(
            f"only {len(chosen)} different networks of {space.name} were found, too few to calibrate a table of "
            "latencies and to check it: measure the networks themselves"
        )
    *inner, last = sorted(chosen.values(), key=space.macs)
    uses: dict[Architecture, Use] = {one: "check" if number % 2 else "calibration" for number, one in enumerate(inner)}
    return dict(_shuffled([*uses.items(), (last, "calibration")]))


def _shuffled(things: Sequence[_T]) -> list[_T]:
    """In an order that has nothing to do with sizes."""
    return [things[i] for i in np.random.default_rng(seed_of("latency", "order")).permutation(len(things))]


def _identity(space: SearchSpace, architecture: Architecture) -> bytes:
    return space.cost.signature(space.cost.population([architecture])).tobytes()


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# -- between the measured widths ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """The sizes one layer of a space is measured at, and how to read between them."""

    c_in: Widths
    c_out: Widths
    """Of a depthwise layer a single one: its width is `c_in`."""
    layers: tuple[Layer, ...]
    """Of all pairs, row by row."""

    @classmethod
    def of(cls, row: Row, points: int) -> _Grid:
        """For the layer of a row."""
        c_in, c_out = _spread(row.c_in, points), _spread(row.c_out, points)
        kind: Kind = "depthwise" if row.depthwise else "linear" if row.bias else "conv"
        pairs = zip(c_in, c_out, strict=True) if row.depthwise else itertools.product(c_in, c_out)
        layers = tuple(
            Layer(kind, row.kernel, row.stride, math.isqrt(row.input_positions), row.norm or row.bias, one, other)
            for one, other in pairs
        )
        return cls(c_in, c_out, layers)

    @property
    def shape(self) -> tuple[int, int]:
        """Of an array of a number for each layer."""
        return len(self.c_in), len(self.layers) // len(self.c_in)

    def between(
        self,
        ms: Float[np.ndarray, "inputs outputs"],
        c_in: Int[np.ndarray, " architectures"],
        c_out: Int[np.ndarray, " architectures"],
    ) -> Milliseconds:
        """The time at these widths: exact at measured ones, bilinear between them."""
        row, down = _place(self.c_in, c_in)
        column, right = _place(self.c_out, c_out) if ms.shape[1] > 1 else (0, 0.0)
        below, beside = np.minimum(row + 1, ms.shape[0] - 1), np.minimum(column + 1, ms.shape[1] - 1)
        upper = ms[row, column] * (1 - right) + ms[row, beside] * right
        lower = ms[below, column] * (1 - right) + ms[below, beside] * right
        return upper * (1 - down) + lower * down


def _place(axis: Widths, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each value the index of the measured width below it, and what share of the way to the next it lies at."""
    low = np.clip(np.searchsorted(axis, values, side="right") - 1, 0, max(0, len(axis) - 2))
    if len(axis) == 1:
        return low, np.zeros(len(values))
    widths = np.array(axis)
    return low, (values - widths[low]) / (widths[low + 1] - widths[low])


def _spread(size: Size, points: int) -> Widths:
    """So many of the widths a size can have, both ends among them; all if there are no more."""
    widths = sorted(set(_options(size)))
    picked = np.unique(np.linspace(0, len(widths) - 1, points).round().astype(int))
    return tuple(widths[i] for i in picked)


def _options(size: Size) -> Widths:
    match size:
        case int():
            return (size,)
        case Width():
            return size.options
        case _:
            return tuple(option for width in size.widths for option in _options(width))
