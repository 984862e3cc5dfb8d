"""TAS's search: draws, expected costs, penalty and temperature, against the numbers of its reference code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces import cifar_resnet, imagenet_resnet
from search_spaces.tiny import tiny
from tas_ray.choices import Architecture, Candidates, Choice, Depth
from tas_ray.data import DataConfig, load
from tas_ray.methods.decode import argmax
from tas_ray.methods.tas import ExpectedMacs, Tas, TasTask, draw_subset, penalty_sign
from tas_ray.randomness import generator
from tas_ray.space import Budget, SearchSpace
from tas_ray.train import Training, fit
from tas_ray.workers import Workers

UNBOUNDED = Budget(most=2**62)
SHORT = Training(epochs=2, warmup_epochs=0, batch_size=128)

R20 = cifar_resnet.resnet20(published=True)
R32 = cifar_resnet.resnet32(published=True)
R56 = cifar_resnet.resnet56(published=True)
R110 = cifar_resnet.resnet110(published=True)
R164 = cifar_resnet.resnet164(published=True)
R18 = imagenet_resnet.resnet18(published=True)
R50 = imagenet_resnet.resnet50(published=True)


def probabilities(choices: tuple[Choice, ...], row: Callable[[Choice], list[float]] | None = None) -> Tensor:
    """One row per choice, uniform by default, padded with zeros."""
    most = max((len(choice.options) for choice in choices), default=0)
    rows = [row(c) if row else [1 / len(c.options)] * len(c.options) for c in choices]
    return torch.tensor([[*values, *[0.0] * (most - len(values))] for values in rows]).reshape(len(rows), most)


def one_hot(architecture: Architecture) -> Callable[[Choice], list[float]]:
    return lambda choice: [float(option == architecture[choice.name]) for option in choice.options]


def expected(space: SearchSpace, architecture: Architecture | None = None) -> float:
    row = one_hot(architecture) if architecture else None
    return ExpectedMacs(space)(probabilities(space.widths, row), probabilities(space.depths, row)).item()


def at(space: SearchSpace, width: int, depth: int) -> Architecture:
    """Every width and every depth at the option of this index."""
    return Architecture({c.name: c.options[depth if isinstance(c, Depth) else width] for c in space.choices})


def a_task(space: SearchSpace | None = None, share: float = 0.5, seed: int = 0, **settings: object) -> TasTask:
    space = space or tiny()
    config = Tas(search=SHORT, **settings)  # type: ignore[arg-type]
    return TasTask(config, space, space.budget(share, window=config.window), seed=seed)


# Expected MACs (specification, sections 4.2, 11.3 and 11.4)


@pytest.mark.parametrize(
    ("space", "millions", "share"),
    [
        (R20, 10.83255, 0.26542),
        (R32, 16.54891, 0.23941),
        (R56, 27.98165, 0.22252),
        (R110, 55.99186, 0.22118),
        (R164, 56.89720, 0.22975),
        (R18, 592.852, None),
        (R50, 1225.064, None),
    ],
    ids=lambda value: value.name if isinstance(value, SearchSpace) else "",
)
def test_expected_macs_of_uniform_probabilities(space: SearchSpace, millions: float, share: float | None) -> None:
    macs = expected(space)
    assert macs / 1e6 == pytest.approx(millions, rel=5e-6)
    if share:
        assert macs / space.macs(space.dense) == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize(
    ("space", "millions"),
    [
        *((space, 1.001854) for space in (R20, R32, R56, R110)),
        (R164, 1.734968),
        (R18, 103.285897),
        (R50, 174.736137),
    ],
    ids=lambda value: value.name if isinstance(value, SearchSpace) else "",
)
def test_expected_macs_of_certain_extremes(space: SearchSpace, millions: float) -> None:
    assert expected(space, space.smallest) / 1e6 == pytest.approx(millions, rel=5e-6)
    assert expected(space, space.dense) == pytest.approx(space.macs(space.dense), rel=1e-6)


@pytest.mark.parametrize(
    ("space", "millions"),
    [(R20, 9.125500), (R32, 13.945468), (R56, 13.945468), (R110, 13.945468), (R164, 16.335482)],
    ids=lambda value: value.name if isinstance(value, SearchSpace) else "",
)
def test_expected_macs_of_one_certain_network_between_them(space: SearchSpace, millions: float) -> None:
    architecture = at(space, width=3, depth=1)
    assert expected(space, architecture) / 1e6 == pytest.approx(millions, rel=5e-6)
    published = space.cost.published_macs(space.cost.population([architecture]))[0]
    assert published == pytest.approx(millions * 1e6, rel=5e-6)


@pytest.mark.parametrize("space", [R20, R32, R110], ids=lambda space: space.name)
def test_expected_macs_of_any_probabilities_are_those_of_the_references_formula(space: SearchSpace) -> None:
    random = np.random.default_rng(0)
    rows = {c.name: random.dirichlet(np.ones(len(c.options))).tolist() for c in space.choices}
    mean = {c.name: float(np.dot(c.options, rows[c.name])) for c in space.widths}
    c_in, macs = mean["stem"], 9 * 32 * 32 * 3 * mean["stem"]
    for number, depth in enumerate(space.depths, start=1):
        positions = (64 // 2**number) ** 2
        for block in range(depth.full):
            kept = sum(p for p, option in zip(rows[depth.name], depth.options, strict=True) if option > block)
            c_mid, c_out = (mean[f"stage{number}.block{block}.conv{i}"] for i in (1, 2))
            shortcut = c_in * c_out if block == 0 and number > 1 else 0
            macs += kept * positions * (9 * c_in * c_mid + 9 * c_mid * c_out + shortcut)
            c_in = c_out
    macs += 10 * c_in
    widths = probabilities(space.widths, lambda choice: rows[choice.name])
    depths = probabilities(space.depths, lambda choice: rows[choice.name])
    assert ExpectedMacs(space)(widths, depths).item() == pytest.approx(macs, rel=1e-6)


@pytest.mark.parametrize("space", [tiny(), cifar_resnet.resnet32(), imagenet_resnet.resnet18()])
def test_a_certain_architecture_of_a_tied_space_is_expected_to_cost_what_it_costs(space: SearchSpace) -> None:
    for seed in range(5):
        architecture = space.sample(UNBOUNDED, seed=seed)
        assert expected(space, architecture) == pytest.approx(space.macs(architecture), rel=1e-6)


@pytest.mark.parametrize("freeze", [("stage1.depth",), ("*.depth",), ("stem", "stage1.block0.*"), ("*.conv?", "stem")])
def test_what_is_frozen_costs_what_it_does_in_the_unpruned_network(freeze: tuple[str, ...]) -> None:
    whole = tiny(published=True)
    space = SearchSpace(
        name="partly", define=whole.define, image_size=8, classes=10, candidates=Candidates(freeze=freeze)
    )
    searched = {choice.name for choice in space.choices}
    assert 0 < len(searched) < len(whole.choices)
    smallest = Architecture({c.name: c.options[0] if c.name in searched else c.full for c in whole.choices})
    assert expected(space, space.smallest) == pytest.approx(expected(whole, smallest), rel=1e-6)
    assert expected(space, space.dense) == pytest.approx(space.macs(space.dense), rel=1e-6)


def test_the_gradient_of_the_expected_cost() -> None:
    goldens: list[tuple[SearchSpace, list[float], list[float]]] = [
        (R20, [0.008295, 0.00553, 0.002765, 0.0013825], [-0.056718, 0, 0.056718]),
        (R32, [0.0054297], []),
        (R56, [0.0032112], [-0.052697, -0.026349, 0, 0.026349, 0.052697]),
    ]
    for space, ends, depths in goldens:
        alpha = torch.zeros(len(space.widths), 8, requires_grad=True)
        beta = torch.zeros(len(space.depths), len(space.depths[0].options), requires_grad=True)
        ExpectedMacs(space)(alpha.softmax(1), beta.softmax(1)).log().backward()
        assert alpha.grad is not None
        assert beta.grad is not None
        stem = alpha.grad[0].tolist()
        assert stem[: len(ends)] == pytest.approx([-end for end in ends], rel=1e-4)
        assert stem[::-1][: len(ends)] == pytest.approx(ends, rel=1e-4)
        if depths:
            assert beta.grad[0].tolist() == pytest.approx(depths, rel=1e-4, abs=1e-7)


# The supernet's size (section 10.1)


@pytest.mark.parametrize(
    ("define", "ten", "hundred", "alpha", "beta"),
    [
        (cifar_resnet.resnet20, 279_089, 284_939, (19, 8), (3, 3)),
        (cifar_resnet.resnet32, 477_305, 483_155, (31, 8), (3, 3)),
        (cifar_resnet.resnet56, 873_743, 879_593, (55, 8), (3, 5)),
        (cifar_resnet.resnet110, 1_765_730, 1_771_580, (109, 8), (3, 10)),
        (cifar_resnet.resnet164, 1_809_982, 1_833_112, (163, 8), (3, 10)),
    ],
)
def test_the_published_supernets_have_as_many_parameters_as_the_references(
    define: Callable[..., SearchSpace], ten: int, hundred: int, alpha: tuple[int, int], beta: tuple[int, int]
) -> None:
    for classes, parameters in ((10, ten), (100, hundred)):
        task = a_task(define(classes=classes, published=True))
        assert sum(parameter.numel() for parameter in task.parameters()) == parameters
        assert (task.width_logits.shape, task.depth_logits.shape) == (alpha, beta)


@pytest.mark.parametrize(
    ("space", "parameters", "alpha", "beta"),
    [(R18, 11_729_856, (17, 8), (4, 2)), (R50, 25_780_222, (49, 8), (4, 3))],
    ids=["resnet18", "resnet50"],
)
def test_the_published_imagenet_supernets_too(
    space: SearchSpace, parameters: int, alpha: tuple[int, int], beta: tuple[int, int]
) -> None:
    task = a_task(space)
    assert sum(parameter.numel() for parameter in task.parameters()) == parameters
    assert (task.width_logits.shape, task.depth_logits.shape) == (alpha, beta)


def test_logits_start_near_zero() -> None:
    logits = a_task(R56).width_logits
    assert logits.mean().item() == pytest.approx(0, abs=0.002)
    assert logits.std().item() == pytest.approx(0.01, rel=0.1)


# Draws (sections 2.3, 3.3, 11.5 and 11.11)


@pytest.mark.parametrize(
    ("temperature", "published", "larger"), [(10, 0.29, 0.54), (5, 0.34, 0.59), (1, 0.62, 0.79), (0.1, 0.73, 0.96)]
)
def test_drawn_pairs_have_the_published_statistics(temperature: float, published: float, larger: float) -> None:
    task = a_task(R56)
    task.width_logits.data = torch.tensor([0.0] * 7 + [2.0]).repeat(len(R56.widths), 1)
    task.temperature = float(temperature)
    drawn = [w for step in range(150) for w in task.draw(generator("cpu", "statistics", step))[0].values()]
    has_last = np.mean([7 in w.indices for w in drawn])
    mean_larger = np.mean([w.weights.max().item() for w in drawn if w.weights is not None])
    deviation = math.sqrt(published * (1 - published) / len(drawn))
    assert has_last == pytest.approx(published, abs=0.005 + 4 * deviation)  # the table is rounded to 0.01
    assert mean_larger == pytest.approx(larger, abs=0.005 + 4 * 0.2 / math.sqrt(len(drawn)))


def test_a_subset_is_drawn_by_its_probabilities_and_weighted_by_them() -> None:
    noisy = torch.tensor([[0.0, 1.0, 3.0]]).repeat(20_000, 1).requires_grad_()
    indices, weights = draw_subset(noisy, 1, generator("cpu", "one"))
    assert (weights == 1).all()
    share = torch.bincount(torch.tensor(indices).flatten()) / len(indices)
    torch.testing.assert_close(share, torch.tensor([0.0, 1.0, 3.0]).softmax(0), rtol=0, atol=0.015)
    indices, weights = draw_subset(noisy, 2, generator("cpu", "two"))
    assert all(first < second for first, second in indices)
    torch.testing.assert_close(weights, noisy.gather(1, torch.tensor(indices)).softmax(1))
    assert draw_subset(noisy[:3], 3, generator("cpu", "three"))[0] == [[0, 1, 2]] * 3


@pytest.mark.parametrize("samples", [1, 2, 3, 5, None])
def test_so_many_widths_are_drawn(samples: int | None) -> None:
    task = a_task(tiny(published=True), samples=samples)
    widths, depths = task.draw(generator("cpu", "draw"))
    for width in widths.values():
        assert len(width.indices) == (samples or 8)
        assert list(width.indices) == sorted(set(width.indices))
        assert (width.weights is None) == (samples == 1)
        if width.weights is not None:
            assert width.weights.sum().item() == pytest.approx(1)
    for choice in task.space.depths:
        weights = depths[choice.name].weights
        assert weights is not None
        assert len(weights) == len(choice.options)
        assert weights.sum().item() == pytest.approx(1)


def test_widths_with_fewer_options_are_never_drawn_beyond_them() -> None:
    options = {"stage1.out": (8, 16), "stage2.out": (10, 20, 32), "stage2.depth": (1, 2)}
    space = SearchSpace(
        name="uneven", define=tiny().define, image_size=8, classes=10, candidates=Candidates(options=options)
    )
    task = a_task(space, samples=5)
    for step in range(50):
        widths, _ = task.draw(generator("cpu", step))
        assert widths["stage1.out"].indices == (0, 1)
        assert widths["stage2.out"].indices == (0, 1, 2)
        assert all(w.weights is not None and w.weights.sum().item() == pytest.approx(1) for w in widths.values())
    loss = task("architecture", torch.randn(4, 3, 8, 8), torch.arange(4), 0)
    loss.backward()
    assert task.width_logits.grad is not None
    assert task.width_logits.grad.isfinite().all()
    row = [width.name for width in space.widths].index("stage1.out")
    assert (task.width_logits.grad[row, 2:] == 0).all()
    assert (task.width_logits.grad[row, :2] != 0).all()
    assert [len(row) for row in task.scores()] == [len(choice.options) for choice in space.choices]


def test_without_temperature_weights_have_no_noise() -> None:
    task = a_task(temperature_max=0.0, temperature_min=0.0)
    task.start_epoch(0, 2)
    rows = {choice.name: row for choice, row in zip(task.space.widths, task.width_logits, strict=True)}
    drawn = set()
    for step in range(5):
        widths, depths = task.draw(generator("cpu", step))
        for name, width in widths.items():
            assert width.weights is not None
            torch.testing.assert_close(width.weights, rows[name][list(width.indices)].softmax(0))
            drawn.add((name, width.indices))
        for row, depth in zip(task.depth_logits, depths.values(), strict=True):
            assert depth.weights is not None
            torch.testing.assert_close(depth.weights, row.softmax(0))
    assert len(drawn) > len(widths)  # which widths are mixed is still drawn


def test_the_cross_entropy_reaches_the_two_drawn_logits_of_a_row_only() -> None:
    task = a_task(tiny(published=True), penalty_weight=0.0)
    task.train()
    loss = task("architecture", torch.randn(32, 3, 8, 8), torch.arange(32) % 10, 3)
    loss.backward()
    widths, _ = task.draw(generator("cpu", "draw", "architecture", task.seed, 3))
    assert task.width_logits.grad is not None
    for gradient, width in zip(task.width_logits.grad, widths.values(), strict=True):
        drawn = gradient[list(width.indices)]
        largest = drawn.abs().max().item()
        assert largest > 0
        assert drawn.sum().item() == pytest.approx(0, abs=1e-5 * largest)
        others = gradient.clone()
        others[list(width.indices)] = 0
        assert others.abs().max().item() <= 1e-5 * largest
    assert task.depth_logits.grad is not None
    assert (task.depth_logits.grad != 0).all()
    torch.testing.assert_close(task.depth_logits.grad.sum(1), torch.zeros(2), rtol=0, atol=1e-6)


def test_the_same_step_draws_the_same_and_another_draws_anew() -> None:
    task = a_task()
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    first = task("weights", images, labels, 7).item()
    assert task("weights", images, labels, 7).item() == first
    assert a_task()("weights", images, labels, 7).item() == first
    others = [task("weights", images, labels, 8), task("architecture", images, labels, 7)]
    others += [a_task(seed=1)("weights", images, labels, 7)]
    assert len({first, *(other.item() for other in others)}) == 4


# The two losses


def test_only_the_architectures_loss_has_the_penalty() -> None:
    task = a_task(penalty_weight=3.0)
    certain_of(task, task.space.dense)
    assert task.penalty().item() != 0
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    for group in ("weights", "architecture"):
        drawn = task.draw(generator("cpu", "draw", group, task.seed, 5))
        plain = F.cross_entropy(task.supernet(images, *drawn), labels)
        extra = 3.0 * task.penalty().item() if group == "architecture" else 0.0
        assert task(group, images, labels, 5).item() == pytest.approx(plain.item() + extra, rel=1e-5)


def certain_of(task: TasTask, architecture: Architecture) -> None:
    """Gives an architecture nearly all probability."""
    for choices, logits in (
        (task.space.widths, task.width_logits),
        (task.space.depths, task.depth_logits),
    ):
        logits.data = 9 * probabilities(choices, one_hot(architecture))


@pytest.mark.parametrize("published", [False, True])
def test_scores_belong_to_the_choices_they_were_learnt_for(published: bool) -> None:
    task = a_task(tiny(published=published))
    for seed in range(5):
        architecture = task.space.sample(UNBOUNDED, seed=seed)
        certain_of(task, architecture)
        assert argmax(task.space, task.scores()) == architecture
        assert task.metrics()["macs"] == task.space.macs(architecture)
        assert all(math.isclose(np.exp(row).sum(), 1, rel_tol=1e-5) for row in task.scores())


def test_the_penalty_is_the_log_of_the_expected_cost_signed_by_the_likeliest_networks() -> None:
    task = a_task(R20, share=0.55)
    space, dense = task.space, task.space.macs(task.space.dense)
    within = space.sample(task.budget, seed=0)
    for architecture in (space.dense, within, *(space.sample(UNBOUNDED, seed=seed) for seed in range(5))):
        certain_of(task, architecture)
        macs = space.macs(architecture)
        sign = 1 if macs > 0.55 * dense else -1 if macs < 0.5 * dense else 0
        assert sign == {space.dense: 1, within: 0}.get(architecture, -1)
        assert task.penalty().item() == pytest.approx(sign * math.log(expected_of(task) / 1e6), rel=1e-5)


@pytest.mark.parametrize("falls", [True, False])
def test_a_step_down_the_penalty_moves_the_expected_cost_towards_the_budget(falls: bool) -> None:
    task = a_task(share=0.5)
    certain_of(task, task.space.dense if falls else task.space.smallest)
    before = expected_of(task)
    task.penalty().backward()
    for logits in (task.width_logits, task.depth_logits):
        assert logits.grad is not None
        logits.data -= 10 * logits.grad
    assert (expected_of(task) < before) == falls


def expected_of(task: TasTask) -> float:
    return task.expected_macs(task.width_probabilities(), task.depth_probabilities()).item()


@pytest.mark.parametrize(("macs", "sign"), [(20.0, -1), (20.40, -1), (20.41, 0), (22.44, 0), (22.45, 1), (22.5, 1)])
def test_the_codes_penalty_rests_below_the_budget(macs: float, sign: int) -> None:
    dense = 40_813_000
    assert penalty_sign(int(macs * 1e6), int(0.55 * dense), dense, Tas()) == sign


@pytest.mark.parametrize(("macs", "sign"), [(21.3, -1), (21.35, 0), (22.44, 0), (23.5, 0), (23.6, 1)])
def test_the_papers_penalty_rests_on_both_sides_of_the_budget(macs: float, sign: int) -> None:
    dense = 40_813_000  # 22.447 M -+ 5 % of it: 21.325 to 23.570 M
    assert penalty_sign(int(macs * 1e6), int(0.55 * dense), dense, Tas(penalty="paper")) == sign


def test_the_published_count_overlooks_what_a_removed_block_hands_on() -> None:
    space = tiny(published=True)
    shortened = Architecture({**space.dense, "stage1.depth": 1, "stage1.block1.conv2": 4})
    macs = space.macs(shortened)  # 61 440 more than published; the tolerance is 57 104
    for counted, sign in (("built", 1), ("published", 0)):
        task = TasTask(Tas(search=SHORT, counted=counted), space, Budget(most=macs - 10_000), seed=0)
        certain_of(task, shortened)
        assert np.sign(task.penalty().item()) == sign * np.sign(math.log(expected_of(task) / 1e6))


# Schedules (section 11.7) and settings


@pytest.mark.parametrize(
    ("epoch", "temperature"), [(0, 5.0), (150, 4.282412), (300, 2.55), (450, 0.817588), (599, 0.100034)]
)
def test_the_temperature_falls_as_published(epoch: int, temperature: float) -> None:
    assert Tas().temperature_at(epoch, 600) == pytest.approx(temperature, abs=1e-6)


@pytest.mark.parametrize(("epoch", "temperature"), [(0, 10.0), (150, 7.525), (300, 5.05), (450, 2.575)])
def test_the_papers_temperature_falls_linearly(epoch: int, temperature: float) -> None:
    paper = Tas(temperature="linear", temperature_max=10.0)
    assert paper.temperature_at(epoch, 600) == pytest.approx(temperature)


def test_every_epoch_has_its_temperature() -> None:
    task = a_task()
    for epoch in (0, 1):
        task.start_epoch(epoch, 2)
        assert task.metrics()["temperature"] == task.config.temperature_at(epoch, 2)


def test_the_defaults_are_the_published_settings() -> None:
    tas = Tas()
    assert (tas.search.epochs, tas.search.warmup_epochs, tas.search.batch_size) == (600, 0, 256)
    assert (tas.search.learning_rate, tas.search.momentum, tas.search.weight_decay) == (0.1, 0.9, 5e-4)
    assert (tas.samples, tas.learning_rate, tas.weight_decay) == (2, 1e-3, 1e-3)
    assert (tas.penalty_weight, tas.tolerance) == (2.0, 0.05)
    (_, architecture) = a_task().groups
    assert isinstance(architecture.optimizer, torch.optim.Adam)
    assert architecture.optimizer.defaults["betas"] == (0.5, 0.999)
    assert architecture.optimizer.defaults["weight_decay"] == 1e-3
    assert all(field.kw_only for field in fields(Tas))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "at least 1 width .* not 0"),
        ({"learning_rate": 0.0}, "learning rate has to be positive, not 0.0"),
        ({"temperature_max": 0.05}, "from 0.05 to 0.1"),
        ({"temperature_min": -1.0}, "from 5.0 to -1.0"),
        ({"penalty_weight": -1.0}, "penalty's weight .* not -1.0"),
        ({"tolerance": 1.0}, r"tolerance in \[0, 1\), not 2.0 and 1.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tas(**settings)  # type: ignore[arg-type]


def test_nothing_to_search_is_refused() -> None:
    space = SearchSpace(
        name="frozen", define=tiny().define, image_size=8, classes=10, candidates=Candidates(freeze=("*",))
    )
    assert space.choices == ()
    with pytest.raises(ValueError, match="nothing of frozen is searched: every width and depth is frozen"):
        TasTask(Tas(search=SHORT), space, UNBOUNDED, seed=0)


# A search


def test_the_published_answer_is_the_arg_max_or_an_error() -> None:
    task = a_task(share=0.5, decode="argmax")
    space, budget = task.space, task.budget
    within = space.sample(budget, seed=0)
    certain_of(task, within)
    assert task.config.propose(space, budget, task, seed=0) == within
    certain_of(task, space.dense)
    message = f"arg-max architecture has {space.macs(space.dense)} MACs, more than the budget of {budget.most}"
    with pytest.raises(ValueError, match=message):
        task.config.propose(space, budget, task, seed=0)
    bounded = Tas(search=SHORT)
    assert budget.admits(space.macs(bounded.propose(space, budget, task, seed=0)))


def test_weights_and_architecture_are_trained_in_turns_by_their_own_losses() -> None:
    task = a_task(seed=3)
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    changed: dict[str, set[str]] = {}
    forward = task.forward

    def watched(group: str, images: Tensor, labels: Tensor, step: int) -> Tensor:
        moved = {n for n, p in task.named_parameters() if not torch.equal(p, before[n])}
        before.update({name: parameter.detach().clone() for name, parameter in task.named_parameters()})
        last = "weights" if group == "architecture" else "architecture"
        changed.setdefault(last, set()).update(moved)
        return forward(group, images, labels, step)

    task.forward = watched  # type: ignore[method-assign]
    run_search(task)
    logits = {"width_logits", "depth_logits"}
    assert changed["architecture"] == logits
    assert changed["weights"] == set(before) - logits


def run_search(task: TasTask) -> list[dict[str, float]]:
    dataset = load(DataConfig(), torch.device("cpu"))
    reported: list[dict[str, float]] = []
    fit(
        task,
        dataset,
        task.config.search,
        seed=0,
        workers=Workers(),
        state=None,
        end_of_epoch=lambda epoch, metrics, state: reported.append(metrics),
    )
    return reported


def test_a_search_learns_and_reports() -> None:
    task = a_task(learning_rate=0.05, share=0.4)
    reported = run_search(task)
    assert [metrics["epoch"] for metrics in reported] == [1, 2]
    assert reported[1]["loss"] < reported[0]["loss"] < 2.5
    assert set(reported[0]) >= {"loss", "seconds", "macs", "expected_macs", "temperature"}


def test_a_diverging_search_says_so() -> None:
    task = a_task(penalty_weight=0.0)
    with torch.no_grad():
        next(iter(task.supernet.parameters())).fill_(math.nan)
    with pytest.raises(ValueError, match="diverged; lower the learning rate or use float32"):
        run_search(task)
