"""A small data set on disk, made in this process: what the stages on Ray read."""

from __future__ import annotations

import pytest

from pipeline import storage
from pipeline.recipes import find_recipe
from pipeline.shards.manifest import VOCABULARY, commit, dataset_folder, describe, merge_samples
from pipeline.shards.write import write_shard
from pipeline.sources import open_source
from pipeline.text.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The finished data set of `tiny-aligndraw`: about a hundred drawn digits."""
    config = find_recipe("tiny-aligndraw").dataset
    source = open_source(config, None)
    folder = dataset_folder(str(tmp_path_factory.mktemp("data")), config, source.digest)
    describe(folder, config, source.digest, source.facts)
    for plan in source.plan:
        write_shard(folder, plan, source)
    captions = [caption for plan in source.plan for sample in source.read(plan) for caption in sample.captions]
    storage.publish_text(storage.join(folder, VOCABULARY), Vocabulary.build(captions).to_json())
    commit(folder, merge_samples(folder, source.plan).shards)
    return folder
