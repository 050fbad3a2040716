"""The design's rules about who may import and mention what, read from the sources."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_vaeflow

PACKAGE = Path(pyro_vaeflow.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
GENERIC = {
    "isolation", "traces", "noise", "draws", "annealing", "svi", "training", "importance", "psis",
    "recorded", "replay",
    "scoring", "row_scores", "rounds", "pooling", "attribution", "sizes", "footprint", "best",
    "checked", "checkpoint", "fingerprint", "interrupt", "resume", "run_state", "state", "versions",
    "group", "group_noise", "group_training", "watchers",
}  # fmt: skip
# Generic too, each once it is there.
BEYOND_THE_CORE = {"ascent", "calibration", "diagnostics", "gaps", "latents", "local"}


def modules_imported(path: Path) -> set[str]:
    """Full names, those of ``from a import b`` as both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own_imports(path: Path) -> set[str]:
    """The stems of the package's modules that a file imports."""
    stems = {source.stem for source in SOURCES}
    inside = {n.split(".")[1] for n in modules_imported(path) if n.startswith("pyro_vaeflow.")}
    return inside & stems


@pytest.mark.parametrize(
    "name", sorted(GENERIC | (BEYOND_THE_CORE & {path.stem for path in SOURCES}))
)
def test_generic_modules_import_generic_modules_alone(name: str) -> None:
    path = PACKAGE / f"{name}.py"
    assert own_imports(path) <= GENERIC | (BEYOND_THE_CORE if name in BEYOND_THE_CORE else set())
    assert not re.search(r"(?<!auto)encoder", path.read_text(), re.IGNORECASE)


@pytest.mark.parametrize("name", ["importance", "psis", "recorded"])
def test_the_mathematics_of_weights_knows_torch_alone(name: str) -> None:
    top = {n.split(".")[0] for n in modules_imported(PACKAGE / f"{name}.py")}
    assert top <= {"torch", "math", "typing", "collections", "pyro_vaeflow"}
    assert own_imports(PACKAGE / f"{name}.py") <= {"psis"}


def test_imports_make_no_circle() -> None:
    edges = {path.stem: own_imports(path) for path in SOURCES if path.stem != "__init__"}
    while leaves := [name for name, uses in edges.items() if not uses & edges.keys()]:
        for name in leaves:
            del edges[name]
    assert not edges


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_module_unpickles_or_changes_global_settings(path: Path) -> None:
    assert not modules_imported(path) & {"pickle", "dill", "joblib.load", "torch.load"}
    tree = ast.parse(path.read_text())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    forbidden = {"torch.load", "torch.set_num_threads", "torch.set_default_dtype", "joblib.load"}
    forbidden |= {"pyro.enable_validation", "pyro.clear_param_store", "torch.manual_seed"}
    assert not called & forbidden


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_there_are_no_asserts_and_no_utils(path: Path) -> None:
    assert path.stem != "utils"
    assert not [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)]


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, pyro_vaeflow; sys.exit('torch' in sys.modules or 'pyro' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


def test_every_public_name_is_there() -> None:
    assert set(pyro_vaeflow.__all__) <= set(dir(pyro_vaeflow))
    assert all(getattr(pyro_vaeflow, name) is not None for name in pyro_vaeflow.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        pyro_vaeflow.no_such_name  # noqa: B018
