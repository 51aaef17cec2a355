"""Conditional DRAW: a picture painted in T steps, each step told by the caption what to paint.

Mansimov et al. 2016 (arXiv 1511.02793), section 3.2, on Gregor et al. 2015; the numbers of the steps below are those of the
equations in the class docstring. One class serves alignDRAW, noalignDRAW and skipthoughtDRAW: they differ only in the
sentence vector s_t a step receives.
"""

# B batch, N words, M word-state width, S sentence width, Z latent width, E encoder, G generator width, T steps

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.config import DrawConfig
from pipeline.models.base import CaptionModel
from pipeline.models.captions import Align, WordStates, mean_of_words
from pipeline.models.filterbank import from_rows, make_window, read_patch, to_rows, write_patch
from pipeline.models.likelihood import bernoulli_nll, gaussian_kl, standard_kl
from pipeline.models.lstm import LSTMCell, advance
from pipeline.sample import Batch, Generated, Terms


@dataclass
class Caption:
    """A caption as the steps need it; what does not depend on the step is computed once."""

    fixed: Tensor | None = None  # (B, 4G) gate input of a sentence vector that is the same at every step
    states: Tensor | None = None  # (B, N, M) word states, for align
    projected: Tensor | None = None  # (B, N, A) U h_k
    keep: Tensor | None = None  # (B, N)


@dataclass
class Drawing:
    """What a step hands to the next, and what is kept of all steps."""

    canvas: Tensor  # (B, S, C, S) logits c_t in row layout (filterbank.py)
    encoder: tuple[Tensor, Tensor]  # h^inf, its memory (B, E)
    generator: tuple[Tensor, Tensor]  # h^gen, its memory (B, G)
    alphas: list[Tensor] = field(default_factory=list)  # (B, N) of each step


