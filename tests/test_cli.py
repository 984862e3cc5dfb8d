"""Tests of the command line: every verb in this process, its help, and what it says to mistakes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import tas_ray
from tas_ray import cli, pipeline
from tas_ray.choices import Candidates
from tas_ray.cli import FAILED, INTERRUPTED, MISTAKE, main
from tas_ray.cluster.config import Sweep
from tas_ray.data import DataConfig
from tas_ray.export import ARCHITECTURE_FILE, Blueprint, load_blueprint, save_blueprint, save_network
from tas_ray.results import Result, read_result, write_result
from tas_ray.space import SpaceConfig

VERBS = ("describe", "latency", "search", "retrain", "sweep", "fidelity", "leaderboard", "quickstart")
TINY = "search_spaces.tiny:tiny"
SHORT_SEARCH = ["--tas.search.epochs", "1", "--tas.search.batch-size", "128"]
SHORT_TRAINING = ["--epochs", "1", "--warmup-epochs", "0", "--batch-size", "128"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "path", list(sys.path))


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = MISTAKE) -> str:
    """What a command that must fail says, having checked its exit code and that there is no traceback."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    return said.err + said.out


def the_only(pattern: str) -> Path:
    (found,) = Path().glob(pattern)
    return found


def a_result(folder: Path, method: str, budget: float | None, accuracy: float) -> None:
    """A finished tiny network in `folder`, untrained."""
    space = SpaceConfig().load(classes=10, image_size=8)
    dense = space.macs(space.dense)
    architecture = space.dense if budget is None else space.smallest
    blueprint = Blueprint(
        space=SpaceConfig(),
        architecture=architecture,
        classes=10,
        image_size=8,
        mean=(0.3,) * 3,
        std=(0.4,) * 3,
    )
    save_network(folder, space.build(architecture), blueprint)
    values = {
        "run": folder.parent.parent.name,
        "trial": folder.name,
        "space": "tiny",
        "dataset": "digits",
        "method": method,
        "seed": 0,
        "budget_macs": None if budget is None else int(budget * dense),
        "budget_ratio": budget,
        "macs": space.macs(architecture),
        "macs_ratio": space.macs(architecture) / dense,
        "params": space.params(architecture),
        "test_accuracy": accuracy,
        "dense_accuracy": 0.98,
        "search_accuracy": None,
        "evaluations": None,
        "search": None,
        "validation_accuracy": None,
        "search_seconds": 1.0,
        "retrain_seconds": 2.0,
        "workers": 1,
        "device": "cpu",
        "precision": "float32",
        "architecture": str(architecture),
        "checkpoint": str(folder),
        "parameters": "{}",
        "tas_ray_version": tas_ray.__version__,
        "torch_version": torch.__version__,
        "ray_version": "2.60.0",
        "python_version": "3.11.7",
        "commit": None,
        "finished_at": "2030-01-31T12:00:00+00:00",
    }
    write_result(folder, Result(**values))  # type: ignore[arg-type]


def a_run(folder: Path) -> None:
    """Three finished networks where the quickstart puts them."""
    for name, method, budget, accuracy in (
        ("tas-0.25-seed0", "tas", 0.25, 0.96),
        ("uniform-0.25-seed0", "uniform", 0.25, 0.94),
        ("dense-seed0", "dense", None, 0.98),
    ):
        a_result(folder / "trials" / name, method, budget, accuracy)


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_explains_every_flag(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    unexplained = re.findall(r"│\s+(--[a-z.-]+)[^│]*│\n│\s+(?=--|\(default|╰)", text)
    assert not unexplained


def test_the_command_lists_its_verbs(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"• {verb}" in text for verb in VERBS)


def test_the_command_starts_without_importing_ray():
    script = "import sys, tas_ray.cli; sys.exit('ray' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", script], cwd=cli.__file__[: -len("tas_ray/cli.py")], check=False
        ).returncode
        == 0
    )


# describe


def test_describe_tells_depthwise_layers_from_others(capsys):
    main(["describe", "search_spaces.mobilenet_v1:mobilenet_v1"])
    text = capsys.readouterr().out
    assert text.count("3x3 depthwise") == 13
    assert text.count("3x3") == 14


