"""Write a recipe's data set as WebDataset shards, by Ray tasks; started again, it does only what is missing:

    python -m jobs.shard digits-demo --out out
    python -m jobs.shard coco-aligndraw --data data/coco --out out
    python -m jobs.shard coco-aligndraw --data data/coco --out out --report

Flags that look at a data set or mend it: --report, --verify, --preview, --retry-rejected. --download fetches MNIST first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from jobs.arguments import Arguments, entry, parse
from jobs.workspace import Workspace
from pipeline import storage
from pipeline.config import to_dict

EXAMPLES = 3  # inputs that the report names for each reason
PREVIEWED = 30  # samples on the contact sheet
say = partial(print, flush=True)  # `ray job logs` shows a line when it is flushed


@dataclass(frozen=True, kw_only=True)
class ShardArguments(Arguments):
    report: bool = False
    """Count accepted and rejected inputs by reason, and name some of each."""
    verify: bool = False
    """Read every shard and name those that do not match the manifest."""
    preview: bool = False
    """Write a contact sheet (PNG) of random samples with their captions."""
    retry_rejected: bool = False
    """Read only the rejected inputs again, and write only their shards anew."""
    download: bool = False
    """First fetch what is missing of MNIST's four files into --data."""
    mirrors: tuple[str, ...] = ()
    """Where --download asks, in this order; none: where the files are known to be."""


def main(argv: Sequence[str] | None = None) -> dict:
    """Where the data set lies and what is in it."""
    arguments = parse(__doc__, argv, ShardArguments)
    looks = {"--report": arguments.report, "--verify": arguments.verify, "--preview": arguments.preview}
    asked = [name for name, wanted in {**looks, "--retry-rejected": arguments.retry_rejected}.items() if wanted]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)}: one at a time")
    if arguments.report:
        return _report(_folder(arguments))
    if arguments.verify:
        return _verify(_folder(arguments))
    if arguments.preview:
        return _preview(_folder(arguments), arguments)
    return _build(arguments)


def _build(arguments: ShardArguments) -> dict:
    from pipeline.on_ray.build import build_dataset, retry_rejected
    from pipeline.on_ray.connect import connect
    from pipeline.sources import open_source

    config = arguments.config
    if arguments.download or arguments.mirrors:
        _download(arguments)
    workspace = Workspace(arguments.out, config)
    with workspace.opened(), workspace.tracker("shard") as tracker:
        source = open_source(config.dataset, arguments.data)  # says what is wrong with the data before Ray is asked
        connect()
        make = retry_rejected if arguments.retry_rejected else build_dataset
        manifest = make(config.dataset, source, arguments.out, say)
        splits = Counter()
        for shard in manifest.shards:
            splits[shard.split] += shard.samples
        tracker.params(to_dict(config))
        tracker.tags({"data": manifest.digest})
        tracker.metrics({f"samples.{split}": count for split, count in splits.items()}, 0)
        result = {
            "dataset": manifest.folder,
            "data": arguments.data,
            "digest": manifest.digest,
            "shards": len(manifest.shards),
            "samples": dict(splits),
            "bytes": sum(shard.bytes for shard in manifest.shards),
            "mlflow_run_id": tracker.run_id,
        }
        return workspace.finish("shard", result)


def _download(arguments: ShardArguments) -> None:
    from pipeline.sources.download import MIRRORS, download_mnist

    source = arguments.config.dataset.source
    if not source.endswith("mnist") or not arguments.data:
        raise ValueError(f"--download fetches MNIST into --data; the source is {source}, --data is {arguments.data}")
    download_mnist(arguments.data, arguments.mirrors or MIRRORS, say)


def _folder(arguments: ShardArguments) -> str:
    """The folder of the data set; without --data the one that has this config, which must be finished."""
    from pipeline.shards.manifest import dataset_folder, find_dataset
    from pipeline.sources import open_source

    config = arguments.config.dataset
    if arguments.data or config.source == "digits":
        return dataset_folder(arguments.out, config, open_source(config, arguments.data).digest)
    return find_dataset(arguments.out, config)


def _report(folder: str) -> dict:
    """Print inputs by split and fate; a data set that failed for its rejected inputs has a report too."""
    from pipeline.shards.manifest import SAMPLES, status_rows

    if not storage.exists(storage.join(folder, SAMPLES)):
        raise ValueError(f"{folder} is not built: run the same command without --report first")
    counts, examples = Counter(), {}
    for rows in status_rows(folder, ["split", "status", "source"]):
        for split, status, source in zip(*rows.values(), strict=True):
            counts[split, status] += 1
            if status != "ok" and len(named := examples.setdefault(status, [])) < EXAMPLES:
                named.append(source)
    for (split, status), count in sorted(counts.items(), key=lambda item: (item[0][0], item[0][1] != "ok", -item[1])):
        named = ", ".join(examples.get(status, []))
        say(f"{split:6} {count:>10,} {status}" + (f"  e.g. {named}" if named else ""))
    rejected = Counter()
    for (_, status), count in counts.items():
        rejected[status] += count
    accepted = rejected.pop("ok", 0)
    return {
        "dataset": folder,
        "inputs": accepted + sum(rejected.values()),
        "accepted": accepted,
        "rejected": dict(rejected.most_common()),
    }


def _verify(folder: str) -> dict:
    from pipeline.on_ray.build import verify_dataset
    from pipeline.on_ray.connect import connect
    from pipeline.shards.manifest import load_manifest

    manifest = load_manifest(folder)
    connect()
    damaged = verify_dataset(manifest, say)
    for name, problem in damaged.items():
        say(f"{name}: {problem}")
    if damaged:
        raise ValueError(
            f"{len(damaged)} of {len(manifest.shards)} shards in {folder} are damaged ({', '.join(damaged)}): "
            "remove these files and run the job again, it writes them anew"
        )
    return {"dataset": folder, "digest": manifest.digest, "shards": len(manifest.shards), "damaged": 0}


def _preview(folder: str, arguments: ShardArguments) -> dict:
    from pipeline.shards.manifest import load_manifest
    from pipeline.shards.preview import contact_sheet

    path = storage.join(Workspace(arguments.out, arguments.config).stage("shard"), "preview.png")
    sheet = contact_sheet(load_manifest(folder), PREVIEWED, arguments.config.dataset.seed)
    storage.publish_bytes(path, sheet)
    say(path)
    return {"dataset": folder, "picture": path}


if __name__ == "__main__":
    entry(main)
