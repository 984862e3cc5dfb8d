"""The PruningNet of MetaPruning (Liu et al., ICCV 2019, section 3.1), which writes the weights of any pruned network.

Every convolution has a generator of its own: two layers from the width ratios of its block to the full weight, of
which a structure uses the leading corner. The second layer is 32 to 64 times the weight it generates, so this is
where time and memory go, and where two facts help.

A batch has one structure, hence one hidden vector `h` per generator: the gradient of the second layer is the outer
product of the weight's gradient with `h`. It is never built. Workers exchange the weight's gradient, on its corner.

Outside that corner the gradient is zero, and a step of SGD with momentum is the same 2 x 2 map of (momentum, weight)
for every entry. So what a structure does not use is left alone, and brought up to date, exactly, when it is next used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tas_ray.choices import Architecture, Candidates, Depth, Size, StageOutput, Width, full
from tas_ray.layers import Block, BlockBuilder, Chain, Layers, all_blocks
from tas_ray.methods.supernet import SampledLinear
from tas_ray.train import Training

EPSILON = 1e-5
LONGEST_LAG = 512
"""Steps after which all of a generator is brought up to date, to bound what has to be remembered."""


class Structure:
    """The architecture the current forward pass computes; written by `PruningNet`, read by its layers."""

    def __init__(self) -> None:
        self.numbers: Mapping[str, int] = {}

    def size(self, size: Size) -> int:
        """The channels this size has in the structure."""
        assert not isinstance(size, StageOutput), "tied widths do not depend on depths"
        return size if isinstance(size, int) else self.numbers[size.name]

    def ratio(self, size: Size) -> float:
        """The same as a share of the full width."""
        return self.size(size) / full(size)


class PruningNet(nn.Module):
    """The network of a search space with generated weights: each forward pass computes one architecture."""

    def __init__(
        self,
        define: Callable[[Layers], nn.Module],
        candidates: Candidates,
        *,
        hidden: int,
        hidden_alone: int,
        affine: bool,
    ) -> None:
        """Args:
            hidden: hidden units of the generators inside blocks.
            hidden_alone: hidden units of the others, which see one width.
            affine: BatchNorms have scales and shifts, one set for every width.

        Raises:
            ValueError: the space has widths at both ends of an addition that are chosen apart.
        """
        super().__init__()
        self.structure = Structure()
        self.network = define(GeneratedLayers(candidates, self.structure, hidden, hidden_alone, affine))
        # In tuples, which register nothing twice; every step and every candidate asks for them.
        self.generators = tuple(module for module in self.modules() if isinstance(module, Generator))
        """One per convolution, in the order of the network."""
        self._stages = tuple(
            (name, module) for name, module in self.network.named_modules() if isinstance(module, GeneratedStage)
        )

    def forward(
        self, images: Float[Tensor, "batch channels height width"], architecture: Architecture
    ) -> Float[Tensor, "batch classes"]:
        """Logits of this architecture, normalized by the batch's own statistics."""
        self.structure.numbers = architecture
        logits: Tensor = self.network(images)
        return logits

    @torch.no_grad()
    def weights(self, architectures: Sequence[Architecture]) -> list[dict[str, Tensor]]:
        """What the plain network of each architecture is to load: generated weights, fresh BatchNorms, the classifier.

        One pass over each generator serves all of them.
        """
        states: list[dict[str, Tensor]] = [{} for _ in architectures]
        for name, module in self.network.named_modules():
            if isinstance(module, GeneratedConvBN | GeneratedLinear):
                for state, part in zip(states, module.weights(architectures), strict=True):
                    state.update({f"{name}.{key}": tensor for key, tensor in part.items()})
        return [self._kept(state, architecture) for state, architecture in zip(states, architectures, strict=True)]

    def _kept(self, state: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
        """Without the blocks that the architecture's depths remove."""
        removed = tuple(
            f"{name}.{block}."
            for name, stage in self._stages
            for block in range(architecture.get(stage.depth.name, stage.depth.full), len(stage))
        )
        return {name: tensor for name, tensor in state.items() if not name.startswith(removed)}


class GeneratedLayers(Layers):
    """The factory of a PruningNet's layers, which look their widths up in `structure` at every forward pass."""

    def __init__(
        self, candidates: Candidates, structure: Structure, hidden: int, hidden_alone: int, affine: bool
    ) -> None:
        super().__init__(candidates)
        self.structure, self.hidden, self.hidden_alone, self.affine = structure, hidden, hidden_alone, affine

    def width(self, name: str, base: int) -> Size:
        """See `Layers.width`."""
        return self.candidates.width(name, base)

    def depth(self, name: str, options: tuple[int, ...]) -> Depth:
        """See `Layers.depth`."""
        return self.candidates.depth(name, options)

    def conv_bn(
        self,
        c_in: Size,
        c_out: Size,
        kernel: int,
        *,
        stride: int = 1,
        norm: bool = True,
        zero_scale: bool = False,
        context: tuple[Size, ...] = (),
    ) -> nn.Module:
        """See `Layers.conv_bn`."""
        return self._layer(c_in, c_out, kernel, stride, context or _widths(c_in, c_out), norm=norm, depthwise=False)

    def depthwise_bn(self, c: Size, kernel: int, *, stride: int = 1, context: tuple[Size, ...] = ()) -> nn.Module:
        """See `Layers.depthwise_bn`."""
        return self._layer(1, c, kernel, stride, context or _widths(c), norm=True, depthwise=True)

    def identity(self, c_in: Size, c_out: Size, *, norm: bool) -> nn.Module:
        """See `Layers.identity`; ValueError where the two widths are chosen apart."""
        if c_in != c_out:
            raise ValueError(
                "MetaPruning needs tied widths: this space chooses the two widths of a residual addition apart "
                f"({_named(c_in)} and {_named(c_out)}), so its networks need projections that a PruningNet has no "
                "weights for. Take the space with tied widths (published=false)"
            )
        return nn.Identity()

    def stage(self, depth: Depth, c_in: Size, blocks: Sequence[BlockBuilder]) -> Block:
        """See `Layers.stage`: all blocks, of which a structure runs the first ones."""
        return GeneratedStage(self.structure, depth, c_in, all_blocks(self, depth, c_in, blocks))

    def linear(self, c_in: Size, c_out: int) -> nn.Module:
        """See `Layers.linear`: an ordinary one, of which a structure uses the leading columns."""
        return GeneratedLinear(self.structure, c_in, c_out)

    def _layer(
        self,
        c_in: Size,
        c_out: Size,
        kernel: int,
        stride: int,
        context: tuple[Size, ...],
        *,
        norm: bool,
        depthwise: bool,
    ) -> GeneratedConvBN:
        hidden = self.hidden if len(context) > 1 else self.hidden_alone
        generator = Generator(full(c_out), full(c_in), kernel, len(context), hidden)
        return GeneratedConvBN(
            self.structure, generator, c_in, c_out, stride, context, norm=norm, affine=self.affine, depthwise=depthwise
        )


def _widths(*sizes: Size) -> tuple[Size, ...]:
    """Those that are chosen; all if none is."""
    return tuple(size for size in sizes if not isinstance(size, int)) or sizes


def _named(size: Size) -> str:
    return size.name if isinstance(size, Width) else str(size)


class Generator(nn.Module):
    """Two layers from width ratios to a convolution's full weight; the output layer's bias is its last column."""

    def __init__(self, c_out: int, c_in: int, kernel: int, ratios: int, hidden: int) -> None:
        super().__init__()
        self.shape = (c_out, c_in, kernel, kernel)
        bound = 1 / math.sqrt(ratios)
        self.weight1 = nn.Parameter(torch.empty(hidden, ratios).uniform_(-bound, bound))
        self.bias1 = nn.Parameter(torch.empty(hidden).uniform_(-bound, bound))
        bound = 1 / math.sqrt(hidden)
        size = (c_out, c_in, kernel * kernel * (hidden + 1))
        self.weight2 = nn.Parameter(torch.empty(size).uniform_(-bound, bound))
        self.lag: Lag | None = None
        self.used: Used | None = None

    def hidden(self, ratios: Float[Tensor, "structures ratios"]) -> Float[Tensor, "structures hidden_and_one"]:
        """What the output layer multiplies: the hidden units, and a 1 for its bias."""
        return F.pad(F.relu(F.linear(ratios, self.weight1, self.bias1)), (0, 1), value=1.0)

    @torch.no_grad()
    def generate(self, c_out: int, c_in: int, hidden: Float[Tensor, "structures hidden_and_one"]) -> list[Tensor]:
        """The leading weights `(c_out, c_in, kernel, kernel)` for each of these hidden vectors.

        Whole rows are multiplied: they lie in one piece, which more than makes up for the columns not used.
        """
        if self.lag is not None:
            self.lag.catch_up(c_out, c_in)
        rows = self.weight2.data[:c_out].view(-1, hidden.shape[1])
        products = rows @ hidden.t()
        return [column.view(c_out, *self.shape[1:])[:, :c_in] for column in products.unbind(1)]

    def use(self, c_out: int, c_in: int, ratios: Sequence[float]) -> Tensor:
        """The weight for a forward pass that is to be differentiated, a leaf whose gradient `RankOneSGD` takes up."""
        encoding = self.weight1.new_tensor([ratios])
        with torch.no_grad():
            hidden = self.hidden(encoding)
            (weight,) = self.generate(c_out, c_in, hidden)
            leaf = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
        self.used = Used(leaf, encoding[0], hidden[0])
        return leaf


class Used(NamedTuple):
    """One use of a generator: the generated weight, and what it was generated from."""

    weight: Tensor
    encoding: Tensor
    hidden: Tensor


class GeneratedConvBN(nn.Module):
    """A convolution with generated weights and a normalization by batch statistics.

    Running statistics are not kept: those of training belong to no architecture, and each one evaluated gets its own.
    """

    def __init__(
        self,
        structure: Structure,
        generator: Generator,
        c_in: Size,
        c_out: Size,
        stride: int,
        context: tuple[Size, ...],
        *,
        norm: bool,
        affine: bool,
        depthwise: bool,
    ) -> None:
        super().__init__()
        self.structure, self.generator = structure, generator
        self.c_in, self.c_out, self.context = c_in, c_out, context
        self.stride, self.depthwise, self.norm = stride, depthwise, norm
        self.options = c_out.options if isinstance(c_out, Width) else (full(c_out),)
        packed = sum(self.options)
        self.scale = nn.Parameter(torch.ones(packed)) if affine and norm else None
        self.shift = nn.Parameter(torch.zeros(packed)) if affine and norm else None

    def forward(self, x: Tensor) -> Tensor:
        c_out, c_in = self._sizes(self.structure)
        weight = self.generator.use(c_out, c_in, [self.structure.ratio(size) for size in self.context])
        padding = weight.shape[-1] // 2
        z = F.conv2d(x, weight, stride=self.stride, padding=padding, groups=c_out if self.depthwise else 1)
        if not self.norm:
            return z
        part = self._part(c_out)
        scale = None if self.scale is None else self.scale[part]
        shift = None if self.shift is None else self.shift[part]
        return F.batch_norm(z, None, None, scale, shift, training=True, eps=EPSILON)

    def weights(self, architectures: Sequence[Architecture]) -> list[dict[str, Tensor]]:
        """The state of the plain layer, with fresh running statistics, in each architecture."""
        sizes, encodings = [], []
        for architecture in architectures:
            self.structure.numbers = architecture
            sizes.append(self._sizes(self.structure))
            encodings.append(tuple(self.structure.ratio(size) for size in self.context))
        distinct = sorted(set(encodings))
        hidden = self.generator.hidden(self.generator.weight1.new_tensor(distinct))
        c_out, c_in = (max(size[axis] for size in sizes) for axis in (0, 1))
        generated = dict(zip(distinct, self.generator.generate(c_out, c_in, hidden), strict=True))
        return [
            {"conv.weight": generated[encoding][:out, :into].contiguous()} | (self._norm(out) if self.norm else {})
            for (out, into), encoding in zip(sizes, encodings, strict=True)
        ]

    def _sizes(self, structure: Structure) -> tuple[int, int]:
        return structure.size(self.c_out), structure.size(self.c_in)

    def _part(self, c_out: int) -> slice:
        start = sum(option for option in self.options if option < c_out)
        return slice(start, start + c_out)

    def _norm(self, c_out: int) -> dict[str, Tensor]:
        like = self.generator.weight1
        part = self._part(c_out)
        return {
            "bn.weight": like.new_ones(c_out) if self.scale is None else self.scale.detach()[part].clone(),
            "bn.bias": like.new_zeros(c_out) if self.shift is None else self.shift.detach()[part].clone(),
            "bn.running_mean": like.new_zeros(c_out),
            "bn.running_var": like.new_ones(c_out),
            "bn.num_batches_tracked": torch.zeros((), dtype=torch.long, device=like.device),
        }


class GeneratedLinear(SampledLinear):
    """A classifier, not generated, of which a structure uses the leading columns."""

    def __init__(self, structure: Structure, c_in: Size, c_out: int) -> None:
        super().__init__(full(c_in), c_out)
        self.structure, self.size = structure, c_in

    def weights(self, architectures: Sequence[Architecture]) -> list[dict[str, Tensor]]:
        """The state of the plain layer in each architecture."""
        states = []
        for architecture in architectures:
            self.structure.numbers = architecture
            used = self.weight.detach()[:, : self.structure.size(self.size)]
            states.append({"weight": used.clone(), "bias": self.bias.detach().clone()})
        return states


class GeneratedStage(Chain):
    """All blocks of a stage, of which a structure runs the first ones."""

    def __init__(self, structure: Structure, depth: Depth, c_in: Size, blocks: Iterable[Block]) -> None:
        super().__init__(c_in, blocks)
        self.structure, self.depth = structure, depth

    def forward(self, x: Tensor) -> Tensor:
        kept = self.structure.numbers.get(self.depth.name, self.depth.full)
        for block in list(self)[:kept]:
            x = block(x)
        return x


class Lag:
    """How far each entry of a generator's output layer is behind, and the momentum that goes with it.

    A step in which an entry's gradient is zero maps its momentum `V` and weight `W` by
    `V' = m V + d W`, `W' = W - r V'` (momentum m, decay d, rate r). Products of these maps bring an entry up to date; a
    gradient `g` of the step at hand is `g / m` added to `V` before it.
    """

    def __init__(self, generator: Generator, momentum: Tensor) -> None:
        self.generator, self.momentum = generator, momentum
        c_out, c_in = generator.shape[:2]
        self.behind = np.zeros((c_out, c_in), dtype=np.int64)  # the step up to which an entry has been brought
        self.maps = np.eye(2)[None]  # from each step since the last flush to now

    def step(self, momentum: float, decay: float, rate: float) -> None:
        """Notes one step, applied to every entry when it is next brought up to date."""
        one = np.array([[momentum, decay], [-rate * momentum, 1 - rate * decay]])
        self.maps = np.concatenate([one @ self.maps, np.eye(2)[None]])
        if len(self.maps) > LONGEST_LAG:
            self.flush()

    def state_dict(self) -> dict[str, Tensor]:
        """How far everything is behind."""
        return {"behind": torch.from_numpy(self.behind.copy()), "maps": torch.from_numpy(self.maps.copy())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to what `state_dict` gave."""
        self.behind, self.maps = state["behind"].numpy().copy(), state["maps"].numpy().copy()

    def flush(self) -> None:
        """Brings everything up to date."""
        self.catch_up(*self.generator.shape[:2])
        self.behind[:] = 0
        self.maps = np.eye(2)[None]

    @torch.no_grad()
    def catch_up(self, c_out: int, c_in: int) -> None:
        """Brings the leading corner up to date."""
        now = len(self.maps) - 1
        behind = self.behind[:c_out, :c_in]
        if (behind == now).all():
            return
        weight = self.generator.weight2.data[:c_out, :c_in]
        velocity = self.momentum[:c_out, :c_in]
        factors = torch.from_numpy(self.maps[behind].reshape(c_out, c_in, 4)).to(weight)
        vv, vw, wv, ww = factors.split(1, dim=2)
        if self.maps[:, 0, 1].any():
            moved = (velocity * vv).addcmul_(weight, vw)
            weight.mul_(ww).addcmul_(velocity, wv)
            velocity.copy_(moved)
        else:
            weight.addcmul_(velocity, wv)
            velocity.mul_(vv)
        behind[:] = now


class RankOneSGD(torch.optim.SGD):
    """SGD with momentum for a PruningNet: autograd's steps, without ever building the gradients of its generators."""

    def __init__(self, net: PruningNet, training: Training) -> None:
        """Raises ValueError for settings it has no exact form of."""
        if training.nesterov or not training.momentum:
            raise ValueError(
                "a PruningNet is trained with plain momentum above 0 (published: 0.9), not with "
                f"momentum={training.momentum}, nesterov={training.nesterov}: set nesterov=False"
            )
        affine = [
            p
            for m in net.modules()
            if isinstance(m, GeneratedConvBN) and m.scale is not None
            for p in m.parameters(recurse=False)
        ]
        spared = {id(parameter) for parameter in affine}
        groups: list[dict[str, Any]] = [{"params": [p for p in net.parameters() if id(p) not in spared]}]
        if affine:
            groups.append({"params": affine, "weight_decay": 0.0})
        self.net = net
        super().__init__(
            groups, lr=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the gradients of the generated weights (see `PruningNet`) and those of ordinary parameters."""
        settings = self.param_groups[0]
        for generator in self.net.generators:
            used = generator.used
            if used is not None and used.weight.grad is not None:
                self._step(generator, used, used.weight.grad, settings)
            generator.used = None
        super().step()

    def _step(self, generator: Generator, used: Used, grad: Tensor, settings: Mapping[str, Any]) -> None:
        lag = self._lag(generator)
        c_out, c_in = grad.shape[:2]
        lag.catch_up(c_out, c_in)
        flat = grad.contiguous().view(c_out, c_in, -1)
        rows = generator.weight2.data[:c_out].view(c_out, -1, len(used.hidden))[:, : flat[0].numel()]
        d_hidden = torch.bmm(flat.view(c_out, 1, -1), rows).sum((0, 1))[:-1] * (used.hidden[:-1] > 0)
        generator.weight1.grad = torch.outer(d_hidden, used.encoding)
        generator.bias1.grad = d_hidden
        momentum = lag.momentum.unflatten(2, (-1, len(used.hidden)))[:c_out, :c_in]
        momentum.addcmul_(flat.unsqueeze(-1) / settings["momentum"], used.hidden)
        lag.step(settings["momentum"], settings["weight_decay"], settings["lr"])

    def _lag(self, generator: Generator) -> Lag:
        if generator.lag is None:
            weight = generator.weight2
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            generator.lag = Lag(generator, state["momentum_buffer"])
        return generator.lag

    def catch_up(self) -> None:
        """Brings every generator up to date; whoever reads their parameters directly calls this first."""
        for generator in self.net.generators:
            if generator.lag is not None:
                generator.lag.flush()

    def state_dict(self) -> dict[str, Any]:
        """See `torch.optim.Optimizer`; holds how far parameters are behind, so that saving changes nothing."""
        lags = [None if g.lag is None else g.lag.state_dict() for g in self.net.generators]
        return {**super().state_dict(), "lags": lags}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer`."""
        lags = state_dict["lags"]
        super().load_state_dict({name: part for name, part in state_dict.items() if name != "lags"})
        for generator, lag in zip(self.net.generators, lags, strict=True):
            generator.lag = None
            if lag is not None:
                self._lag(generator).load_state_dict(lag)
