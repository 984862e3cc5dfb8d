"""Limits beside MACs: every candidate of a search keeps them, and one that nothing keeps is named at once."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search_spaces.metapruning import flops
from search_spaces.mobilenet_v2 import mobilenet_v2
from search_spaces.tiny import tiny
from tas_ray.cli import MISTAKE, main
from tas_ray.evolution import Candidate, Evolution
from tas_ray.latency import Measurement, measure
from tas_ray.limits import Limit
from tas_ray.methods.metapruning import MetaPruning
from tas_ray.space import SearchSpace

SMALL = Evolution(population=12, parents=4, mutations=5, crossovers=5, generations=3)
TINY = "search_spaces.tiny:tiny"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latencies of `tiny` as if a layer took a millisecond for each of its input channels, and nothing else."""
    path = tmp_path_factory.mktemp("tiny") / "latency.csv"

    def timed(network: torch.nn.Module, images: torch.Tensor) -> float:
        weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
        return float(sum(weight.shape[1] for weight in weights))

    settings = Measurement(batch_size=1, points=2, networks=2)
    measure(tiny(), settings, torch.device("cpu"), path, timer=timed, on_progress=lambda done, total: None)
    return path


def searched(space: SearchSpace, *limits: Limit, budget: float = 0.5) -> list[Candidate]:
    """All candidates of a search that prefers large networks."""
    method = MetaPruning(evolution=SMALL, limits=limits)
    search = method.search(space, [space.budget(budget)], seed=0)
    candidates: list[Candidate] = []
    while asked := search.ask():
        candidates += asked
        for candidate in asked:
            search.tell(candidate.ticket, candidate.macs / 1e9)
    return candidates


def input_channels(space: SearchSpace, candidate: Candidate) -> int:
    network = space.build(candidate.architecture)
    return sum(parameter.shape[1] for parameter in network.parameters() if parameter.dim() > 1)


def test_every_candidate_keeps_a_limit_on_parameters():
    space = tiny()
    params = [space.params(one.architecture) for one in searched(space, Limit(most=12_000, least=8_000))]
    assert len(params) == 36
    assert 8_000 <= min(params) <= max(params) <= 12_000
    assert max(space.params(one.architecture) for one in searched(space)) > 12_000


def test_every_candidate_keeps_a_limit_on_latency(table):
    space = tiny()
    ms = [input_channels(space, one) for one in searched(space, Limit(cost=str(table), most=90, least=60))]
    assert len(ms) == 36
    assert 60 <= min(ms) <= max(ms) <= 90
    assert max(input_channels(space, one) for one in searched(space)) > 90


def test_every_candidate_keeps_a_limit_on_a_cost_of_ones_own():
    space = mobilenet_v2(image_size=64, small_images=True)
    most = 0.4 * space.macs(space.dense)
    candidates = searched(space, Limit(cost="search_spaces.metapruning:flops", most=most))
    costs = flops(space, space.cost.population([one.architecture for one in candidates]))
    assert 0 < costs.min() <= costs.max() <= most
    assert max(one.macs for one in searched(space)) > most


def test_several_limits_hold_together(table):
    space = tiny()
    limits = Limit(most=12_000), Limit(cost=str(table), most=80)
    for one in searched(space, *limits):
        assert space.params(one.architecture) <= 12_000
        assert input_channels(space, one) <= 80


def test_a_limit_that_nothing_keeps_is_named_with_what_is_nearest(table):
    with pytest.raises(ValueError, match=r"and 0 to 5 ms \(latency.csv\); the nearest has .* MACs and \d+ ms"):
        searched(tiny(), Limit(cost=str(table), most=5))
    with pytest.raises(ValueError, match=r"0 to 571 040 MACs and 40 000 to inf params; the nearest"):
        searched(tiny(), Limit(least=40_000))


def test_a_cost_that_is_not_one_number_for_each_network_is_refused(tmp_path, monkeypatch):
    (tmp_path / "my_costs.py").write_text("def total(space, population):\n    return population.sum()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="the cost of total has to be one number for each"):
        searched(tiny(), Limit(cost="my_costs:total", most=5))
    sys.modules.pop("my_costs")


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ("nowhere.csv", "is no table of latencies"),
        ("search_spaces.tiny:nothing", "there is no cost search_spaces.tiny:nothing"),
        ("no_such_module:f", "there is no cost no_such_module:f"),
        ("search_spaces.tiny:PLANES", "is a tuple, not a function"),
        ("search_spaces.metapruning:flops", "tiny is none of these"),
    ],
)
def test_a_cost_that_cannot_be_had_is_refused(cost, message):
    with pytest.raises(ValueError, match=message):
        searched(tiny(), Limit(cost=cost, most=5))


def test_a_table_of_another_space_is_refused(table):
    with pytest.raises(ValueError, match="measured for tiny, not for other"):
        searched(replace(tiny(), name="other"), Limit(cost=str(table), most=50))


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("params=1e6", Limit(most=1e6)),
        ("params=2..3", Limit(least=2, most=3)),
        ("params=2..inf", Limit(least=2)),
        ("search_spaces.metapruning:flops=6.5e7", Limit(cost="search_spaces.metapruning:flops", most=6.5e7)),
        ("a=b/latency.csv=0.5..3.5", Limit(cost="a=b/latency.csv", least=0.5, most=3.5)),
    ],
)
def test_a_limit_can_be_written_down(text, limit):
    assert Limit.parse(text) == limit


@pytest.mark.parametrize("text", ["params", "=3", "params=", "params=x", "params=1..", "params=..2", "params=1..2..3"])
def test_what_is_no_limit_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="such as params=1e6"):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("params=3..2", "the upper no less than the lower"),
        ("params=-1", "not 0 to -1"),
        ("params=nan", "not 0 to nan"),
        ("params=0..inf", "not 0 to inf"),
        ("latency=3", "not on 'latency'"),
    ],
)
def test_bounds_that_bound_nothing_and_unknown_costs_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Limit.parse(text)


def test_a_table_is_named_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    limit = Limit(cost="latency.csv", most=3)
    assert limit.cost == str(tmp_path / "latency.csv")
    assert limit.name == "ms (latency.csv)"


def test_flags_limit_a_search_before_anything_is_trained(table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for bounds, message in ((f"{table}=5", "0 to 5 ms (latency.csv)"), ("params=much", "such as params=1e6")):
        with pytest.raises(SystemExit) as ended:
            main(["search", TINY, "--method", "metapruning", "--budget", "0.5", "--metapruning.limits", bounds])
        assert ended.value.code == MISTAKE
        said = capsys.readouterr()
        assert message in said.err + said.out
