"""How far two models' next-token distributions are apart: no task, no right answers needed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kanna.progress import Progress, told
from kanna.tasks.scorers.likelihood import logits_at, most_logits
from kanna.tasks.verdict.comparison import Divergence


def divergence(
    base: nn.Module,
    new: nn.Module,
    sequences: Sequence[Sequence[int]],
    progress: Progress = lambda *_: None,
) -> Divergence:
    """Compare two causal models of one vocabulary after every token of some sequences (token ids).

    Logits of both are held for a part of a sequence at a time; the sums are in float64.
    """
    divergences: list[Tensor] = []
    same = 0
    for sequence in told(progress, "divergence", sequences):
        for part in torch.arange(len(sequence)).split(max(1, most_logits(base) // 4)):
            first, second = (_logits(model, sequence, part) for model in (base, new))
            divergences.append(kl(first, second))
            same += int((first.argmax(-1) == second.argmax(-1)).sum())
    values = torch.cat(divergences)
    ninety_nine = float(torch.quantile(values, 0.99))
    return Divergence(
        kl_mean=float(values.mean()),
        kl_p99=ninety_nine,
        top1_agreement=same / len(values),
        tokens=len(values),
    )


def kl(base: Tensor, new: Tensor) -> Tensor:
    """(tokens,) float64: KL(base || new) of logits (tokens, vocabulary) in float32, nats."""
    p, q = torch.log_softmax(base.float(), -1), torch.log_softmax(new.float(), -1)
    return (p.exp() * (p - q)).double().sum(-1).clamp_min(0).cpu()


def _logits(model: nn.Module, sequence: Sequence[int], places: Tensor) -> Tensor:
    device = next(model.parameters()).device
    ids = torch.tensor([list(sequence)], device=device)
    return logits_at(model, {"input_ids": ids}, places.to(device))
