"""The section of an analysis: spectra, scores of kept and of removed components, and what they answer."""

from collections.abc import Mapping
from typing import Any

from kanna.methods.laser.report import tested as laser_tests
from kanna.methods.laser.report.tested import AS_IT_IS, value
from kanna.reporting.blocks import COMPUTED, MEASURED, At, Block, Cell, Paragraph, Section, Table
from kanna.reporting.wording import filled, percent

_NAMES = {"base": AS_IT_IS, "top": "edited", "bottom": "removed components alone"}
# The end of a long prompt is what is asked.
_PROMPT = 240


def analysis(at: At, title: str) -> Section:
    """Everything that the analysis holds."""
    data = at.data
    blocks: list[Block] = [
        _scores(at),
        Paragraph(laser_tests.decided(at["difference"], data["metric"])),
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
    rows = [_spectrum(spectrum) for spectrum in at["spectra"].items()]
    return Table("Spectra of the matrices as they are", *filled(columns, rows), COMPUTED)


def _spectrum(at: At) -> list[Cell]:
    return [
        at.data["edit"],
        at.data["matrix"],
        *(at.cell(key) for key in ("rank", "full_rank")),
        at.cell("effective_rank", ".1f"),
        at.cell("kept_energy", percent),
        *(at.cell(key) for key in ("rank_marchenko_pastur", "rank_gavish_donoho")),
        at.cell("laserrmt_signal_to_noise", ".3f"),
    ]


def _scores(at: At) -> Table:
    """The headline metric first, then everything else that all three were scored by."""
    metric, scores = at.data["metric"], at["scores"]
    every = list(dict.fromkeys([metric, *(key for name in _NAMES for key in scores.data[name])]))
    rows: list[list[Cell]] = [
        [model, *(value(scores[name], key) for key in every)] for name, model in _NAMES.items()
    ]
    if floor := value(at["floors"], "constant"):
        rows.append(["always the commonest answer", floor, *("" for _ in every[1:])])
    headings = [f">{key.replace('_', ' ')}" for key in every]
    title = f"On all {at.data['task']['rows']:,} rows"
    return Table(title, *filled(("model", *headings), rows), MEASURED)


def _answers(at: At) -> list[Block]:
    answers = at.data.get("answers")
    if not answers:
        return []
    columns = ("", "prompt", "expected", *_NAMES.values())
    rows: list[list[Cell]] = [
        [row["change"], _end(row["prompt"]), *(row[key].strip() for key in ("expected", *_NAMES))]
        for row in answers
    ]
    title = "What kept and removed components answer, where the edit changed it"
    changed = at.data["difference"]
    more = (changed["lost"] or 0) + (changed["gained"] or 0) - len(rows)
    left = [Paragraph([f"and {more:,} more that changed"])] if more > 0 else []
    return [Table(title, columns, rows, MEASURED), *left]


def _end(prompt: str) -> str:
    return prompt if len(prompt) <= _PROMPT else f"…{prompt[-_PROMPT:]}"


def _samples(at: At) -> list[Block]:
    samples = at.get("samples")
    if samples is None:
        return []
    names = {"base": AS_IT_IS, "edited": "edited"}
    rows: list[list[Cell]] = [
        [
            model,
            samples[key].cell("words", ".1f"),
            *(samples[key].cell(share, percent) for share in ("repetition", "distinct")),
        ]
        for key, model in names.items()
    ]
    columns = ("model", ">words per text", ">four-word sequences repeated", ">distinct words")
    blocks: list[Block] = [Table("Free text after prompts of the task", columns, rows, MEASURED)]
    texts = [samples.data.get("prompts", []), *(samples.data[key].get("texts", []) for key in names)]
    written = [
        (_end(prompt), before.strip(), after.strip()) for prompt, before, after in zip(*texts, strict=False)
    ]
    if written:
        side_by_side = ("prompt", f"<{AS_IT_IS}", "<edited")
        blocks.append(Table("Free text, side by side", side_by_side, written, MEASURED))
    return blocks
