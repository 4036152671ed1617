"""Standard streams that go away, are full, or know few letters: a program does its work all the same."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

UNREAD = 141  # as a program that SIGPIPE ends
# Marks that tables are drawn with, as wide as they are.
_PLAIN = str.maketrans("…•", "~*")


class Output:
    """Stands for a stream of text until it is lost; after that what is written goes nowhere.

    Letters that its encoding lacks are written as what Python would call them, an ellipsis as ~.

    Args:
        stream: None for one that was closed before the program began.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.unread = stream is None
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        if self._open and self._stream is not None:
            with self._losses():
                self._stream.write(self._spelled(text))
        return len(text)

    def flush(self) -> None:
        if self._open and self._stream is not None:
            with self._losses():
                self._stream.flush()

    def isatty(self) -> bool:
        return self._open and self._stream is not None and self._stream.isatty()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def _open(self) -> bool:
        return not self.unread and self.failure is None

    def _spelled(self, text: str) -> str:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            plain = text.translate(_PLAIN)
            return plain.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return text

    @contextlib.contextmanager
    def _losses(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.unread = True
            self._leave()
        except OSError as error:
            self.failure = error
            self._leave()

    def _leave(self) -> None:
        """Keep the interpreter from complaining when it flushes what is left in the end."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, self._stream.fileno())  # type: ignore[union-attr]
            os.close(descriptor)


@contextlib.contextmanager
def standard_streams() -> Iterator[Output]:
    """Both, for what is written in the block; what is said on standard error may be lost as well."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        # Takes the free descriptor, so that no file that is opened later is taken for a standard stream.
        nowhere = [opened.enter_context(open(os.devnull, "w")) for stream in before if stream is None]  # noqa: PTH123
        output: Any = Output(before[0])
        said: Any = Output(before[1] if before[1] is not None else nowhere[-1])
        sys.stdout, sys.stderr = output, said
        try:
            yield output
        finally:
            output.flush()
            said.flush()
            sys.stdout, sys.stderr = before


def ended(output: Output, code: int) -> int:
    """The exit code of a program that wanted to end with `code`.

    Nobody to read the result is one code, whenever that shows; a result that nothing can take is another.
    """
    if output.failure is not None:
        why = f"kanna: error: standard output cannot be written: {output.failure.strerror}"
        print(why, file=Output(sys.stderr), flush=True)
        return code or 1
    return UNREAD if output.unread and code == 0 else code
