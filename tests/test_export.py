import json

import pytest
import torch

import tas_ray
from tas_ray.choices import Architecture, Candidates
from tas_ray.export import ARCHITECTURE_FILE, WEIGHTS_FILE, Blueprint, load_blueprint, load_network, save_network
from tas_ray.space import SpaceConfig


def a_blueprint(config: SpaceConfig) -> Blueprint:
    space = config.load(classes=10, image_size=8)
    return Blueprint(
        space=config,
        architecture=space.sample(space.budget(0.8), seed=3),
        classes=10,
        image_size=8,
        mean=(0.3, 0.3, 0.3),
        std=(0.37, 0.37, 0.37),
    )


CONFIGS = [
    SpaceConfig(),
    SpaceConfig(options={"published": True}),
    SpaceConfig(candidates=Candidates(multiple=4, freeze=("stage1.*",), options={"stage2.out": (8, 32)})),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["tied", "published", "own candidates"])
def test_a_network_comes_back_with_the_same_logits(tmp_path, config):
    blueprint = a_blueprint(config)
    network = blueprint.build()
    images = torch.randn(4, 3, 8, 8)
    network.train()(images)  # running statistics that are not the initial ones
    save_network(tmp_path, network, blueprint)
    loaded = tas_ray.load_network(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(images), network.eval()(images))
    assert load_blueprint(tmp_path) == blueprint


def test_a_network_in_another_memory_layout_is_saved_the_same(tmp_path):
    blueprint = a_blueprint(SpaceConfig())
    network = blueprint.build().eval()
    save_network(tmp_path / "a", network, blueprint)
    save_network(tmp_path / "b", network.to(memory_format=torch.channels_last), blueprint)
    assert (tmp_path / "a" / WEIGHTS_FILE).read_bytes() == (tmp_path / "b" / WEIGHTS_FILE).read_bytes()


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=f"{ARCHITECTURE_FILE} does not describe a network"):
        load_network(tmp_path)
    blueprint = a_blueprint(SpaceConfig())
    save_network(tmp_path, blueprint.build(), blueprint)
    weights = tmp_path / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} does not hold the weights"):
        load_network(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} does not hold the weights"):
        load_network(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    blueprint = a_blueprint(SpaceConfig())
    save_network(tmp_path, blueprint.build(), blueprint)
    path = tmp_path / ARCHITECTURE_FILE
    fields = json.loads(path.read_text())
    fields["architecture"]["stage2.out"] = 31
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="does not hold the weights"):
        load_network(tmp_path)


def test_a_description_with_a_typing_error_is_refused(tmp_path):
    blueprint = a_blueprint(SpaceConfig())
    save_network(tmp_path, blueprint.build(), blueprint)
    path = tmp_path / ARCHITECTURE_FILE
    path.write_text(path.read_text().replace('"stage2.out"', '"stage2.uot"'))
    with pytest.raises(ValueError, match=r"stage2\.uot"):
        load_network(tmp_path)
    assert isinstance(blueprint.architecture, Architecture)


@pytest.mark.parametrize("text", ["[]", "{}", '{"space": 3}', '"architecture"', "null"])
def test_a_description_of_something_else_is_refused(tmp_path, text):
    (tmp_path / ARCHITECTURE_FILE).write_text(text)
    with pytest.raises(ValueError, match=f"{ARCHITECTURE_FILE} does not describe a network"):
        load_blueprint(tmp_path)


@pytest.mark.parametrize("field", ["space", "architecture", "mean"])
def test_a_description_with_something_else_in_it_is_refused(tmp_path, field):
    blueprint = a_blueprint(SpaceConfig())
    save_network(tmp_path, blueprint.build(), blueprint)
    path = tmp_path / ARCHITECTURE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: 3}))
    with pytest.raises(ValueError, match=f"{ARCHITECTURE_FILE} does not describe a network"):
        load_blueprint(tmp_path)
