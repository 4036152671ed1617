"""A file of text, as the windows of tokens that a model reads while it is calibrated."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kanna.calibration.windows import Windows, packed, padded
from kanna.checkpoint.reader import Checkpoint
from kanna.tasks.data.rows import Row, read_rows, rejoined
from kanna.tasks.data.spoken import ASSISTANT, Message
from kanna.tasks.scorers.architecture import check_joiner
from kanna.tasks.tokens.chat import check_template, written
from kanna.tasks.tokens.special import check_known
from kanna.tasks.tokens.tokenizer import context_length, load_tokenizer, predicts_next_token


def windows_of(
    checkpoint: Checkpoint,
    text: Path,
    tokens: int,
    context: int | None,
    seed: int,
    chat: bool = False,
    joiner: str | None = None,
) -> Windows:
    """Windows of rows of text: joined and cut for models that predict the next token, else row by row.

    Args:
        tokens: At most so many.
        context: Length of a window; None for what the model reads.
        seed: Of the choice of rows.
        chat: Prompts and conversations go through the chat template, with their right answers; rows of text
            are read as they stand.
        joiner: What stands between prompt and answer where no template says so; see `joined`.

    Raises:
        InputError: The file holds no sound rows, too few tokens, there is no chat template, or it says itself
            what a joiner says.
    """
    rows = read_rows(text)
    tokenizer = load_tokenizer(checkpoint.directory)
    length = context_length(checkpoint.config, tokenizer, context)
    questions = any(row.prompt for row in rows)
    if joiner is not None and questions:
        check_joiner(checkpoint.name, checkpoint.config, templated=chat)
        rows = list(rejoined(rows, joiner))
    if predicts_next_token(checkpoint.config) and not questions:
        return _known(packed(rows, tokenizer, tokens, length, seed), checkpoint, tokenizer)
    if not (chat and questions):
        return _known(padded(rows, tokenizer, tokens, length, seed), checkpoint, tokenizer)
    check_template(tokenizer, f"the rows of {text}")
    windows = padded(rows, tokenizer, tokens, length, seed, partial(_in_chat, tokenizer))
    return _known(windows, checkpoint, tokenizer)


def _known(windows: Windows, checkpoint: Checkpoint, tokenizer: Any) -> Windows:
    """The windows, of tokens that the model has embeddings of; what is read by nobody becomes one of them.

    Raises:
        InputError: It has none of some token.
    """
    settings = checkpoint.config.get("text_config") or checkpoint.config
    vocabulary = settings.get("vocab_size")
    if vocabulary is None or int(windows.ids.max()) < vocabulary:
        return windows
    check_known(windows.ids[windows.mask].tolist(), vocabulary, tokenizer)
    return Windows(windows.ids.where(windows.mask, 0), windows.mask)


def _in_chat(tokenizer: Any, row: Row) -> Sequence[int]:
    """Token ids of a row as the chat template writes it, which holds its special tokens."""
    if not row.prompt:
        plain: Sequence[int] = tokenizer(row.text, verbose=False)["input_ids"]
        return plain
    asked = Message("user", row.said or row.prompt), Message(ASSISTANT, row.answer.strip())
    said = written(tokenizer, row.messages or asked, more=False)
    ids: Sequence[int] = tokenizer(said, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
