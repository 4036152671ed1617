"""Values of metrics as people read them: shares in per cent and points, all else as it is."""

_SHARES = frozenset(
    {
        "acc",
        "acc_norm",
        "greedy",
        "exact",
        "exact_match",
        "exact_normalized",
        "contains",
        "numeric",
        "f1",
        "consistency",
        "constant",
        "recall@1",
        "answer_in_prompt",
    }
)


def is_share(metric: str) -> bool:
    """Whether a metric is a share in 0..1, which people read in per cent."""
    return metric in _SHARES or metric.startswith(("top", "regex", "rouge"))


def shown(metric: str, value: float) -> str:
    """A value of a metric."""
    return f"{100 * value:.2f} %" if is_share(metric) else f"{value:.4g}"


def change(metric: str, value: float) -> str:
    """A signed difference of a metric; shares in points. Nothing lost is +0, not -0."""
    return f"{100 * value + 0.0:+.2f} pt" if is_share(metric) else f"{value + 0.0:+.4g}"