def test_describe_shows_the_dense_networks_layers_and_costs(capsys):
    main(["describe", TINY, "--budgets", "0.5", "100000"])
    text = capsys.readouterr().out
    space = SpaceConfig().load(classes=10, image_size=8)
    for number in (space.macs(space.dense), space.params(space.dense), space.macs(space.smallest)):
        assert f"{number:,}" in text
    rows = re.findall(r"> \d+ +[\d,]+ +([\d,]+) +([\d,]+)", text)
    layers = [(int(macs.replace(",", "")), int(params.replace(",", ""))) for macs, params in rows]
    assert sum(macs for macs, _ in layers) == space.macs(space.dense)
    assert sum(params for _, params in layers) == space.params(space.dense)
    assert all(choice.name in text for choice in space.choices)
    assert text.count("FLOPs") == 1
    assert f"budget 0.5: reachable, at most {space.macs(space.dense) // 2:,} MACs" in text
    assert "budget 100000: reachable" in text


def test_describe_finds_what_projections_add_to_the_dense_network(capsys):
    main(["describe", "search_spaces.cifar_resnet:resnet164", "--options", "published=true"])
    found = re.search(r"maximum found +[\d,]+ +([\d.]+)%", capsys.readouterr().out)
    assert found
    assert float(found[1]) > 150


def test_describe_takes_the_flags_that_change_a_space(capsys):
    main(["describe", TINY, "--multiple", "8", "--freeze", "stage1.*", "--classes", "7", "--image-size", "16"])
    text = capsys.readouterr().out
    assert "> 7 " in text
    assert re.search(r"stage2.out +channels +8 16 24 32", text)
    assert not re.search(r"stage1.out +channels", text)


def test_describe_finds_a_search_space_in_the_current_folder(capsys, tmp_path):
    (tmp_path / "my_networks.py").write_text("from search_spaces.tiny import tiny as mine\n")
    main(["describe", "my_networks:mine"])
    assert "layers of tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "search_spaces.tiny:none"], "there is no search space search_spaces.tiny:none"),
        (["describe", "tiny"], "`package.module:function`"),
        (["describe", TINY, "--options", "published"], "NAME=VALUE"),
        (["describe", TINY, "--options", "depth=3"], "has no option depth"),
        (["describe", TINY, "--freeze", "stage9"], "stage9"),
        (["describe", TINY, "--budgets", "0.001"], "the smallest network of tiny has 42 858 MACs"),
        (["describe", TINY, "--budgets", "2000000"], "above the dense network"),
        (["describe", TINY, "--budgets", "-1"], "a positive number"),
        (["describe", TINY, "--image-size", "7"], "do not fit this network"),
        (["describe", TINY, "--budget", "0.5"], "--budgets"),
        (["serch", TINY], "search"),
        (["search", TINY], "tas needs a budget"),
        (["search", TINY, "--budget", "0.5", "--tas.sample", "3"], "Perhaps you meant"),
        (["search", TINY, "--budget", "0.5", "--tas.samples", "0"], "at least 1 width is drawn"),
        (["search", TINY, "--budget", "0.5", "--dataset", "cifar10"], "needs `path`"),
        (["search", TINY, "--budget", "0.5", "--method", "best"], "invalid choice"),
        (["search", TINY, "--method", "dense", "--budget", "0.5"], "only the dense network has none"),
        (["retrain", "nowhere.json"], "not called architecture.json"),
        (["retrain", "nowhere/architecture.json"], "does not describe a network"),
        (["sweep", TINY, "--run", "a/b", "--budgets", "0.5"], "plain name"),
        (["sweep", TINY, "--run", "a", "--budgets", "0.5", "0.5"], "no two may be the same"),
        (["leaderboard", "nowhere"], "is not a folder"),
        (["leaderboard", "."], "no finished network"),
    ],
)
def test_a_mistake_is_one_clear_message_and_exit_code_2(arguments, message, capsys):
    said = re.sub(r"\s*│\n│\s*", " ", fails(capsys, *arguments))
    assert message in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys):
    assert "no GPU" in fails(capsys, "search", TINY, "--method", "dense", "--device", "cuda")


# search and retrain


