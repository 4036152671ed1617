"""How long work says how far it is."""

from collections.abc import Callable

# Called with (stage, done, total).
Progress = Callable[[str, int, int], None]
