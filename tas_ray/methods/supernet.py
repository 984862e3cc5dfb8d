"""The TAS supernet: one full network whose every width and depth can be drawn anew at each forward pass.

TAS (NeurIPS 2019), section 3.2: a convolution with several drawn widths computes its widest one once, normalizes
each width's leading channels by that width's own BatchNorm, stretches them all to the widest by channel-wise
interpolation, and mixes them. Each of these steps is linear in the convolution's output once its batch statistics
are known, and prefixes share statistics; so all of them together are one `channels x channels` map per position
(`_WidthMix`), which computes and keeps in memory hardly more than one BatchNorm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tas_ray.choices import Architecture, Candidates, Depth, Size, StageOutput, Width, full
from tas_ray.layers import Block, BlockBuilder, Layers, all_blocks, stage_output

EPSILON = 1e-5
MOMENTUM = 0.1
CACHED_MATRICES = 512
"""Bounds their memory: one may have millions of numbers. TAS's 8 widths, drawn in threes, need 336 in ResNet-50."""


@dataclass(frozen=True)
class DrawnWidth:
    """The widths one forward pass mixes at a choice: ascending option indices, and their weights, which sum to 1."""

    indices: tuple[int, ...]
    weights: Float[Tensor, " indices"] | None = None
    """None for a single index."""


@dataclass(frozen=True)
class DrawnDepth:
    """The weights of a stage's depth options in one forward pass, or one option alone."""

    weights: Float[Tensor, " options"] | None = None
    index: int | None = None


@dataclass
class Draw:
    """What the current forward pass of a supernet uses at each choice; written by `Supernet`, read by its layers."""

    widths: Mapping[str, DrawnWidth] = field(default_factory=dict)
    depths: Mapping[str, DrawnDepth] = field(default_factory=dict)


class Supernet(nn.Module):
    """The network of a search space in which every forward pass chooses its widths and depths."""

    def __init__(self, define: Any, candidates: Candidates) -> None:
        super().__init__()
        self.draw = Draw()
        self.network: nn.Module = define(SampledLayers(candidates, self.draw))

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        widths: Mapping[str, DrawnWidth],
        depths: Mapping[str, DrawnDepth],
    ) -> Float[Tensor, "batch classes"]:
        """Logits with these widths and depths drawn."""
        self.draw.widths, self.draw.depths = widths, depths
        logits: Tensor = self.network(images)
        return logits


class FixedSupernet(nn.Module):
    """A supernet set to one architecture: its shared weights, that architecture's BatchNorms."""

    def __init__(self, supernet: Supernet, choices: Sequence[Width | Depth], architecture: Architecture) -> None:
        super().__init__()
        self.supernet = supernet
        picked = {c.name: c.options.index(architecture[c.name]) for c in choices}
        self.widths = {c.name: DrawnWidth((picked[c.name],)) for c in choices if isinstance(c, Width)}
        self.depths = {c.name: DrawnDepth(index=picked[c.name]) for c in choices if isinstance(c, Depth)}

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.supernet(images, self.widths, self.depths)
        return logits


class SampledLayers(Layers):
    """The factory of supernet layers, which look their widths up in `draw` at every forward pass."""

    def __init__(self, candidates: Candidates, draw: Draw) -> None:
        super().__init__(candidates)
        self.draw = draw

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
        """See `Layers.conv_bn`; normalizes everywhere, also where the deployed network does not (TAS reference)."""
        assert isinstance(c_out, int | Width)
        return SampledConvBN(self.draw, full(c_in), c_out, kernel, stride)

    def depthwise_bn(self, c: Size, kernel: int, *, stride: int = 1, context: tuple[Size, ...] = ()) -> nn.Module:
        """See `Layers.depthwise_bn`.

        Raises:
            ValueError: the width hangs on a stage's depth, so that there is no one choice to mix.
        """
        if isinstance(c, StageOutput):
            raise ValueError(
                f"TAS mixes the widths of one choice; a depthwise convolution right behind the stage of {c.depth.name} "
                "has another choice for every depth: tie the widths of its blocks, or put a 1x1 convolution before it"
            )
        return SampledDepthwiseBN(self.draw, c, kernel, stride)

    def identity(self, c_in: Size, c_out: Size, *, norm: bool) -> nn.Module:
        """See `Layers.identity`: widths that differ are added as they are (`layers.add`), nothing is projected."""
        return nn.Identity()

    def stage(self, depth: Depth, c_in: Size, blocks: Sequence[BlockBuilder]) -> Block:
        """See `Layers.stage`: all blocks, of whose outputs those at the drawn depths are mixed."""
        built = all_blocks(self, depth, c_in, blocks)
        return SampledStage(self.draw, depth, built)

    def linear(self, c_in: Size, c_out: int) -> nn.Module:
        """See `Layers.linear`: uses the leading columns of its weight."""
        return SampledLinear(full(c_in), c_out)


