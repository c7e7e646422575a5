"""`puma generate`: its options."""

from typing import Annotated

import typer

from puma_actors.cli.early import refuse_unsupported
from puma_actors.cli.options import ChatChoice, JsonOption, ModelOption, PromptChoice, RunChoice
from puma_actors.cli.where import Where


def generate(
    *,
    asked: PromptChoice,
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1)] = 64,
    chat: ChatChoice,
    raw: Annotated[bool, typer.Option("--raw", help="Skip the chat template.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the best token. Default: the model's own, or 0.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Sample among so many best tokens; 0: all.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample within this probability mass.")
    ] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="1: none.")] = None,
    ignore_generation_config: Annotated[
        bool,
        typer.Option(
            "--ignore-generation-config",
            help="Take no settings from the model: the best token, unless options say otherwise.",
        ),
    ] = False,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Make sampling repeatable.")] = None,
    secret_logits: Annotated[
        bool,
        typer.Option("--secret-logits", help="Reveal only the best token, not the logits."),
    ] = False,
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
    from puma_actors.cli.commands.generate import chosen_sampling, run_generate
    from puma_actors.cli.commands.reading import Reader, chat_options
    from puma_actors.cli.settings import settings_of

    reader = Reader()
    prompt = reader.one("--prompt", asked.prompt, "--prompt-file", asked.prompt_file)
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "stop": tuple(stop) if stop else None,
        "seed": seed,
    }
    options = chosen_sampling(max_new_tokens, given)
    sampling = SamplingConfig(**options)  # unusable values are told before the model is read
    run_generate(
        model,
        prompt,
        sampling if ignore_generation_config else options,
        settings_of(choice, secret_logits=secret_logits),
        where=where,
        chat=chat_options(chat, reader),
        raw=raw,
        as_json=as_json,
    )
