"""The section of an analysis: spectra, scores of kept and of removed components, and what they answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from kanna.methods.laser.report import tested as laser_tests
from kanna.methods.laser.report.tested import AS_IT_IS, filled, value
from kanna.reporting.blocks import COMPUTED, MEASURED, At, Block, Cell, Paragraph, Section, Table
from kanna.reporting.wording import percent, shown

_NAMES = {"base": AS_IT_IS, "top": "edited", "bottom": "removed components alone"}
# The end of a long prompt is what is asked.
_PROMPT = 240


def analysis(at: At, title: str) -> Section:
    """Everything that the analysis holds."""
    data = at.data
    blocks: list[Block] = [
        _scores(at),
        Paragraph(laser_tests.difference(at["difference"], data["metric"])),
        Paragraph(
            ["All rows of the task were scored: these figures describe an edit, they are no test of it."]
        ),
    ]
    if data.get("by") is not None:
        blocks.append(laser_tests.by_key(at["by"], data["metric"], _NAMES, "On all rows"))
    blocks += [_spectra(at), *laser_tests.plain_text(at.get("perplexity")), *_answers(at), *_samples(at)]
    return Section(title, blocks)


def wordless(data: Mapping[str, Any]) -> dict[str, Any]:
    """An analysis without what the models were asked and what they wrote."""
    kept = {key: value for key, value in data.items() if key not in ("answers", "samples")}
    samples = data.get("samples")
    if samples is None:
        return kept
    numbers = {
        name: {key: value for key, value in samples[name].items() if key != "texts"}
        for name in ("base", "edited")
    }
    return {**kept, "samples": numbers}


def _spectra(at: At) -> Table:
    columns = ("edit", "matrix", ">rank", ">of", ">effective rank", ">energy kept",
               ">above Marchenko-Pastur edge", ">above Gavish-Donoho threshold",
               ">signal to noise (laserRMT)")  # fmt: skip
    rows = [_spectrum(one) for one in at["spectra"].items()]
    return Table("Spectra of the matrices as they are", *filled(columns, rows), COMPUTED)


def _spectrum(at: At) -> list[Cell]:
    whole = [at[key].figure(f"{at.data[key]:,}") for key in ("rank", "full_rank")]
    above = [at[key].figure(f"{at.data[key]:,}") for key in ("rank_marchenko_pastur", "rank_gavish_donoho")]
    noise = at.get("laserrmt_signal_to_noise")
    return [
        at.data["edit"],
        at.data["matrix"],
        *whole,
        at["effective_rank"].figure(f"{at.data['effective_rank']:.1f}"),
        at["kept_energy"].figure(percent(at.data["kept_energy"])),
        *above,
        "" if noise is None else noise.figure(f"{noise.data:.3f}"),
    ]


def _scores(at: At) -> Table:
    """The headline metric first, then everything else that all three were scored by."""
    metric, scores = at.data["metric"], at["scores"]
    every = list(dict.fromkeys([metric, *(key for name in _NAMES for key in scores.data[name])]))
    rows: list[list[Cell]] = [
        [said, *(value(scores[name], key) for key in every)] for name, said in _NAMES.items()
    ]
    floors = at.data["floors"]
    if "constant" in floors:
        floor: Cell = at["floors"]["constant"].figure(shown("constant", floors["constant"]))
        rows.append(["always the commonest answer", floor, *("" for _ in every[1:])])
    headings = [f">{key.replace('_', ' ')}" for key in every]
    title = f"On all {at.data['task']['rows']:,} rows"
    return Table(title, *filled(("model", *headings), rows), MEASURED)


def _answers(at: At) -> list[Block]:
    found = at.data.get("answers")
    if not found:
        return []
    columns = ("", "prompt", "expected", *_NAMES.values())
    rows: list[list[Cell]] = [
        [one["change"], _end(one["prompt"]), *(one[key].strip() for key in ("expected", *_NAMES))]
        for one in found
    ]
    return [
        Table("What kept and removed components answer, where the edit changed it", columns, rows, MEASURED)
    ]


def _end(prompt: str) -> str:
    return prompt if len(prompt) <= _PROMPT else f"…{prompt[-_PROMPT:]}"


def _samples(at: At) -> list[Block]:
    samples = at.get("samples")
    if samples is None:
        return []
    names = {"base": AS_IT_IS, "edited": "edited"}
    rows = [_written(samples[key], said) for key, said in names.items()]
    columns = ("model", ">words per text", ">four-word sequences repeated", ">distinct words")
    blocks: list[Block] = [Table("Free text after prompts of the task", columns, rows, MEASURED)]
    texts = [samples.data.get("prompts", [])]
    texts += [samples.data[key].get("texts", []) for key in names]
    return [*blocks, *_texts(texts)]


def _written(at: At, said: str) -> list[Cell]:
    return [
        said,
        at["words"].figure(f"{at.data['words']:.1f}"),
        at["repetition"].figure(percent(at.data["repetition"])),
        at["distinct"].figure(percent(at.data["distinct"])),
    ]


def _texts(texts: Sequence[Sequence[str]]) -> list[Block]:
    rows: list[list[Cell]] = [
        [_end(prompt), before.strip(), after.strip()] for prompt, before, after in zip(*texts, strict=False)
    ]
    columns = ("prompt", f"<{AS_IT_IS}", "<edited")
    return [Table("Free text, side by side", columns, rows, MEASURED)] if rows else []
