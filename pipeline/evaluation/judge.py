"""A judge of drawn digits: a small classifier that says which digit stands at each place of a canvas, or that none does.

It comes after `generate`: the paper shows pictures for seen and held-out captions (section 4.2) but no number; the share of
drawings that this judge reads as what their caption says is that number. It is trained on real digits only, never on a drawing
of the model it judges, and its own accuracy on real canvases of the test split is reported beside its verdicts.

One network looks at the window around each place, so what it learns of a digit at one place holds for all of them; it cannot
know which digits stood where in the training captions, and held-out combinations are to it like any other. `Choice:` its size,
and its training canvases: every combination of places that do not overlap, with the distortions that drawings have (blur,
fainter or uneven strokes, noise), so that soft drawings are judged by their digit and not by their style.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

FORMAT = 1  # of the training and the file: another one makes judges that are not taken for this one's
EMPTY = 10  # the class of a place without a digit; classes 0 to 9 are the digits
MARGIN = 4  # pixels seen around a place's region
OVERLAP = 0.15  # places whose regions share more of their area are never filled together
# B canvases, P places, S window side


@dataclass(frozen=True)
class Region:
    """Where a digit that belongs to a place can have ink: rows top to bottom, columns left to right (ends not included)."""

    top: int
    bottom: int
    left: int
    right: int

    def overlap(self, other: Region) -> float:
        """Shared area as a share of this region's."""
        rows = min(self.bottom, other.bottom) - max(self.top, other.top)
        columns = min(self.right, other.right) - max(self.left, other.left)
        return max(rows, 0) * max(columns, 0) / ((self.bottom - self.top) * (self.right - self.left))


