"""The loss whose gradients weigh outputs: of next tokens, masked tokens, or a label that the model draws."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_MASKED_SHARE = 0.15

Kind = Literal["causal", "masked", "label"]


def kind_of(model: nn.Module) -> Kind:
    """Next tokens for causal models, masked tokens for masked ones.

    For any other head a label that is drawn from the model's own prediction (the true Fisher information).
    """
    name = type(model).__name__
    if name.endswith("ForMaskedLM"):
        return "masked"
    return "causal" if hasattr(model, "vocab_size") or "CausalLM" in name or "LMHead" in name else "label"


def hidden_tokens(kind: Kind, ids: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """(b, length) bool: what a masked model does not get to see; nothing for other kinds."""
    if kind != "masked":
        return torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    drawn = (torch.rand(ids.shape, generator=generator) < _MASKED_SHARE).to(ids.device)
    return drawn if mask is None else drawn & mask.to(ids.device)


def loss_of(
    kind: Kind,
    logits: Tensor,
    ids: Tensor,
    mask: Tensor | None,
    hidden: Tensor,
    generator: torch.Generator,
    at: slice = slice(None),
) -> Tensor:
    """The loss, summed over tokens.

    Args:
        logits: (b, tokens at `at`, vocabulary), or whatever a head gives.
        ids: (b, length).
        mask: (b, length) bool; None where nothing is padding.
        hidden: (b, length) bool, as `hidden_tokens` gives it.
        at: The positions that `logits` are of.
    """
    seen = torch.ones_like(hidden) if mask is None else mask.to(ids.device)
    if kind == "label":
        return _sampled_label_loss(logits, seen, generator)
    if kind == "masked":
        counted, targets = hidden[:, at], ids[:, at]
    else:  # what follows the last token is not known
        counted = functional.pad(seen[:, 1:], (0, 1))[:, at]
        targets = functional.pad(ids[:, 1:], (0, 1))[:, at]
    losses = functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return (losses * counted).sum()


@contextmanager
def embedded(model: nn.Module, hidden: Tensor) -> Iterator[None]:
    """While active, gradients reach back to the token embeddings, and those of `hidden` tokens are zero.

    Zero takes the place of the mask token, whose id need not be known.
    """

    def begin(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        found = output.detach()
        if hidden.any() and found.shape[:2] == hidden.shape:
            found = torch.where(hidden[..., None].to(found.device), torch.zeros_like(found), found)
        # Not a leaf: some models go on in place.
        return found.requires_grad_(True).clone()

    found = model.get_input_embeddings()  # type: ignore[operator]
    # Encoder-decoders look tokens up in tables of their own, which are tied to it.
    tables = [m for m in model.modules() if m is found or getattr(m, "weight", None) is found.weight]
    with ExitStack() as hooks:
        for table in (m for m in tables if m is found or isinstance(m, nn.Embedding)):
            hooks.enter_context(table.register_forward_hook(begin))
        yield


def _sampled_label_loss(logits: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    flat = logits.reshape(-1, logits.shape[-1]).float()
    labels = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator).to(flat.device)
    losses = functional.cross_entropy(flat, labels[:, 0], reduction="none")
    return (losses * mask.reshape(-1)).sum() if losses.numel() == mask.numel() else losses.sum()