def test_search_then_retrain_gives_a_network_and_a_row(capsys):
    main(["search", TINY, "--method", "dense"])
    main(["retrain", str(the_only("runs/search/dense*")), *SHORT_TRAINING])
    teacher = the_only("runs/retrain/dense*")
    main(["search", TINY, "--budget", "0.5", *SHORT_SEARCH])
    found = the_only("runs/search/tas*") / ARCHITECTURE_FILE
    capsys.readouterr()
    main(["retrain", str(found), *SHORT_TRAINING, "--teacher", str(teacher), "--budget", "0.5"])
    assert "on the test set, dense" in capsys.readouterr().out

    folder = the_only("runs/retrain/given*")
    result, dense = read_result(folder / "result.json"), read_result(teacher / "result.json")
    assert dense.method == "dense"
    assert dense.budget_macs is None
    assert result.dense_accuracy == dense.test_accuracy
    assert result.budget_macs == dense.macs // 2
    assert result.macs <= result.budget_macs
    assert dict(load_blueprint(folder).architecture) == dict(load_blueprint(found.parent).architecture)
    assert tas_ray.load_network(folder)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert not list(Path("runs/retrain").rglob("checkpoint.pt"))

    main(["leaderboard", "runs"])
    assert {"given", "dense"} == set(pd.read_csv("runs/leaderboard.csv")["method"])


def test_a_finished_search_is_not_repeated(capsys, monkeypatch):
    command = ["search", TINY, "--budget", "0.5", *SHORT_SEARCH]
    main(command)
    first = capsys.readouterr().out.splitlines()[-3:]
    monkeypatch.setattr(pipeline, "fit", lambda *_, **__: pytest.fail("trained again"))
    main(command)
    assert capsys.readouterr().out.splitlines()[-3:] == first
    assert "MACs" in first[1]


def test_a_corrupt_checkpoint_is_refused_by_name(capsys):
    command = ["search", TINY, "--budget", "0.5", *SHORT_SEARCH]
    main(command)
    checkpoint = the_only("runs/search/*/checkpoint.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    assert "cannot be read" in fails(capsys, *command)


def test_other_settings_search_in_another_folder():
    main(["search", TINY, "--budget", "0.5", "--method", "random"])
    main(["search", TINY, "--budget", "0.5", "--method", "random", "--seed", "1"])
    main(["search", TINY, "--budget", "0.5", "--method", "random", "--multiple", "8"])
    found = [json.loads(path.read_text()) for path in Path("runs/search").glob(f"*/{ARCHITECTURE_FILE}")]
    assert len(found) == 3
    assert sum(fields["space"]["candidates"] is not None for fields in found) == 1


def test_retrain_without_a_teacher_learns_from_labels(capsys):
    main(["search", TINY, "--budget", "0.5", "--method", "uniform"])
    main(["retrain", str(the_only("runs/search/uniform*")), *SHORT_TRAINING])
    assert read_result(the_only("runs/retrain/*/result.json")).dense_accuracy is None
    path = str(the_only("runs/search/uniform*"))
    said = fails(capsys, "retrain", path, *SHORT_TRAINING, "--initialization", "dense")
    assert "initialization needs a teacher" in said


def test_retrain_refuses_a_teacher_that_is_none_and_a_budget_that_is_too_small(capsys):
    main(["search", TINY, "--budget", "0.5", "--method", "uniform"])
    path = str(the_only("runs/search/uniform*"))
    assert "nowhere" in fails(capsys, "retrain", path, *SHORT_TRAINING, "--teacher", "nowhere")
    assert "more than the budget" in fails(capsys, "retrain", path, *SHORT_TRAINING, "--budget", "0.1")


def test_retrain_refuses_an_architecture_of_another_network(capsys):
    space = SpaceConfig(name=TINY, candidates=Candidates(freeze=("stage1.*",)))
    other = SpaceConfig().load(classes=10, image_size=8).dense
    ones = (1.0,) * 3
    wrong = Blueprint(space=space, architecture=other, classes=10, image_size=8, mean=ones, std=ones)
    save_blueprint(Path("wrong"), wrong)
    assert "unknown: stage1" in fails(capsys, "retrain", "wrong", *SHORT_TRAINING)


def test_a_file_where_runs_should_lie_is_refused(capsys):
    Path("runs").write_text("")
    assert "cannot be stored" in fails(capsys, "search", TINY, "--budget", "0.5", "--method", "random")


def test_control_c_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "search", interrupted)
    said = fails(capsys, "search", TINY, "--budget", "0.5", code=INTERRUPTED)
    assert "the same command goes on" in said


