"""The optimizer steps, rates and clipping of training, against loops over plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.config import TrainConfig
from pipeline.training import optim
from pipeline.training.optim import clip_gradients, gradient_norms, learning_rate, make_optimizer


def parameters_with_gradients(steps: int, shapes: tuple[tuple[int, ...], ...]) -> tuple[list[nn.Parameter], list[list]]:
    generator = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).double()) for shape in shapes]
    gradients = [[torch.randn(shape, generator=generator).double() for shape in shapes] for _ in range(steps)]
    return parameters, gradients


def test_rmsprop_is_the_papers_rule_number_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "BLOCK", 4)  # tensors of 6 and 35 values: several blocks, the last one smaller
    parameters, gradients = parameters_with_gradients(5, ((6,), (5, 7), ()))
    slow = [parameter.flatten().tolist() for parameter in parameters]
    square = [[0.0] * parameter.numel() for parameter in parameters]
    optimizer = optim.RMSprop(parameters, lr=0.02)
    for step in gradients:
        for which, (parameter, gradient) in enumerate(zip(parameters, step)):
            parameter.grad = gradient.clone()
            for i, g in enumerate(gradient.flatten().tolist()):
                square[which][i] = 0.9 * square[which][i] + 0.1 * g * g
                slow[which][i] -= 0.02 * g / math.sqrt(square[which][i] + 1e-6)
        optimizer.step()
    for parameter, numbers in zip(parameters, slow):
        assert parameter.flatten().tolist() == pytest.approx(numbers, rel=1e-12)


def test_rmsprop_is_not_torchs_whose_first_steps_are_longer() -> None:
    ours, theirs = (nn.Parameter(torch.zeros(1, dtype=torch.double)) for _ in range(2))
    ours.grad = theirs.grad = torch.tensor([1e-4], dtype=torch.double)
    optim.RMSprop([ours], lr=1.0).step()
    torch.optim.RMSprop([theirs], lr=1.0, alpha=0.9, eps=1e-6).step()
    assert ours.item() == pytest.approx(-1e-4 / math.sqrt(1e-9 + 1e-6))  # -0.1
    assert abs(theirs.item()) > 25 * abs(ours.item())


def test_rows_of_a_sparse_gradient_are_updated_as_if_the_others_were_zero_even_after_a_restart() -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(6, 3, generator=generator).double()
    dense, sparse = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    full, lazy = optim.RMSprop([dense], lr=0.02), optim.RMSprop([sparse], lr=0.02)
    for step, words in enumerate(([1, 4, 1], [0], [4, 2], [2], [1, 5, 5, 4], [0, 1])):  # word 3 is never seen
        rows = torch.randn(len(words), 3, generator=generator).double()
        dense.grad = torch.zeros(6, 3).double().index_add(0, torch.tensor(words), rows)
        sparse.grad = torch.sparse_coo_tensor(torch.tensor([words]), rows, (6, 3), check_invariants=True)
        (numbers,) = optim.gradients_of([sparse])
        assert len(numbers) == len(set(words))
        torch.testing.assert_close(gradient_norms([numbers]), dense.grad.norm()[None])
        full.step()
        lazy.step()
        if step == 3:
            saved, lazy = lazy.state_dict(), optim.RMSprop([sparse], lr=0.02)
            lazy.load_state_dict(saved)
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=0)
    assert sparse[3].equal(start[3])


def test_rmsprop_goes_on_with_dense_gradients_where_sparse_ones_ended_and_back() -> None:
    generator = torch.Generator().manual_seed(3)
    dense, mixed = (nn.Parameter(torch.ones(4, 2).double()) for _ in range(2))
    full, changing = optim.RMSprop([dense], lr=0.02), optim.RMSprop([mixed], lr=0.02)
    for step, word in enumerate((0, 1, 1, 2, 0, 3, 0, 1, 2)):
        row = torch.randn(1, 2, generator=generator).double()
        dense.grad = torch.zeros(4, 2).double().index_add(0, torch.tensor([word]), row)
        mixed.grad = (
            dense.grad.clone()
            if 3 <= step < 6
            else torch.sparse_coo_tensor([[word]], row, (4, 2), check_invariants=True).coalesce()
        )
        full.step()
        changing.step()
    torch.testing.assert_close(mixed, dense, rtol=1e-12, atol=0)


def test_rmsprop_asks_for_sparse_gradients_of_words_and_adam_does_not() -> None:
    for optimizer, sparse in (("rmsprop", True), ("adam", False)):
        table = nn.Embedding(5, 2)
        make_optimizer(nn.Sequential(table), TrainConfig(optimizer=optimizer))
        table(torch.tensor([1, 1])).sum().backward()
        assert table.weight.grad.is_sparse == sparse


def test_rmsprop_leaves_parameters_without_a_gradient_alone() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = optim.RMSprop([parameter], lr=1.0)
    optimizer.step()
    assert parameter.tolist() == [1, 1, 1]
    assert optimizer.state_dict()["state"] == {}


def test_adam_is_the_published_rule() -> None:
    parameters, gradients = parameters_with_gradients(4, ((3,),))
    config = TrainConfig(optimizer="adam", lr=0.01)
    module = nn.Module()
    module.weight = parameters[0]
    slow, first, second = parameters[0].tolist(), [0.0] * 3, [0.0] * 3
    optimizer = make_optimizer(module, config)
    for step, (gradient,) in enumerate(gradients, 1):
        parameters[0].grad = gradient
        optimizer.step()
        for i, g in enumerate(gradient.tolist()):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            slow[i] -= 0.01 * (first[i] / (1 - 0.9**step)) / (math.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
    assert parameters[0].tolist() == pytest.approx(slow, rel=1e-9)


def test_each_gradient_is_clipped_on_its_own_or_all_as_one_vector() -> None:
    def clipped(each: bool) -> tuple[list[float], list[list[float]]]:
        gradients = [
            torch.tensor([3.0, 4.0]),
            torch.tensor([[12.0]]),
            torch.tensor([0.0]),
        ]  # norms 5, 12, 0; together 13
        norms = gradient_norms(gradients)
        clip_gradients(gradients, norms, limit=6.5, each=each)
        return norms.tolist(), [gradient.flatten().tolist() for gradient in gradients]

    assert clipped(each=True) == ([5, 12, 0], [[3, 4], [6.5], [0]])
    assert clipped(each=False) == ([5, 12, 0], [[1.5, 2], [6], [0]])


def test_gradients_below_the_limit_keep_every_bit() -> None:
    gradients = [torch.randn(100), torch.randn(3, 3)]
    before = [gradient.clone() for gradient in gradients]
    for each in (True, False):
        clip_gradients(gradients, gradient_norms(gradients), limit=100.0, each=each)
    assert all(torch.equal(gradient, old) for gradient, old in zip(gradients, before))


def test_the_paper_divides_the_rate_by_ten_once() -> None:
    config = TrainConfig(steps=100, lr=1e-3, schedule="drop", drop_at=0.6)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates == [1e-3] * 60 + [pytest.approx(1e-4)] * 40


def test_a_cosine_rises_to_the_rate_and_falls_to_nothing() -> None:
    config = TrainConfig(steps=110, lr=2.0, schedule="cosine", warmup=10)
    rates = [learning_rate(config, step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[110] == pytest.approx(0.0, abs=1e-12)
    assert all(later < earlier for earlier, later in zip(rates[10:], rates[11:]))


def test_the_rate_stays_where_the_schedule_is_constant() -> None:
    assert {learning_rate(TrainConfig(lr=0.5), step) for step in (0, 1, 9_999, 20_000)} == {0.5}
