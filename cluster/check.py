"""Check cluster files before a cloud does, at a desk, without credentials:

    python -m cluster.check ray_cluster.yaml
    python -m cluster.check cluster/kuberay/*.yaml

One line a fault: what is still to be filled in, what Ray's own schema refuses, an image of another version than the
project's, an entry point that is no job of ours, a container with more rights than it needs. Exit code 2 if there is any.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDER = re.compile(r"<([A-Z_]+)>")
OUR_IMAGE = "/caption-canvas:"
NEEDS_API = {"RayCluster"}  # the autoscaler beside the head talks to Kubernetes


def faults(path: Path) -> list[str]:
    """What is wrong with a file, a line each; empty when it is ready to use."""
    try:
        text = path.read_text()
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except OSError as error:
        return [f"{path}: cannot be read ({error.strerror})"]
    except yaml.YAMLError as error:
        return [f"{path}: is no YAML: {' '.join(str(error).split())}"]
    found = [f"{path}:{line}: {fault}" for line, fault in _unfilled(text)]
    if len(documents) != 1 or not isinstance(documents[0], dict):
        return [*found, f"{path}: one object a file is expected, found {len(documents)}"]
    document = documents[0]
    if "cluster_name" in document:
        rest = [*_cluster_faults(document), *_image_faults(_find(document, "image"))]
    elif "kind" in document:
        rest = [*_kubernetes_faults(document), *_image_faults(_find(document, "image"))]
    else:
        rest = ["neither a Ray cluster (cluster_name) nor a Kubernetes object (kind)"]
    return found + [f"{path}: {fault}" for fault in rest]


def versions() -> dict[str, str]:
    """The versions that pyproject.toml pins: the project's, ray's and torch's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.match(r"([\w-]+)(?:\[.*\])?==(.+)", line).groups() for line in project["dependencies"])
    return {"project": project["version"], "ray": pins["ray"], "torch": pins["torch"]}


def image_tag() -> str:
    """The tag that the project's image must have."""
    return "{project}-ray{ray}-torch{torch}".format(**versions())


def entry_points(document: dict) -> Iterator[list[str]]:
    """The words of every `python -m` command in an object."""
    for entrypoint in _find(document, "entrypoint"):
        if "-m" in (words := shlex.split(entrypoint)):
            yield words
    for containers in _find(document, "containers"):
        for container in containers:
            if "-m" in (words := [*container.get("command", ()), *container.get("args", ())]):
                yield words


def _unfilled(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        value, _, comment = line.partition("# ")
        for name in PLACEHOLDER.findall(value):
            yield number, f"<{name}> is still to be filled in" + (f" ({comment.strip()})" if comment else "")


def _cluster_faults(document: dict) -> Iterator[str]:
    """What Ray's own code refuses (a private module of the pinned version)."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            validate_config(prepare_config(document))
    except jsonschema.ValidationError as error:
        yield f"Ray's schema refuses {'.'.join(map(str, error.absolute_path)) or 'it'}: {error.message}"
    except (ValueError, KeyError, TypeError) as error:
        yield f"Ray refuses it: {error}"
    else:
        for name, node in document["available_node_types"].items():
            if name != document["head_node_type"] and node.get("min_workers", 0) != 0:
                yield f"available_node_types.{name}.min_workers is {node['min_workers']}: 0 costs nothing when idle"


def _image_faults(images: list[Any]) -> Iterator[str]:
    for image in images:
        if OUR_IMAGE in str(image) and not str(image).endswith(f":{image_tag()}"):
            yield f"image {image}: pyproject.toml pins other versions, the tag must be {image_tag()}"


def _kubernetes_faults(document: dict) -> Iterator[str]:
    if document["kind"] in ("RayCluster", "RayJob", "RayCronJob"):
        for version in _find(document, "rayVersion"):
            if version != versions()["ray"]:
                yield f"rayVersion {version}: pyproject.toml pins {versions()['ray']}"
        if not _find(document, "authOptions"):
            yield "authOptions is missing: without `mode: token` whoever reaches the head can run code"
    for words in entry_points(document):
        module = words[words.index("-m") + 1]
        if not (ROOT / f"{module.replace('.', '/')}.py").exists():
            yield f"entry point python -m {module}: there is no such module"
    for pod in _find(document, "template"):
        yield from _pod_faults(pod["spec"], may_use_api=document["kind"] in NEEDS_API)


def _pod_faults(pod: dict, may_use_api: bool) -> Iterator[str]:
    for container in pod["containers"]:
        name, rights = container["name"], container.get("securityContext", {})
        if not pod.get("securityContext", {}).get("runAsNonRoot"):
            yield f"container {name}: runAsNonRoot must be true"
        if rights.get("allowPrivilegeEscalation") is not False:
            yield f"container {name}: allowPrivilegeEscalation must be false"
        if rights.get("readOnlyRootFilesystem") is not True:
            yield f"container {name}: readOnlyRootFilesystem must be true"
        if rights.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"container {name}: capabilities.drop must be [ALL]"
        if pod.get("automountServiceAccountToken") is not False and not (may_use_api and name == "ray-head"):
            yield f"container {name}: automountServiceAccountToken must be false, it needs no Kubernetes API"
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(resources.get(kind, {})):
                yield f"container {name}: resources.{kind} must name cpu and memory"


def _find(tree: Any, key: str) -> list[Any]:
    """All values under a key, at any depth."""
    if isinstance(tree, list):
        return [value for item in tree for value in _find(item, key)]
    if not isinstance(tree, dict):
        return []
    here = [tree[key]] if key in tree else []
    return here + [value for item in tree.values() for value in _find(item, key)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    count = 0
    for path in parser.parse_args(argv).files:
        found = faults(path)
        count += len(found)
        print("\n".join(found) if found else f"{path}: ready")
    return 2 if count else 0


if __name__ == "__main__":
    sys.exit(main())
