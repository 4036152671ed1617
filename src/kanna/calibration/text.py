"""A file of text, as the windows of tokens that a model reads while it is calibrated."""

from pathlib import Path

from kanna.calibration.windows import Windows, packed, padded
from kanna.checkpoint.reader import Checkpoint
from kanna.tasks.data.rows import read_rows
from kanna.tasks.tokens.tokenizer import context_length, load_tokenizer, predicts_next_token


def windows_of(checkpoint: Checkpoint, text: Path, tokens: int, context: int | None, seed: int) -> Windows:
    """Windows of rows of text: joined and cut for models that predict the next token, else row by row.

    Args:
        tokens: At most so many.
        context: Length of a window; None for what the model reads.
        seed: Of the choice of rows.

    Raises:
        InputError: The file holds no sound rows, or too few tokens.
    """
    rows = read_rows(text)
    tokenizer = load_tokenizer(checkpoint.directory)
    length = context_length(checkpoint.config, tokenizer, context)
    questions = any(row.prompt for row in rows)
    make = packed if predicts_next_token(checkpoint.config) and not questions else padded
    return make(rows, tokenizer, tokens, length, seed)
