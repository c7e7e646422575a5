"""Options shared by several commands."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Approximation(StrEnum):
    """Set of function approximations."""

    TIGHT = "tight"
    FAST = "fast"
    PUMA = "puma"


class Require(StrEnum):
    """What a client may insist on."""

    PRIVATE_WEIGHTS = "private-weights"


class PreparedChoice(StrEnum):
    """Whether a request uses a unit that parties have prepared."""

    AUTO = "auto"
    NEVER = "never"
    REQUIRE = "require"


class Tree(StrEnum):
    """What a step keeps to a minimum."""

    ROUNDS = "rounds"
    BALANCED = "balanced"
    TRAFFIC = "traffic"


class AnyTree(StrEnum):
    """The same, or what suits each kind of step best."""

    AUTO = "auto"
    ROUNDS = "rounds"
    BALANCED = "balanced"
    TRAFFIC = "traffic"


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Directory (config.json + safetensors), .gguf file, or name on the Hugging Face hub. "
        "Default: the demo model, SmolLM2-135M-Instruct.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
JsonObjectOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ApproximationOption = Annotated[
    Approximation,
    typer.Option(
        help="'tight': every function close to exact; 'fast': least traffic, no less accurate than "
        "'puma': the paper's own formulas, which cost modern chat models their accuracy."
    ),
]
TreeOption = Annotated[
    Tree, typer.Option(help="Fewest rounds, least traffic, or few rounds at a moderate price.")
]
AnyTreeOption = Annotated[
    AnyTree,
    typer.Option(
        help="Fewest rounds, least traffic, few rounds at a moderate price; or for each kind of "
        "step what is predicted to take least time on the network at hand."
    ),
]
LanesOption = Annotated[
    str,
    typer.Option(
        metavar="auto|N", help="Groups of attention heads computed concurrently, up to 1024."
    ),
]
CodecOption = Annotated[
    bool, typer.Option("--codec", help="Force in-memory frames through the wire format.")
]
SecretLogitsOption = Annotated[
    bool, typer.Option("--secret-logits", help="Reveal only the best token, not the logits.")
]
PreparedOption = Annotated[
    PreparedChoice,
    typer.Option(
        help="With --cluster: whether to use what `puma prepare` has made. auto: if a unit fits; "
        "require: refuse the request otherwise."
    ),
]
NetworkOption = Annotated[
    str | None,
    typer.Option(
        help="Delay the frames between the roles as a network would: lan, paper, wan, "
        "intercontinental; a round trip and a bandwidth (40ms,100mbit,jitter=2ms,seed=7); "
        "or a .toml file.",
        show_default=False,
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        help="Memory that the model may take in this process, such as 16GB: a larger one stays on "
        "disk. Default: what is free.",
        show_default=False,
    ),
]
PublicOption = Annotated[
    bool,
    typer.Option(
        "--public-weights",
        help="For open models: the parties know the weights. Prompt and answer stay private. "
        "Faster, and in a quarter of the memory. With --cluster `puma upload` has decided this.",
    ),
]
RequireOption = Annotated[
    Require | None,
    typer.Option(
        help="What the model must have. private-weights: refuse, before the prompt leaves, a model "
        "whose weights the parties know.",
        show_default=False,
    ),
]
ClusterOption = Annotated[
    Path | None,
    typer.Option(
        help="A cluster.toml: use three remote parties; --model is then a name there.",
        show_default=False,
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        help="With --cluster: the tokenizer's folder. Default: the one the owner published.",
        show_default=False,
    ),
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure-no-tls", help="Allow tcp://: no encryption or authentication.")
]

TextFileOption = Annotated[
    Path | None,
    typer.Option(
        help="Read the text from a file (UTF-8), without the line break at its end.",
        show_default=False,
    ),
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        "-p",
        help="The prompt for the model; - reads it from stdin. Arguments show in lists of "
        "processes.",
        show_default=False,
    ),
]
SystemOption = Annotated[
    str | None,
    typer.Option(
        help="A system prompt, for the chat template; - reads it from stdin.", show_default=False
    ),
]
TemplateArgOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="A variable of the chat template, such as enable_thinking=false (JSON, or else text); "
        "repeatable.",
        show_default=False,
    ),
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="One of the model's chat templates, or a file with one. Default: 'default'.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptChoice:
    """A prompt, in one of two ways. For commands decorated with `spread`."""

    prompt: PromptOption = None
    prompt_file: TextFileOption = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatChoice:
    """How a prompt becomes a chat. For commands decorated with `spread`."""

    system: SystemOption = None
    template_arg: TemplateArgOption = None
    chat_template: ChatTemplateOption = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How functions are evaluated, outside requests. For commands decorated with `spread`."""

    approximation: ApproximationOption = Approximation.TIGHT
    tree: TreeOption = Tree.ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChoice:
    """How the steps of a request are evaluated. For commands decorated with `spread`."""

    approximation: ApproximationOption = Approximation.TIGHT
    tree: AnyTreeOption = AnyTree.AUTO
    lanes: LanesOption = "auto"
