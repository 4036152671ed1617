"""Settings that nothing looks at, which the plan says: else somebody waits for what they do."""

from kanna.methods.quantize.config import QuantizeConfig

_OF_TEXT = ("tokens", "context", "batch", "seed")
_OF_GPTQ = ("inputs", "refit", "ridge")


def idle_settings(config: QuantizeConfig, has_text: bool, has_tasks: bool, text_given: bool) -> list[str]:
    """One sentence each.

    Args:
        config: Resolved.
        has_text: Whether text is read to calibrate on.
        has_tasks: Whether rows will be asked, whose length `context` limits, too.
        text_given: Whether there is some, read or not.
    """
    said = []
    if text_given and not has_text:
        said.append(f"--calibration: no effect, since {config.method} reads no text")
    of_text = [name for name in _OF_TEXT if not (name == "context" and has_tasks)]
    if not has_text and (idle := _changed(config, [*of_text, *_OF_GPTQ])):
        said.append(f"{idle}: no effect without calibration text")
    if has_text and config.inputs == "original" and (idle := _changed(config, ["ridge"])):
        said.append(f"{idle}: no effect without --inputs anchored")
    if config.method == "hqq" and config.symmetric:
        said.append("hqq moves zero-points, of which --symmetric has none: the same as minmax")
    return said


def _changed(config: QuantizeConfig, names: list[str]) -> str:
    """Flags of the settings that are not as they come."""
    fields = type(config).model_fields
    changed = [name for name in names if getattr(config, name) != fields[name].default]
    return ", ".join(f"--{name.replace('_', '-')}" for name in changed)
