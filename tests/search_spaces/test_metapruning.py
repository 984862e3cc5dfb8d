"""MetaPruning's published vectors and counts, against figures measured on its reference code."""

from collections.abc import Callable

import numpy as np
import pytest

from search_spaces.cifar_resnet import resnet20
from search_spaces.metapruning import flops, from_ids
from search_spaces.metapruning_resnet import resnet50
from search_spaces.mobilenet_v1 import mobilenet_v1
from search_spaces.mobilenet_v2 import mobilenet_v2
from tas_ray.choices import METAPRUNING_RATIOS, Candidates
from tas_ray.space import SearchSpace, SpaceConfig
from tests.search_spaces.conformance import UNBOUNDED, assert_costs_are_those_of_the_built_network

V1, V2, R50 = mobilenet_v1(), mobilenet_v2(), resnet50()
SPACES = [V1, V2, R50]
LENGTHS = {V1.name: 13, V2.name: 35, R50.name: 20}

V1_PUBLISHED = [28, 18, 10, 23, 23, 22, 22, 13, 17, 28, 17, 25, 29]
V1_ROTATED = [29, 28, 18, 10, 23, 23, 22, 22, 13, 17, 28, 17, 25]  # as the reference's retraining reads it
V2_105M = [
    *(14, 12, 11, 11, 8, 8, 8, 7, 7, 7, 7, 8, 8, 8, 14, 14, 14, 8),
    *(6, 5, 2, 15, 7, 17, 14, 5, 11, 12, 12, 11, 6, 16, 14, 13, 14),
]
V2_OF_ISSUE_32 = [
    *(2, 3, 4, 4, 7, 7, 7, 10, 10, 10, 10, 5, 5, 5, 12, 12, 12, 7),
    *(11, 11, 6, 15, 8, 13, 16, 14, 3, 14, 10, 17, 13, 17, 17, 17, 16),
]
V2_OF_ISSUE_28 = [
    *(10, 9, 13, 13, 18, 18, 18, 11, 11, 11, 11, 26, 26, 26, 29, 29, 29, 20),
    *(20, 21, 26, 24, 29, 5, 18, 27, 23, 30, 25, 25, 6, 24, 26, 21, 26),
]
R50_1G = [19, 9, 15, 13, 10, 9, 10, 6, 9, 13, 11, 12, 7, 18, 7, 13, 12, 10, 19, 18]

# The space, its ids (one number for all of them), FLOPs, multiply-adds and biases of convolutions and classifier,
# parameters.
MEASURED = [
    (V1, 30, 573_834_216, 568_741_352, 4_231_976),
    (V1, 0, 14_088_498, 13_510_347, 1_158_601),
    (V1, 5, 52_781_544, 51_433_064, 1_436_216),
    (V1, 10, 111_606_975, 109_543_977, 1_803_982),
    (V1, 15, 193_721_714, 190_901_127, 2_269_085),
    (V1, 20, 297_636_896, 294_071_950, 2_827_891),
    (V1, 25, 423_788_082, 419_465_547, 3_481_849),
    (V1, V1_PUBLISHED, 316_800_208, 313_209_831, 3_280_476),
    (V1, V1_ROTATED, 315_581_578, 311_664_518, 3_004_645),
    (V2, 30, 579_303_816, 569_522_240, 5_313_198),
    (V2, 0, 13_809_908, 12_754_595, 1_385_299),
    (V2, 5, 52_254_328, 49_727_790, 1_667_947),
    (V2, 10, 110_778_899, 106_845_375, 2_092_692),
    (V2, 15, 194_598_740, 189_194_040, 2_672_511),
    (V2, 20, 297_610_509, 290_781_526, 3_395_305),
    (V2, 25, 425_502_420, 417_204_613, 4_275_070),
    (V2, V2_105M, 108_404_800, 104_871_557, 2_230_199),
    (V2, V2_OF_ISSUE_32, 102_129_468, 98_099_708, 2_254_788),
    (V2, V2_OF_ISSUE_28, 300_160_420, 293_185_417, 3_995_553),
    (R50, 30, 4_111_714_280, 4_089_185_256, 25_557_032),
    (R50, 0, 85_693_617, 82_877_979, 2_957_685),
    (R50, 5, 353_218_280, 347_059_176, 4_918_520),
    (R50, 10, 771_041_084, 761_685_024, 7_567_595),
    (R50, 15, 1_359_026_041, 1_346_371_595, 10_961_190),
    (R50, 20, 2_103_090_208, 2_087_203_036, 15_096_659),
    (R50, 25, 3_015_570_609, 2_996_385_051, 19_939_077),
    (R50, R50_1G, 1_038_426_734, 1_027_555_986, 10_567_336),
]


def ids_of(space: SearchSpace, ids: int | list[int]) -> list[int]:
    return [ids] * LENGTHS[space.name] if isinstance(ids, int) else ids


@pytest.mark.parametrize(("space", "ids", "counted", "multiplied", "params"), MEASURED)
def test_networks_cost_what_the_reference_measured(
    space: SearchSpace, ids: int | list[int], counted: int, multiplied: int, params: int
) -> None:
    architecture = from_ids(space, ids_of(space, ids))
    biases = 1000
    assert space.macs(architecture) == multiplied - biases
    assert space.params(architecture) == params
    assert flops(space, space.cost.population([architecture])).tolist() == [counted]


@pytest.mark.parametrize(("space", "ids"), [(V1, V1_PUBLISHED), (V2, V2_105M), (R50, R50_1G)])
def test_published_networks_are_built_as_they_are_counted(space: SearchSpace, ids: list[int]) -> None:
    assert_costs_are_those_of_the_built_network(space, from_ids(space, ids))


