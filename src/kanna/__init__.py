"""kanna shaves a pretrained language model down to what one application needs.

Importing it lets plain transformers load the checkpoints that kanna writes. It imports neither torch nor
transformers itself: what is listed in `_LAZY` comes on first use, the loader when transformers does.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt

from kanna.errors import InputError, KannaError

__version__ = "0.1.0"

# Public name -> "module:attribute".
_LAZY = {
    "LowRankConfig": "kanna.methods.lowrank.config:LowRankConfig",
    "evaluate_text": "kanna.tasks.perplexity:evaluate_text",
    "explore_space": "kanna.recipe.explore:explore_space",
    "export_dense": "kanna.exporters.dense:dense",
    "generate": "kanna.tasks.generation:generate",
    "inspect": "kanna.recipe.inspect:inspect",
    "load": "kanna.checkpoint.loader:load",
    "lora_targets": "kanna.checkpoint.loader:lora_targets",
    "lowrank": "kanna.recipe.lowrank:lowrank",
    "report": "kanna.reporting.report:report",
    "run": "kanna.recipe.recipe:run",
}

__all__ = [
    "InputError",
    "KannaError",
    "LowRankConfig",
    "__version__",
    "evaluate_text",
    "explore_space",
    "export_dense",
    "generate",
    "inspect",
    "load",
    "lora_targets",
    "lowrank",
    "report",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'kanna' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def _register_loader(quantizers_auto: ModuleType) -> None:
    from kanna.checkpoint.quantizer import register

    register(quantizers_auto)


wrapt.when_imported("transformers.quantizers.auto")(_register_loader)
