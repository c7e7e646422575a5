"""Fixtures for several test files."""

from pathlib import Path

import pytest
from networks import make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority and a certificate for each role."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


# -- models for pipelines; torch is imported for those alone ---------------------------------------


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import folder_of

    labels = {0: "bad", 1: "fair", 2: "good"}
    return folder_of(tmp_path_factory, "bert", "sequence-classification", id2label=labels)


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import ENTITIES, folder_of

    return folder_of(tmp_path_factory, "bert", "token-classification", **ENTITIES, seed=1)


@pytest.fixture(scope="session")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import folder_of

    return folder_of(tmp_path_factory, "bert", "masked-lm")


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import folder_of
    from tiny_texts import save_byte_level

    folder = folder_of(tmp_path_factory, "gpt2", "causal-lm", save_byte_level, n_positions=64)
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline_cases import folder_of

    return folder_of(tmp_path_factory, "bert", "question-answering", seed=2)
