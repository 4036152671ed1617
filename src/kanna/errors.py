"""The errors kanna raises on purpose. Anything else that escapes is a bug of ours."""

import difflib
from collections.abc import Iterable


class KannaError(Exception):
    """Something kanna could not do. The command line exits with `exit_code`."""

    exit_code = 1


class InputError(KannaError):
    """The input or the request is wrong, and the user can mend it.

    Args:
        problem: What was expected and what came, in one or two sentences.
        remedy: What to do next; printed on a line of its own.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}\n  help: {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


def suggestion(word: str, known: Iterable[str]) -> str:
    """The known word that looks most like a mistyped one, or all of them, to go after a message."""
    words = list(known)
    if not words:
        return ""
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(words)}"
