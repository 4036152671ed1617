"""The methods, each in a room of its own; what the rest of the house asks of them is found by names."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kanna.reporting.views import View

# Method -> "module:attribute" of its views.
_VIEWS = {"laser": "kanna.methods.laser.report:VIEWS"}


def views() -> tuple["View", ...]:
    """How a report shows the results of the methods."""
    places = (place.partition(":") for place in _VIEWS.values())
    return tuple(view for module, _, name in places for view in getattr(import_module(module), name))
