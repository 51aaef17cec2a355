"""From a model's config to the model."""

from __future__ import annotations

import torch

from pipeline.config import ModelConfig
from pipeline.models.base import CaptionModel
from pipeline.models.captioner import Captioner
from pipeline.models.draw import DrawModel
from pipeline.models.lapgan import Lapgan
from pipeline.models.skipthought import SkipThought
from pipeline.models.vae import VaeModel

MODELS = {"draw": DrawModel, "vae": VaeModel, "lapgan": Lapgan, "captioner": Captioner, "skipthought": SkipThought}


def build_model(config: ModelConfig, vocabulary: int, size: int, channels: int, seed: int = 0) -> CaptionModel:
    """The model with its initial weights, a function of (config, sizes, seed): vocabulary words, size x size images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[config.kind](config, vocabulary, size, channels)
