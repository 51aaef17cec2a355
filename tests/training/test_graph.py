"""A training step as a CUDA graph: that it computes what the plain step computes, and that nothing in it waits for the CPU.

The recording itself needs a GPU; everything around it, and whether a model can be recorded at all, does not.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipeline.config import TrainConfig
from pipeline.models.build import build_model
from pipeline.recipes import find_recipe
from pipeline.sample import Batch
from pipeline.training.fit import fit
from pipeline.training.graph import Graph
from pipeline.training.ranks import ALONE, Ranks, join
from tests.processes import run_ranks
from tests.tiny import TinyModel, assert_close, assert_equal, everything, tiny_batches, tiny_config, tiny_state


def trained(config: TrainConfig, device: str = "cpu") -> dict[str, Tensor]:
    """What a training of this process's rank ends with."""
    ranks = join(config.batch, config.lanes, device=device)
    state = tiny_state(config)
    state.model.to(device)
    fit(state, tiny_batches(config, 0, ranks.rank, ranks.size), config, ranks=ranks, say=lambda line: None)
    return everything(state)


def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.split(".")[1].isdigit()}


def test_it_trains_to_the_same_bits_as_the_plain_step() -> None:
    shared = {"optimizer": "adam", "words": 3, "kl_warmup": 0.5}
    assert_equal(trained(tiny_config(graph=True, **shared)), trained(tiny_config(**shared)))


@pytest.mark.parametrize("ranks", [1, 2])
def test_its_dense_gradients_averaged_after_it_train_as_sparse_ones_within_ddp_do(ranks: int) -> None:
    plain = weights(trained(tiny_config(words=3)))
    for graph in run_ranks(ranks, trained, tiny_config(words=3, graph=True)):
        assert_close(weights(graph), plain)


def test_a_batch_of_another_shape_is_refused_rather_than_spread() -> None:
    config = tiny_config(words=3)
    graph, batch = Graph(TinyModel(), ALONE), next(tiny_batches(config))
    graph.backward(batch, torch.zeros(8, 2, 3), {"kl": 1.0})
    one = Batch(batch.images[:1], batch.words[:1], batch.keep[:1], batch.keys[:1])
    with pytest.raises(ValueError, match=r"recorded for \(8, 1, 4, 4\), not \(1, 1, 4, 4\): leave out --train.graph"):
        graph.backward(one, torch.zeros(1, 2, 3), {"kl": 1.0})


@pytest.mark.parametrize("changes", [{"words": 0}, {"words": 3, "accumulate": 2}])
def test_a_graph_is_allowed_only_where_every_step_has_one_shape(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"TrainConfig.graph: True is not allowed; .*--train.words above 0"):
        TrainConfig(graph=True, **changes)


def test_a_model_whose_steps_differ_in_shape_has_no_graph() -> None:
    captioner = find_recipe("coco-captioner")
    with pytest.raises(ValueError, match="train.graph: the steps of a captioner differ in shape"):
        replace(captioner, train=replace(captioner.train, graph=True, words=20))


# ---- whether it can be recorded: on the device "meta" tensors have shapes but no values, so nothing can look at one


class OnlyThere(TorchDispatchMode):
    """Refuses operations with a tensor that is not on "meta": a graph would copy it, or keep its value of the recording."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter((args, kwargs, result)):
            assert not isinstance(tensor, Tensor) or tensor.is_meta, f"{function} sees a tensor on {tensor.device}"
        return result


def record(model: nn.Module, sentence: int | None) -> Graph:
    """A step of 4 captions of 5 words as it would be recorded."""
    there = torch.device("meta")
    batch = Batch(
        torch.empty(4, *model.image_shape, device=there),
        torch.empty(4, 5, dtype=torch.int64, device=there),
        torch.empty(4, 5, dtype=torch.bool, device=there),
        ("",) * 4,
        None if sentence is None else torch.empty(4, sentence, device=there),
    )
    graph = Graph(model, Ranks(device=there))
    with OnlyThere():
        graph.backward(batch, torch.empty(4, *model.noise_shape, device=there), {"kl": 0.5})
    return graph


@pytest.mark.parametrize(
    "recipe",
    [
        "coco-aligndraw",
        "digits-demo",
        "coco-noaligndraw",
        "coco-skipthoughtdraw",
        "mnist-draw",
        "coco-fc-vae",
        "coco-conv-vae",
    ],
)
def test_nothing_in_the_step_of_a_model_waits_for_a_value(recipe: str) -> None:
    config = find_recipe(recipe)
    with torch.device("meta"):
        model = build_model(config.model, 9, config.dataset.size, config.dataset.channels)
    model.image_shape = (config.dataset.channels, config.dataset.size, config.dataset.size)
    graph = record(model, model.sentence_width if config.model.caption == "skipthought" else None)
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == [] and all(loss.shape == (4,) and loss.is_meta for loss in graph.losses.values())


@pytest.mark.parametrize("wait", [lambda losses: losses.sum().item(), lambda losses: losses * torch.ones(4)])
def test_a_step_that_waits_or_takes_values_of_the_cpu_is_found_out(wait) -> None:
    class Waits(TinyModel):
        image_shape = (1, 4, 4)

        def terms(self, batch, noise):
            terms = super().terms(batch, noise)
            wait(terms["recon"])
            return terms

    with pytest.raises((RuntimeError, AssertionError)):
        record(Waits().to("meta"), None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_on_a_gpu_the_recorded_step_trains_as_the_plain_one() -> None:
    shared = {"optimizer": "adam", "words": 3, "kl_warmup": 0.5}
    assert_close(trained(tiny_config(graph=True, **shared), "cuda"), trained(tiny_config(**shared), "cuda"))
