"""What to measure of a model, as the user says it; imports nothing heavy."""

from kanna.configuration import SEEDS, Configuration, DType, Numbers, setting


class BenchOptions(Configuration):
    """What to measure."""

    batches: Numbers = setting(
        (1,), "Prompts at once: 1,8.", {"flag": "--batch", "metavar": "LIST", "text": True}
    )
    contexts: Numbers = setting(
        (128,), "Tokens of a prompt: 128,512.", {"flag": "--context", "metavar": "LIST", "text": True}
    )
    new_tokens: int = setting(32, "Tokens decoded per request.", ge=2)
    concurrency: int = setting(1, "Requests at once, each in a thread of its own.", ge=1)
    warmup: int = setting(1, "Rounds that do not count.", ge=0)
    repeats: int = setting(6, "Rounds that count; in each, the models take turns.", ge=1)
    device: str = setting("cpu", "Where to compute: cpu, cuda, cuda:1, mps.")
    dtype: DType = setting("float32", "float32, bfloat16, float16.", {"metavar": "NAME"})
    seed: int = setting(0, "Of the random prompts.", None, **SEEDS)
    memory: bool = setting(True, "Peak memory, in processes of their own.")
    watts: float | None = setting(
        None, "Estimate energy from this power.", {"flag": "--estimate-energy", "metavar": "WATTS"}
    )
