"""Private tasks on texts, with the calling conventions of transformers' pipelines.

    with pipeline("text-classification", "path/or/hub-name") as classify:
        classify("I liked it.")  # [{"label": "POSITIVE", "score": 0.99}]

With an event loop, over a cluster or any other `Requests`:

    async with LocalCluster.from_pretrained(path) as cluster:
        answer = await TextPipeline("question-answering", cluster)(question=..., context=...)

The tasks themselves are in `models.texts`; `Requests` knows where the parties run. The parties
learn the length of every text in tokens, and for a pair also where the second one begins.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import numpy as np

from models.checkpoints.hub import resolve_model
from models.configs.architecture import ModelConfig
from models.configs.tasks.sentences import sentence_settings
from models.files.locate import demo_model_path, embedding_model_path
from models.programs.program import Batch
from models.texts.generate import Prompt, read_prompts
from models.texts.needs import (
    TASK_HEADS,
    canonical_task,
    check_checkpoint,
    check_config,
    check_model,
    check_running,
)
from models.texts.options import TaskOptions, chosen_options, generate_options, with_labels
from models.texts.requested import OPTIONS, read_options
from models.texts.task import Job, TextTask
from models.texts.tasks import text_task
from models.tokens.encoding import Encoding
from protocols.base.ring import Floats
from protocols.errors import ConfigError, ModelError
from puma_actors.api.blocking import PrivateModel
from puma_actors.api.local import LocalCluster
from puma_actors.api.options import (
    CLUSTER_OPTIONS,
    ClusterOptions,
    PipelineOptions,
    cluster_options,
)
from puma_actors.api.requests import Requests, Usage
from puma_actors.base.logs import log

BATCH_TOKENS = 1024
"""Texts are batched up to this many tokens: they share rounds, but need memory together."""
GENERATION = "text-generation"
_WITHOUT_EFFECT = frozenset({"batch_size", "num_workers", "padding"})
"""Options of transformers' pipelines that do not change results, and have no effect here: texts are
batched by their tokens, and nothing is padded.
"""
_SWITCHES = frozenset(
    {
        "align_to_words",
        "do_sample",
        "handle_impossible_answer",
        "multi_label",
        "normalize",
        "return_documents",
        "return_full_text",
        "return_tensors",
        "truncation",
    }
)
"""Boolean options: a text such as "false" would count as true."""


class TextPipeline:
    """A task over the requests of a running cluster.

    Args:
        task: a task name of transformers, or "sentence-embedding".
        requests: requests to the model, whose tokenizer is used.
        batch_tokens: as `BATCH_TOKENS`.
        options: defaults for the options of every call, see the task's `job` in `models.texts`.

    Attributes:
        usage: cost of the last call, all its requests together.
        share: tokens of the finished batches of the running call, and of all its batches.
        notice: called with a sentence if a call cuts texts without being asked; logs a warning.

    Raises:
        ConfigError: an unknown task or option. ModelError: the model has another head, or no
        tokenizer.
    """

    def __init__(
        self,
        task: str,
        requests: Requests,
        *,
        batch_tokens: int = BATCH_TOKENS,
        **options: Unpack[TaskOptions],
    ) -> None:
        self.task = canonical_task(task)
        self.requests = requests
        self.usage = Usage()
        self.share = (0, 0)
        self.notice: Callable[[str], None] = _log_cut
        self._batch_tokens = batch_tokens
        self._defaults = _effective(options)
        config, tokenizer = requests.config, requests.tokenizer
        check_running(self.task, config)
        if tokenizer is None:
            raise ModelError(
                "the model has no tokenizer, and a pipeline takes text: put the model's "
                "tokenizer.json beside its weights, or give tokenizer=... with a model in memory "
                f"({requests.no_tokenizer})"
            )
        self.tokenizer = tokenizer
        self._texts = None
        if self.task != GENERATION:
            own = requests.sentences, requests.ranking
            self._texts = text_task(self.task, config, tokenizer, *own)
        self._check_options(self._defaults)

    def option_names(self) -> frozenset[str]:
        """Options of a call."""
        if self._texts is None:
            return OPTIONS | {"return_full_text"}
        found = inspect.signature(self._texts.job).parameters
        return frozenset(found) - {"inputs"}

    def check(self, inputs: Any = None, **options: Unpack[TaskOptions]) -> str:
        """Check before any work whether a call would be refused.

        Returns a sentence about texts that would be cut, or "". Raises ConfigError.
        """
        if self._texts is None:
            self._prompts(inputs, self._merged(options))
            return ""
        return self._job(self._texts, inputs, self._merged(options)).cut_note()

    def shapes(self, inputs: Any, **options: Unpack[TaskOptions]) -> list[Batch]:
        """What a call would ask the parties for, one after another. Raises as `check`."""
        if self._texts is None:
            raise ConfigError(f"{self.task} has no shapes: an answer's length is not known before")
        job = self._job(self._texts, inputs, self._merged(options))
        batches = job.batches(self._batch_tokens)
        return [Batch(tuple(map(len, batch)), job.rows) for batch in batches]

    async def __call__(
        self, inputs: Any = None, *labels: Any, **options: Unpack[TaskOptions]
    ) -> Any:
        """The result for one input, or a list for a list.

        Args:
            inputs: text or texts, as the task takes them.
            labels: `candidate_labels` of zero-shot-classification, as in transformers.
            options: options of the task.
        """
        merged = self._merged(with_labels(options, labels))
        if self._texts is None:
            return await self._generate(inputs, merged)
        job = self._job(self._texts, inputs, merged)
        asked = merged.get("truncation") or merged.get("max_length")
        if (note := job.cut_note()) and not asked:
            self.notice(note)
        self.usage = Usage(dropped_tokens=job.dropped)
        results: list[Floats] = []
        done, tokens = 0, sum(map(len, job.encodings))
        for batch in job.batches(self._batch_tokens):
            self.share = (done, tokens)
            results += await self._forward(batch, job)
            done += sum(map(len, batch))
        found = job.finish(results)
        return [found] if self._texts.wraps(inputs, options) else found

    def _merged(self, options: TaskOptions) -> TaskOptions:
        given = _effective(options)
        self._check_options(given)
        return {**self._defaults, **given}

    def _check_options(self, options: TaskOptions) -> None:
        if self._texts is None:
            read_options(generate_options(options))
        known = self.option_names()
        odd = sorted(options.keys() - known)
        if odd:
            raise ConfigError(
                f"{self.task} has no option {odd[0]!r}: it has {', '.join(sorted(known))}"
            )
        for name, value in sorted(options.items()):
            if name in _SWITCHES and not isinstance(value, bool | None):
                raise ConfigError(f"{name}={str(value)[:40]!r}: give True or False")

    def _job(self, task: TextTask, inputs: Any, options: TaskOptions) -> Job:
        job = task.job(inputs, **options)
        for encoding in job.encodings:
            self.requests.check_ids(encoding.ids)
        return job

    async def _forward(self, batch: Sequence[Encoding], job: Job) -> list[Floats]:
        """One array (rows, columns) per sequence."""
        types: list[int] | None = [kind for encoding in batch for kind in encoding.types]
        # Tokenizers number the texts even for families with no type or only one.
        if getattr(self.requests.config, "type_vocab_size", 0) < 2 or not any(types or ()):
            types = None
        ids = [encoding.ids for encoding in batch]
        result = await self.requests.forward(ids, rows=job.rows, types=types)
        self._add_usage()
        if job.rows != "all":
            return [row[None] for row in result]
        ends = np.cumsum([len(encoding) for encoding in batch])
        return np.split(result, ends[:-1])

    def _add_usage(self) -> None:
        usage, last = self.usage, self.requests.usage
        usage.prompt_ids = usage.prompt_ids + last.prompt_ids
        usage.token_ids = usage.token_ids + last.token_ids
        usage.steps = usage.steps + last.steps
        usage.stop_reason, usage.draft = last.stop_reason, last.draft
        usage.drafts, usage.decoded = usage.drafts + last.drafts, usage.decoded + last.decoded
        for phase, spent in last.seconds.items():
            usage.seconds[phase] = usage.seconds.get(phase, 0.0) + spent

    # -- text-generation ---------------------------------------------------------------------------

    def _prompts(
        self, inputs: Any, options: TaskOptions
    ) -> tuple[list[tuple[Prompt, list[int]]], bool]:
        """The prompts with their ids, and whether there was a single one, not a list."""
        prompts, single = read_prompts(inputs)
        encoded = [(prompt, prompt.ids(self.tokenizer)) for prompt in prompts]
        for _, ids in encoded:
            self.requests.check_ids(ids)
            sampling = self.requests.sampling(generate_options(options), len(ids))
            self.requests.check_sampling(sampling)
        return encoded, single

    async def _generate(self, inputs: Any, options: TaskOptions) -> Any:
        """Greedy unless a temperature is given or the model's own. Prompts one after the other."""
        encoded, single = self._prompts(inputs, options)
        chosen, full = generate_options(options), options.get("return_full_text", True)
        self.usage = Usage()
        found = []
        for prompt, ids in encoded:
            streamed = [token.text async for token in self.requests.generate(ids, **chosen)]
            self._add_usage()
            usage, text = self.requests.usage, "".join(streamed)
            if usage.stop_reason != "stop string":
                # A decoder may drop the space at the beginning of its input.
                whole = self.tokenizer.decode([*ids, *usage.token_ids])
                text = whole[len(self.tokenizer.decode(ids)) :]
            found.append(prompt.result(text, full=full))
        return found[0] if single else found


