"""The cluster files against Ray's own schema, against each other and against the project's pins."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from cluster import check
from jobs.arguments import Arguments, parse
from jobs.retrain import RetrainArguments
from pipeline.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
KUBERAY = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
FILES = [ROOT / "ray_cluster.yaml", *KUBERAY]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def filled(path: Path, folder: Path) -> Path:
    """The file as a user leaves it: placeholders replaced."""
    copy = folder / path.name
    copy.write_text(check.PLACEHOLDER.sub("mine", path.read_text()))
    return copy


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_placeholders_are_named_with_their_lines_and_nothing_else_is_wrong(path: Path, tmp_path: Path) -> None:
    marked = len(re.findall(r"<[A-Z_]+>", re.sub(r"# .*", "", path.read_text())))
    found = check.faults(path)
    assert len(found) == marked and all("still to be filled in" in fault for fault in found)
    assert check.faults(filled(path, tmp_path)) == []


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_a_file_is_named_for_its_kind_and_says_what_it_is(path: Path) -> None:
    assert path.stem.rpartition(".")[2] == load(path)["kind"].lower()
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("ray_cluster.yaml", "upscaling_speed", "upscaling_sped", "upscaling_sped"),
        ("ray_cluster.yaml", "head_node_type: head", "heads_node_type: head", "Ray"),
        ("ray_cluster.yaml", "head_node_type: head", "head_node_type: tail", "Ray refuses"),
        ("ray_cluster.yaml", "ray2.60.0", "ray2.59.0", "the tag must be"),
        ("ray_cluster.yaml", "min_workers: 0", "min_workers: 2", "0 costs nothing when idle"),
        ("kuberay/canvas.raycluster.yaml", "rayVersion: 2.60.0", "rayVersion: 2.59.0", "pyproject.toml pins 2.60.0"),
        ("kuberay/canvas.raycluster.yaml", "authOptions", "authOption", "can run code"),
        ("kuberay/canvas.raycluster.yaml", "readOnlyRootFilesystem: true, ", "", "readOnlyRootFilesystem"),
        ("kuberay/experiment.rayjob.yaml", "jobs.experiment", "jobs.experimint", "there is no such module"),
        ("kuberay/experiment.rayjob.yaml", "torch2.13.0", "torch2.12.0", "the tag must be"),
        ("kuberay/mlflow.deployment.yaml", "automountServiceAccountToken: false", "", "needs no Kubernetes API"),
        ("kuberay/mlflow.deployment.yaml", "runAsNonRoot: true, ", "", "runAsNonRoot"),
        ("kuberay/mlflow.deployment.yaml", "memory: 2Gi", "disk: 2Gi", "must name cpu and memory"),
        ("kuberay/mlflow.service.yaml", "kind: Service", "kind: [", "is no YAML"),
        ("kuberay/mlflow.service.yaml", "kind:", "sort:", "neither a Ray cluster"),
    ],
)
def test_a_fault_is_named(name: str, old: str, new: str, said: str, tmp_path: Path, capsys) -> None:
    path = ROOT / name if name == "ray_cluster.yaml" else ROOT / "cluster" / name
    broken = filled(path, tmp_path)
    assert old in broken.read_text()
    broken.write_text(broken.read_text().replace(old, new))
    assert check.main([str(broken)]) == 2
    assert said in capsys.readouterr().out


def test_a_file_that_is_not_there_is_said(tmp_path: Path, capsys) -> None:
    assert check.main([str(tmp_path / "nowhere.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_is_one_that_the_job_understands(path: Path) -> None:
    for words in check.entry_points(load(path)):
        module, parsed = understood(words)
        assert (ROOT / (module.replace(".", "/") + ".py")).exists()
        assert parsed.config.name in RECIPES


def understood(words: list[str]) -> tuple[str, Arguments]:
    """The job that a command starts, at once or through jobs.submit, and what it is given."""
    module, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    if module == "jobs.submit":
        module, arguments = f"jobs.{arguments[0]}", arguments[1:]
    kind = RetrainArguments if module == "jobs.retrain" else Arguments
    return module, parse(f"python -m {module}", arguments, kind)


def test_the_schedules_agree_with_themselves_and_with_each_other() -> None:
    """The line that starts a retraining is the one by which the retraining reckons its slot."""
    lines = set()
    for kind in ("cronjob", "raycronjob"):
        document = load(ROOT / "cluster" / "kuberay" / f"retrain.{kind}.yaml")
        (words,) = check.entry_points(document)
        assert understood(words)[1].cron == document["spec"]["schedule"]
        assert document["spec"]["timeZone"] == "Etc/UTC"
        lines.add(document["spec"]["schedule"])
    text = (ROOT / "cluster" / "retrain.cron").read_text()
    (line,) = [line for line in text.splitlines() if "jobs.submit" in line]
    fields, command = line.split("  ", 1)
    words = shlex.split(command.partition(">>")[0])
    assert understood(words)[1].cron == fields and "CRON_TZ=UTC" in text
    assert lines == {fields}


def test_the_workers_that_an_experiment_asks_for_fit_into_its_cluster() -> None:
    job = load(ROOT / "cluster" / "kuberay" / "experiment.rayjob.yaml")["spec"]
    (words,) = check.entry_points(job)
    train = parse("python -m jobs.experiment", words[words.index("-m") + 2 :]).config.train
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    per_pod = min(int(limits["cpu"]) // train.threads, int(limits["nvidia.com/gpu"]))
    assert train.gpu and train.workers <= per_pod * group["maxReplicas"]


def test_recipes_fit_the_machines_of_the_cluster() -> None:
    nodes = load(ROOT / "ray_cluster.yaml")["available_node_types"]
    assert nodes["cpu"]["resources"]["CPU"] >= max(make().train.threads for make in RECIPES.values())
    assert nodes["gpu"]["resources"]["GPU"] == 1
    assert nodes["head"]["resources"]["CPU"] == 0


def test_services_find_their_pods_and_ports() -> None:
    documents = [load(path) for path in KUBERAY]
    pods = [d["spec"]["template"] for d in documents if d["kind"] in ("Deployment", "StatefulSet")]
    for service in (d for d in documents if d["kind"] == "Service"):
        (pod,) = [pod for pod in pods if pod["metadata"]["labels"] == service["spec"]["selector"]]
        named = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


def test_every_secret_that_is_used_is_explained() -> None:
    text = (ROOT / "cluster" / "README.md").read_text()
    secrets = {
        ref["name"] for path in KUBERAY for key in ("secretRef", "secretKeyRef") for ref in check._find(load(path), key)
    }
    assert secrets == {"canvas-storage", "canvas-postgres", "canvas"}
    for name in secrets - {"canvas"}:  # KubeRay makes the token of the cluster `canvas`
        assert f"kubectl create secret generic {name}" in text


def test_the_image_has_the_driver_of_the_database_that_the_readme_names() -> None:
    from sqlalchemy.engine import make_url

    (address,) = re.findall(r"uri=(postgresql\S+)", (ROOT / "cluster" / "README.md").read_text())
    driver = make_url(address).get_dialect().driver
    assert any(re.match(rf"{driver}\W", requirement) for requirement in PROJECT["optional-dependencies"]["server"])


def test_every_worker_has_what_the_recipes_ask_for() -> None:
    most = max(make().train.threads for make in RECIPES.values())
    for path in KUBERAY:
        for groups in check._find(load(path), "workerGroupSpecs"):
            for group in groups:
                (container,) = group["template"]["spec"]["containers"]
                assert int(container["resources"]["requests"]["cpu"]) >= most
                assert container["resources"]["requests"] == container["resources"]["limits"]  # Ray counts on all of it


def test_jobs_reach_mlflow_by_a_name_that_it_answers_to() -> None:
    job = yaml.safe_load(load(ROOT / "cluster/kuberay/experiment.rayjob.yaml")["spec"]["runtimeEnvYAML"])
    host = job["env_vars"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    service = load(ROOT / "cluster/kuberay/mlflow.service.yaml")
    assert host == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    (container,) = load(ROOT / "cluster/kuberay/mlflow.deployment.yaml")["spec"]["template"]["spec"]["containers"]
    (allowed,) = [word for word in container["command"] if word.startswith("--allowed-hosts=")]
    assert host in allowed.partition("=")[2].split(",")


def test_direct_dependencies_and_the_constraints_agree() -> None:
    constraints = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    named = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    for requirement in named:
        name, version = re.match(r"([\w.-]+)(?:\[.*\])?==(.+)", requirement.lower()).groups()
        assert constraints[name.replace("_", "-")] == version, requirement
    assert all(re.fullmatch(r"[\w.]+", version) for version in constraints.values())


def test_the_image_installs_from_the_files_that_the_makefile_installs_from() -> None:
    dockerfile, makefile = (ROOT / "cluster" / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    assert check.image_tag() in dockerfile
    for text in (dockerfile, makefile):
        assert "-c constraints.txt" in text and "pyproject.toml" in text
    python = re.search(r"FROM python:(\d+\.\d+)", dockerfile)[1]
    assert PROJECT["requires-python"] == f">={python}"
    copied = {word for line in re.findall(r"COPY (.*)", dockerfile) for word in shlex.split(line)[:-1]}
    assert {"pipeline", "jobs", "cluster"} <= copied and not {"tests", "out", ".local"} & copied