# sweep, quickstart, leaderboard


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[Sweep]:
    """The sweeps that commands start; each leaves three results and does nothing else."""
    from tas_ray.cluster import sweep as module

    started: list[Sweep] = []

    def run(sweep: Sweep) -> None:
        started.append(sweep)
        a_run(sweep.folder)

    monkeypatch.setattr(module, "sweep", run)
    return started


def test_sweep_runs_what_its_flags_say(sweeps, capsys):
    flags = ["--retrain.epochs", "7", "--tas.samples", "3", "--no-distill", "--resources.workers", "2"]
    methods = ["--methods", "tas", "dense", "--seeds", "1", "2", "--budgets", "0.25", "600000"]
    main(["sweep", TINY, "--options", "published=true", "--run", "mine", *methods, *flags])
    (sweep,) = sweeps
    assert sweep.run == "mine"
    assert sweep.space == SpaceConfig(name=TINY, options={"published": True})
    assert sweep.data == DataConfig()
    assert [method.name for method in sweep.methods] == ["tas", "dense"]
    assert sweep.methods[0].samples == 3  # type: ignore[attr-defined]
    assert sweep.budgets == (0.25, 600000)
    assert sweep.seeds == (1, 2)
    assert sweep.retrain.epochs == sweep.teacher.epochs == 7
    assert sweep.distillation is None
    assert sweep.resources.workers == 2
    assert "tiny on digits" in capsys.readouterr().out


def test_quickstart_ends_with_the_table_and_the_paths(sweeps, capsys):
    main(["quickstart"])
    (sweep,) = sweeps
    assert sweep.budgets == (0.06, 0.12, 0.25)
    assert [method.name for method in sweep.methods] == ["tas", "metapruning", "uniform", "random"]
    text = capsys.readouterr().out
    assert "tiny on digits" in text
    for name in ("leaderboard.csv", "leaderboard.png"):
        assert f"runs/quickstart/{name}" in text
        assert (sweep.folder / name).exists()


def test_failed_trials_are_named_beside_the_leaderboard_of_the_others(monkeypatch, capsys):
    from tas_ray.cluster import sweep as module

    def run(sweep: Sweep) -> None:
        a_run(sweep.folder)
        raise RuntimeError("1 trial(s) failed; the same command tries them again:\n  random-0.5-seed0: no luck")

    monkeypatch.setattr(module, "sweep", run)
    said = fails(capsys, "quickstart", code=FAILED)
    assert "random-0.5-seed0: no luck" in said
    assert "tiny on digits" in said


def test_a_submitted_job_has_to_store_where_it_lasts(sweeps, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "absolute path" in fails(capsys, "quickstart")
    assert not sweeps
    main(["quickstart", "--storage", str(tmp_path / "kept")])
    assert len(sweeps) == 1


def test_leaderboard_prints_writes_and_draws(capsys):
    a_run(Path("runs/demo"))
    main(["leaderboard", "runs/demo"])
    text = capsys.readouterr().out
    assert "96.00" in text
    assert list(pd.read_csv("runs/demo/leaderboard.csv")["method"]) == ["tas", "uniform", "dense"]
    assert Path("runs/demo/leaderboard.png").stat().st_size > 10_000


# Documents


def blocks_of(document: str) -> list[str]:
    text = (Path(__file__).parent.parent / document).read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md"])
def test_the_python_in_the_documents_runs_as_it_stands(document, monkeypatch):
    a_run(Path("runs/quickstart"))
    monkeypatch.syspath_prepend(os.curdir)
    blocks = blocks_of(document)
    assert blocks
    for number, block in enumerate(blocks):
        first = block.splitlines()[0]
        if first.startswith("# ") and first.endswith(".py"):
            Path(first[2:]).write_text(block)
        exec(compile(block, f"{document}, block {number}", "exec"), {"__name__": "document"})
