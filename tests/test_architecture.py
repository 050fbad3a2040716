"""The design's rules about who may import and mention what, read from the sources."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_vaeflow
from pyro_vaeflow import Callback

PACKAGE = Path(pyro_vaeflow.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Each folder imports from itself, the folders before it and the modules of the top level.
FOLDERS = "plots inference tables programs datasets detector files experiments".split()


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


MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in SOURCES
    if path.stem != "__init__"
}


def own_imports(path: Path) -> set[str]:
    """Full names of the package's modules that a file imports."""
    return modules_imported(path) & MODULES.keys()


def test_folders_are_all_ordered_and_validation_imports_nothing_of_ours() -> None:
    assert not own_imports(PACKAGE / "validation.py")
    assert {path.parent.name for path in SOURCES} == {PACKAGE.name, *FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_from_itself_and_those_before_it(folder: str) -> None:
    below = {PACKAGE.name, *FOLDERS[: FOLDERS.index(folder) + 1]}
    for path in (PACKAGE / folder).glob("*.py"):
        assert {MODULES[name].parent.name for name in own_imports(path)} <= below, path.name
        assert "pyro_vaeflow.cli" not in own_imports(path), path.name
        # A public name would be found past this test, wherever it lives.
        assert not {f"pyro_vaeflow.{name}" for name in pyro_vaeflow._HOME} & modules_imported(path)


def test_inference_knows_no_encoder() -> None:
    for path in (PACKAGE / "inference").glob("*.py"):
        assert not re.search(r"(?<!auto)encoder", path.read_text(), re.IGNORECASE), path.name


@pytest.mark.parametrize("name", ["importance", "psis"])
def test_the_mathematics_of_weights_knows_torch_alone(name: str) -> None:
    path = PACKAGE / "inference" / f"{name}.py"
    top = {n.split(".")[0] for n in modules_imported(path)}
    assert top <= {"torch", "math", "typing", "collections", "pyro_vaeflow"}
    assert own_imports(path) <= {"pyro_vaeflow.inference.psis"}


def test_imports_make_no_circle() -> None:
    edges = {name: own_imports(path) for name, path in MODULES.items()}
    while leaves := [name for name, uses in edges.items() if not uses & edges.keys()]:
        for name in leaves:
            del edges[name]
    assert not edges


def test_no_module_asserts_or_changes_global_settings() -> None:
    forbidden = {"torch.set_num_threads", "torch.set_num_interop_threads", "torch.manual_seed"}
    forbidden |= {"torch.set_default_dtype", "pyro.enable_validation", "pyro.clear_param_store"}
    for path in SOURCES:
        assert path.stem != "utils"
        nodes = list(ast.walk(ast.parse(path.read_text())))
        called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        assert not called & forbidden, path
        assert not [node for node in nodes if isinstance(node, ast.Assert)], path


def test_nothing_in_the_package_unpickles() -> None:
    """`ParamStore.load` and `optim.load` of Pyro unpickle as well."""
    loaders = {"load", "loads", "save", "dump", "dumps", "load_state"}
    for path in SOURCES:
        text = path.read_text()
        words = re.findall(r"\b(c?pickle|dill|cloudpickle|marshal|shelve)\b", text, re.IGNORECASE)
        unsafe = re.search(r"allow_pickle\s*=\s*True|yaml\.(unsafe_|full_)?load\(", text)
        assert not (words or unsafe), path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                assert not (node.module in ("torch", "joblib") and names & loaders), path.name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner, name = ast.unparse(node.func.value), node.func.attr
                where = f"{path.name}:{node.lineno}: {owner}.{name}"
                if owner == "torch" and name == "load":
                    options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert options.get("weights_only") == "True", where
                assert not (owner == "joblib" and name in loaders), where
                store = re.search(r"store|optim", owner, re.IGNORECASE)
                assert not (store and name in ("load", "save")), where
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path.name


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import pyro_vaeflow", "torch pyro"),
        ("import pyro_vaeflow.experiments.study", "torch"),
        (
            "from pyro_vaeflow.plots.maps import plot_points; plot_points([[0, 1]])",
            "matplotlib.pyplot torch",
        ),
        *(
            (f"from pyro_vaeflow.cli import main; main({argv.split()})", "torch pandas sklearn")
            for argv in ("--help", "run --help", "score --help", "presets")
        ),
    ],
)
def test_what_does_not_wait_for_large_imports(code: str, heavy: str) -> None:
    code = f"try:\n    {code}\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
    code += f"import sys; assert not set({heavy.split()}) & set(sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=PACKAGE.parent, stdout=subprocess.DEVNULL).returncode == 0


