"""What an install gives, what an import does not do, and what is kept out of the repository."""

import configparser
import re
import runpy
import shutil
import subprocess
from importlib.metadata import entry_points, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

import pyro_vaeflow

ROOT = Path(__file__).parents[1]
DATA_OR_CHECKPOINT = re.compile(
    r"\.(ckpt|gz|mat|npy|npz|parquet|pickle|pkl|pt|pth|safetensors|zip)$"
)


def source_files() -> list[Path]:
    """Files that are tracked, or would be by ``git add``."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_installed_metadata():
    assert version("pyro_vaeflow") == pyro_vaeflow.__version__
    (script,) = entry_points(group="console_scripts", name="vaeflow")
    assert callable(script.load())


@pytest.mark.parametrize("address", ["", "https://host.example/blob/v1"])
def test_links_of_the_page_on_an_index_lead_somewhere(address: str, monkeypatch) -> None:
    made: dict = {}
    monkeypatch.setattr("setuptools.setup", made.update)
    monkeypatch.setenv("VAEFLOW_URL", address)
    runpy.run_path(str(ROOT / "setup.py"))
    links = re.findall(r"\]\(([^)]+)\)", made["long_description"])
    assert [link for link in links if not link.startswith("https://")] == []
    assert (
        (f"{address}/docs/guide/install.md" in links) == bool(address) == bool(made["project_urls"])
    )


def test_presets_are_installed_with_the_package():
    presets = {path.name for path in (files("pyro_vaeflow") / "presets").iterdir()}
    assert {"quickstart.yaml", "kdd-paper.yaml", "ring.yaml"} <= presets


def test_constraints_pin_every_requirement():
    def key(name: str) -> str:
        return re.sub("[-_.]+", "-", re.split(r"[\[ <>=]", name)[0]).lower()

    text = (ROOT / "constraints.txt").read_text()
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    pins = dict(line.split("==") for line in lines if line)
    pinned = {key(name) for name in pins}
    # A local version or a path would install on one machine only.
    assert all(re.fullmatch(r"[\w.]+", number) for number in pins.values())
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"].strip().splitlines()
    oldest = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()[1:]
    bounds = [re.sub(r"\[.*\]", "", line).replace(" >= ", "==") for line in required]
    assert [line.lower() for line in oldest] == [  # those that setup.cfg allows, to the last digit
        next(pin for pin in (line.lower() for line in oldest) if pin.startswith(bound))
        for bound in bounds
    ]
    for extra in setup["options.extras_require"].values():
        required += extra.split()
    assert [name for name in required if key(name) not in pinned] == []


def test_no_data_and_no_checkpoint_in_the_repository():
    found = source_files()
    assert [p.name for p in found if DATA_OR_CHECKPOINT.search(p.name)] == []
    assert [p.name for p in found if p.stat().st_size > 600_000] == []


def test_make_and_continuous_integration_agree():
    text = (ROOT / "Makefile").read_text()
    for module in re.findall(r"python -m (pyro_vaeflow[\w.]*)", text):
        assert find_spec(module), module
    targets = set(re.findall(r"^([\w-]+):", text, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    assert phony == targets
    assert {"quickstart", "test", "lint", "kdd-paper", "table1"} <= targets
    script = (ROOT / ".ci" / "run").read_text()
    for target in re.findall(r"^make ([\w-]+)$", script, re.MULTILINE):
        assert target in targets
    assert "make test" in script and "make lint" in script
