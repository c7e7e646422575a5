"""`puma chat`: its options."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puma_actors.cli.commands.generate_options import DraftChoice, SamplingChoice
from puma_actors.cli.early import refuse_unsupported
from puma_actors.cli.options import (
    ChatChoice,
    ModelOption,
    PromptChoice,
    RunChoice,
    SecretLogitsOption,
)
from puma_actors.cli.where import Where

if TYPE_CHECKING:  # it is heavy
    from models.tokens.sampling import SamplingOptions


def chat(
    *,
    asked: PromptChoice,
    model: ModelOption = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="Most tokens of an answer.")
    ] = 256,
    template: ChatChoice,
    draw: SamplingChoice,
    drafting: DraftChoice,
    secret_logits: SecretLogitsOption = False,
    choice: RunChoice,
    where: Where,
) -> None:
    """Chat privately in the terminal, with a model in this process or at remote parties.

    Ctrl-C stops an answer; twice quickly, or Ctrl-D, ends the chat. /help shows more.
    Where there is no terminal, one prompt is read from stdin, and its answer printed.
    Others on this machine may see arguments in lists of processes: what must stay
    secret from them goes into --prompt-file (- for stdin), or is typed.
    """
    refuse_unsupported(None if where.cluster else model)
    from models.tokens.sampling import SamplingConfig
    from puma_actors.cli.commands.reading import STDIN, Reader, chat_options
    from puma_actors.cli.commands.talking.conversation import Conversation
    from puma_actors.cli.commands.talking.terminal import Session, talk, terminal_lines
    from puma_actors.cli.requests import open_requests
    from puma_actors.cli.settings import settings_of

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    reader, first = Reader(), None
    if asked.prompt is not None or asked.prompt_file is not None:
        first = reader.one("--prompt", asked.prompt, "--prompt-file", asked.prompt_file)
    elif not terminal:
        first = reader.file("--prompt-file", Path(STDIN))
    options: SamplingOptions = {"max_new_tokens": max_new_tokens, **draw.given()}
    sampling = SamplingConfig(**options)  # unusable values are told before the model is read
    conversation = Conversation(
        sampling if draw.ignore_generation_config else options,
        chat_options(template, reader),
        drafting.given(),
    )
    settings = settings_of(choice, secret_logits=secret_logits)
    opener = partial(open_requests, model, settings, where, check=conversation.check)
    with Session(opener) as session:
        if terminal:
            talk(session, conversation, first, terminal_lines())
        elif first is not None:
            session.answer(conversation, first)
