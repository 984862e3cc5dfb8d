"""The table of latencies: exact where layers add up, honest where they do not, and nothing is measured twice."""

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from jobs.latency import latency as latency_job
from search_spaces.mobilenet_v2 import mobilenet_v2
from search_spaces.tiny import tiny
from tas_ray import latency
from tas_ray.choices import Architecture, Candidates
from tas_ray.cli import MISTAKE, job, main
from tas_ray.latency import LatencyTable, MeasuredNetwork, Measurement, Stopwatch, Timer, measure
from tas_ray.space import SearchSpace

CPU = torch.device("cpu")
QUICK = Measurement(batch_size=1, points=3, networks=3, repeats=1)
Law = Callable[[nn.Conv2d | nn.Linear, Tensor], float]


def planar(layer: nn.Conv2d | nn.Linear, x: Tensor) -> float:
    """A time that interpolation in both widths hits: no square of a width in it, but everything else of a layer."""
    c_out, c_in, *kernel = layer.weight.shape
    stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
    bias = 0.1 * (layer.bias is not None)
    return 0.01 + bias + 1e-3 * x[0, 0].numel() * math.prod(kernel) / stride * (c_in + 2 * c_out + 0.1 * c_in * c_out)


def clock(law: Law = planar, *, scale: float = 1.5, constant: float = 0.25) -> Timer:
    """Times a layer by the law, and a whole network by what its layers take, times a scale, plus a constant."""

    def timed(network: nn.Module, images: Tensor) -> float:
        assert not network.training
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        parts: list[float] = []
        hooks = [layer.register_forward_hook(lambda m, x, _: parts.append(law(m, x[0]))) for layer in layers]
        with torch.no_grad():
            network(images)
        for hook in hooks:
            hook.remove()
        return sum(parts) if network in layers else scale * sum(parts) + constant

    return timed


def measured(space: SearchSpace, path: Path, settings: Measurement = QUICK, timer: Timer | None = None) -> LatencyTable:
    return measure(space, settings, CPU, path, timer=timer or clock(), on_progress=lambda done, total: None)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> LatencyTable:
    return measured(tiny(), tmp_path_factory.mktemp("tiny") / "latency.csv")


def drawn(space: SearchSpace, count: int) -> Iterator[Architecture]:
    random = np.random.default_rng(7)
    for _ in range(count):
        yield Architecture({choice.name: int(random.choice(choice.options)) for choice in space.choices})


# What it predicts


@pytest.mark.parametrize("space", [tiny(), tiny(published=True), mobilenet_v2(image_size=16, small_images=True)])
def test_networks_whose_layers_add_up_are_predicted_exactly(space, tmp_path):
    table = measured(space, tmp_path / "latency.csv", Measurement(batch_size=1, points=2, networks=2))
    assert table.calibration == pytest.approx((0.25, 1.5))
    assert np.abs(table.errors).max() < 1e-9
    networks = list(drawn(space, 3))
    whole = [clock()(folded(space, one), torch.zeros(1, 3, space.image_size, space.image_size)) for one in networks]
    assert table.cost(space)(space.cost.population(networks)) == pytest.approx(whole)


def folded(space: SearchSpace, architecture: Architecture) -> nn.Module:
    network = space.build(architecture).eval()
    latency.fold(network)
    return network


def test_between_measured_widths_time_is_a_straight_line(tmp_path):
    space = tiny()
    table = measured(space, tmp_path / "latency.csv", timer=clock(lambda layer, x: float(len(layer.weight)) ** 2))
    width = next(choice for choice in space.widths if choice.name == "stage2.block0.conv1")
    at = [width.options[i] for i in (0, round((len(width.options) - 1) / 2), -1)]
    networks = [Architecture({**space.dense, width.name: option}) for option in width.options]
    sums = table.sum_of_layers(space)(space.cost.population(networks))
    line = np.interp(width.options, at, [option**2 for option in at])  # only the layer that makes the width changes
    assert np.diff(sums) == pytest.approx(np.diff(line))
    assert any(option not in at for option in width.options)


