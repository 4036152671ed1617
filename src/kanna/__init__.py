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
    "BaselConfig": "kanna.methods.basel.config:BaselConfig",
    "Criteria": "kanna.runs.criteria:Criteria",
    "EvalOptions": "kanna.tasks.options:EvalOptions",
    "LaserConfig": "kanna.methods.laser.config:LaserConfig",
    "LowRankConfig": "kanna.methods.lowrank.config:LowRankConfig",
    "QuantizeConfig": "kanna.methods.quantize.config:QuantizeConfig",
    "basel": "kanna.methods.basel.run:basel",
    "bench": "kanna.measure.bench:bench",
    "compare": "kanna.runs.compare:compare",
    "criteria_of": "kanna.runs.criteria:criteria_of",
    "evaluate": "kanna.runs.evaluations:evaluate",
    "evaluate_text": "kanna.runs.evaluations:evaluate_text",
    "explore_space": "kanna.search.explore:explore_space",
    "export_dense": "kanna.methods.export.run:export_dense",
    "export_quantized": "kanna.methods.export.quantized:export_quantized",
    "generate": "kanna.tasks.scorers.generation:generate",
    "import_quantized": "kanna.runs.imported:import_quantized",
    "inspect": "kanna.runs.inspect:inspect",
    "laser_analyze": "kanna.methods.laser.analyze:laser_analyze",
    "laser_apply": "kanna.methods.laser.run:laser_apply",
    "laser_compose": "kanna.methods.laser.composing:laser_compose",
    "laser_restore": "kanna.methods.laser.restore:restore",
    "laser_search": "kanna.methods.laser.searching:laser_search",
    "load": "kanna.checkpoint.loader:load",
    "lora_targets": "kanna.checkpoint.loader:lora_targets",
    "lowrank": "kanna.methods.lowrank.run:lowrank",
    "quantize": "kanna.methods.quantize.run:quantize",
    "merge": "kanna.methods.merge.run:merge",
    "merge_analyze": "kanna.methods.merge.hi.analyze:merge_analyze",
    "merge_extract_lora": "kanna.methods.merge.extract:extract_lora",
    "HiOptions": "kanna.methods.merge.hi.config:HiOptions",
    "merge_hi": "kanna.methods.merge.hi.run:merge_hi",
    "merge_lora": "kanna.methods.merge.lora:merge_lora",
    "merge_plan": "kanna.methods.merge.run:merge_plan",
    "merge_sweep": "kanna.methods.merge.tuning.sweep:merge_sweep",
    "merge_verify": "kanna.methods.merge.verify:merge_verify",
    "report": "kanna.recipe.report:report",
    "read_criteria": "kanna.runs.criteria:read_criteria",
    "run": "kanna.recipe.recipe:run",
    "TuneConfig": "kanna.methods.peqa.config:TuneConfig",
    "tune": "kanna.methods.peqa.run:tune",
}

__all__ = [
    "BaselConfig",
    "Criteria",
    "EvalOptions",
    "HiOptions",
    "InputError",
    "KannaError",
    "LaserConfig",
    "LowRankConfig",
    "QuantizeConfig",
    "TuneConfig",
    "__version__",
    "basel",
    "bench",
    "compare",
    "criteria_of",
    "evaluate",
    "evaluate_text",
    "explore_space",
    "export_dense",
    "export_quantized",
    "generate",
    "import_quantized",
    "inspect",
    "laser_analyze",
    "laser_apply",
    "laser_compose",
    "laser_restore",
    "laser_search",
    "load",
    "lora_targets",
    "lowrank",
    "merge",
    "merge_analyze",
    "merge_extract_lora",
    "merge_hi",
    "merge_lora",
    "merge_plan",
    "merge_sweep",
    "merge_verify",
    "quantize",
    "read_criteria",
    "report",
    "run",
    "scales",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name == "scales":
        return import_module("kanna.scales")
    if name not in _LAZY:
        raise AttributeError(f"module 'kanna' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "scales"})


def _register_loader(quantizers_auto: ModuleType) -> None:
    from kanna.checkpoint.quantizer import register

    register(quantizers_auto)


wrapt.when_imported("transformers.quantizers.auto")(_register_loader)
