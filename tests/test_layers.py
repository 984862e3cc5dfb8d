"""The plain layers networks are built of, and the addition of residual blocks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tas_ray.choices import Architecture, Candidates, Depth, Size, StageOutput, Width
from tas_ray.layers import Layers, PlainLayers, add, all_blocks, global_average, stage_output


class Block(nn.Module):
    """A 1x1 convolution that notes its place."""

    def __init__(self, layers: Layers, c_in: Size, c_out: Size) -> None:
        super().__init__()
        self.conv = layers.conv_bn(c_in, c_out, 1)
        self.c_in, self.c_out = c_in, c_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def blocks(*widths: Size) -> list[object]:
    return [lambda layers, c_in, c_out=c_out: Block(layers, c_in, c_out) for c_out in widths]


def plain(**values: int) -> PlainLayers:
    return PlainLayers(Candidates(), Architecture(values))


def test_plain_layers_take_their_numbers_from_the_architecture() -> None:
    layers = plain(stem=12, depth=2)
    assert layers.width("stem", 16) == 12
    assert layers.depth("depth", (1, 2, 3)) == Depth("depth", (2,))


def test_plain_layers_keep_what_the_architecture_leaves_out() -> None:
    assert plain().width("frozen", 16) == 16
    assert plain().depth("frozen", (1, 3)) == Depth("frozen", (3,))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_a_convolution_keeps_the_size_at_stride_1_and_halves_it_at_stride_2(kernel: int) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert plain().conv_bn(3, 5, kernel)(x).shape == (2, 5, 8, 8)
    assert plain().conv_bn(3, 5, kernel, stride=2)(x).shape == (2, 5, 4, 4)


def test_a_convolution_has_no_bias_and_a_norm_where_asked() -> None:
    torch.manual_seed(0)
    conv, bn = plain().conv_bn(64, 96, 3)
    assert conv.bias is None
    assert conv.weight.std().item() == pytest.approx((2 / (96 * 9)) ** 0.5, rel=0.02)  # Kaiming, fan-out
    assert torch.equal(bn.weight, torch.ones(96))
    (only,) = plain().conv_bn(64, 96, 3, norm=False)
    assert isinstance(only, nn.Conv2d)


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_depthwise_convolution_filters_every_channel_by_itself(kernel: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8, 8)
    assert plain().depthwise_bn(5, kernel)(x).shape == (2, 5, 8, 8)
    layer = plain().depthwise_bn(5, kernel, stride=2).eval()
    weight, padding = layer.conv.weight, kernel // 2
    alone = [F.conv2d(x[:, i : i + 1], weight[i : i + 1], stride=2, padding=padding) for i in range(5)]
    torch.testing.assert_close(layer(x), torch.cat(alone, 1), rtol=1e-4, atol=1e-4)  # a fresh BatchNorm adds epsilon


def test_a_depthwise_convolution_has_no_bias_and_starts_by_its_own_fan_out() -> None:
    torch.manual_seed(0)
    conv, bn = plain(c=500).depthwise_bn(500, 3)
    assert conv.bias is None
    assert conv.weight.shape == (500, 1, 3, 3)
    assert conv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert torch.equal(bn.weight, torch.ones(500))


def test_what_a_generator_is_told_changes_no_plain_layer() -> None:
    for told in ((), (3, 5), (9, 3, 5)):
        torch.manual_seed(0)
        conv = plain().conv_bn(3, 5, 3, context=told)
        torch.manual_seed(0)
        assert torch.equal(conv.conv.weight, plain().conv_bn(3, 5, 3).conv.weight)


def test_a_branch_can_start_as_nothing() -> None:
    layer = plain().conv_bn(3, 5, 3, zero_scale=True)
    assert torch.equal(layer(torch.randn(2, 3, 4, 4)), torch.zeros(2, 5, 4, 4))


def test_a_classifier_starts_small_and_unbiased() -> None:
    torch.manual_seed(0)
    layer = plain().linear(512, 10)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert torch.equal(layer.bias, torch.zeros(10))


def test_a_shortcut_passes_on_what_fits_already() -> None:
    x = torch.randn(1, 4, 4, 4)
    shortcut = plain().shortcut(4, 4, stride=1, downsample_norm=False, projection_norm=True)
    assert torch.equal(shortcut(x), x)


@pytest.mark.parametrize("norm", [False, True])
def test_a_shortcut_projects_where_widths_differ(norm: bool) -> None:
    shortcut = plain().shortcut(4, 6, stride=1, downsample_norm=not norm, projection_norm=norm)
    assert shortcut(torch.randn(1, 4, 4, 4)).shape == (1, 6, 4, 4)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in shortcut.modules()) == norm


@pytest.mark.parametrize("norm", [False, True])
def test_a_shortcut_of_stride_2_averages_and_projects_even_equal_widths(norm: bool) -> None:
    shortcut = plain().shortcut(4, 4, stride=2, downsample_norm=norm, projection_norm=not norm)
    x = torch.randn(1, 4, 4, 4)
    (conv,) = [layer for layer in shortcut.modules() if isinstance(layer, nn.Conv2d)]
    shortcut.eval()
    expected = F.conv2d(F.avg_pool2d(x, 2), conv.weight)
    torch.testing.assert_close(shortcut(x), expected, rtol=1e-4, atol=1e-4)  # a fresh BatchNorm only adds epsilon
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in shortcut.modules()) == norm


def test_a_stage_builds_the_kept_blocks_and_hands_on_the_last_ones_width() -> None:
    layers = plain(depth=2)
    stage = layers.stage(layers.depth("depth", (1, 2, 3)), 3, blocks(4, 5, 6))  # type: ignore[arg-type]
    assert isinstance(stage, nn.Sequential)
    assert [(block.c_in, block.c_out) for block in stage] == [(3, 4), (4, 5)]
    assert stage.c_out == 5
    assert stage(torch.randn(2, 3, 1, 1)).shape == (2, 5, 1, 1)


def test_a_supernets_stage_has_every_block() -> None:
    built = all_blocks(plain(), Depth("depth", (1, 3)), 3, blocks(4, 5, 6))  # type: ignore[arg-type]
    assert [block.c_out for block in built] == [4, 5, 6]


def test_a_stages_width_hangs_on_its_depth_unless_its_blocks_are_tied() -> None:
    depth, tied, other = Depth("depth", (1, 2)), Width("tied", (2, 4)), Width("other", (2, 4))
    layers = plain()
    assert stage_output(depth, [Block(layers, 3, 4), Block(layers, 4, 4)]) == 4
    mixed = [_Handing(tied), _Handing(other)]
    assert stage_output(depth, mixed) == StageOutput(depth, (tied, other))
    assert stage_output(depth, [_Handing(tied), _Handing(tied)]) == tied


class _Handing(nn.Module):
    def __init__(self, c_out: Size) -> None:
        super().__init__()
        self.c_out = c_out


def test_adding_equal_widths_is_plain_addition() -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(add(a, b), a + b)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_narrower_is_added_to_the_leading_channels_of_the_wider(swapped: bool) -> None:
    wide, narrow = torch.randn(2, 5, 3, 3), torch.randn(2, 2, 3, 3)
    padded = torch.cat([narrow, torch.zeros(2, 3, 3, 3)], dim=1)
    before = wide.clone()
    assert torch.equal(add(narrow, wide) if swapped else add(wide, narrow), wide + padded)
    assert torch.equal(wide, before)


def test_gradients_of_an_uneven_addition_are_right() -> None:
    wide = torch.randn(2, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    narrow = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: add(a, b).square(), (wide, narrow))


@pytest.mark.parametrize("channels", [3, 5])
def test_features_of_different_sizes_are_never_broadcast(channels: int) -> None:
    with pytest.raises(RuntimeError, match="2 x 2 and 1 x 1 positions cannot be added"):
        add(torch.zeros(1, 3, 2, 2), torch.zeros(1, channels, 1, 1))


def test_global_average_is_the_mean_over_positions() -> None:
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(global_average(x), x.mean((2, 3)))
