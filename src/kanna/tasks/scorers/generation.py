"""What a model writes after a prompt, greedily: how long it gets, and how much it repeats itself."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kanna.checkpoint.loader import load
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.models.device import device_of, dtype_of
from kanna.models.kinds import answers_what_is_encoded
from kanna.progress import told
from kanna.tasks.scorers.architecture import class_of
from kanna.tasks.scorers.scorer import Scorer
from kanna.tasks.scorers.seq2seq import Seq2SeqScorer
from kanna.tasks.scorers.written import write
from kanna.tasks.tokens.encode import Encoder
from kanna.tasks.tokens.padded import vocabulary_of
from kanna.tasks.tokens.special import check_known
from kanna.tasks.tokens.tokenizer import context_length, load_tokenizer


@dataclass(frozen=True)
class Continuation:
    """New tokens of one model.

    Args:
        model: Its name.
        text: What it wrote, without the prompt.
        tokens: How many tokens that is.
        chat: Whether its chat template was used.
    """

    model: str
    text: str
    tokens: int
    chat: bool


@dataclass(frozen=True)
class GenerationResult:
    """A prompt, and what one or two models make of it."""

    prompt: str
    continuations: tuple[Continuation, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": 1, **asdict(self)}


def generate(
    model: str | Path,
    prompt: str,
    *,
    against: str | Path | None = None,
    max_new_tokens: int = 60,
    raw: bool = False,
    device: str = "cpu",
    dtype: str = "auto",
    progress: Listener = False,
) -> GenerationResult:
    """Continue a prompt greedily with `model`, and with `against` beside it. One is in memory at a time.

    An encoder-decoder reads the prompt with its encoder and writes with its decoder.

    Args:
        prompt: A question where the tokenizer has a chat template, else the beginning of a text.
        raw: Leave the chat template out.

    Returns:
        The continuations, that of `model` first.

    Raises:
        InputError: An empty prompt, no tokenizer, no causal model, or more tokens than the model has
            positions for.
    """
    progress = heard(progress)
    if not prompt.strip():
        raise InputError("the prompt is empty", "give some text with --prompt")
    models = [model] if against is None else [model, against]
    for name in models:  # whatever is wrong with the second is said before the first is run
        load_tokenizer(Checkpoint.open(name).directory)
    written = tuple(
        _continue(name, prompt, max_new_tokens, raw, device, dtype)
        for name in told(progress, "generate", models)
    )
    return GenerationResult(prompt, written)


_GRAM = 4


@dataclass(frozen=True)
class Samples:
    """Texts written after prompts, greedily.

    Args:
        texts: One per prompt.
        words: Mean length.
        repetition: Share of four-word sequences that occurred before in the same text (0 for short texts).
        distinct: Distinct words over all words of all texts.
    """

    texts: tuple[str, ...]
    words: float
    repetition: float
    distinct: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_samples(scorer: Scorer, prompts: Sequence[str], new_tokens: int) -> Samples:
    """Continue every prompt by at most `new_tokens` tokens."""
    texts = scorer.write(prompts, new_tokens, (), lambda *_: None)
    split = [text.split() for text in texts]
    every = [word for words in split for word in words]
    return Samples(
        texts=tuple(texts),
        words=sum(map(len, split)) / len(split),
        repetition=sum(map(repetition, split)) / len(split),
        distinct=len(set(every)) / len(every) if every else 0.0,
    )


def repetition(words: Sequence[str]) -> float:
    """Share of the four-word sequences of a text that occurred earlier in it; 0 where there are none."""
    grams = [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _continue(
    model: str | Path, prompt: str, max_new_tokens: int, raw: bool, device: str, dtype: str
) -> Continuation:
    checkpoint = Checkpoint.open(model)
    tokenizer = load_tokenizer(checkpoint.directory)
    limit = context_length(checkpoint.config, tokenizer, None)
    numbers = dtype if dtype == "auto" else dtype_of(dtype)
    placed = None if device_of(device).type == "cpu" else device
    if answers_what_is_encoded(class_of(checkpoint.config)):
        scorer = Seq2SeqScorer(load(model, dtype=numbers, device_map=placed)[0], tokenizer, limit)
        (text,) = scorer.write([prompt], max_new_tokens, (), lambda *_: None)
        return Continuation(checkpoint.name, text, scorer.length(text), False)
    chat = not raw and bool(getattr(tokenizer, "chat_template", None))
    encoder = Encoder(tokenizer, limit, chat)
    ids = encoder.ids(encoder.prompt(prompt))
    if len(ids) + max_new_tokens > limit:
        raise InputError(
            f"{len(ids)} tokens of prompt and {max_new_tokens} new ones are more than the {limit} that "
            f"{checkpoint.name} is meant for",
            "shorten the prompt or lower --max-new-tokens",
        )
    loaded: Any = load(model, dtype=numbers, device_map=placed)[0]
    if not hasattr(loaded, "generate") or loaded.get_output_embeddings() is None:
        raise InputError(f"{checkpoint.name} cannot generate", "give a causal language model")
    check_known(ids, vocabulary_of(loaded), tokenizer)
    (written,) = write(loaded, tokenizer, [ids], max_new_tokens)
    return Continuation(checkpoint.name, written.text, written.tokens, chat)
