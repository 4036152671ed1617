"""Quantize: weights become whole numbers of a few bits, with a scale for each group of inputs.

Reading order: `config` (what can be said), `plan` (which matrices, on which grids), `execute` (with the
weights alone, matrix by matrix), `calibrated` (with text, block by block: the heart), `step` (how the runner
calls them), `run` (from Python), `results` and `report` (what it cost, and how that is drawn). The formulas
lie in `kanna.quant`, the form in `kanna.forms.integer`.
"""

from kanna.runs.method import Method

METHOD = Method(
    name="quantize",
    summary="Turn weights into whole numbers of a few bits; write a smaller model, reload it and check it.",
    config="kanna.methods.quantize.config:QuantizeConfig",
    step="kanna.methods.quantize.step:STEP",
    example="kanna quantize MODEL --bits 4 --group 64 --calibration text.jsonl --out DIR",
    views="kanna.methods.quantize.report:VIEWS",
    calibration=True,
)