def test_every_public_name_is_there() -> None:
    assert set(pyro_vaeflow.__all__) <= set(dir(pyro_vaeflow))
    assert all(getattr(pyro_vaeflow, name) is not None for name in pyro_vaeflow.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        pyro_vaeflow.no_such_name  # noqa: B018


def test_no_module_is_long() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in SOURCES}
    assert max(lengths.values()) <= 300, sorted(lengths, key=lengths.get)[-3:]


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and their methods without a docstring, by name.

    A `Callback`'s hooks are documented once, in `Callback`, and what overrides one inherits that.
    """
    names = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            bases = map(ast.unparse, node.bases) if isinstance(node, ast.ClassDef) else ()
            hooks = dir(Callback) if "Callback" in bases else ()
            methods = node.body if isinstance(node, ast.ClassDef) else ()
            names += [node.name] * (not ast.get_docstring(node))
            names += [
                f"{node.name}.{method.name}"
                for method in methods
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                if method.name not in hooks and not ast.get_docstring(method)
            ]
    return names


def test_all_that_is_public_has_a_docstring() -> None:
    assert undocumented(ast.parse("'.'\ndef f(): ...\nclass A:\n  def g(self): ...")) == [
        "f",
        "A",
        "A.g",
    ]
    missing = {path.name: undocumented(ast.parse(path.read_text())) for path in SOURCES}
    assert not {name: found for name, found in missing.items() if found}


def test_train_is_a_loop_of_at_most_60_lines() -> None:
    tree = ast.parse((PACKAGE / "inference/training.py").read_text())
    (train,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train"]
    assert ast.get_docstring(train)
    lines = train.end_lineno - train.body[1].lineno + 1  # behind the docstring
    assert lines <= 60


# In a process of its own: what stands behind model and training, then all modules.
IMPORTS = """
import pkgutil, random, sys, numpy, pyro, torch

def state():
    return (
        torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype(),
        torch.is_grad_enabled(), torch.get_rng_state().tolist(), random.getstate(),
        str(numpy.random.get_state()), pyro.distributions.Distribution.__dict__.keys(),
        pyro.settings.get(), len(pyro.get_param_store()), torch.distributions.Distribution
        ._validate_args, numpy.geterr(),
    )

before = state()
import pyro_vaeflow
from pyro_vaeflow import Guide, score, train
files = [m.__file__ for n, m in sys.modules.items() if n.startswith("pyro_vaeflow.")]
print(*(f for f in files if not f.endswith("__init__.py")))
for module in pkgutil.walk_packages(pyro_vaeflow.__path__, "pyro_vaeflow."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
after = state()
assert before == after, [(a, b) for a, b in zip(before, after) if a != b]
"""


def test_imports_change_no_global_state_and_few_modules_stand_behind_model_and_training() -> None:
    """Guide, train and score: 47 modules and 6,297 lines in version 0.1.

    3,939 lines took programs of the pair's own shape alone; 900 more take any pair of programs.
    """
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    files = [Path(name) for name in result.stdout.split()]
    assert 10 < len(files) <= 24, sorted(path.stem for path in files)
    assert sum(len(path.read_text().splitlines()) for path in files) <= 4900
