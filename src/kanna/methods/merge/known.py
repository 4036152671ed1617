"""What recipes may say: the keys of mergekit's YAML, its methods, and which of them are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method.

    Args:
        default: None where it must be given.
        flag: Whether it is true or false, and not a number.
        lowest: None for no bound.
        highest: None for no bound.
        idle: Why it changes nothing; empty where it does.
        words: Words that may stand for a value, and it.
        chosen: Whether it is one of these words, for all tensors.
    """

    default: float | None = None
    flag: bool = False
    lowest: float | None = None
    highest: float | None = None
    idle: str = ""
    words: Mapping[str, float] = field(default_factory=dict)
    chosen: bool = False


@dataclass(frozen=True)
class Method:
    """A method that is built.

    Args:
        of_models: Parameters with a value for each model; they may stand beside a model or at the top.
        of_all: Parameters with one value for all models; they stand at the top.
        needs_base: Whether differences from a base model are merged.
        looks: How often a tensor's values are read before its result is known.
        nanoseconds: For a value of an input, on one core; a rough figure.
        fewest: Models that are needed, a base from which differences are taken not counted.
        most: None for any number.
        may_have_base: Whether differences are merged where there is a base, and models where there is none.
        base_among: Whether a base must be given, and is merged like the others.
        by_chance: Whether the result depends on a seed.
        elects: Whether weights are divided by entry by entry, where signs are elected.
        divides: Whether weights are always divided by their sum, with no `normalize` to say so.
    """

    of_models: Mapping[str, Parameter]
    of_all: Mapping[str, Parameter]
    needs_base: bool
    looks: int
    nanoseconds: float
    fewest: int = 1
    most: int | None = None
    may_have_base: bool = False
    base_among: bool = False
    by_chance: bool = False
    elects: bool = False
    divides: bool = False

    @property
    def from_base(self) -> bool:
        """Whether a base that is given is what differences are taken from."""
        return self.needs_base or self.may_have_base


_MEMORY = "masks take no memory here that eight bits would save"
# Values of `rescale`: survivors are divided by their probability, or magnitudes sum to what they did before.
BY_CHANCE, BY_NORM = 1.0, 2.0
# How far probabilities to survive are from the density, for entries of the lowest and the highest rank.
SPREAD = "epsilon"
_L1 = {"l1": BY_NORM}
_RESCALE = Parameter(0.0, flag=True, words=_L1)
_NOTHING_DROPPED = Parameter(0.0, flag=True, words=_L1, idle="no entry is dropped")
# Of what a threshold is found over: each tensor by itself, those of a layer, or all of the model.
SCOPE, LAYER, MODEL = "scope", "layer", "model"
SCOPES: Mapping[str, float] = {"tensor": 0.0, LAYER: 2.0, MODEL: 1.0}
_SCOPE = {SCOPE: Parameter(0.0, words=SCOPES, chosen=True)}
_WEIGHT = Parameter()
_MASK = Parameter(0.0, flag=True, idle=_MEMORY)
_DIFFERENCES = {"lambda": Parameter(default=1.0), "int8_mask": _MASK}

_DENSITY = Parameter(default=1.0, lowest=0.0, highest=1.0)
_OFF, _ON = Parameter(0.0, flag=True), Parameter(1.0, flag=True)
# Survivors of a random choice are scaled up, so that sums stay what they were on average.
_RANDOM = {"normalize": _OFF, "rescale": Parameter(BY_CHANCE, flag=True, words=_L1), **_DIFFERENCES}
_OUTLIERS = {"weight": _WEIGHT, "density": _DENSITY, "gamma": Parameter(0.01, lowest=0.0, highest=1.0)}
_RANKED = {"weight": _WEIGHT, "density": _DENSITY, SPREAD: Parameter(0.15, lowest=0.0, highest=1.0)}
_EQUAL = {"weight": Parameter(1.0)}
_RAM = {"epsilon": Parameter(1e-5, lowest=0.0)}