class DrawModel(CaptionModel):
    """Conditional DRAW.

        xhat_t  = x - sigmoid(c_{t-1})                                                     (1) what is still missing
        r_t     = read(x, xhat_t, h^gen_{t-1})                                             (2)
        h^inf_t = LSTM^inf(h^inf_{t-1}, [r_t, h^gen_{t-1}])                                (3)
        Q(z_t | x, y, z_{1:t-1}) = N(mu(h^inf_t), sigma(h^inf_t)^2)                        (4)
        P(z_1) = N(0, I),  P(z_t | z_{1:t-1}) = N(mu(h^gen_{t-1}), sigma(h^gen_{t-1})^2)   (5)
        s_t     = align(h^gen_{t-1}, h^lang)                                               (6)
        h^gen_t = LSTM^gen(h^gen_{t-1}, [z_t, s_t])                                        (7)
        c_t     = c_{t-1} + write(h^gen_t)                                                 (8)
        p(x | y, z_{1:T}) = prod_i Bernoulli(sigmoid(c_{T,i}))                             (9)

    As in the authors' code: log sigma of Q is half a linear layer; mu and log sigma of the prior are tanh of linear layers
    from the second step on; initial hidden states and the canvas c_0 are learned, memories start at 0.
    """

    def __init__(self, config: DrawConfig, vocabulary: int, size: int, channels: int):
        super().__init__()
        self.config, self.size, self.channels = config, size, channels
        self.noise_shape = (config.steps, config.latent)
        encoder, generator = config.encoder, config.generator
        if config.caption == "skipthought":
            self.language, sentence = None, config.sentence
        else:
            self.language = WordStates(vocabulary, config.language)
            sentence = self.language.width
        self.align = Align(sentence, generator, config.align) if config.caption == "align" else None

        self.read_window = nn.Linear(generator, 5)
        self.encoder = LSTMCell(encoder)
        self.encoder_patch = nn.Linear(2 * channels * config.read_size**2, 4 * encoder, bias=False)
        self.encoder_generator = nn.Linear(generator, 4 * encoder, bias=False)
        self.posterior = nn.Linear(encoder, 2 * config.latent)  # mean, log variance
        self.prior = nn.Linear(generator, 2 * config.latent)  # mean, log standard deviation, before tanh
        self.generator = LSTMCell(generator)
        self.generator_latent = nn.Linear(config.latent, 4 * generator, bias=False)
        self.generator_sentence = nn.Linear(sentence, 4 * generator, bias=False)
        self.write_window = nn.Linear(generator, 5)
        self.write = nn.Linear(generator, channels * config.write_size**2)

        self.encoder_start = nn.Parameter(torch.zeros(encoder))
        self.generator_start = nn.Parameter(torch.zeros(generator))
        self.canvas_start = nn.Parameter(torch.full((size, channels, size), config.canvas))
        (_start_paper if config.start == "paper" else _start_scaled)(self)

    # ---- the equations

    def infer(self, drawing: Drawing, image: Tensor) -> tuple[Drawing, Tensor, Tensor]:
        """(1)-(4): image (B, S, C, S) -> drawing with the encoder advanced; mean, log std (B, Z) of Q(z_t)."""
        canvas_error = image - torch.sigmoid(drawing.canvas)
        hidden = drawing.generator[0]
        window = make_window(self.read_window(hidden), self.config.read_size, self.size)
        patch = read_patch(torch.cat((image, canvas_error), dim=2), window)
        gates = self.encoder_patch(patch) + self.encoder_generator(hidden)
        encoder = self.encoder(gates, *drawing.encoder)
        mean, log_variance = self.posterior(encoder[0]).chunk(2, dim=1)
        return Drawing(drawing.canvas, encoder, drawing.generator, drawing.alphas), mean, 0.5 * log_variance

    def prior_of(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(5) for t >= 2: h^gen_{t-1} (..., G) -> mean, log std (..., Z), both in [-1, 1]."""
        return torch.tanh(self.prior(hidden)).chunk(2, dim=-1)

    def step(self, drawing: Drawing, latent: Tensor, caption: Caption) -> Drawing:
        """(6)-(8), the same for inference and generation: z_t (B, Z) is painted onto the canvas."""
        hidden, memory = drawing.generator
        gates = self.generator_latent(latent) + self.generator.recurrent(hidden)
        alphas = drawing.alphas
        if caption.fixed is not None:
            gates = gates + caption.fixed
        else:
            sentence, alpha = self.align(caption.states, caption.projected, self.align.W(hidden), caption.keep)
            gates, alphas = gates + self.generator_sentence(sentence), [*alphas, alpha]
        generator = advance(gates, memory)
        window = make_window(self.write_window(generator[0]), self.config.write_size, self.size)
        canvas = drawing.canvas + write_patch(self.write(generator[0]), window, self.channels)
        return Drawing(canvas, drawing.encoder, generator, alphas)

    # ---- the two ways to run them

    def reconstruct(self, batch: Batch, noise: Tensor) -> tuple[Terms, Tensor]:
        """One sample of Q: noise (B, T, Z) -> losses recon, kl (B,) in nats, and sigmoid(c_T) (B, C, H, W)."""
        image = to_rows(batch.images)
        caption = self._caption(batch.words, batch.keep, batch.sentence)
        drawing = self._blank(len(batch))
        means, log_stds, hiddens = [], [], []
        for epsilon in noise.unbind(1):
            hiddens.append(drawing.generator[0])  # h^gen_{t-1}: where P(z_t) comes from
            drawing, mean, log_std = self.infer(drawing, image)
            means.append(mean)
            log_stds.append(log_std)
            drawing = self.step(drawing, mean + log_std.exp() * epsilon, caption)
        kl = standard_kl(means[0], log_stds[0])
        if self.config.steps > 1:
            later = gaussian_kl(
                torch.stack(means[1:]), torch.stack(log_stds[1:]), *self.prior_of(torch.stack(hiddens[1:]))
            )
            kl = kl + later.sum(0)
        terms = Terms({"recon": bernoulli_nll(drawing.canvas, image), "kl": kl})
        return terms, from_rows(torch.sigmoid(drawing.canvas))

    def terms(self, batch: Batch, noise: Tensor) -> Terms:
        return self.reconstruct(batch, noise)[0]

    def sample(self, words: Tensor, keep: Tensor, sentence: Tensor | None, noise: Tensor) -> Generated:
        """Q is discarded, z_t comes from the prior: noise (B, T, Z) -> images, canvases (T, B, C, H, W), alignments."""
        caption = self._caption(words, keep, sentence)
        drawing = self._blank(len(words))
        canvases = []
        for index, epsilon in enumerate(noise.unbind(1)):
            if index > 0:
                mean, log_std = self.prior_of(drawing.generator[0])
                epsilon = mean + log_std.exp() * epsilon
            drawing = self.step(drawing, epsilon, caption)
            canvases.append(drawing.canvas)
        shown = from_rows(torch.sigmoid(torch.stack(canvases)))
        return Generated(shown[-1], shown, torch.stack(drawing.alphas) if drawing.alphas else None)

    def describe(self, words: Tensor, keep: Tensor, sentence: Tensor | None) -> Tensor:
        """(B, S): the given sentence vector, else the mean of the word states.

        Given back as `sentence` to a model with word states, a vector stands for the caption at every step. Choice: that is
        how alignDRAW, which has no single sentence vector, scores an image under "the mean sentence" (paper.md 7 item 4).
        """
        return sentence if sentence is not None else mean_of_words(self.language(words, keep), keep)

    def _caption(self, words: Tensor, keep: Tensor, sentence: Tensor | None) -> Caption:
        if sentence is None and self.language is None:
            raise ValueError("this model draws from sentence vectors (caption = skipthought): the batch has none")
        if sentence is None and self.align is not None:
            states = self.language(words, keep)
            return Caption(states=states, projected=self.align.U(states), keep=keep)
        return Caption(fixed=self.generator_sentence(self.describe(words, keep, sentence)))

    def _blank(self, batch: int) -> Drawing:
        encoder, generator = self.encoder_start.expand(batch, -1), self.generator_start.expand(batch, -1)
        return Drawing(
            canvas=self.canvas_start.expand(batch, -1, -1, -1),
            encoder=(encoder, torch.zeros_like(encoder)),
            generator=(generator, torch.zeros_like(generator)),
        )


@torch.no_grad()
def _start_paper(model: DrawModel) -> None:
    """The authors' start: N(0, 0.01) for every weight, 0 for every bias and initial state (paper.md 1.2)."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            nn.init.normal_(parameter, std=0.01)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


@torch.no_grad()
def _start_scaled(model: DrawModel) -> None:
    """Choice: a start that learns within minutes where the paper's takes hours.

    Xavier weights; forget gates open (bias 1); words at scale 1, else captions are ignored for hundreds of steps; windows
    centred and narrow, about 1 pixel of blur to write and 1.5 to read.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("_words.weight"):
            nn.init.normal_(parameter, std=1.0)
        elif name.endswith("weight"):
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    for cell in (module for module in model.modules() if isinstance(module, LSTMCell)):
        cell.recurrent.bias[cell.width : 2 * cell.width] = 1.0
    for layer, log_variance, log_intensity in ((model.read_window, 0.81, 0.0), (model.write_window, 0.0, -1.0)):
        layer.weight *= 0.1
        layer.bias.copy_(torch.tensor([0.0, 0.0, log_variance, -0.7, log_intensity]))
