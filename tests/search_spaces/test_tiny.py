"""The small network for 8-pixel digits, and every architecture it can have."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.tiny import tiny
from tas_ray.choices import Architecture, Depth
from tests.search_spaces.conformance import (
    UNBOUNDED,
    assert_costs_are_those_of_the_built_network,
    assert_sound,
    published_macs,
)

TIED, PUBLISHED = tiny(), tiny(published=True)


@pytest.mark.parametrize("space", [TIED, PUBLISHED], ids=lambda space: space.name)
def test_costs_are_those_of_the_built_networks(space) -> None:  # type: ignore[no-untyped-def]
    assert_sound(space, samples=10)


@pytest.mark.parametrize("space", [TIED, PUBLISHED], ids=lambda space: space.name)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_any_widths_can_be_built_and_cost_what_they_cost(space, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    most = {choice.name: choice.full if isinstance(choice, Depth) else 40 for choice in space.choices}
    values = {name: data.draw(st.integers(1, most[name]), name) for name in most}
    assert_costs_are_those_of_the_built_network(space, Architecture(values))


def test_the_unpruned_network_has_1_1_million_macs() -> None:
    assert TIED.macs(TIED.dense) == PUBLISHED.macs(PUBLISHED.dense) == 1_142_080
    assert TIED.params(TIED.dense) == PUBLISHED.params(PUBLISHED.dense) == 43_162


def test_a_shortened_stage_costs_more_than_the_published_count_says() -> None:
    dense = dict(PUBLISHED.dense)
    shortened = Architecture({**dense, "stage1.depth": 1, "stage1.block1.conv2": 4})
    # The published count charges stage 2 for the 4 channels of the removed block, not for the 16 that arrive.
    missing = 12 * (9 * 32 + 32) * 4 * 4
    assert PUBLISHED.macs(shortened) - published_macs(PUBLISHED, shortened) == missing


@pytest.mark.parametrize("published", [False, True])
def test_every_kind_of_choice_changes_the_network(published: bool) -> None:
    space = tiny(published=published)
    for choice in space.choices:
        fewer = Architecture({**space.dense, choice.name: choice.options[0]})
        assert space.params(fewer) < space.params(space.dense)


@pytest.mark.parametrize("published", [False, True])
def test_a_networks_logits_have_the_classes_of_its_space(published: bool) -> None:
    space = tiny(classes=3, published=published)
    network = space.build(space.sample(UNBOUNDED, seed=0))
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("size", [1, 3])
def test_images_that_cannot_be_halved_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"images of 3 x {size} x {size} do not fit this network"):
        _ = tiny(image_size=size).cost
