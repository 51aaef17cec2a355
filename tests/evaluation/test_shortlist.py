"""Candidates of a query: the nearest, found the slow way; and the features they are near in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pipeline.evaluation.shortlist import VggFeatures, load_vgg, pixel_features, shortlists, vgg_features


def test_candidates_are_the_image_and_its_nearest_of_other_captions() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 6)).astype(np.float32)
    captions = [f"caption {i % 15}" for i in range(40)]  # each caption two or three times
    chosen = shortlists(features, captions, [3, 30, 7], 12)
    for query, candidates in zip([3, 30, 7], chosen, strict=True):
        others = [i for i in range(40) if captions[i] != captions[query]]
        others.sort(key=lambda i: np.linalg.norm(features[i].astype(float) - features[query].astype(float)))
        assert candidates.tolist() == [query, *others[:11]]


def test_equal_images_come_in_the_order_of_their_numbers() -> None:
    assert shortlists(np.ones((5, 2)), list("abcde"), [2], 4).tolist() == [[2, 0, 1, 3]]


def test_few_images_make_a_shorter_list_of_the_same_length_for_all() -> None:
    captions = ["a", "a", "a", "b", "c"]
    chosen = shortlists(np.arange(5.0)[:, None], captions, [0, 3], 100)
    assert chosen.tolist() == [[0, 3, 4], [3, 2, 4]]  # "a" has two images of other captions; "b" has four


def test_pixels_are_compared_at_eight_by_eight() -> None:
    image = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    slow = [
        image[0, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for c in range(3) for i in range(8) for j in range(8)
    ]
    np.testing.assert_allclose(pixel_features(image)[0], np.array(slow), rtol=1e-5)


def test_the_vgg_net_comes_from_its_file_alone() -> None:
    torch.manual_seed(0)
    net = VggFeatures().eval()
    net.mean.fill_(0.5)
    net.std.fill_(0.25)
    again = load_vgg(save(net.state_dict()))
    images = torch.rand(3, 3, 20, 20)
    np.testing.assert_allclose(vgg_features(again, images, batch=2), vgg_features(net, images), atol=1e-6)
    assert vgg_features(again, images[:, :1]).shape == (3, 512)  # grey ones, too
    convolutions = [layer for layer in net.convolutions if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


@pytest.mark.parametrize("content", [b"", b"weights", save({"hidden.weight": torch.zeros(2, 2)})])
def test_a_file_of_something_else_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a \.safetensors file of VggFeatures"):
        load_vgg(content)
