"""`puma generate`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

import typer

from puma_actors.cli.early import refuse_unsupported
from puma_actors.cli.options import (
    ChatChoice,
    JsonOption,
    ModelOption,
    PromptChoice,
    RunChoice,
    SecretLogitsOption,
)
from puma_actors.cli.where import Where

if TYPE_CHECKING:  # it is heavy
    from models.texts.requested import DraftOptions
    from models.tokens.sampling import SamplingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingChoice:
    """How tokens are chosen. For commands decorated with `spread`."""

    temperature: Annotated[
        float | None, typer.Option(help="0 takes the best token. Default: the model's own, or 0.")
    ] = None
    top_k: Annotated[int | None, typer.Option(help="Sample among so many best tokens; 0: all.")] = (
        None
    )
    top_p: Annotated[float | None, typer.Option(help="Sample within this probability mass.")] = None
    repetition_penalty: Annotated[float | None, typer.Option(help="1: none.")] = None
    ignore_generation_config: Annotated[
        bool,
        typer.Option(
            "--ignore-generation-config",
            help="Take no settings from the model: the best token, unless options say otherwise.",
        ),
    ] = False
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; repeatable.")] = None
    seed: Annotated[int | None, typer.Option(help="Make sampling repeatable.")] = None

    def given(self) -> SamplingOptions:
        """The options that were given."""
        given = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "stop": tuple(self.stop) if self.stop else None,
            "seed": self.seed,
        }
        return cast(
            "SamplingOptions", {k: value for k, value in given.items() if value is not None}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftChoice:
    """What proposes several tokens a step. For commands decorated with `spread`."""

    draft: Annotated[
        str,
        typer.Option(
            metavar="none|ngram|PATH",
            help="Propose tokens, so that a step can yield several: 'ngram' copies what followed "
            "the same tokens before; a path or name is a small public model with the same "
            "tokenizer, which this client runs. The parties learn how many were accepted.",
        ),
    ] = "none"
    draft_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Most tokens proposed a step. Default: 8.", show_default=False
        ),
    ] = None

    def given(self) -> DraftOptions:
        """The options that were given. Raises ConfigError for unusable ones."""
        from puma_actors.api.drafting import check_draft

        options: DraftOptions = {"draft": self.draft, "draft_tokens": self.draft_tokens}
        check_draft(options)
        return options


def generate(
    *,
    asked: PromptChoice,
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1)] = 64,
    chat: ChatChoice,
    raw: Annotated[bool, typer.Option("--raw", help="Skip the chat template.")] = False,
    draw: SamplingChoice,
    drafting: DraftChoice,
    secret_logits: SecretLogitsOption = False,
    choice: RunChoice,
    where: Where,
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt privately, with all roles in this process or with remote parties.

    Others on this machine may see arguments in lists of processes: what must stay
    secret from them goes into --prompt-file, or into stdin (--prompt -).
    """
    refuse_unsupported(None if where.cluster else model)
    from models.tokens.sampling import SamplingConfig
    from puma_actors.cli.commands.generate import run_generate
    from puma_actors.cli.commands.reading import Reader, chat_options
    from puma_actors.cli.settings import settings_of

    reader = Reader()
    prompt = reader.one("--prompt", asked.prompt, "--prompt-file", asked.prompt_file)
    options: SamplingOptions = {"max_new_tokens": max_new_tokens, **draw.given()}
    sampling = SamplingConfig(**options)  # unusable values are told before the model is read
    run_generate(
        model,
        prompt,
        sampling if draw.ignore_generation_config else options,
        settings_of(choice, secret_logits=secret_logits),
        where=where,
        chat=chat_options(chat, reader),
        draft=drafting.given(),
        raw=raw,
        as_json=as_json,
    )