def test_more_points_than_candidates_measure_every_pair(tmp_path):
    space = tiny()
    everything = Measurement(batch_size=1, points=100, networks=2)
    table = measured(space, tmp_path / "a.csv", everything, clock(lambda layer, x: float(layer.weight.numel()) ** 2))
    (architecture,) = drawn(space, 1)
    exact = sum(parameter.numel() ** 2 for parameter in space.build(architecture).parameters() if parameter.dim() > 1)
    assert table.sum_of_layers(space)(space.cost.population([architecture]))[0] == pytest.approx(exact)


def test_the_error_is_that_of_networks_which_did_not_calibrate(table):
    def network(use: latency.Use, layers_ms: float, ms: float) -> MeasuredNetwork:
        return MeasuredNetwork(Architecture({}), use, float(layers_ms), float(ms))

    networks = (
        network("calibration", 1, 3),
        network("calibration", 2, 5),
        network("check", 3, 5),
        network("check", 4, 9),
    )
    by_hand = LatencyTable(table.conditions, {}, networks)
    assert by_hand.calibration == pytest.approx((1, 2))
    assert by_hand.errors == pytest.approx([0.4, 0])
    backwards = LatencyTable(table.conditions, {}, (network("calibration", 1, 5), network("calibration", 2, 3)))
    with pytest.raises(ValueError, match="it was busy"):
        _ = backwards.calibration


def test_smallest_and_dense_calibrate_and_no_network_is_measured_twice(table):
    space = tiny()
    uses = {network.architecture: network.use for network in table.networks}
    assert uses[space.smallest] == uses[space.dense] == "calibration"
    signatures = space.cost.signature(space.cost.population(list(uses)))
    assert len(np.unique(signatures, axis=0)) == len(table.networks) == 2 * QUICK.networks
    assert list(uses.values()).count("check") == QUICK.networks - 1


# Files


def test_a_table_that_was_written_is_read_as_it_was(table, tmp_path):
    path = tmp_path / "copy.csv"
    table.write(path)
    assert LatencyTable.read(path) == table


def test_pandas_reads_it_as_it_stands(table, tmp_path):
    table.write(tmp_path / "copy.csv")
    frame = pd.read_csv(tmp_path / "copy.csv")
    assert dict(frame["use"].value_counts()) == {"layer": len(table.layers), "calibration": 4, "check": 2}
    assert set(frame["space"]) == {"tiny"}
    assert set(frame["torch"]) == {torch.__version__}
    assert (frame["ms"] > 0).all()


def test_after_a_stop_only_the_rest_is_measured(table, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "SECONDS_BETWEEN_SAVES", 0.0)
    calls = 0
    total = len(table.layers) + len(table.networks)
    stops = (5, len(table.layers) + 2)

    def counted(network: nn.Module, images: Tensor) -> float:
        nonlocal calls
        calls += 1
        if calls in stops:
            raise KeyboardInterrupt
        return clock()(network, images)

    path = tmp_path / "latency.csv"
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            measured(tiny(), path, timer=counted)
        assert not path.exists()
    again = measured(tiny(), path, timer=counted)
    assert calls == total + len(stops)
    assert (again.layers, again.networks) == (table.layers, table.networks)
    assert [file.name for file in tmp_path.iterdir()] == ["latency.csv"]
    measured(tiny(), path, timer=counted)
    assert calls == total + len(stops)


# What is refused


def test_a_table_answers_only_for_its_own_space(table):
    with pytest.raises(ValueError, match="measured for tiny, not for tiny-published"):
        table.cost(tiny(published=True))
    with pytest.raises(ValueError, match=r"lacks \d layers of tiny, such as linear, \d+ > 3"):
        table.cost(tiny(classes=3))
    with pytest.raises(ValueError, match="other widths, images or classes"):
        table.cost(tiny(image_size=16))
    space = tiny()
    smaller = Architecture({**space.dense, "stage2.block0.conv1": 1})
    with pytest.raises(ValueError, match="latency is not known"):
        table.cost(space)(space.cost.population([smaller]))