class SampledConvBN(nn.Module):
    """One full convolution with a BatchNorm per candidate width, of which each pass uses those drawn.

    Maps `(batch, c, height, width)` with any `c` up to the full input width to the widest drawn output width.
    The BatchNorms of all widths lie packed in one vector, narrowest first.
    """

    def __init__(self, draw: Draw, c_in: int, c_out: Width | int, kernel: int, stride: int) -> None:
        super().__init__()
        self.draw = draw
        self.choice = c_out.name if isinstance(c_out, Width) else None
        self.options = c_out.options if isinstance(c_out, Width) else (c_out,)
        self.offsets = tuple(sum(self.options[:i]) for i in range(len(self.options)))
        self.stride = stride
        self.padding = kernel // 2
        self.weight = nn.Parameter(torch.empty(self.options[-1], c_in, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        packed = sum(self.options)
        self.scale = nn.Parameter(torch.ones(packed))
        self.shift = nn.Parameter(torch.zeros(packed))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(packed))
        self.register_buffer("running_var", torch.ones(packed))

    def forward(self, x: Tensor) -> Tensor:
        drawn = self.draw.widths[self.choice] if self.choice else DrawnWidth((0,))
        widths = tuple(self.options[i] for i in drawn.indices)
        weight = self.weight[: widths[-1], : x.shape[1]]
        z = F.conv2d(x, weight, stride=self.stride, padding=self.padding)
        if drawn.weights is None or len(widths) == 1:
            return self._normalized(z, drawn.indices[0])
        assert self.training, "several widths are mixed with batch statistics only"
        offsets = tuple(self.offsets[i] for i in drawn.indices)
        running = (self.running_mean, self.running_var)
        mixed: Tensor = _WidthMix.apply(z, self.scale, self.shift, drawn.weights, running, widths, offsets)
        return mixed

    def _normalized(self, z: Tensor, index: int) -> Tensor:
        part = slice(self.offsets[index], self.offsets[index] + self.options[index])
        return F.batch_norm(
            z,
            self.running_mean[part],
            self.running_var[part],
            self.scale[part],
            self.shift[part],
            self.training,
            MOMENTUM,
            EPSILON,
        )


class SampledDepthwiseBN(SampledConvBN):
    """A depthwise convolution with a BatchNorm per candidate width, of which each pass uses those drawn.

    It shares its choice with the layer before it, so what arrives is already a mixture, stretched to the widest
    drawn width: the channel `i` of a narrower width does not lie at `i` any more, and a prefix of the output is
    not what that width's own filters give. Hence each drawn width gets what arrives interpolated back to its
    channels, filters it by its leading filters and its BatchNorm, and is stretched and mixed again as behind any
    layer: `sum_k weights_k * interpolate(batch_norm_k(filter_k(interpolate(x, width_k))), widest)`.
    """

    def __init__(self, draw: Draw, c: Width | int, kernel: int, stride: int) -> None:
        super().__init__(draw, 1, c, kernel, stride)
        nn.init.kaiming_normal_(self.weight, mode="fan_in", nonlinearity="relu")  # as `PlainLayers.depthwise_bn`

    def forward(self, x: Tensor) -> Tensor:
        drawn = self.draw.widths[self.choice] if self.choice else DrawnWidth((0,))
        widest = self.options[drawn.indices[-1]]
        if x.shape[1] != widest:
            raise ValueError(
                f"{x.shape[1]} channels reach a depthwise convolution whose width {self.choice or 'is fixed and'} "
                f"has {widest}: give it the width of the layer before it"
            )
        outputs = [interpolate(self._filtered(interpolate(x, self.options[i]), i), widest) for i in drawn.indices]
        if drawn.weights is None or len(outputs) == 1:
            return outputs[0]
        assert self.training, "several widths are mixed with batch statistics only"
        return mix(outputs, drawn.weights)

    def _filtered(self, x: Tensor, index: int) -> Tensor:
        width = self.options[index]
        z = F.conv2d(x, self.weight[:width], stride=self.stride, padding=self.padding, groups=width)
        return self._normalized(z, index)


class SampledStage(nn.Module):
    """All blocks of a stage; its output mixes the outputs at the drawn depths (TAS, section 3.2)."""

    def __init__(self, draw: Draw, depth: Depth, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.draw = draw
        self.depth = depth
        self.blocks = nn.ModuleList(blocks)  # type: ignore[arg-type]
        self.c_out = stage_output(depth, blocks)

    def forward(self, x: Tensor) -> Tensor:
        alone = DrawnDepth(index=len(self.depth.options) - 1)
        drawn = self.draw.depths.get(self.depth.name, alone)
        last = self.depth.full if drawn.index is None else self.depth.options[drawn.index]
        outputs = []
        for count, block in enumerate(self.blocks, start=1):
            if count > last:
                break
            x = block(x)
            if count in self.depth.options:
                outputs.append(x)
        if drawn.weights is None:
            return x
        widest = max(output.shape[1] for output in outputs)
        return mix([interpolate(output, widest) for output in outputs], drawn.weights)


class SampledLinear(nn.Linear):
    """A classifier that uses the leading columns of its weight for as many features as there are."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out)
        nn.init.normal_(self.weight, 0.0, 0.01)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:, : x.shape[1]], self.bias)


def mix(
    outputs: Sequence[Float[Tensor, "batch channels height width"]], weights: Float[Tensor, " outputs"]
) -> Float[Tensor, "batch channels height width"]:
    """The weighted sum of `outputs`, in their precision."""
    first, *others = weights.to(outputs[0].dtype).unbind()
    mixed = outputs[0] * first
    for output, weight in zip(outputs[1:], others, strict=True):
        mixed = mixed + output * weight
    return mixed


def interpolate(x: Float[Tensor, "batch c_in height width"], c_out: int) -> Float[Tensor, "batch c_out height width"]:
    """Channel-wise interpolation to `c_out` channels (TAS, section 3.2, CWI).

    Equal to adaptive average pooling along channels: output `o` is the mean of the inputs
    `floor(o c_in / c_out) ... ceil((o + 1) c_in / c_out) - 1`, which are one or two where channels become more.
    """
    c_in = x.shape[1]
    if c_in == c_out:
        return x
    matrix = _interpolation(c_in, c_out, x.device, x.dtype)
    return F.linear(x.permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)


@lru_cache(maxsize=CACHED_MATRICES)
def _interpolation(c_in: int, c_out: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "c_out c_in"]:
    first, last = (torch.tensor(ends).unsqueeze(1) for ends in _sources(c_in, c_out))
    channels = torch.arange(c_in)
    averaged = ((channels >= first) & (channels <= last)).double()
    return (averaged / averaged.sum(1, keepdim=True)).to(device, dtype)


def _sources(c_in: int, c_out: int) -> tuple[list[int], list[int]]:
    first = [o * c_in // c_out for o in range(c_out)]
    last = [-(-(o + 1) * c_in // c_out) - 1 for o in range(c_out)]
    return first, last


@lru_cache(maxsize=CACHED_MATRICES)
def _stretches(
    widths: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "widths c_out c_out"]:
    """The matrices that interpolate each width to the widest, padded with zero columns."""
    c_out = widths[-1]
    assert c_out == max(widths), f"drawn widths ascend: {widths}"
    matrices = torch.zeros(len(widths), c_out, c_out)
    rows = range(c_out)
    for matrix, width in zip(matrices, widths, strict=True):
        first, last = _sources(width, c_out)
        matrix[rows, first] += 0.5
        matrix[rows, last] += 0.5
    return matrices.to(device, dtype)


@lru_cache(maxsize=4096)
def _packed_indices(widths: tuple[int, ...], offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each width's BatchNorm lies in the packed vectors, `(widths, widest)`; past a width, its last entry."""
    channels = torch.arange(widths[-1])
    rows = [offset + channels.clamp(max=width - 1) for offset, width in zip(offsets, widths, strict=True)]
    return torch.stack(rows).to(device)


class _WidthMix(torch.autograd.Function):
    """`sum_k weights_k * interpolate(batch_norm_k(z[:, :width_k]))` as one map over channels.

    With `a_k, b_k` the affine form of BatchNorm k, `S_k` the interpolation matrix and `w_k` the weights, the
    output is `M z + c`, `M = sum_k w_k S_k diag(a_k)`, `c = sum_k w_k S_k b_k`. All widths are prefixes of `z`,
    so they share its batch statistics. The gradients are derived by hand below: only `z` is kept.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        z: Tensor,
        scale: Tensor,
        shift: Tensor,
        weights: Tensor,
        running: tuple[Tensor, Tensor],
        widths: tuple[int, ...],
        offsets: tuple[int, ...],
    ) -> Tensor:
        stretches = _stretches(widths, z.device, scale.dtype)
        flat = _by_position(z)
        mean, var = _column_statistics(flat)
        _update_running(running, mean, var, len(flat), widths, offsets)
        rstd = torch.rsqrt(var + EPSILON)
        packed = _packed_indices(widths, offsets, z.device)
        gamma = scale[packed]
        a = gamma * rstd
        b = shift[packed] - mean * a
        w = weights.unsqueeze(1)
        matrix = (stretches * (w * a).unsqueeze(1)).sum(0)
        constant = torch.bmm(stretches, (w * b).unsqueeze(2)).sum(0).squeeze(1)
        ctx.save_for_backward(z, gamma, a, b, w, mean, rstd, matrix)
        ctx.widths, ctx.offsets, ctx.packed = widths, offsets, scale.shape
        out = torch.empty_like(z, memory_format=torch.channels_last)
        torch.addmm(constant.to(z.dtype), flat, matrix.t().to(z.dtype), out=_by_position(out))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        z, gamma, a, b, w, mean, rstd, matrix = ctx.saved_tensors
        stretches = _stretches(ctx.widths, z.device, a.dtype)
        flat, flat_grad = _by_position(z), _by_position(grad)
        d_matrix = torch.mm(flat_grad.t(), flat).to(a.dtype)
        d_constant = flat_grad.sum(0, dtype=a.dtype)
        d_wa = (stretches * d_matrix).sum(1)
        d_wb = torch.matmul(d_constant, stretches)
        d_b = w * d_wb
        d_a = w * d_wa - mean * d_b
        d_scale = d_shift = d_weights = None
        if ctx.needs_input_grad[1]:
            d_scale = _pack(d_a * rstd, ctx)
            d_shift = _pack(d_b, ctx)
        if ctx.needs_input_grad[3]:
            d_weights = (d_wa * a + d_wb * b).sum(1)
        count = len(flat)
        d_mean = -(d_b * a).sum(0)
        d_var = -0.5 * rstd**3 * (d_a * gamma).sum(0)
        slope = 2 * d_var / count
        d_z = torch.empty_like(z, memory_format=torch.channels_last)
        flat_d_z = _by_position(d_z)
        constant = (d_mean / count - slope * mean).to(z.dtype)
        torch.addmm(constant, flat_grad, matrix.to(z.dtype), out=flat_d_z)
        flat_d_z.addcmul_(flat, slope.to(z.dtype))
        return d_z, d_scale, d_shift, d_weights, None, None, None


def _pack(rows: Tensor, ctx: Any) -> Tensor:
    packed = rows.new_zeros(ctx.packed)
    for row, width, offset in zip(rows, ctx.widths, ctx.offsets, strict=True):
        packed[offset : offset + width] = row[:width]
    return packed


def _update_running(
    running: tuple[Tensor, Tensor],
    mean: Tensor,
    var: Tensor,
    count: int,
    widths: tuple[int, ...],
    offsets: tuple[int, ...],
) -> None:
    unbiased = var * (count / max(count - 1, 1))
    for kept, new in zip(running, (mean, unbiased), strict=True):
        for width, offset in zip(widths, offsets, strict=True):
            kept[offset : offset + width].lerp_(new[:width], MOMENTUM)


def _by_position(z: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "positions channels"]:
    """One row per image and position; a view where `z` lies channels last."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def _column_statistics(flat: Float[Tensor, "positions channels"]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, in float32 at least; the variance about the mean (no cancellation)."""
    dtype = torch.promote_types(flat.dtype, torch.float32)
    mean = flat.sum(0, dtype=dtype) / len(flat)
    return mean, (flat - mean).square_().sum(0) / len(flat)
