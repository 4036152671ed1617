"""A model as lm_eval asks it: its requests, split into tokens as lm_eval does it, answered by kanna."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from kanna.errors import InputError
from kanna.progress import Progress
from kanna.tasks.scorers.likelihood import Likelihood
from kanna.tasks.scorers.planning import likelihoods
from kanna.tasks.scorers.written import plan_writing, write
from kanna.tasks.tokens.encode import Piece
from kanna.tasks.tokens.padded import vocabulary_of
from kanna.tasks.tokens.special import check_known, end_note, end_of, without

_NEW_TOKENS = 256
# What lm_eval takes for the most new tokens, the first first; all that greedy decoding heeds or can ignore;
# and values that ask for nothing.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_GENERATION = {*_LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k", "min_p", "use_cache"}
_IDLE = (None, False, 1)

# Prompt, most new tokens, stop texts.
_Wanted = tuple[str, int, tuple[str, ...]]


def asked_by_lm_eval(model: nn.Module, tokenizer: Any, **how: Any) -> Any:
    """An LM of lm_eval, which is imported here and not before; keyword arguments as `Asked`."""
    from lm_eval.api.model import TemplateLM

    return type("Kanna", (Asked, TemplateLM), {})(model, tokenizer, **how)


class Asked:
    """All that `lm_eval.api.model.TemplateLM` leaves to its subclasses, and the notes on how it was done.

    Args:
        context: Most tokens read at once.
        batch_tokens: Tokens per forward pass, about.
        share: Compute what prompts share once, where that is right.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        context: int,
        batch_tokens: int,
        share: bool,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._model, self._context, self._share = model, context, share
        self._batch_tokens, self._progress = batch_tokens, progress
        self._device = next(model.parameters()).device
        self._vocabulary, self._end = vocabulary_of(model), end_of(tokenizer)
        self.notes: list[str] = [end_note(tokenizer, self._end)] if self._end else []

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else 0)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        from lm_eval.models.utils import has_bos_prefix

        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            special = {"add_special_tokens": False}
        ids = self.tokenizer(string, verbose=False, **special)["input_ids"]
        check_known(ids, self._vocabulary, self.tokenizer)
        return without(ids, self._end)

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        pieces = [_fitting(before, target, self._context) for _, before, target in requests]
        return [(piece.sum, piece.greedy) for piece in self._likelihoods(pieces)]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        rows = [self._windows(str(request.args[0])) for request in requests]
        pieces = [piece for row in rows for piece in row]
        sums = iter([piece.sum for piece in self._likelihoods(pieces)])
        return [float(sum(next(sums) for _ in row)) for row in rows]

    def _likelihoods(self, pieces: Sequence[Piece]) -> tuple[Likelihood, ...]:
        how: dict[str, Any] = {"batch_tokens": self._batch_tokens, "share": self._share}
        scored = likelihoods(self._model, pieces, progress=self._progress, **how)
        self.notes += scored.notes
        return scored.found

    def _windows(self, text: str) -> list[Piece]:
        """Windows that do not overlap but for one token, which the next one begins with."""
        from lm_eval.utils import get_rolling_token_windows

        windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self._context, 1)
        return [
            Piece(tuple(inputs[: len(inputs) - len(targets) + 1]), tuple(targets), len(text))
            for inputs, targets in windows
        ]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        asked = [_wanted(*request.args) for request in requests]
        texts: dict[_Wanted, str] = {}
        for new, stop in dict.fromkeys((new, stop) for _, new, stop in asked):
            prompts = [prompt for prompt, *rest in asked if rest == [new, stop]]
            keys = [(prompt, new, stop) for prompt in prompts]
            texts |= dict(zip(keys, self._continued(prompts, new, stop), strict=True))
        return [texts[key] for key in asked]

    def _continued(self, prompts: Sequence[str], new: int, stop: tuple[str, ...]) -> list[str]:
        """What the model writes after prompts that are asked alike."""
        room = self._context - new
        if room < 1:
            raise InputError(
                f"this task asks for {new} new tokens, which leave no room for a prompt in a context of "
                f"{self._context}",
                "set max_gen_toks in a task file of your own, or use a model with a longer context",
            )
        ids = [self.tok_encode(prompt)[-room:] or [self.prefix_token_id] for prompt in prompts]
        plan = plan_writing(self._model, self.tokenizer, ids, new, self._batch_tokens)
        self.notes += plan.notes
        how: dict[str, Any] = {"stop": stop, "plan": plan, "progress": self._progress}
        return [written.text for written in write(self._model, self.tokenizer, ids, new, **how)]


def _wanted(prompt: str, how: dict[str, Any]) -> _Wanted:
    """Prompt, most new tokens, stop texts of a request to generate."""
    sampled = how.get("do_sample")
    if sampled or (sampled is None and float(how.get("temperature") or 0) > 0):
        raise InputError("this task samples its answers", "kanna generates greedily; use lm_eval itself")
    other = sorted(key for key in how.keys() - _GENERATION if how[key] not in _IDLE)
    if other:
        raise InputError(
            f"this task asks for {', '.join(other)} when it generates",
            "kanna generates greedily; use lm_eval itself",
        )
    until = how.get("until") or []
    stop = (until,) if isinstance(until, str) else tuple(until)
    new = next((int(how[key]) for key in _LENGTHS if how.get(key) is not None), _NEW_TOKENS)
    return prompt, new, tuple(text for text in stop if text)


def _fitting(before: Sequence[int], target: Sequence[int], context: int) -> Piece:
    """Cut from the left as lm_eval does: context + 1 tokens, of which the last is never read."""
    if not 1 <= len(target) <= context:
        raise InputError(
            f"a continuation has {len(target)} tokens; from 1 to the context of {context} can be scored",
            "mend the task's choices, or use a model with a longer context",
        )
    whole = [*before, *target][-(context + 1) :]
    start = max(1, len(whole) - len(target))
    return Piece(tuple(whole[:start]), tuple(whole[start:]), 1, len(before) + len(target) - len(whole))
