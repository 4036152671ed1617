"""How fast rows are learnt."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Pace:
    """Tokens a second, of the time that steps take; what is done between them does not count.

    Args:
        clock: Seconds, from anywhere.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._tokens, self._seconds = clock, 0, 0.0

    @contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """Around a step of so many tokens."""
        began = self._clock()
        yield
        self._tokens += tokens
        self._seconds += self._clock() - began

    def __str__(self) -> str:
        """Of all steps of this process together: "1,250 tokens/s"; empty before the first."""
        return f"{self._tokens / self._seconds:,.0f} tokens/s" if self._seconds > 0 else ""
