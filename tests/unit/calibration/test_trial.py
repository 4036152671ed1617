"""What one call on stand-ins shows of a model, against what its modelling code says."""

import family_configs
import pytest
import tiny
import torch
import transformers
from transformers.models.mamba import modeling_mamba
from unusual_configs import unusual

from kanna.calibration.trial import Trial, try_out
from kanna.calibration.windows import Windows
from kanna.errors import InputError
from kanna.models.inventory import inventory
from kanna.models.skeleton import skeleton


def tried(config: transformers.PretrainedConfig) -> Trial:
    return try_out(config, inventory(skeleton(config)))


@pytest.mark.parametrize("name", [*family_configs.FAMILIES, "mobilebert", "bert_model", "mamba"])
def test_most_models_hand_hidden_states_from_block_to_block(name: str) -> None:
    found = tried(tiny.settings_of(name))
    assert found.irregular == "" and not found.mixed and not found.repeated
    assert found.visits == tuple(range(len(found.visits)))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("albert", "not run once each"),
        ("deberta_v2", "computed between"),
        ("gemma3n", "token by token"),
        ("funnel", "token by token"),
        ("xlnet", "token by token"),
        ("t5_encoder", "more than hidden states"),
    ],
)
def test_why_a_model_must_run_itself(name: str, why: str) -> None:
    assert why in tried(unusual(name)).irregular


def test_a_block_that_is_run_again_is_seen_each_time() -> None:
    found = tried(unusual("albert"))
    assert found.visits == (0, 0, 0) and found.repeated == {0}


def test_rows_that_are_no_tokens_are_seen() -> None:
    assert tried(unusual("deberta_v1")).mixed and not tried(unusual("deberta_v1")).irregular


def test_layers_whose_weights_the_models_own_code_reads() -> None:
    assert {path.rpartition(".")[2] for path in tried(unusual("mamba")).read} == {"dt_proj"}
    gemma = {path.rpartition(".")[2] for path in tried(unusual("recurrent_gemma")).read}
    assert gemma == {"linear_x", "linear_y", "linear_out"}
    # T5 asks for the dtype of a weight, and whether there is a bias: a layer in factors answers, too.
    assert not tried(unusual("t5_encoder")).read


def test_layers_that_text_does_not_reach() -> None:
    settings = transformers.GPT2Config(
        vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, add_cross_attention=True
    )
    settings.architectures = ["GPT2LMHeadModel"]
    uncalled = tried(settings).uncalled
    assert uncalled and all("crossattention" in path for path in uncalled)
    assert len(uncalled) == 2 * 3


@pytest.mark.parametrize(
    ("name", "has"), [("bert_model", False), ("bert_qa", False), ("mistral_model", False), ("albert", True)]
)
def test_whether_there_is_a_loss(name: str, has: bool) -> None:
    assert tried(unusual(name)).has_logits is has


def test_a_model_that_reads_no_text_is_refused() -> None:
    settings = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8,
        patch_size=4,
    )  # fmt: skip
    settings.architectures = ["ViTForImageClassification"]
    with pytest.raises(InputError, match="cannot be run on"):
        tried(settings)


def test_windows_without_padding_are_all_there_once() -> None:
    lengths = torch.tensor([5, 3, 5, 4, 3, 5])
    mask = torch.arange(5)[None] < lengths[:, None]
    ids = torch.where(mask, torch.arange(30).view(6, 5), 0)
    batches = Windows(ids, mask).unpadded(2, lone=True)
    assert [tuple(batch.shape) for batch, _ in batches] == [(1, 5), (2, 3), (2, 5), (1, 4)]
    rows = sorted(row.tolist() for batch, none in batches for row in batch if none is None)
    assert rows == sorted(ids[i, :n].tolist() for i, n in enumerate(lengths.tolist()))
    assert batches[0][0].equal(ids[:1])


def test_weights_that_are_read_only_in_training_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that multiplies with the weight itself, as Mamba's does where it is installed."""
    monkeypatch.setattr(modeling_mamba, "mamba_inner_fn", lambda *given, **_: given[3].sum() and None)
    config = unusual("mamba")
    found = inventory(skeleton(config))
    layers = [
        {path.rpartition(".")[2] for path in try_out(config, found, training=training).read}
        for training in (False, True)
    ]
    assert layers == [{"dt_proj"}, {"dt_proj", "x_proj"}]
