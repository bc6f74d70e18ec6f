"""Data walks down the house once: a module imports only modules above it."""

import ast
from pathlib import Path

import hf_transfer

PACKAGE = Path(hf_transfer.__file__).parent
ORDER = [
    "escaping",
    "errors",
    "disk",
    "files",
    "checked",
    "task_configs",
    "recipe",
    "recipe_files",
    "run_settings",
    "data",
    "tasks",
    "models",
    "evaluation",
    "training",
    "evidence",
    "publish",
    "api",
    "flags",
    "cli",
]


def imported(path: Path) -> set[str]:
    """Give every hf_transfer module a file imports, inside functions too; what only a type checker sees is no import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" if node.module == "hf_transfer" else node.module for alias in node.names}
    return {name for name in names if name.split(".")[0] == "hf_transfer"}


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 and parts[1] in ORDER else None


def wrong_imports(path: Path, layer: int) -> list[str]:
    return sorted(name for name in imported(path) if (found := layer_of(name)) is not None and found > layer)


def test_every_module_imports_only_what_stands_above_it() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py" and "_recipes" not in path.parts]
    assert len(modules) > 25
    for path in modules:
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert name in ORDER, f"{path}: a new room needs its place in ORDER"
        assert wrong_imports(path, ORDER.index(name)) == [], path


def test_a_wrong_import_is_found(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from hf_transfer.training.loop import train\n    import hf_transfer.files\n")
    assert wrong_imports(bad, ORDER.index("models")) == ["hf_transfer.training.loop"]
    assert wrong_imports(bad, ORDER.index("evidence")) == []


def test_publish_reads_run_folders_and_knows_nothing_of_evidence() -> None:
    for path in (PACKAGE / "publish").glob("*.py"):
        assert not [name for name in imported(path) if name.startswith("hf_transfer.evidence")], path


def siblings_of(folder: Path) -> dict[str, set[str]]:
    """Give what stands in a folder, modules and folders of modules, and which of the others each imports."""
    prefix = ".".join((PACKAGE.name, *folder.relative_to(PACKAGE).parts, ""))
    graph: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        here = path.relative_to(folder).parts[0].removesuffix(".py")
        needs = {name.removeprefix(prefix).split(".")[0] for name in imported(path) if name.startswith(prefix)}
        graph[here] = graph.get(here, set()) | (needs - {here})
    return graph


def test_siblings_import_downward_only() -> None:
    rooms = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name in ORDER]
    for folder in [*rooms, *(path.parent for room in rooms for path in room.glob("*/__init__.py"))]:
        graph = siblings_of(folder)
        done: set[str] = set()
        while ready := [name for name, needs in graph.items() if name not in done and needs <= done]:
            done |= set(ready)
        assert done == set(graph), f"{folder.name}: modules import each other in a circle: {sorted(set(graph) - done)}"


def test_recipes_import_hf_transfer_only() -> None:
    recipes = sorted((PACKAGE.parent / "recipes").glob("*.py"))
    assert recipes
    for path in recipes:
        roots = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert roots == {"hf_transfer"}, path
        assert not any(isinstance(node, (ast.For, ast.While)) for node in ast.walk(ast.parse(path.read_text()))), f"{path} holds a loop"
