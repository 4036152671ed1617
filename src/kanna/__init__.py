"""kanna shaves a pretrained language model down to what one application needs.

Importing it lets plain transformers load the checkpoints that kanna writes. It imports neither torch nor
transformers itself: what is listed in `_LAZY` comes on first use, the loader when transformers does.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from kanna.errors import InputError, KannaError

__version__ = "0.1.0"

# What type checkers see is what comes: `_LAZY` in their words.
if TYPE_CHECKING:
    from kanna import scales as scales
    from kanna.checkpoint.loader import load as load
    from kanna.checkpoint.loader import lora_targets as lora_targets
    from kanna.measure.bench import bench as bench
    from kanna.measure.options import BenchOptions as BenchOptions
    from kanna.measure.price import Price as Price
    from kanna.methods.basel.config import BaselConfig as BaselConfig
    from kanna.methods.basel.run import basel as basel
    from kanna.methods.export.quantized import export_quantized as export_quantized
    from kanna.methods.export.run import export_dense as export_dense
    from kanna.methods.laser.analyze import laser_analyze as laser_analyze
    from kanna.methods.laser.composing import laser_compose as laser_compose
    from kanna.methods.laser.config import LaserConfig as LaserConfig
    from kanna.methods.laser.restore import restore as laser_restore
    from kanna.methods.laser.run import laser_apply as laser_apply
    from kanna.methods.laser.search_config import SearchOptions as SearchOptions
    from kanna.methods.laser.searching import laser_search as laser_search
    from kanna.methods.lowrank.config import LowRankConfig as LowRankConfig
    from kanna.methods.lowrank.run import lowrank as lowrank
    from kanna.methods.merge.extract import extract_lora as merge_extract_lora
    from kanna.methods.merge.hi.analyze import merge_analyze as merge_analyze
    from kanna.methods.merge.hi.config import HiOptions as HiOptions
    from kanna.methods.merge.hi.run import merge_hi as merge_hi
    from kanna.methods.merge.lora import merge_lora as merge_lora
    from kanna.methods.merge.run import merge as merge
    from kanna.methods.merge.run import merge_plan as merge_plan
    from kanna.methods.merge.tuning.sweep import merge_sweep as merge_sweep
    from kanna.methods.merge.verify import merge_verify as merge_verify
    from kanna.methods.peqa.config import TuneConfig as TuneConfig
    from kanna.methods.peqa.run import tune as tune
    from kanna.methods.quantize.config import QuantizeConfig as QuantizeConfig
    from kanna.methods.quantize.run import quantize as quantize
    from kanna.recipe.recipe import run as run
    from kanna.recipe.report import report as report
    from kanna.runs.compare import compare as compare
    from kanna.runs.criteria import Criteria as Criteria
    from kanna.runs.criteria import criteria_of as criteria_of
    from kanna.runs.criteria import read_criteria as read_criteria
    from kanna.runs.evaluations import evaluate as evaluate
    from kanna.runs.evaluations import evaluate_text as evaluate_text
    from kanna.runs.imported import import_quantized as import_quantized
    from kanna.runs.inspect import inspect as inspect
    from kanna.search.explore import explore_space as explore_space
    from kanna.tasks.options import EvalOptions as EvalOptions
    from kanna.tasks.scorers.generation import generate as generate

# Public name -> "module:attribute".
_LAZY = {
    "BenchOptions": "kanna.measure.options:BenchOptions",
    "Price": "kanna.measure.price:Price",
    "SearchOptions": "kanna.methods.laser.search_config:SearchOptions",
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
    "BenchOptions",
    "Criteria",
    "EvalOptions",
    "HiOptions",
    "InputError",
    "KannaError",
    "LaserConfig",
    "LowRankConfig",
    "Price",
    "QuantizeConfig",
    "SearchOptions",
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


if not TYPE_CHECKING:  # which would take any name then

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
