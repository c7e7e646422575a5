"""The class for each task."""

from __future__ import annotations

from models.configs.architecture import ModelConfig
from models.configs.sentences import SentenceSettings
from models.texts.answer import Answer
from models.texts.classify import Classify
from models.texts.embed import Features, Sentences
from models.texts.fill import FillMask
from models.texts.tag import Tag
from models.texts.task import TextTask, check_head
from models.tokens.tokenizer import Tokenizer

_TASKS: dict[str, type[TextTask]] = {
    task.name: task for task in (Answer, Classify, Features, FillMask, Sentences, Tag)
}


def text_task(
    name: str,
    config: ModelConfig,
    tokenizer: Tokenizer,
    sentences: SentenceSettings | None = None,
) -> TextTask:
    """The task with a canonical name; text-generation, a dialogue with the model, is not one.

    sentences: how sentence-embedding makes vectors. Raises ModelError when the model does not have
        the head that the task needs.
    """
    check_head(name, config.head)
    if name == Sentences.name:
        return Sentences(config, tokenizer, sentences)
    return _TASKS[name](config, tokenizer)
