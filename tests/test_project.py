"""The project itself: who imports whom, what is installed and pinned, and whether its documents are true."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import tas_ray

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def name_of(requirement: str) -> str:
    """The normalised name of a requirement: `ray[tune]>=2.60` is `ray`."""
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_imports_keep_the_contracts():
    linter = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("package", ["tas_ray", "search_spaces", "jobs"])
def test_every_file_opens_by_saying_what_it_is_for(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    silent = [file for file in files if not ast.get_docstring(ast.parse(file.read_text()))]
    assert not silent


def test_only_the_two_packages_are_installed():
    installed = metadata.distribution("tas-ray").read_text("top_level.txt")
    assert installed is not None
    assert set(installed.split()) == {"tas_ray", "search_spaces"}
    for package in installed.split():
        assert (ROOT / package / "py.typed").exists()


def test_the_installed_version_is_the_one_in_the_sources():
    assert metadata.version("tas-ray") == tas_ray.__version__


def test_constraints_are_exact_versions_and_nothing_else():
    odd = [pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)]
    assert not odd
    assert len({name_of(pin) for pin in PINS}) == len(PINS)


def test_every_dependency_is_pinned_and_explained():
    wanted = {name_of(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]}
    assert wanted <= {name_of(pin) for pin in PINS}
    explained = re.findall(r"^\| `([a-z-]+)", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)
    assert set(explained) == wanted


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_commands_in_the_documents_exist(document):
    text = (ROOT / document).read_text()
    assert set(re.findall(r"\bmake ([a-z]+)\b", only_code(text))) <= targets()
    for module in re.findall(r"\bpython -m jobs\.([a-z0-9_]+)", text):
        assert (ROOT / "jobs" / f"{module}.py").exists()


def test_the_readme_shows_the_two_commands_a_fresh_machine_needs():
    commands = re.findall(r"\bmake ([a-z]+)\b", only_code((ROOT / "README.md").read_text()))
    assert {"quickstart", "test"} <= set(commands)


def only_code(markdown: str) -> str:
    """What stands in code blocks and between backticks, where "make" is a command and not a verb."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", markdown, re.DOTALL))


def test_ci_runs_what_a_developer_runs():
    script = (ROOT / ".ci/run").read_text()
    assert set(re.findall(r"^exec make (.+)$", script, re.MULTILINE)[0].split()) == {"check", "test"}
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["check-and-test"]["steps"]
    assert steps[-1] == {"run": "bash .ci/run"}
    tested = workflow["jobs"]["check-and-test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={tested[0]},<3.{int(tested[-1].split('.')[1]) + 1}"


def test_the_compose_cluster_is_closed_to_other_machines_and_asks_for_a_token():
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    assert set(services) == {"head", "worker", "gpu-worker"}
    for service in services.values():
        assert service["secrets"] == ["ray_token"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "RAY_AUTH_MODE=token" in (ROOT / "docker/Dockerfile").read_text()
