"""The log partition of a linear-chain CRF in about a hundred kernel launches, for texts of any length.

The forward algorithm takes one step per word, and a GPU waits for Python to launch the kernels of each step. Here the
steps are matrices, M_t[i, j] = exp(transitions[i, j] + emissions[t, j]), which are multiplied in a tree of pairwise
products: an associative scan (Blelloch, 1990; for hidden Markov models Särkkä and García-Fernández, 2021). The
gradients are the marginals, which a sweep down the same tree computes with vectors instead of matrices.

All values are in probability space, divided by their maxima to avoid overflow and underflow; see MAX_TRANSITION.
Shapes: B texts, W words, C tags; N chunks per text, a power of two, of S words each; C' states, see Steps.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F

CHUNK = 4  # number of words whose matrices are multiplied sequentially; only the product is stored
ALIGNED = 4  # matrices are padded to a multiple of this size, for vectorised loads on a GPU
# Limits for absolute transitions; transitions then differ by at most span = twice the limit. Emissions may have any
# value: after dividing a product of matrices by exp(emissions) of its last word, no entry is below exp(-2 span) times
# the largest. So underflow, below exp(-87) or in fp64 exp(-708), is negligible. A product of two, and two levels
# without a division, reach exp(-4 span).
MAX_TRANSITION = {torch.float32: 6.0, torch.float64: 30.0}
MAX_BYTES = 2**28  # limit for the chunks' matrices: 36 texts of 512 words with 120 tags; larger batches are split


def chunks_of(num_words: int) -> tuple[int, int]:
    """Returns (N, S): the number of chunks, a power of two, and the number of words in each, at most CHUNK."""
    chunks = 1 << (-(-num_words // CHUNK) - 1).bit_length()
    return chunks, -(-num_words // chunks)


class Steps:
    """The exponentials of emissions and transitions: `words` (B, N, S, C') and `factors` (C', C').

    `words` includes the start transitions at the first word and the end transitions at the last. An extra state stands
    for the end of the text, so C' is at least C + 1: padding allows only this state, and words allow only the others.
    So no step needs the mask. `scale` (B,) is the log of the scaling factor.
    """

    def __init__(
        self,
        emissions: torch.Tensor,
        mask: torch.Tensor,
        start: torch.Tensor,
        transitions: torch.Tensor,
        end: torch.Tensor,
        dtype: torch.dtype,
    ):
        batch, self.num_words, self.num_tags = emissions.shape
        chunks, size = chunks_of(self.num_words)
        more, states = chunks * size - self.num_words, self.num_tags + 1
        states += -states % ALIGNED
        self.last = torch.arange(batch, device=mask.device), mask.sum(1) - 1
        scores = emissions + F.pad(start.unsqueeze(0), (0, 0, 0, self.num_words - 1))
        scores = scores.index_put(self.last, end, accumulate=True)
        scores = F.pad(scores, (0, states - self.num_tags, 0, more), value=-torch.inf)
        ended = scores.new_full((states,), -torch.inf)
        ended[self.num_tags].zero_()
        scores = torch.where((F.pad(mask, (0, more)) if more else mask).unsqueeze(2), scores, ended)
        peak = scores.detach().amax(2, keepdim=True)
        self.scale = peak.sum((1, 2))
        self.words = (scores - peak).to(dtype).exp().view(batch, chunks, size, states)
        self.factors = F.pad(
            transitions.to(dtype).exp(), (0, states - self.num_tags, 0, states - self.num_tags), value=1.0
        )

    def chunk_products(self) -> torch.Tensor:
        """Returns the product of the matrices of each chunk, (B, N, C', C')."""
        words = self.words.unsqueeze(3)
        # The matrix of the first word has no transition
        ones = torch.ones_like(self.factors).unsqueeze(0)
        first = torch.cat([ones, self.factors.expand(words.shape[1] - 1, -1, -1)])
        product = first * words[:, :, 0]
        for k in range(1, words.shape[2]):
            product = (product @ self.factors) * words[:, :, k]
        return product

    def log_partition(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the log partition function, (B,), and the levels of the tree, from the leaves up.

        A level contains pairs of matrices, (B, n / 2, 2, C', C'), with the right ones transposed.
        """
        product, tree, scales = self.chunk_products(), [], []
        while product.shape[1] > 1:
            peak = product.detach().amax((2, 3), keepdim=True)
            pairs = (product / peak).unflatten(1, (-1, 2))
            tree.append(torch.stack([pairs[:, :, 0], pairs[:, :, 1].mT], 2))
            scales.append(peak.flatten(1))
            product = pairs[:, :, 0] @ pairs[:, :, 1]
        total = product[:, 0, 0].sum(1, keepdim=True)  # all rows are equal, as in the first word's matrix
        return torch.cat([total, *scales], 1).log().sum(1) + self.scale, tree

    def chunk_boundaries(self, tree: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the sums over all paths before and after each chunk, each (B, N, C'), up to a factor."""
        crossed = torch.eye(2, dtype=torch.bool, device=self.words.device).unsqueeze(2)
        boundaries = self.words.new_ones(len(self.words), 1, 2, len(self.factors))  # before and after the whole text
        for depth in range(len(tree) - 1, -1, -1):
            over = (boundaries.unsqueeze(3) @ tree[depth]).squeeze(3)  # over the left child, backward over the right
            boundaries = torch.where(crossed, boundaries.unsqueeze(2), over.unsqueeze(2)).flatten(1, 2)
            if depth % 2 == 0:
                boundaries = boundaries / boundaries.amax(3, keepdim=True)
        return boundaries[:, :, 0], boundaries[:, :, 1]

    def gradients(
        self, tree: list[torch.Tensor], grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the gradients of sum(grad * log partition) w.r.t. emissions (B, W, C), start, transitions and end."""
        first, last = self.chunk_boundaries(tree)
        reached, after, arrived = [first], [last], list[torch.Tensor]()
        size = self.words.shape[2]
        for k in range(size):
            arrived.append(reached[k] @ self.factors)
            if k == 0:
                arrived[0][:, 0].fill_(1)  # no transition leads to the first word
            if k < size - 1:
                reached.append(arrived[k] * self.words[:, :, k])
        for k in range(size - 1, 0, -1):
            after.append((after[-1] * self.words[:, :, k]) @ self.factors.T)
        before = torch.stack(reached, 2)
        left = torch.stack(after[::-1], 2) * self.words
        paths = torch.stack(arrived, 2) * left  # through each tag of each word
        share = grad[:, None, None, None] / paths.sum(3, keepdim=True)
        by_emissions = (paths * share).flatten(1, 2)[:, : self.num_words, : self.num_tags].to(grad.dtype)
        before[:, 0, 0].zero_()
        crossings, tags = before.flatten(0, 2).T @ (left * share).flatten(0, 2), slice(self.num_tags)
        by_transitions = (self.factors[tags, tags] * crossings[tags, tags]).to(grad.dtype)
        return by_emissions, by_emissions[:, 0].sum(0), by_transitions, by_emissions[self.last].sum(0)


class LogPartition(torch.autograd.Function):
    """The log partition function, (B,), computed in dtype. keep: whether to store the tree for the backward pass
    instead of recomputing it."""

    @staticmethod
    def forward(
        ctx: Any,
        emissions: torch.Tensor,
        start: torch.Tensor,
        transitions: torch.Tensor,
        end: torch.Tensor,
        mask: torch.Tensor,
        dtype: torch.dtype,
        keep: bool,
    ) -> torch.Tensor:
        steps = Steps(emissions, mask, start, transitions, end, dtype)
        total, tree = steps.log_partition()
        ctx.save_for_backward(emissions, start, transitions, end, mask)
        ctx.dtype, ctx.kept = dtype, (steps, tree) if keep else None
        return total.to(emissions.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        emissions, start, transitions, end, mask = ctx.saved_tensors
        gradients = Gradients.apply(emissions, start, transitions, end, grad, mask, ctx.dtype, ctx.kept)
        return *gradients, None, None, None


class Gradients(torch.autograd.Function):
    """The gradients of sum(grad * log partition). They are differentiable, because R-Drop and SMART compare marginals.
    kept: (steps, tree) from the forward pass, or None."""

    @staticmethod
    def forward(
        ctx: Any,
        emissions: torch.Tensor,
        start: torch.Tensor,
        transitions: torch.Tensor,
        end: torch.Tensor,
        grad: torch.Tensor,
        mask: torch.Tensor,
        dtype: torch.dtype,
        kept: tuple[Steps, list[torch.Tensor]] | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(emissions, start, transitions, end, grad, mask)
        ctx.dtype = dtype
        if kept is None:
            steps = Steps(emissions, mask, start, transitions, end, dtype)
            kept = steps, steps.log_partition()[1]
        steps, tree = kept
        return steps.gradients(tree, grad)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *directions: torch.Tensor) -> Any:
        """Processes a few texts at a time, because the tree takes eight times the memory when autograd records it."""
        emissions, start, transitions, end, grad, mask = ctx.saved_tensors
        shared = [tensor.detach().requires_grad_() for tensor in (start, transitions, end)]
        options = dict(allow_unused=True, materialize_grads=True)
        by_texts, by_shared = [], []
        size = texts_at_once(emissions, ctx.dtype, MAX_BYTES // 8)
        for scores, weight, part, direction in zip(*(t.split(size) for t in (emissions, grad, mask, directions[0]))):
            scores, weight = scores.detach().requires_grad_(), weight.detach().requires_grad_()
            with torch.enable_grad():
                total, _ = cast(Any, Steps)(scores, part, *shared, ctx.dtype).log_partition()
                first = torch.autograd.grad(
                    total, (scores, *shared), weight.to(ctx.dtype), create_graph=True, **options
                )
                second = torch.autograd.grad(first, (scores, weight, *shared), (direction, *directions[1:]), **options)
            by_texts.append(second[:2])
            by_shared.append(second[2:])
        by_emissions, by_grad = (torch.cat(parts) for parts in zip(*by_texts))
        return by_emissions, *(sum(parts) for parts in zip(*by_shared)), by_grad, None, None, None


def texts_at_once(emissions: torch.Tensor, dtype: torch.dtype, most: int) -> int:
    """Returns the number of texts whose chunk matrices fit in `most` bytes, at least 1."""
    _, num_words, num_tags = emissions.shape
    return max(1, most // (chunks_of(num_words)[0] * num_tags**2 * dtype.itemsize))


def log_partition(
    emissions: torch.Tensor,
    mask: torch.Tensor,
    start: torch.Tensor,
    transitions: torch.Tensor,
    end: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Returns the log partition function, (B,). It is twice differentiable.

    emissions (B, W, C), start and end (C,), transitions (C, C); mask (B, W), each row a prefix of ones. dtype: the
    dtype of the products; absolute transitions must not exceed its MAX_TRANSITION.
    """
    dtype = dtype or emissions.dtype
    size = texts_at_once(emissions, dtype, MAX_BYTES)
    groups = list(zip(emissions.split(size), mask.split(size)))
    totals = [LogPartition.apply(e, start, transitions, end, part, dtype, len(groups) == 1) for e, part in groups]
    return torch.cat(totals) if len(groups) > 1 else totals[0]
