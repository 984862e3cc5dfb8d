"""Every network released with TAS can be read, built, counted and written back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from search_spaces import cifar_resnet, imagenet_resnet
from search_spaces.published import from_channels, read, write
from tas_ray.choices import Architecture, Candidates
from tas_ray.space import SearchSpace, SpaceConfig, load
from tests.search_spaces.conformance import (
    UNBOUNDED,
    assert_costs_are_those_of_the_built_network,
    network_of,
    params_of,
    published_macs,
)
from tests.search_spaces.released import RELEASED, Released

Fields = dict[str, list[object]]
by_file = pytest.mark.parametrize("released", RELEASED, ids=lambda released: released.file)
R20 = RELEASED[0]

BASE: dict[str, Fields] = {
    "search_spaces.cifar_resnet:resnet20": {"depth": ["int", "20"], "module": ["str", "ResNetBasicblock"]},
    "search_spaces.cifar_resnet:resnet32": {"depth": ["int", "32"], "module": ["str", "ResNetBasicblock"]},
    "search_spaces.cifar_resnet:resnet56": {"depth": ["int", "56"], "module": ["str", "ResNetBasicblock"]},
    "search_spaces.cifar_resnet:resnet110": {"depth": ["int", "110"], "module": ["str", "ResNetBasicblock"]},
    "search_spaces.cifar_resnet:resnet164": {"depth": ["int", "164"], "module": ["str", "ResNetBottleneck"]},
    "search_spaces.imagenet_resnet:resnet50": {
        "block_name": ["str", "Bottleneck"],
        "layers": ["int", ["3", "4", "6", "3"]],
        "deep_stem": ["bool", "0"],
    },
}


def fields_of(released: Released) -> Fields:
    """The fields of a released file, as the specification of the format says."""
    imagenet = "imagenet" in released.function
    fields: Fields = {
        "dataset": ["str", "imagenet" if imagenet else "cifar"],
        "arch": ["str", "resnet"],
        **BASE[released.function],
        "super_type": ["str", "infer-shape" if released.xblocks else "infer-width"],
        "zero_init_residual": ["bool", "1" if imagenet else "0"],
        "class_num": ["int", str(released.classes)],
        "search_mode": ["str", "shape"],
        "xchannels": ["int", [str(channels) for channels in released.xchannels]],
    }
    if released.xblocks:
        fields["xblocks"] = ["int", [str(blocks) for blocks in released.xblocks]]
    return {**fields, "estimated_FLOP": ["float", released.estimated_flop]}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Fields], Path]:
    def save(fields: Fields) -> Path:
        path = tmp_path / "network.config"
        path.write_text(json.dumps(fields))
        return path

    return save


@by_file
def test_released_networks_cost_what_the_reference_measured(released: Released) -> None:
    space, architecture = released.space(), released.architecture()
    assert released.published_macs in (None, published_macs(space, architecture))
    assert space.macs(architecture) == released.macs
    assert space.params(architecture) == released.params


@by_file
def test_released_networks_can_be_built(released: Released) -> None:
    space, architecture = released.space(), released.architecture()
    assert_costs_are_those_of_the_built_network(space, architecture)
    assert params_of(network_of(space, architecture)) == released.params


@by_file
def test_released_files_can_be_read(released: Released, saved: Callable[[Fields], Path]) -> None:
    space, architecture = read(saved(fields_of(released)), check_cost=released.published_macs is not None)
    assert space.name == released.space().name
    assert space.classes == released.classes
    assert architecture == released.architecture()


def test_the_one_released_figure_that_fits_no_lists_is_refused(saved: Callable[[Fields], Path]) -> None:
    (odd,) = [released for released in RELEASED if released.published_macs is None]
    with pytest.raises(ValueError, match=r"says 2291\.316289 M.*has 2281\.569049 M.*check_cost=False"):
        read(saved(fields_of(odd)))


@by_file
def test_released_files_are_written_as_they_were(released: Released, tmp_path: Path) -> None:
    space = released.space()
    write(space, released.architecture(), tmp_path / "network.config")
    expected = fields_of(released)
    expected["super_type"] = ["str", "infer-shape"]
    blocks = released.xblocks or [depth.full for depth in space.depths]
    expected["xblocks"] = ["int", [str(count) for count in blocks]]
    macs = published_macs(space, released.architecture())
    expected["estimated_FLOP"] = ["float", f"{macs / 1e6:.6f}".rstrip("0")]
    assert json.loads((tmp_path / "network.config").read_text()) == expected


@by_file
def test_released_networks_are_candidates_except_one(released: Released) -> None:
    space, architecture = released.space(), released.architecture()
    outside = {choice.name for choice in space.choices if architecture[choice.name] not in choice.options}
    fixed = "FIX" in released.file  # every width the same share, whatever the candidates
    assert bool(outside) == (fixed or "ResNet50V1" in released.file)
    if "ResNet50V1" in released.file:
        assert architecture["stage3.depth"] == 5
        assert "stage3.depth" in outside
        assert architecture["stage1.block2.conv1"] == 68  # above the unpruned 64


@pytest.mark.parametrize("function", [*BASE, "search_spaces.imagenet_resnet:resnet18"])
def test_what_is_written_is_read_again(function: str, tmp_path: Path) -> None:
    space = load(function, classes=7, published=True)
    for seed in range(2):
        architecture = space.sample(UNBOUNDED, seed=seed)
        write(space, architecture, tmp_path / "network.config")
        again, same = read(tmp_path / "network.config")
        assert (again.name, again.classes, again.image_size) == (space.name, 7, space.image_size)
        assert same == architecture


def test_other_candidates_of_a_published_space_can_be_written(tmp_path: Path) -> None:
    config = SpaceConfig(
        name="search_spaces.cifar_resnet:resnet20",
        options={"published": True},
        candidates=Candidates(multiple=8),
    )
    space = config.load(classes=10, image_size=32)
    write(space, space.smallest, tmp_path / "network.config")
    assert read(tmp_path / "network.config")[1] == space.smallest


def test_numbers_may_be_written_as_numbers(saved: Callable[[Fields], Path]) -> None:
    fields = fields_of(R20) | {
        "depth": ["int", 20],
        "xchannels": ["int", list(R20.xchannels)],
        "estimated_FLOP": ["float", 22.444472],
        "norm_layer": ["none", "None"],
    }
    assert read(saved(fields))[1] == R20.architecture()


def test_a_width_file_keeps_all_blocks(saved: Callable[[Fields], Path]) -> None:
    fields = fields_of(R20) | {"super_type": ["str", "infer"]}
    del fields["xblocks"], fields["search_mode"]
    assert read(saved(fields))[1] == R20.architecture()


def test_a_depth_file_keeps_all_channels(saved: Callable[[Fields], Path]) -> None:
    fields = fields_of(R20) | {"super_type": ["str", "infer-depth"], "xblocks": ["int", ["1", "2", "3"]]}
    del fields["xchannels"], fields["estimated_FLOP"]
    space, architecture = read(saved(fields))
    depths = {"stage1.depth": 1, "stage2.depth": 2, "stage3.depth": 3}
    assert architecture == Architecture({**space.dense, **depths})


@pytest.mark.parametrize("figure", ["22.444472", "22.4445", "22.44", "22.4", "22", "22.4444715"])
def test_the_cost_in_a_file_may_be_rounded(figure: str, saved: Callable[[Fields], Path]) -> None:
    assert read(saved(fields_of(R20) | {"estimated_FLOP": ["float", figure]}))


@pytest.mark.parametrize("figure", ["22.444474", "22.4444", "22.45", "22.5", "23", "-22.444472"])
def test_a_file_with_another_cost_is_refused(figure: str, saved: Callable[[Fields], Path]) -> None:
    with pytest.raises(ValueError, match=rf"estimated_FLOP says {figure} M.*has 22\.444472 M"):
        read(saved(fields_of(R20) | {"estimated_FLOP": ["float", figure]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"xchannels": ["int", ["3", "16"]]},
            "xchannels of cifar_resnet20-published.* 3 and 19 widths, not 2",
        ),
        ({"xchannels": ["int", ["1", *["16"] * 19]]}, "not 20 numbers that start with 1"),
        ({"xchannels": ["int", "16"]}, "xchannels has to be a list of ints"),
        ({"xchannels": ["int", []]}, "xchannels has to be a list of ints"),
        ({"xchannels": ["int", ["3", "sixteen"]]}, "xchannels has to be of type int, which 'sixteen' is not"),
        ({"xchannels": ["int", ["3", "-16"]]}, "xchannels has to be a positive int, not -16"),
        ({"xchannels": ["str", ["3", "16"]]}, "xchannels has to be a positive int, not '3'"),
        ({"xchannels": ["int", [["3"]]]}, "xchannels has to be of type int"),
        ({"xchannels": ["int", [16.5]]}, "xchannels has to be of type int, which 16.5 is not"),
        ({"xblocks": ["int", ["3", "3"]]}, "xblocks of cifar_resnet20-published are 3 numbers, not 2"),
        ({"xblocks": ["int", ["3", "3", "4"]]}, "stage3.depth=4 is impossible"),
        ({"xblocks": ["int", ["3", "0", "3"]]}, "xblocks has to be a positive int, not 0"),
        ({"arch": ["str", "vgg"]}, "no space for the network.*vgg"),
        ({"dataset": ["str", "svhn"]}, "no space for the network.*svhn"),
        ({"depth": ["int", "44"]}, "no space for the network.*44"),
        ({"depth": ["str", "20"]}, "no space for the network"),
        ({"module": ["str", "ResNetBottleneck"]}, "no space for the network"),
        ({"class_num": ["int", "0"]}, "class_num has to be a positive int, not 0"),
        ({"class_num": ["none", "None"]}, "class_num has to be a positive int, not None"),
        ({"super_type": ["str", "basic"]}, "super_type has to be one of infer-shape.*not basic"),
        ({"estimated_FLOP": ["float", "nan"]}, "estimated_FLOP.* type float, which 'nan' is not"),
        (
            {"estimated_FLOP": ["float", "much"]},
            "estimated_FLOP.* type float, which 'much' is not",
        ),
        ({"estimated_FLOP": ["str", "22.444472"]}, "estimated_FLOP has to be a float"),
        ({"depth": ["integer", "20"]}, "depth has the type integer; there are str, int, bool, float, none"),
        ({"depth": 20}, r'depth has to be \["type", value\], not 20'),
        ({"depth": ["int"]}, r'depth has to be \["type", value\]'),
        ({"depth": [["int"], "20"]}, r'depth has to be \["type", value\]'),
    ],
)
def test_malformed_files_are_refused(changes: Fields, message: str, saved: Callable[[Fields], Path]) -> None:
    path = saved(fields_of(R20) | changes)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("missing", ["dataset", "depth", "class_num", "super_type", "xchannels", "xblocks"])
def test_files_without_a_needed_field_are_refused(missing: str, saved: Callable[[Fields], Path]) -> None:
    fields = fields_of(R20)
    del fields[missing]
    with pytest.raises(ValueError, match="None"):
        read(saved(fields))


def test_a_deep_stem_is_refused(saved: Callable[[Fields], Path]) -> None:
    imagenet = next(released for released in RELEASED if "ImageNet" in released.file)
    with pytest.raises(ValueError, match="without deep stem"):
        read(saved(fields_of(imagenet) | {"deep_stem": ["bool", "1"]}))


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("", "not JSON"), ("[1]", "not a list")])
def test_text_that_is_no_such_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "network.config"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read(path)


def frozen() -> SearchSpace:
    candidates = Candidates(freeze=("stem",))
    name, options = "search_spaces.cifar_resnet:resnet20", {"published": True}
    return SpaceConfig(name=name, options=options, candidates=candidates).load(classes=10, image_size=32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cifar_resnet.resnet20, "cifar_resnet20 is none of these"),
        (lambda: cifar_resnet.resnet20(published=True, image_size=64), "images of 32 pixels, not 64"),
        (lambda: imagenet_resnet.resnet18(published=True, image_size=32), "images of 224 pixels, not 32"),
        (frozen, "frozen here: stem"),
    ],
)
def test_spaces_the_format_cannot_hold_are_refused(
    make: Callable[[], SearchSpace], message: str, tmp_path: Path
) -> None:
    space = make()
    with pytest.raises(ValueError, match=message):
        write(space, space.dense, tmp_path / "network.config")
    assert not list(tmp_path.iterdir())


def test_an_architecture_of_another_space_is_not_written(tmp_path: Path) -> None:
    space = cifar_resnet.resnet32(published=True)
    with pytest.raises(ValueError, match="missing"):
        write(space, R20.architecture(), tmp_path / "network.config")


def test_channel_lists_of_tied_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="xchannels of cifar_resnet20 are 3 and 12 widths, not 20"):
        from_channels(cifar_resnet.resnet20(), R20.xchannels, R20.xblocks)
