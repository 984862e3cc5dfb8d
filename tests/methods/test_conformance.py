"""Every method on every kind of space, trained briefly, keeps what `Method` promises."""

from __future__ import annotations

import pytest
import torch

from search_spaces.tiny import tiny
from tas_ray.choices import Architecture, Candidates
from tas_ray.data import DataConfig, Dataset, load
from tas_ray.methods.baselines import Dense, Given, Random, Uniform
from tas_ray.methods.metapruning import MetaPruning, RandomSearch
from tas_ray.methods.method import ProposingMethod, SearchTask
from tas_ray.methods.tas import Tas
from tas_ray.space import Budget, SearchSpace
from tas_ray.train import Training, fit
from tas_ray.workers import Workers

BRIEF = Training(epochs=1, warmup_epochs=0, batch_size=256)
TWO = Training(epochs=2, warmup_epochs=1, batch_size=300)


def partly(freeze: tuple[str, ...], *, published: bool) -> SearchSpace:
    define = tiny(published=published).define
    candidates = Candidates(freeze=freeze)
    return SearchSpace(name="partly", define=define, image_size=8, classes=10, candidates=candidates)


SPACES = {
    "tied": tiny(),
    "published": tiny(published=True),
    "widths only": partly(("*.depth",), published=True),
    "depths only": partly(("*.out", "*.conv?"), published=False),
    "rounded": SearchSpace(
        name="rounded", define=tiny().define, image_size=8, classes=10, candidates=Candidates(multiple=4)
    ),
}
METHODS: dict[str, ProposingMethod] = {
    "dense": Dense(),
    "uniform": Uniform(),
    "random": Random(),
    "random, narrow": Random(tolerance=0.03),
    "given": Given(architecture=Architecture({"stage1.out": 6})),  # completed for each space below
    "tas": Tas(search=TWO),
    "tas, eager": Tas(search=BRIEF, learning_rate=0.3),
    "tas, 1 sample": Tas(search=BRIEF, samples=1),
    "tas, 3 samples": Tas(search=BRIEF, samples=3),
    "tas, 5 samples": Tas(search=BRIEF, samples=5),
    "tas, all samples": Tas(search=BRIEF, samples=None),
    "tas, linear": Tas(search=TWO, temperature="linear", temperature_max=10.0),
    "tas, no noise": Tas(search=BRIEF, temperature_max=0.0, temperature_min=0.0),
    "tas, paper's penalty": Tas(search=BRIEF, penalty="paper"),
    "tas, published count": Tas(search=BRIEF, counted="published"),
    "tas, arg-max": Tas(search=BRIEF, decode="argmax"),
}
SHARES = {"depths only": 0.75}  # its four networks have 48, 74, 74 and 100 % of the MACs
PAIRS = [
    (method, space)
    for method in METHODS
    for space in SPACES
    if (method, space) != ("uniform", "depths only")  # has no width to scale, see test_baselines
]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig(), torch.device("cpu"))


def a_search(
    method: ProposingMethod, space: SearchSpace, digits: Dataset, seed: int, share: float = 0.55
) -> tuple[Budget, SearchTask | None, Architecture | ValueError]:
    """The budget, what was trained, and what was proposed, or the refusal."""
    budget = space.budget(1.0 if isinstance(method, Dense) else share, window=method.window)
    task = method.task(space, budget, seed=seed)
    assert (task is None) == (method.training is None)
    if task is not None and method.training is not None:
        fit(
            task,
            digits,
            method.training,
            seed=seed,
            workers=Workers(),
            state=None,
            end_of_epoch=lambda epoch, metrics, state: None,
        )
    try:
        return budget, task, method.propose(space, budget, task, seed=seed)
    except ValueError as error:
        return budget, task, error


def for_space(name: str, space: SearchSpace) -> ProposingMethod:
    if name != "given":
        return METHODS[name]
    return Given(architecture=space.sample(space.budget(0.5), seed=9))


@pytest.mark.parametrize(("method_name", "space_name"), PAIRS)
def test_a_method_proposes_an_architecture_that_the_budget_admits(
    method_name: str, space_name: str, digits: Dataset
) -> None:
    space = SPACES[space_name]
    method = for_space(method_name, space)
    budget, task, proposed = a_search(method, space, digits, seed=0, share=SHARES.get(space_name, 0.55))
    if method_name == "tas, arg-max":
        check_arg_max(space, budget, proposed)
        return
    assert isinstance(proposed, Architecture), proposed
    space.validate(proposed)
    assert budget.admits(space.macs(proposed))
    network = space.build(proposed)
    images = torch.zeros(2, 3, 8, 8)
    assert network(images).shape == (2, 10)
    if task is not None:
        assert all(proposed[choice.name] in choice.options for choice in space.choices)
        with torch.no_grad():
            assert task.network(proposed).eval()(images).isfinite().all()


def check_arg_max(space: SearchSpace, budget: Budget, proposed: Architecture | ValueError) -> None:
    if isinstance(proposed, ValueError):
        assert "more than the budget" in str(proposed)
    else:
        assert space.macs(proposed) <= budget.most


@pytest.mark.parametrize("space_name", ["tied", "published"])
@pytest.mark.parametrize("method_name", ["uniform", "random", "tas", "tas, all samples"])
def test_a_proposal_repeats_for_a_seed(method_name: str, space_name: str, digits: Dataset) -> None:
    space = SPACES[space_name]
    method = for_space(method_name, space)
    (_, first, proposed), (_, second, again) = (a_search(method, space, digits, seed=1) for _ in range(2))
    assert proposed == again
    _, other, different = a_search(method, space, digits, seed=2)
    assert (proposed == different) == (method_name == "uniform")
    if first is not None and second is not None and other is not None:
        assert_equal_states(first.state_dict(), second.state_dict())
        assert not torch.equal(next(first.parameters()), next(other.parameters()))


def assert_equal_states(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def test_methods_have_names_of_their_own() -> None:
    assert len({method.name for method in (Dense, Uniform, Random, Given, Tas, MetaPruning, RandomSearch)}) == 7
