"""The class for each task."""

from __future__ import annotations

from models.configs.architecture import ModelConfig
from models.configs.tasks.ranking import RankingSettings
from models.configs.tasks.sentences import SentenceSettings
from models.texts.answer import Answer
from models.texts.classify import Classify
from models.texts.embed import Features, Sentences
from models.texts.fill import FillMask
from models.texts.needs import check_running
from models.texts.rank import Rank
from models.texts.tag import Tag
from models.texts.task import TextTask
from models.texts.zero_shot import ZeroShot
from models.tokens.tokenizer import Tokenizer

_TASKS: dict[str, type[TextTask]] = {
    task.name: task
    for task in (Answer, Classify, Features, FillMask, Rank, Sentences, Tag, ZeroShot)
}


def text_task(
    name: str,
    config: ModelConfig,
    tokenizer: Tokenizer,
    sentences: SentenceSettings | None = None,
    ranking: RankingSettings | None = None,
) -> TextTask:
    """The task with a canonical name; text-generation, a dialogue with the model, is not one.

    sentences: how sentence-embedding makes vectors. ranking: how text-ranking makes scores. Raises
        ModelError when the model does not have the head or the labels that the task needs.
    """
    check_running(name, config)
    if name == Sentences.name:
        return Sentences(config, tokenizer, sentences)
    if name == Rank.name:
        return Rank(config, tokenizer, ranking)
    return _TASKS[name](config, tokenizer)
