"""Divergences and log-probabilities against torch.distributions and closed forms."""

from __future__ import annotations

import math

import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from pipeline.evaluation.bound import bernoulli_cost, entropy_floor
from pipeline.models.likelihood import bernoulli_nll, gaussian_kl, standard_kl


def test_gaussian_kl_equals_torch_distributions():
    mean_q, log_std_q, mean_p, log_std_p = torch.randn(4, 5, 3, dtype=torch.float64).unbind(0)
    truth = kl_divergence(Normal(mean_q, log_std_q.exp()), Normal(mean_p, log_std_p.exp())).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean_q, log_std_q, mean_p, log_std_p), truth)
    zero = torch.zeros_like(mean_q)
    torch.testing.assert_close(standard_kl(mean_q, log_std_q), gaussian_kl(mean_q, log_std_q, zero, zero))


def test_kl_of_equal_gaussians_is_zero_and_of_a_unit_shift_is_a_half():
    zero, one = torch.zeros(3, 1), torch.ones(3, 1)
    assert gaussian_kl(zero, zero, zero, zero).tolist() == [0.0, 0.0, 0.0]
    assert gaussian_kl(one, zero, zero, zero).tolist() == [0.5, 0.5, 0.5]


def test_bernoulli_nll_of_binary_pixels_equals_torch_distributions():
    logits = 3 * torch.randn(4, 1, 5, 5, dtype=torch.float64)
    image = (torch.rand(4, 1, 5, 5) > 0.5).double()
    truth = -Bernoulli(logits=logits).log_prob(image).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli_nll(logits, image), truth)
    torch.testing.assert_close(bernoulli_cost(torch.sigmoid(logits), image), truth)


def test_the_floor_is_reached_by_the_image_itself_and_by_nothing_else():
    image = torch.rand(4, 3, 4, 4, dtype=torch.float64)
    floor = entropy_floor(image)
    torch.testing.assert_close(bernoulli_nll(torch.logit(image), image), floor)
    assert (bernoulli_nll(torch.logit(image) + 0.1, image) > floor).all()
    assert math.isclose(entropy_floor(torch.tensor([[[[0.0, 1.0, 0.5]]]])).item(), math.log(2), rel_tol=1e-6)
