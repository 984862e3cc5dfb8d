"""A score is the accuracy of the plain network with the weights given and statistics of its own, and it repeats."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces.tiny import tiny
from tas_ray.batchnorm import fold, recalibrate
from tas_ray.data import DataConfig, Dataset, load
from tas_ray.evaluation import Evaluation, Evaluator, check_sane, evaluation_images

CPU = torch.device("cpu")
SETTINGS = Evaluation(calibration_images=300, calibration_batch=100, images=200, batch_size=64)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig(), CPU)


def weights_of(architecture_seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    space = tiny()
    architecture = space.sample(space.budget(0.5), seed=architecture_seed)
    network = space.build(architecture, seed=1)
    return network, network.state_dict()


def test_a_score_is_the_accuracy_after_cumulative_recalibration(digits: Dataset) -> None:
    space = tiny()
    architecture = space.sample(space.budget(0.5), seed=0)
    network, weights = weights_of()
    images = evaluation_images(digits, SETTINGS, seed=0)
    score = Evaluator(space, images, SETTINGS, CPU).score(architecture, weights)

    def normalized(pixels: np.ndarray) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.mean, images.std))
        return (torch.tensor(pixels).float() / 255 - mean) / std

    by_hand = copy.deepcopy(network)
    norms = [module for module in by_hand.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    by_hand.train()
    with torch.no_grad():
        for batch in normalized(images.calibration).split(100):
            by_hand(batch)
        right = by_hand.eval()(normalized(images.images)).argmax(1) == torch.tensor(images.labels)
    assert score == pytest.approx(right.float().mean().item(), abs=1 / 200)
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())


def test_scores_repeat_and_do_not_depend_on_what_was_scored_before(digits: Dataset) -> None:
    space = tiny()
    evaluator = Evaluator(space, evaluation_images(digits, SETTINGS, seed=0), SETTINGS, CPU)
    first, second = (space.sample(space.budget(0.5), seed=seed) for seed in (0, 1))
    states = [space.build(a, seed=1).state_dict() for a in (first, second)]
    alone = evaluator.score(first, states[0])
    evaluator.score(second, states[1])
    assert evaluator.score(first, states[0]) == alone


def test_images_come_from_two_splits_and_are_the_same_every_time(digits: Dataset) -> None:
    images, again = (evaluation_images(digits, SETTINGS, seed=0) for _ in range(2))
    assert images.digest == again.digest
    assert (len(images.calibration), len(images.images), len(images.labels)) == (300, 200, 200)
    everything = evaluation_images(digits, Evaluation(), seed=0)
    assert len(everything.calibration) == digits.size("train")  # 2500 are more than there are
    assert len(everything.images) == int(0.8 * digits.size("search"))
    held_out, _ = digits.pixels("search", torch.arange(digits.size("search")))
    assert {image.tobytes() for image in images.images} <= {image.numpy().tobytes() for image in held_out}
    for other in (replace(SETTINGS, images=199), replace(SETTINGS, batchnorm="ema")):
        assert evaluation_images(digits, other, seed=0).digest != images.digest
    assert evaluation_images(digits, SETTINGS, seed=1).digest != images.digest


def test_cumulative_statistics_are_the_mean_over_batches_whatever_their_order() -> None:
    norm = nn.BatchNorm2d(4)
    norm.running_mean += 7
    batches = [torch.randn(8, 4, 3, 3) + shift for shift in range(5)]
    recalibrate(norm, batches, cumulative=True)
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected)
    variances = torch.stack([batch.transpose(0, 1).reshape(4, -1).var(1) for batch in batches]).mean(0)
    torch.testing.assert_close(norm.running_var, variances)
    backwards = nn.BatchNorm2d(4)
    recalibrate(backwards, batches[::-1], cumulative=True)
    torch.testing.assert_close(norm.running_mean, backwards.running_mean)


def test_the_published_average_keeps_an_eighth_of_the_initial_statistics_after_20_batches() -> None:
    norm = nn.BatchNorm2d(1)
    recalibrate(norm, [torch.ones(8, 1, 2, 2)] * 20)
    assert norm.running_mean.item() == pytest.approx(1 - 0.9**20)


def test_a_folded_network_computes_the_same_with_fewer_layers() -> None:
    network, _ = weights_of()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    network.eval()
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        before = network(x)
        fold(network)
        torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_a_network_that_computes_no_numbers_scores_none(digits: Dataset) -> None:
    space = tiny()
    architecture = space.sample(space.budget(0.5), seed=0)
    _, weights = weights_of()
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    weights["head.bias"][3] = math.nan
    evaluator = Evaluator(space, evaluation_images(digits, SETTINGS, seed=0), SETTINGS, CPU)
    assert math.isnan(evaluator.score(architecture, weights))


@pytest.mark.parametrize(("score", "training"), [(0.10, 0.0), (0.11, 0.0), (0.2, 0.5), (math.nan, 0.0)])
def test_scores_at_chance_or_far_below_training_are_refused(score: float, training: float) -> None:
    with pytest.raises(ValueError, match=r"unpruned network scores.*chance is 10\.00%"):
        check_sane(score, training_accuracy=training, classes=10, images=500)


def test_sane_scores_pass() -> None:
    check_sane(0.3, training_accuracy=0.5, classes=10, images=500)
    check_sane(0.2, training_accuracy=0.0, classes=10, images=500)


@pytest.mark.parametrize("name", ["calibration_images", "calibration_batch", "batch_size", "images"])
def test_too_few_images_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        Evaluation(**{name: 1})