class PrivatePipeline(AbstractContextManager["PrivatePipeline"]):
    """`TextPipeline` over five roles in this process, for code without an event loop.

    Ready when created. Outside `with`, `close` ends it; without `close` it ends with its last
    reference, or with the interpreter.
    """

    def __init__(self, pipe: TextPipeline) -> None:
        if not isinstance(pipe.requests, LocalCluster):
            raise ConfigError("a pipeline without an event loop needs a LocalCluster")
        self.pipe = pipe
        self.task = pipe.task
        self.model = PrivateModel(pipe.requests)

    @property
    def usage(self) -> Usage:
        """Cost of the last call."""
        return self.pipe.usage

    def __call__(self, inputs: Any = None, *labels: Any, **options: Unpack[TaskOptions]) -> Any:
        """As `TextPipeline`."""

        async def run() -> Any:
            return await self.pipe(inputs, *labels, **options)

        return self.model.call(run)

    def close(self) -> None:
        """End the actors and free the shares."""
        self.model.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.model.__exit__(kind, error, trace)


def local_pipeline(
    task: str,
    model: object | None = None,
    *,
    tokenizer: object | None = None,
    head: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    **options: Unpack[PipelineOptions],
) -> TextPipeline:
    """A pipeline over a cluster in this process that must still be entered: `pipe.requests`.

    Args:
        task: as for `TextPipeline`.
        model: as for `LocalCluster.from_pretrained`; for "sentence-embedding" also a folder of
            sentence-transformers. Or a model in memory, as for `LocalCluster.from_model`. Default:
            the models installed as packages.
        tokenizer: tokenizer of a model in memory.
        head: as for `LocalCluster.from_pretrained`. batch_tokens: as for `TextPipeline`.
        options: options of the cluster (`settings`, `network`, ...) or of the task.

    Raises:
        ConfigError, ModelError: unusable arguments or model; raised before any weight is read.
    """
    task = canonical_task(task)
    chosen = cluster_options(options)
    given = chosen_options(options, without=CLUSTER_OPTIONS)
    if model is None or isinstance(model, str | PathLike):
        if tokenizer is not None:
            raise ConfigError(
                "tokenizer is for a model in memory: a model from a path has its own beside it"
            )
        cluster = _opened(task, model, head, chosen)
    else:
        head = check_model(task, model, head)
        cluster = LocalCluster.from_model(model, tokenizer, head=head, **chosen)
    try:
        return TextPipeline(task, cluster, batch_tokens=batch_tokens, **given)
    except BaseException:
        cluster.checkpoint.close()
        raise


