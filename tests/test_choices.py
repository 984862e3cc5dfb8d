"""Candidates of widths and depths, and architectures as values."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tas_ray.choices import Architecture, Candidates, Choice, Depth, StageOutput, Width, full

TAS_WIDTHS = {
    16: (4, 6, 8, 9, 11, 12, 14, 16),
    32: (9, 12, 16, 19, 22, 25, 28, 32),
    64: (19, 25, 32, 38, 44, 51, 57, 64),
    128: (38, 51, 64, 76, 89, 102, 115, 128),
    256: (76, 102, 128, 153, 179, 204, 230, 256),
    512: (153, 204, 256, 307, 358, 409, 460, 512),
    1024: (307, 409, 512, 614, 716, 819, 921, 1024),
    2048: (614, 819, 1024, 1228, 1433, 1638, 1843, 2048),
}


@pytest.mark.parametrize(("base", "options"), TAS_WIDTHS.items())
def test_default_widths_are_those_of_tas(base: int, options: tuple[int, ...]) -> None:
    assert Candidates().width("w", base) == Width("w", options)


@settings(deadline=None)
@given(base=st.integers(1, 4096), ratios=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=9))
def test_scaled_widths_ascend_from_at_least_one_channel_to_the_full_width(base: int, ratios: list[float]) -> None:
    width = Candidates(ratios=tuple(ratios)).width("w", base)
    options = (width,) if isinstance(width, int) else Choice(width.name, width.options).options
    assert options[0] >= 1
    assert options[-1] == base == full(width)


@settings(deadline=None)
@given(base=st.integers(1, 4096), multiple=st.integers(2, 64))
def test_rounded_widths_are_multiples_or_the_full_width(base: int, multiple: int) -> None:
    width = Candidates(multiple=multiple).width("w", base)
    options = (width,) if isinstance(width, int) else width.options
    assert all(option % multiple == 0 or option == base for option in options)
    assert all(option <= base for option in options)


def test_widths_round_to_the_nearest_multiple_of_8() -> None:
    assert Candidates(multiple=8).width("w", 64) == Width("w", (16, 24, 32, 40, 48, 56, 64))


def test_a_width_with_one_candidate_is_fixed() -> None:
    assert Candidates(ratios=(1.0,)).width("w", 16) == 16
    assert Candidates(multiple=16).width("w", 16) == 16


def test_frozen_names_are_not_searched() -> None:
    candidates = Candidates(freeze=("stem", "stage1.*"))
    assert candidates.width("stem", 16) == 16
    assert candidates.width("stage1.out", 16) == 16
    assert candidates.depth("stage1.depth", (1, 2, 3)) == Depth("stage1.depth", (3,))
    assert candidates.width("stage2.out", 16) == Width("stage2.out", TAS_WIDTHS[16])


def test_given_options_take_the_place_of_the_ratios() -> None:
    candidates = Candidates(options={"*.out": (8, 16), "stage1.depth": (2, 3), "stem": (16,)}, multiple=3)
    assert candidates.width("stage1.out", 16) == Width("stage1.out", (8, 16))
    assert candidates.depth("stage1.depth", (1, 2, 3)) == Depth("stage1.depth", (2, 3))
    assert candidates.width("stem", 16) == 16


def test_the_first_pattern_that_fits_gives_the_options() -> None:
    candidates = Candidates(options={"stage1.block0.*": (4, 16), "stage1.*": (8, 16)})
    assert candidates.width("stage1.block0.conv1", 16) == Width("stage1.block0.conv1", (4, 16))
    assert candidates.width("stage1.block1.conv1", 16) == Width("stage1.block1.conv1", (8, 16))


def test_given_options_end_with_the_unpruned_network() -> None:
    candidates = Candidates(options={"stem": (8, 32)})
    with pytest.raises(ValueError, match=r"options of stem have to end with 16.*not with 32"):
        candidates.width("stem", 16)
    with pytest.raises(ValueError, match="options of stem have to end with 3"):
        candidates.depth("stem", (1, 2, 3))


@pytest.mark.parametrize("options", [(), (0, 16), (16, 8), (8, 8, 16), (-1,)])
def test_malformed_options_are_refused(options: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="options of stem have to be distinct positive numbers in ascending order"):
        Candidates(options={"stem": options})
    with pytest.raises(ValueError, match="options of stem"):
        Width("stem", options)


@pytest.mark.parametrize("ratios", [(), (0.0, 1.0), (-0.5,), (1.5,), (float("nan"),)])
def test_ratios_outside_zero_to_one_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"ratios have to lie in \(0, 1\]"):
        Candidates(ratios=ratios)


@pytest.mark.parametrize("multiple", [0, -8])
def test_multiples_below_one_are_refused(multiple: int) -> None:
    with pytest.raises(ValueError, match="multiple of 1 or more"):
        Candidates(multiple=multiple)


def test_patterns_that_fit_no_name_are_found() -> None:
    candidates = Candidates(options={"stme": (8, 16)}, freeze=("stage1.*", "stage9.*"))
    assert candidates.unmatched(["stem", "stage1.out"]) == ("stme", "stage9.*")


def test_full_is_the_largest_a_size_can_take() -> None:
    assert full(7) == 7
    assert full(Width("w", (3, 5))) == 5
    assert full(StageOutput(Depth("d", (1, 2)), (Width("w", (3, 5)), 4))) == 5


def test_an_architecture_is_a_mapping_in_the_order_given() -> None:
    architecture = Architecture({"stem": 12, "stage1.depth": 2})
    assert dict(architecture) == {"stem": 12, "stage1.depth": 2}
    assert list(architecture) == ["stem", "stage1.depth"]
    assert len(architecture) == 2
    assert str(architecture) == "stem=12 stage1.depth=2"
    assert architecture.get("head") is None
    with pytest.raises(KeyError):
        architecture["head"]


def test_equal_architectures_are_one_key() -> None:
    one, same = Architecture({"stem": 12}), Architecture({"stem": 12})
    assert one["stem"] == 12  # reading one leaves it equal to the other
    assert len({one, same, Architecture({"stem": 11})}) == 2
    assert pickle.loads(pickle.dumps(one)) == same


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.integers(1, 10_000)))
def test_an_architecture_survives_json(values: dict[str, int]) -> None:
    architecture = Architecture(values)
    assert Architecture.from_json(architecture.to_json()) == architecture


@pytest.mark.parametrize("text", ["", "[1]", "3", '{"stem": 1.5}', '{"stem": "12"}', '{"stem": true}', '{"stem": 1'])
def test_text_that_is_no_architecture_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="JSON object of names and whole numbers"):
        Architecture.from_json(text)
