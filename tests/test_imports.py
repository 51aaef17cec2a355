"""The flow is one way: a module may import what stands before it, never what comes after (the table is the design)."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = ROOT / "pipeline"

# module or folder of pipeline/ -> what of pipeline/ it may import, besides itself and `storage`
ALLOWED = {
    "__init__": set(),
    "sample": set(),
    "config": set(),
    "storage": set(),
    "recipes": {"config"},
    "sources": {"sample", "config"},
    "text": {"sample"},
    "shards": {"sample", "config"},
    "loading": {"shards", "text", "sample", "config"},
    "models": {"sample", "config"},
    "generate": {"models", "sample"},
    "training": {"models", "generate", "sample", "config"},
    "checkpoint": {"training", "models", "text", "config"},
    "evaluation": {"generate", "models", "sample", "config"},
    "figures": {"sample"},
    "tracking": {"config"},
    "registry": {"checkpoint", "tracking"},
}
ALLOWED["on_ray"] = set(ALLOWED)

FILES = sorted(PIPELINE.rglob("*.py"))
# what only the edges read and write with; the rest of the pipeline imports with PyTorch, NumPy and pyarrow alone
EDGES = {"sources", "shards", "loading", "figures", "on_ray"}
EDGE_PACKAGES = "cv2 PIL pycocotools webdataset matplotlib skimage sklearn scipy tyro pandas".split()


def place_of(path: Path) -> str:
    return path.relative_to(PIPELINE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Dotted names a file imports, anywhere in it or only when it is imported itself."""
    tree = ast.parse(path.read_text())
    for node in top_level(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run on import: not the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from top_level(node)


def packages(path: Path, **options: bool) -> set[str]:
    return {name.split(".")[0] for name in imports(path, **options)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_back_along_the_flow(path: Path) -> None:
    here = place_of(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")}
    assert used <= ALLOWED[here] | {here, "storage"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_ray_and_mlflow_stay_at_their_edges(path: Path) -> None:
    assert "ray" not in packages(path) or place_of(path) == "on_ray"
    assert "mlflow" not in packages(path) or place_of(path) in ("tracking", "registry")
    assert "mlflow" not in packages(path, top_only=True), "importing MLflow takes seconds: import it inside functions"


def test_nothing_imports_jobs_and_only_jobs_import_on_ray() -> None:
    for path in [*FILES, *(ROOT / "cluster").rglob("*.py")]:
        names = set(imports(path))
        assert not any(name.startswith(("jobs.", "tests.")) for name in names), path
        if path.is_relative_to(PIPELINE) and place_of(path) != "on_ray":
            assert not any(name.startswith("pipeline.on_ray") for name in names), path


def run_without(blocked: list[str], modules: list[str]) -> None:
    """Import modules in a fresh interpreter in which the blocked packages are not installed."""
    lines = ["import sys", f"for name in {blocked}: sys.modules[name] = None", *(f"import {name}" for name in modules)]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_everything_but_on_ray_imports_without_ray_and_mlflow() -> None:
    run_without(["ray", "mlflow"], [module_of(path) for path in FILES if place_of(path) != "on_ray"])


def test_the_core_imports_with_torch_numpy_and_pyarrow_alone() -> None:
    core = [module_of(path) for path in FILES if place_of(path) not in EDGES]
    run_without(["ray", "mlflow", *EDGE_PACKAGES], core)


def test_every_package_that_the_code_imports_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    declared = {requirement.split("==")[0].split("[")[0].lower() for requirement in declared}
    providers = importlib.metadata.packages_distributions()
    sources = [path for folder in ("pipeline", "jobs", "cluster") for path in (ROOT / folder).rglob("*.py")]
    used = set().union(*(packages(path) for path in sources)) - set(sys.stdlib_module_names)
    for package in sorted(used - {"pipeline", "jobs", "cluster"}):
        names = {name.lower() for name in providers.get(package, [package])}
        assert names & declared, f"{package} is imported but pyproject.toml does not name {sorted(names)}"