def _opened(
    task: str, model: str | PathLike[str] | None, head: str | None, options: ClusterOptions
) -> LocalCluster:
    """A cluster for a model in files, or on the hub."""

    def accept(folder: Path, config: ModelConfig) -> None:
        if task == "sentence-embedding":
            sentence_settings(folder)
        check_config(task, config, model)

    if model is None:
        path = _usual_model(task)
    else:
        asked = "none" if head is None and TASK_HEADS[task] == "none" else head
        path = resolve_model(model, head=asked, accept=accept, progress=options.get("progress"))
    head = check_checkpoint(task, path, head)
    return LocalCluster.from_pretrained(path, head=head, **options)


def pipeline(
    task: str,
    model: object | None = None,
    *,
    tokenizer: object | None = None,
    head: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    **options: Unpack[PipelineOptions],
) -> PrivatePipeline:
    """As `local_pipeline`, but ready when it returns; close it when done."""
    pipe = local_pipeline(
        task, model, tokenizer=tokenizer, head=head, batch_tokens=batch_tokens, **options
    )
    return PrivatePipeline(pipe)


def _log_cut(note: str) -> None:
    log.warning("texts are cut", note=note)


def _effective(options: TaskOptions) -> TaskOptions:
    return chosen_options(options, without=_WITHOUT_EFFECT)


def _usual_model(task: str) -> Path:
    if task == "sentence-embedding":
        return embedding_model_path()
    if task == GENERATION:
        return demo_model_path()
    raise ConfigError(f"{task} has no default model: give one, model=PATH")