class Judge(nn.Module):
    """Reads canvases: logits over ten digits and EMPTY at each place."""

    def __init__(self, regions: Sequence[Region], maps: int = 16) -> None:
        super().__init__()
        self.regions = tuple(regions)
        longest = max(max(region.bottom - region.top, region.right - region.left) for region in regions)
        self.side = -(-(longest + 2 * MARGIN) // 8) * 8  # of a window, halved three times on its way
        self.read = nn.Sequential(
            nn.Conv2d(1, maps, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(maps, 2 * maps, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * maps, 3 * maps, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(3 * maps * (self.side // 8) ** 2, 64)
        self.decide = nn.Linear(64, EMPTY + 1)

    def windows(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) in [0, 1] -> grey windows at half size (B, P, S / 2, S / 2)."""
        half = self.side // 2
        padded = functional.pad(images.mean(1), (half, half, half, half))
        centres = [((r.top + r.bottom) // 2, (r.left + r.right) // 2) for r in self.regions]
        cut = [padded[:, row : row + self.side, column : column + self.side] for row, column in centres]
        return functional.avg_pool2d(torch.stack(cut, 1), 2)

    def features(self, images: Tensor) -> Tensor:
        """(B, P * 64): what the last hidden layer says of every place, for finding similar images."""
        windows = self.windows(images)
        return self.hidden(self.read(windows.flatten(0, 1)[:, None])).relu().reshape(len(images), -1)

    def classify(self, windows: Tensor) -> Tensor:
        """Windows (n, S / 2, S / 2) -> logits (n, 11)."""
        return self.decide(self.hidden(self.read(windows[:, None])).relu())

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) -> logits (B, P, 11)."""
        windows = self.windows(images)
        return self.classify(windows.flatten(0, 1)).reshape(*windows.shape[:2], -1)

    @torch.no_grad()
    def look(self, images: Tensor, batch: int = 256) -> np.ndarray:
        """images (n, C, H, W) -> the class of every place (n, P)."""
        self.eval()
        return torch.cat([self(part).argmax(2) for part in images.split(batch)]).numpy()


def train_judge(
    canvases: np.ndarray,
    labels: np.ndarray,
    regions: Sequence[Region],
    *,
    steps: int = 900,
    batch: int = 32,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> Judge:
    """Canvases (n, H, W) uint8 of real digits with the class of every place (n, P) -> a judge.

    Only canvases with a single digit are used: what is inked there is that digit, exactly where the source puts it, and
    moving its region to another place gives a real digit at that place too. Adam, learning rate up and down once.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        judge = Judge(regions)
        digits = LoneDigits(canvases, labels, regions)
        sets, known = _filled_together(regions), torch.from_numpy(np.unique(digits.classes))
        optimizer = torch.optim.Adam(judge.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1, pct_start=0.2)
        for step in range(steps):
            filled = sets[torch.randint(len(sets), (batch,))]
            wanted = torch.where(filled, known[torch.randint(len(known), filled.shape)], EMPTY)
            images = _distort(digits.place(wanted, bend=0.12))
            windows, truth = _balanced(judge.windows(images[:, None]), wanted)
            loss = functional.cross_entropy(judge.classify(windows), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % max(1, steps // 8) == 0:
                log(f"judge: step {step + 1} of {steps}, loss {loss.item():.3f}")
    return judge.eval()


def measure_judge(
    judge: Judge, canvases: np.ndarray, labels: np.ndarray, held_out: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """The share of real canvases on which the judge reads every place right.

    canvases (n, H, W) uint8 of digits that it has never seen, labels (n, P): `accuracy`, and by number of digits.
    held_out (m, P), wanted labels: `held_out`, on canvases made of the lone digits of `canvases`, since no split shows
    held-out combinations; nan where these digits do not suffice.
    """
    right = (judge.look(torch.from_numpy(canvases)[:, None] / 255) == labels).all(1)
    found = {"accuracy": float(right.mean())}
    for name, digits in (("one_digit", 1), ("two_digits", 2)):
        mine = (labels != EMPTY).sum(1) == digits
        found[name] = float(right[mine].mean()) if mine.any() else float("nan")
    lone = LoneDigits(canvases, labels, judge.regions)
    possible = np.isin(held_out, [EMPTY, *lone.classes]).all(1)
    found["held_out"] = float("nan")
    if possible.any():
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            wanted = torch.from_numpy(held_out[possible])
            found["held_out"] = float((judge.look(lone.place(wanted)[:, None]) == wanted.numpy()).all(1).mean())
    return found


def verdicts(seen: np.ndarray, wanted: np.ndarray) -> dict[str, np.ndarray]:
    """Classes read and classes the captions ask for (n, P) -> by name what is right of each drawing (n,) bool.

    right: every digit at its place and nothing elsewhere. places: something at the right places and nowhere else.
    digits: the right digits, wherever they are. number: as many digits as asked for.
    """
    return {
        "right": (seen == wanted).all(1),
        "places": ((seen == EMPTY) == (wanted == EMPTY)).all(1),
        "digits": (np.sort(seen, 1) == np.sort(wanted, 1)).all(1),
        "number": (seen != EMPTY).sum(1) == (wanted != EMPTY).sum(1),
    }


def to_bytes(judge: Judge, facts: dict[str, float]) -> bytes:
    """A .safetensors file: the weights, the regions and what is known of the judge."""
    from safetensors.torch import save

    about = json.dumps({"regions": [astuple(region) for region in judge.regions], "facts": facts})
    return save({name: tensor.contiguous() for name, tensor in judge.state_dict().items()}, {"judge": about})


def from_bytes(content: bytes) -> tuple[Judge, dict[str, float]]:
    """The judge of a file and what is known of it; ValueError if it is no such file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"]["judge"])
        judge = Judge([Region(*region) for region in about["regions"]])
        judge.load_state_dict(load(content))
        return judge.eval(), about["facts"]
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"not a judge: {error}") from None


class LoneDigits:
    """Real digits cut from canvases that show a single one, to be put at any places."""

    def __init__(self, canvases: np.ndarray, labels: np.ndarray, regions: Sequence[Region]) -> None:
        single = np.flatnonzero((labels != EMPTY).sum(1) == 1)
        if not len(single):
            raise ValueError("the judge learns from canvases with a single digit: there is none")
        self.regions, self.shape = tuple(regions), canvases.shape[1:]
        self.side = max(max(region.bottom - region.top, region.right - region.left) for region in regions)
        squares = np.zeros((len(single), self.side, self.side), np.float32)
        for square, canvas, place in zip(squares, canvases[single], (labels[single] != EMPTY).argmax(1), strict=True):
            region = regions[place]
            inked = canvas[region.top : region.bottom, region.left : region.right] / 255
            row, column = (self.side - inked.shape[0]) // 2, (self.side - inked.shape[1]) // 2
            square[row : row + inked.shape[0], column : column + inked.shape[1]] = inked
        classes = labels[single].min(1).astype(np.int64)  # EMPTY is the largest class
        order = np.argsort(classes, kind="stable")
        self.squares, self.classes = torch.from_numpy(squares[order]), classes[order]
        counts = np.bincount(classes, minlength=EMPTY)
        self._count, self._first = torch.from_numpy(counts), torch.from_numpy(counts.cumsum() - counts)

    def place(self, wanted: Tensor, bend: float = 0.0) -> Tensor:
        """wanted (n, P) classes -> canvases (n, H, W) in [0, 1], each digit drawn from those of its class.

        bend: how far a digit is turned, sheared and scaled, each in its own way.
        """
        side, half = self.side, self.side // 2
        images = torch.zeros(len(wanted), self.shape[0] + side, self.shape[1] + side)  # squares reach over the border
        for place, region in enumerate(self.regions):
            rows = (wanted[:, place] != EMPTY).nonzero()[:, 0]
            if not len(rows):
                continue
            kind = wanted[rows, place]
            chosen = self.squares[self._first[kind] + (torch.rand(len(rows)) * self._count[kind]).long()]
            top, left = (region.top + region.bottom) // 2, (region.left + region.right) // 2
            part = images[rows, top : top + side, left : left + side]
            images[rows, top : top + side, left : left + side] = part.maximum(_bend(chosen, bend) if bend else chosen)
        return images[:, half : half + self.shape[0], half : half + self.shape[1]]


def _filled_together(regions: Sequence[Region]) -> Tensor:
    """Every set of one to four places that do not overlap: (sets, P) bool."""
    sets = []
    for size in (1, 2, 3, 4):
        for places in itertools.combinations(range(len(regions)), size):
            pairs = itertools.combinations(places, 2)
            if all(regions[a].overlap(regions[b]) <= OVERLAP for a, b in pairs):
                sets.append([place in places for place in range(len(regions))])
    return torch.tensor(sets)


def _bend(digits: Tensor, by: float) -> Tensor:
    """Digits (n, S, S), each under a random linear map near the identity."""
    matrix = torch.eye(2, 3).repeat(len(digits), 1, 1)
    matrix[:, :, :2] += by * torch.randn(len(digits), 2, 2)
    grid = functional.affine_grid(matrix, [len(digits), 1, *digits.shape[1:]], align_corners=False)
    return functional.grid_sample(digits[:, None], grid, align_corners=False)[:, 0]


def _distort(images: Tensor) -> Tensor:
    """Images (n, H, W) as a model might draw them: softer, fainter, unevenly inked, noisy."""
    n = len(images)
    soft = _blur(images, sigma=float(torch.empty(1).uniform_(0.5, 1.6)))
    images = torch.lerp(images, soft, torch.rand(n, 1, 1))
    uneven = functional.interpolate(torch.rand(n, 1, 5, 5), images.shape[1:], mode="bilinear")[:, 0]
    images = images * (1 - 0.5 * torch.rand(n, 1, 1) * uneven)
    images = images ** torch.empty(n, 1, 1).uniform_(0.7, 1.5)
    return (images + 0.12 * torch.rand(n, 1, 1) * torch.randn(images.shape)).clamp(0, 1)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of images (n, H, W)."""
    steps = torch.arange(-4, 5)
    kernel = (-(steps**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, -1)
    rows = functional.conv2d(images[:, None], kernel, padding=(0, 4))
    return functional.conv2d(rows, kernel.transpose(2, 3), padding=(4, 0))[:, 0]


def _balanced(windows: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """All windows with a digit and as many without: (n, S / 2, S / 2), (n,)."""
    full = (truth != EMPTY).flatten().nonzero()[:, 0]
    empty = (truth == EMPTY).flatten().nonzero()[:, 0]
    chosen = torch.cat([full, empty[torch.randperm(len(empty))[: len(full)]]])
    return windows.flatten(0, 1)[chosen], truth.flatten()[chosen]
