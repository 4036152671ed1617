"""What metrics mean, in words for people who never saw them."""

import re

_MEANINGS = {
    "acc": "share of rows on which the choice that the model finds likeliest is right",
    "acc_norm": "as acc, but a choice's likelihood is divided by its length, so that long ones have a chance",
    "greedy": "share of rows on which the model, always writing the word piece that it finds likeliest, "
    "writes exactly the right answer",
    "exact": "share of written answers that are equal to a right one",
    "exact_match": "share of written answers that are equal to the right one",
    "exact_normalized": "share of written answers equal to a right one but for case, punctuation, articles",
    "contains": "share of written texts in which a right answer stands",
    "numeric": "share of written texts whose last number is that of the answer",
    "f1": "how many words a written answer shares with the right one: 100 % for all and no others",
    "bleu": "likeness of written texts to the right ones by runs of words, 100 for equal ones",
    "consistency": "share of groups (one thing asked in several wordings) that are right in every row",
    "log_loss": "how little the model believed the right answer, in nats: 0 is certain and right",
    "log_loss_per_token": "log_loss over the number of word pieces",
    "perplexity": "how many words the model hesitates between while it reads a text: lower is better",
    "bits_per_byte": "bits needed to tell the model a byte of the text: lower is better",
    "calibration_error": "how far what the model believes is from how often it is right: 0 is best",
    "margin": "by how much the first choice is likelier than the second, in nats",
    "spearman": "whether the model orders pairs as people do: 1 is the same order",
    "recall@1": "share of questions whose right text is nearer than all the wrong ones",
}
KL = (
    "how far the new model is from the base in what it believes of the next word piece "
    "(Kullback-Leibler divergence): 0 is the same"
)
INTERVAL = "where the true change may lie: other rows of the same kind would give another figure"
CONSTANT = "what a program would get that always gives the commonest answer without reading the question"
IN_PROMPT = "what a program would get that copies an answer standing in the prompt"


def meaning(metric: str) -> str:
    """In one line; empty for a metric of the user's own, whose name must speak for itself."""
    if found := re.fullmatch(r"top(\d+)", metric):
        return (
            f"share of answers whose word pieces are each among the {found[1]} that the model finds likeliest"
        )
    if metric.startswith("rouge"):
        return "share of words, or runs of words, that a written text has in common with the right one"
    if metric.startswith("regex:"):
        return "share of written texts in which the part that a pattern finds is the answer"
    return _MEANINGS.get(metric, "")