METHODS: Mapping[str, Method] = {
    "linear": Method({"weight": _WEIGHT}, {"normalize": Parameter(1.0, flag=True)}, False, 0, 12),
    "task_arithmetic": Method(
        {"weight": _WEIGHT},
        {"normalize": Parameter(0.0, flag=True), "rescale": _NOTHING_DROPPED, **_DIFFERENCES},
        True,
        0,
        14,
    ),
    "ties": Method(
        {"weight": _WEIGHT, "density": Parameter(1.0, lowest=0.0, highest=1.0)},
        {"normalize": Parameter(1.0, flag=True), "rescale": _RESCALE, **_DIFFERENCES, **_SCOPE},
        True,
        2,
        40,
        elects=True,
    ),
    "dare_linear": Method({"weight": _WEIGHT, "density": _DENSITY}, _RANDOM, True, 0, 40, by_chance=True),
    "dare_ties": Method(
        {"weight": _WEIGHT, "density": _DENSITY}, _RANDOM, True, 0, 60, by_chance=True, elects=True
    ),
    "breadcrumbs": Method(
        _OUTLIERS, {"normalize": _OFF, "rescale": _RESCALE, **_DIFFERENCES, **_SCOPE}, True, 2, 70
    ),
    "breadcrumbs_ties": Method(
        _OUTLIERS,
        {"normalize": _OFF, "rescale": _RESCALE, **_DIFFERENCES, **_SCOPE},
        True,
        2,
        80,
        elects=True,
    ),
    "della": Method(_RANKED, {**_RANDOM, "normalize": _ON}, True, 0, 160, by_chance=True, elects=True),
    "della_linear": Method(_RANKED, _RANDOM, True, 0, 150, by_chance=True),
    "passthrough": Method({"scale": Parameter(1.0)}, {}, False, 0, 4, most=1),
    "slerp": Method(
        {}, {"t": Parameter(lowest=0.0, highest=1.0)}, False, 1, 14, fewest=2, most=2, base_among=True
    ),
    "nuslerp": Method(
        {"weight": _WEIGHT},
        {"nuslerp_flatten": _ON, "nuslerp_row_wise": _OFF},
        False,
        1,
        16,
        fewest=2,
        most=2,
        may_have_base=True,
        divides=True,
    ),
    "model_stock": Method({}, {"filter_wise": _OFF}, True, 1, 16, fewest=2),
    "arcee_fusion": Method({}, {}, True, 2, 60, most=1),
    "nearswap": Method({}, {"t": Parameter(lowest=0.0)}, True, 0, 12, most=1),
    "multislerp": Method(
        {"weight": _WEIGHT},
        {"normalize_weights": _ON, "eps": Parameter(1e-8, lowest=0.0, idle="lengths of 0 are told apart")},
        False,
        1,
        20,
        may_have_base=True,
    ),
    "karcher": Method(
        {},
        {"max_iter": Parameter(10, lowest=1.0), "tol": Parameter(1e-5, lowest=0.0)},
        False,
        1,
        20,
    ),
    "sce": Method(
        {},
        {"select_topk": Parameter(default=1.0, lowest=0.0, highest=1.0), "int8_mask": _MASK},
        True,
        3,
        60,
    ),
    "ram": Method({}, _RAM, True, 0, 16),
    "ramplus_tl": Method(
        {},
        {**_RAM, "r": Parameter(0.1, lowest=0.0), "alpha": Parameter(0.2, lowest=0.0)},
        True,
        1,
        30,
    ),
    # Beyond mergekit, in the same words.
    "tsv_m": Method(_EQUAL, {"lambda": Parameter(1.0)}, True, 0, 400),
    "iso_c": Method(_EQUAL, {"lambda": Parameter(1.0)}, True, 0, 400),
    "svc": Method(_EQUAL, {"lambda": Parameter(1.0), "alpha": Parameter(1.0, lowest=1e-6)}, True, 0, 400),
    "localize_and_stitch": Method(
        {"density": Parameter(0.01, lowest=0.0, highest=1.0)}, {"lambda": Parameter(1.0)}, True, 2, 40
    ),
}
# Parameters of all methods.
PARAMETERS = (
    "alpha",
    "density",
    "eps",
    "epsilon",
    "filter_wise",
    "gamma",
    "int8_mask",
    "lambda",
    "max_iter",
    "normalize",
    "normalize_weights",
    "nuslerp_flatten",
    "nuslerp_row_wise",
    "r",
    "rescale",
    "scale",
    SCOPE,
    "select_topk",
    "t",
    "tol",
    "weight",
)
# Exactly one of them says which models there are.
LAYOUTS = ("models", "slices", "modules")
KEYS_OF_TOKENS = ("tokenizer", "tokenizer_source", "chat_template")
KEYS = ("merge_method", *LAYOUTS, "base_model", "parameters", "dtype", "out_dtype", "name", *KEYS_OF_TOKENS)
KEYS_OF_MODEL = ("model", "parameters")
KEYS_OF_SOURCE = ("model", "layer_range", "parameters")
KEYS_OF_SLICE = ("sources", "base_model", "parameters")
KEYS_OF_MODULE = ("models", "slices", "parameters")
# Where a key belongs that is known and stands elsewhere.
PLACES: Mapping[str, str] = {
    **dict.fromkeys(KEYS, "at the top"),
    "base_model": "at the top, or in a slice",
    "parameters": "at the top, in a slice or module, or beside a model",
    "sources": "in an entry of slices:",
    "layer_range": "beside a model in sources:, which belongs to slices:",
    "models": "at the top, or in a module",
    "model": "in an entry of models: or sources:",
    "slices": "at the top, or in a module",
    "pad_to_multiple_of": "under tokenizer:",
}
DTYPES = ("float32", "float16", "bfloat16", "float64")
