import sys
from pathlib import Path

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from tiny_model import save_model


@pytest.fixture(scope="session")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of width 32, four heads on two of keys and values, head tied to the embedding; read only."""
    return save_model(tmp_path_factory.mktemp("measure") / "grouped")


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head of its own and a smaller vocabulary; read only."""
    directory = tmp_path_factory.mktemp("measure") / "untied"
    return save_model(directory, tie_word_embeddings=False, vocab_size=93)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that does not generate; read only."""
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    directory = tmp_path_factory.mktemp("measure") / "encoder"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertForMaskedLM(config).save_pretrained(directory)
    return directory