def test_flops_of_many_are_the_flops_of_each() -> None:
    for space in SPACES:
        ids = np.random.default_rng(0).integers(31, size=(5, LENGTHS[space.name]))
        if space is V2:
            for first, last in ((2, 4), (4, 7), (7, 11), (11, 14), (14, 17)):
                ids[:, first:last] = ids[:, first : first + 1]
        architectures = [from_ids(space, row.tolist()) for row in ids]
        together = flops(space, space.cost.population(architectures))
        assert len(set(together.tolist())) == 5
        assert together.tolist() == [int(flops(space, space.cost.population([a]))[0]) for a in architectures]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_minus_one_stands_for_the_full_width(space: SearchSpace) -> None:
    length = LENGTHS[space.name]
    assert from_ids(space, [-1] * length) == from_ids(space, [30] * length) == space.dense
    assert from_ids(space, [0] * length) == space.smallest


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_candidates_are_the_31_ids_in_whole_numbers(space: SearchSpace) -> None:
    for width in space.widths:
        assert width.options == tuple(sorted({width.full * (10 + 3 * k) // 100 for k in range(31)}))
    vectors = [from_ids(space, [k] * LENGTHS[space.name]) for k in range(31)]
    for width in space.widths:
        assert {vector[width.name] for vector in vectors} == set(width.options)


def test_some_ids_are_one_width() -> None:
    counts = {(w.full, len(w.options)) for space in SPACES for w in space.widths if len(w.options) < 31}
    assert counts == {(22, 21), (32, 30)}


def test_mobilenet_v1_gives_id_i_to_layer_i() -> None:
    widths = [30, 40, 51, 101, 202, 194, 389, 250, 312, 481, 312, 435, 993]
    assert list(from_ids(V1, V1_PUBLISHED).values()) == widths
    rotated = [31, 60, 81, 51, 202, 202, 389, 389, 250, 312, 481, 312, 870]
    assert list(from_ids(V1, V1_ROTATED).values()) == rotated


def test_mobilenet_v2_gives_stages_their_ids_and_then_blocks_theirs() -> None:
    architecture = from_ids(V2, V2_105M)
    out = {name: number for name, number in architecture.items() if not name.endswith("hidden")}
    assert out == {
        "stem": 22,
        **{f"stage{i}.out": c for i, c in enumerate((10, 14, 14, 27, 44, 116, 152), start=1)},
    }
    hidden = [number for name, number in architecture.items() if name.endswith("hidden")]
    assert hidden == [12, 33, 31, 108, 81, 161, 137, 132, 227, 242, 242, 340, 221, 459, 698, 658, 698]


def test_resnet_50_gives_the_trunk_its_ids_and_then_blocks_theirs() -> None:
    architecture = from_ids(R50, R50_1G)
    out = {name: number for name, number in architecture.items() if not name.endswith("hidden")}
    assert out == {"stem": 42, "stage1.out": 94, "stage2.out": 281, "stage3.out": 501}
    hidden = [number for name, number in architecture.items() if name.endswith("hidden")]
    assert hidden == [25, 23, 25, 35, 47, 62, 55, 117, 79, 163, 79, 125, 117, 204, 343, 327]


@pytest.mark.parametrize("place", [3, 5, 6, 10, 13, 16])
def test_different_ids_in_a_tied_stage_are_refused(place: int) -> None:
    ids = list(V2_105M)
    ids[place] += 1
    with pytest.raises(ValueError, match=r"layers that share stage\d.out have to be equal; at \d+ there is"):
        from_ids(V2, ids)


@pytest.mark.parametrize(
    ("space", "ids", "message"),
    [
        (V2, V2_105M[:18], "a vector of mobilenet_v2 has 35 ids, not 18"),
        (V1, [*V1_PUBLISHED, 30], "has 13 ids, not 14"),
        (V1, [*V1_PUBLISHED[:-1], 31], "from 0 to 30, or -1 for 30; the one at 12 is 31"),
        (R50, [-2, *R50_1G[1:]], "the one at 0 is -2"),
        (resnet20(), [30] * 13, "networks are mobilenet_v1, .* cifar_resnet20 is none of these"),
    ],
)
def test_vectors_that_stand_for_no_network_are_refused(space: SearchSpace, ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_ids(space, ids)


def test_vectors_set_frozen_widths_too_and_are_refused() -> None:
    candidates = Candidates(ratios=METAPRUNING_RATIOS, freeze=("stem", "block3.out"))
    space = SpaceConfig(name="search_spaces.mobilenet_v1:mobilenet_v1", candidates=candidates).load(
        classes=1000, image_size=224
    )
    with pytest.raises(ValueError, match=r"frozen here: block3\.out, stem"):
        from_ids(space, V1_PUBLISHED)


def test_flops_are_counted_of_metaprunings_networks_only() -> None:
    space = resnet20()
    with pytest.raises(ValueError, match="cifar_resnet20 is none of these"):
        flops(space, space.cost.population([space.dense]))


@pytest.mark.parametrize("define", [mobilenet_v1, mobilenet_v2, resnet50])
def test_other_images_and_classes_count_their_own_flops(define: Callable[..., SearchSpace]) -> None:
    space = define(classes=10, image_size=64)
    architecture = space.sample(UNBOUNDED, seed=0)
    (counted,) = flops(space, space.cost.population([architecture]))
    # No bias but the classifier's; every element is normalized at least once.
    assert counted > space.macs(architecture) + int(space.cost.normalized(space.cost.population([architecture]))[0])
    assert counted < 1.15 * space.macs(architecture)