def test_times_of_other_conditions_are_not_mixed(tmp_path):
    path = tmp_path / "latency.csv"
    measured(tiny(), path)
    with pytest.raises(ValueError, match="batch_size 1 and not 2: choose another file"):
        measured(tiny(), path, Measurement(batch_size=2, points=3, networks=3, repeats=1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: frame.drop(columns="c_in"), "c_in"),
        (lambda frame: frame.assign(ms=-1.0), "not positive"),
        (lambda frame: frame.assign(batch_size=[2] + [1] * (len(frame) - 1)), "2 different conditions"),
        (lambda frame: frame.replace({"use": {"check": "both"}}), "not 'both'"),
        (lambda frame: frame.replace({"ms": {frame["ms"][0]: "fast"}}), "fast"),
    ],
)
def test_a_spoilt_file_is_refused_with_the_way_out(table, tmp_path, spoil, message):
    path = tmp_path / "latency.csv"
    table.write(path)
    spoil(pd.read_csv(path).astype({"ms": object})).to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"is no table of latencies .*{message}.*`tas-ray latency` writes one"):
        LatencyTable.read(path)


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff", b"a,b\n1,2\n"])
def test_what_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "latency.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is no table of latencies"):
        LatencyTable.read(path)


def test_a_space_without_choices_is_refused(tmp_path):
    frozen = SearchSpace(
        name="tiny", define=tiny().define, image_size=8, classes=10, candidates=Candidates(freeze=("*",))
    )
    with pytest.raises(ValueError, match="only 1 different networks of tiny"):
        measured(frozen, tmp_path / "latency.csv")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"points": 1}, {"networks": 1}, {"repeats": 0}])
def test_settings_that_measure_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="of at least"):
        Measurement(**wrong)


# The stopwatch


def test_the_stopwatch_waits_for_an_undisturbed_moment(monkeypatch):
    seconds = iter([9.0] * 6 + [5.0, 4.0, 6.0, 2.0, 3.0, 2.0, 2.5] + [1.0] * 9)
    monkeypatch.setattr(Stopwatch, "_seconds", lambda *_: next(seconds))
    assert Stopwatch(device=CPU, repeats=3)(nn.Identity(), torch.zeros(1)) == 2000.0


def test_the_stopwatch_gives_milliseconds_of_one_call():
    calls = 0

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return x

    assert 0 < Stopwatch(device=CPU, repeats=2)(Counted(), torch.zeros(1)) < 1000
    assert calls > 5


# The command and the job


def test_the_command_measures_and_says_how_far_it_is_off(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency.Stopwatch, "__call__", lambda self, network, images: clock()(network, images))
    main(["latency", "search_spaces.tiny:tiny", "--points", "2", "--networks", "3", "--device", "cpu"])
    text = " ".join(capsys.readouterr().out.split())
    assert "on 2 other networks off by 0.0% (median), 0.0% (most)" in text
    assert "--metapruning.limits latency.csv=MILLISECONDS" in text
    assert LatencyTable.read(Path("latency.csv")).conditions.batch_size == 32


def test_the_job_is_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(latency.Stopwatch, "__call__", lambda self, network, images: clock()(network, images))
    flags = ["--space", "search_spaces.tiny:tiny", "--options", "published=true", "--points", "2", "--device", "cpu"]
    job(latency_job, [*flags, "--output", str(tmp_path / "a.csv"), "--batch-size", "2"])
    conditions = LatencyTable.read(tmp_path / "a.csv").conditions
    assert (conditions.space, conditions.batch_size, conditions.points) == ("tiny-published", 2, 2)


def test_the_job_explains_each_of_its_flags(capsys):
    with pytest.raises(SystemExit) as ended:
        job(latency_job, ["--help"])
    assert ended.value.code == 0
    assert "usage: python -m jobs.latency" in capsys.readouterr().out
    documented = inspect.getdoc(latency_job) or ""
    assert all(f"    {name}: " in documented for name in inspect.signature(latency_job).parameters)


def test_a_submitted_job_has_to_write_where_it_lasts(monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(SystemExit) as ended:
        job(latency_job, ["--output", "latency.csv"])
    assert ended.value.code == MISTAKE
    assert "absolute path" in capsys.readouterr().err
