"""From scores to ranks: how often the true image is among the first k (paper section 5.2). NumPy only.

Ties are broken fairly: among candidates of equal score every order is as likely, and figures are expectations over it. A model
that gives all candidates the same score gets exactly the chance level, wherever the true image stands in the list.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CUTS = (1, 5, 10, 50)


def ranks(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """scores (Q, C), truth (Q,) index of the true candidate -> (Q, 2): how many score higher, how many others the same."""
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} scores are not finite")
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    return np.stack([(scores > own).sum(1), (scores == own).sum(1) - 1], axis=1)


def found_within(places: np.ndarray, k: int) -> np.ndarray:
    """places (Q, 2) from `ranks` -> (Q,): chance that the true image is among the first k."""
    higher, same = places.T
    return np.clip((k - higher) / (same + 1), 0, 1)


def figures_of(places: np.ndarray, candidates: int) -> tuple[list[str], Callable[[np.ndarray | slice], np.ndarray]]:
    """Names of the figures, R@k and median rank, and a function that gives them for chosen queries.

    A cut of at least as many as there are candidates says nothing and is left out.
    """
    cuts = [k for k in CUTS if k < candidates]
    within = np.stack([found_within(places, k) for k in cuts], axis=1)  # (Q, cuts)
    middle = places[:, 0] + places[:, 1] / 2 + 1  # (Q,)

    def measure(chosen: np.ndarray | slice) -> np.ndarray:
        return np.array([*within[chosen].mean(0), np.median(middle[chosen])])

    return [*(f"r_at_{k}" for k in cuts), "median_rank"], measure


def resamples(queries: int, seed: int, draws: int) -> list[np.ndarray]:
    """The queries of every bootstrap sample: the same for all systems."""
    generator = np.random.default_rng(seed)
    return [generator.integers(queries, size=queries) for _ in range(draws)]


def summary(places: np.ndarray, candidates: int, *, seed: int = 0, draws: int = 1_000) -> dict[str, float]:
    """R@k and median rank with 95 % bootstrap intervals over queries (`_low`, `_high`), and what chance gives."""
    names, measure = figures_of(places, candidates)
    low, high = np.quantile([measure(chosen) for chosen in resamples(len(places), seed, draws)], (0.025, 0.975), axis=0)
    chance = [*(k / candidates for k in CUTS if k < candidates), (candidates + 1) / 2]
    found: dict[str, float] = {"queries": len(places), "candidates": candidates}
    for i, (name, value) in enumerate(zip(names, measure(slice(None)), strict=True)):
        found |= {
            name: float(value),
            f"{name}_low": float(low[i]),
            f"{name}_high": float(high[i]),
            f"chance/{name}": chance[i],
        }
    return found
