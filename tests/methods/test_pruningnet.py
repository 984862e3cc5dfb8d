"""The PruningNet computes what the networks it stands for compute, and learns what autograd would teach it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.cifar_resnet import resnet20
from search_spaces.tiny import tiny
from tas_ray.choices import Architecture
from tas_ray.methods import pruningnet
from tas_ray.methods.pruningnet import GeneratedConvBN, Generator, PruningNet, RankOneSGD
from tas_ray.space import SearchSpace
from tas_ray.train import Training

TRAINING = Training(learning_rate=0.2, momentum=0.9, nesterov=False, weight_decay=0.0)


def net_of(space: SearchSpace, *, affine: bool = False, seed: int = 0) -> PruningNet:
    torch.manual_seed(seed)
    return PruningNet(space.define, space.candidates, hidden=8, hidden_alone=4, affine=affine).double()


def structures(space: SearchSpace, count: int) -> list[Architecture]:
    budget = space.budget(1.0)
    return [space.sample(budget, seed=seed) for seed in range(count)]


def images(space: SearchSpace, count: int = 6, seed: int = 0) -> Tensor:
    size = (count, 3, space.image_size, space.image_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("space", [tiny(), resnet20()], ids=lambda space: space.name)
def test_a_structure_computes_what_its_plain_network_with_generated_weights_does(
    space: SearchSpace, affine: bool
) -> None:
    net = net_of(space, affine=affine)
    if affine:
        for module in net.modules():
            if isinstance(module, GeneratedConvBN) and module.scale is not None and module.shift is not None:
                nn.init.uniform_(module.scale, 0.5, 1.5)
                nn.init.normal_(module.shift)
    x = images(space)
    architectures = [space.smallest, *structures(space, 4), space.dense]
    for architecture in architectures:
        plain = space.build(architecture).double()
        plain.load_state_dict(net.weights(architecture))
        torch.testing.assert_close(net(x, architecture), plain.train()(x), rtol=1e-10, atol=1e-10)


def test_a_generated_weight_is_the_leading_corner_of_the_full_one() -> None:
    generator = Generator(6, 5, 3, ratios=2, hidden=7).double()
    rows = generator.weight2.view(-1, 8)
    for ratios in ([0.4, 0.7], [1.0, 0.3]):
        hidden = generator.hidden(torch.tensor(ratios, dtype=torch.float64))
        full = (rows[:, :7] @ hidden[:7] + rows[:, 7]).view(6, 5, 3, 3)
        torch.testing.assert_close(generator.generate(6, 5, hidden), full)
        torch.testing.assert_close(generator.generate(4, 2, hidden), full[:4, :2])


class Autograd(nn.Module):
    """The same net with its weights generated inside the graph, and torch's own SGD."""

    def __init__(self, net: PruningNet, training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        self.monkeypatch = monkeypatch
        affine = [m for m in self.net.modules() if isinstance(m, GeneratedConvBN)]
        spared = {id(p) for m in affine for p in m.parameters(recurse=False)}
        groups = [
            {"params": [p for p in self.net.parameters() if id(p) not in spared]},
            {"params": [p for p in self.net.parameters() if id(p) in spared], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(
            [group for group in groups if group["params"]],
            lr=1.0,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        def use(self: Generator, c_out: int, c_in: int, ratios: list[float]) -> Tensor:
            hidden = self.hidden(self.weight1.new_tensor(ratios))
            return (self.weight2.view(-1, len(hidden)) @ hidden).view(self.shape)[:c_out, :c_in]

        with self.monkeypatch.context() as patch:
            patch.setattr(Generator, "use", use)
            return self.net(x, architecture)


@pytest.mark.parametrize("lag", [3, 512])
@pytest.mark.parametrize(("weight_decay", "affine"), [(0.0, False), (1e-2, False), (1e-2, True)])
@pytest.mark.parametrize("space", [tiny(), resnet20()], ids=lambda space: space.name)
def test_rank_one_steps_are_those_of_autograd(
    space: SearchSpace, weight_decay: float, affine: bool, lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruningnet, "LONGEST_LAG", lag)
    training = Training(learning_rate=0.2, momentum=0.9, nesterov=False, weight_decay=weight_decay)
    net = net_of(space, affine=affine)
    reference = Autograd(net, training, monkeypatch)
    optimizer = RankOneSGD(net, training)
    labels = torch.arange(6) % 10
    for step, architecture in enumerate(structures(space, 12)):
        rate = 0.05 / (1 + step)
        for module, update in ((net, optimizer), (reference, reference.optimizer)):
            for group in update.param_groups:
                group["lr"] = rate
            update.zero_grad()
            F.cross_entropy(module(images(space, seed=step), architecture), labels).backward()
            update.step()
    assert net.generators[-1].weight2.grad is None
    optimizer.catch_up()
    for ours, theirs in zip(net.parameters(), reference.net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_a_saved_and_restored_optimizer_goes_on_bit_by_bit() -> None:
    space = tiny()
    labels = torch.arange(6) % 10

    def train(net: PruningNet, optimizer: RankOneSGD, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            F.cross_entropy(net(images(space, seed=step), structures(space, 8)[step]), labels).backward()
            optimizer.step()

    net = net_of(space)
    optimizer = RankOneSGD(net, TRAINING)
    train(net, optimizer, range(4))
    saved = copy.deepcopy((optimizer.state_dict(), net.state_dict()))
    train(net, optimizer, range(4, 8))
    optimizer.catch_up()
    again = net_of(space, seed=1)
    resumed = RankOneSGD(again, TRAINING)
    again.load_state_dict(saved[1])
    resumed.load_state_dict(saved[0])
    train(again, resumed, range(4, 8))
    resumed.catch_up()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(net.parameters(), again.parameters(), strict=True))


def test_what_workers_exchange_is_the_corner_a_structure_uses() -> None:
    space = tiny()
    net = net_of(space)
    F.cross_entropy(net(images(space), space.smallest), torch.arange(6)).backward()
    exchanged = [generator.used.weight.grad.shape for generator in net.generators if generator.used]
    plain = [tuple(m.weight.shape) for m in space.build(space.smallest).modules() if isinstance(m, nn.Conv2d)]
    assert [tuple(shape) for shape in exchanged] == plain
    assert all(generator.weight2.grad is None for generator in net.generators)


def test_untied_widths_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"needs tied widths.*stage1.block0.conv2.*published=false"):
        net_of(tiny(published=True))


@pytest.mark.parametrize("settings", [{"nesterov": True}, {"momentum": 0.0}])
def test_momentum_without_an_exact_rank_one_form_is_refused(settings: dict[str, float]) -> None:
    training = Training(**{"nesterov": False, **settings})
    with pytest.raises(ValueError, match="plain momentum above 0"):
        RankOneSGD(net_of(tiny()), training)
