"""The common part of all families' configurations: the base class, bounds and checks.

Everything in a configuration is public by design (see the README): sizes and constants, never a
weight. It may come from an untrusted peer, so every value is checked on construction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from models.configs.generation import GenerationSettings
from models.configs.heads import check_labels, read_head
from models.configs.names import Naming, Shape
from models.configs.quantisation import quantisation_of
from models.configs.tasks.dense import DenseHead
from models.configs.validate import (
    check_choice,
    check_flag,
    check_size,
    refuse_unless_neutral,
    required,
    short,
    token_ids,
    unsupported,
)
from models.configs.windows import refuse_chunks, refuse_windows
from models.files.locate import SAFETENSORS, SAFETENSORS_INDEX
from protocols.errors import ModelError

ACTIVATIONS = (
    "gelu",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu",
    "silu",
    "tanh",
)
"""Names of the supported activations, as in transformers (whose `swish` becomes `silu`)."""

# Upper bounds on what a peer may announce: far above any published model of these families,
# low enough that no product of two of them overflows or needs absurd amounts of memory.
_LIMITS = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_layers": 1 << 10,
    "num_heads": 1 << 10,
    "num_kv_heads": 1 << 10,
    "head_dim": 1 << 10,
    "max_positions": 1 << 24,
}
_MAX_EOS_TOKENS = 64
# Settings of transformers that would change the function of any family without changing the names
# or shapes of its weights, or that change what the weights mean. Absent and null are neutral too.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "is_causal": (True,),
    "per_layer_config": ({},),
    # transformers reads this file in place of the usual ones.
    "transformers_weights": (SAFETENSORS, SAFETENSORS_INDEX),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """Base class of all families. Subclasses add their settings and set the class variables.

    Raises ModelError on construction when a value has the wrong type or is out of bounds.

    Attributes:
        family: name of the family, published with the configuration.
        model_types: `model_type` of transformers -> the start of its class names.
        heads: heads that the family can have.
        class_heads: ends of class names with another head than in other families -> that head.
        positional_scores: whether queries and keys are also multiplied by those of positions.
        naming: the names of the family's tensors on disk.
        neutral: settings of transformers that must be absent, null or one of the values given.
        max_positions: longest sequence, in tokens.
        hidden_act: activation of the feed-forward layers, one of `ACTIVATIONS`.
        tie_embeddings: the head over the vocabulary is the embedding table.
        pad_token_id: None when the vocabulary has no such token.
        head: what is evaluated; see `models.configs.heads`.
        num_labels: outputs of the head; 0 when there is no head or its outputs are the vocabulary.
        labels: their names, or empty when the model does not name them.
        problem_type: kind of a sequence classification in transformers' terms, or None.
        entailment: the label that says that one text follows from another, or None.
        generation: the model's own settings for the choice of tokens, or None.
        dense: layers that turn the pooled hidden states into a text's vector, or None.
    """

    family: ClassVar[str] = ""
    model_types: ClassVar[Mapping[str, str]] = {}
    heads: ClassVar[tuple[str, ...]] = ()
    class_heads: ClassVar[Mapping[str, str]] = {}
    positional_scores: ClassVar[bool] = False
    naming: ClassVar[Naming]
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    hidden_act: str
    tie_embeddings: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    head: str = "none"
    num_labels: int = 0
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    entailment: int | None = None
    generation: GenerationSettings | None = None
    dense: DenseHead | None = None

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name in _LIMITS):
            check_size(name, getattr(self, name), _LIMITS[name])
        check_choice("hidden_act", self.hidden_act, ACTIVATIONS)
        check_flag("tie_embeddings", self.tie_embeddings)
        self._check_tokens()
        check_choice("head", self.head, self.heads)
        if not isinstance(self.generation, GenerationSettings | None):
            raise ModelError(f"generation: {short(self.generation)} is not a description or null")
        check_labels(self.head, self.num_labels, self.labels, self.problem_type)
        if self.entailment is not None:
            check_size("entailment", self.entailment, self.num_labels - 1, least=0)
        self._check_dense()

    def _check_tokens(self) -> None:
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                self._check_token(name, getattr(self, name))
        if not isinstance(self.eos_token_ids, tuple) or len(self.eos_token_ids) > _MAX_EOS_TOKENS:
            raise ModelError(
                f"eos_token_ids must be a list of at most {_MAX_EOS_TOKENS} ids, "
                f"found {short(self.eos_token_ids)}"
            )
        for token in self.eos_token_ids:
            self._check_token("eos_token_ids", token)

    def _check_dense(self) -> None:
        if self.dense is None:
            return
        if not isinstance(self.dense, DenseHead) or self.head != "none":
            raise ModelError(f"dense: {short(self.dense)} is no layers of a model without a head")
        inputs = self.dense.layers[0].inputs
        if inputs != self.head_inputs:
            raise ModelError(
                f"dense: the first layer has {inputs} inputs, and the model's hidden states have "
                f"{self.head_inputs} columns"
            )

    def _check_token(self, name: str, value: object) -> None:
        if type(value) is not int or not 0 <= value < self.vocab_size:
            raise ModelError(
                f"{name}: {short(value)} is not a token id below vocab_size {self.vocab_size}"
            )

    @property
    def head_inputs(self) -> int:
        """Columns of what the head is given."""
        return self.hidden_size

    def tensors(self) -> dict[str, Shape]:
        """Canonical name and stored shape of every weight, in the order of evaluation.

        The names are those of transformers' class with this head; a head that is tied to the
        embedding is absent. Those of `dense` come last.
        """
        dense = {} if self.dense is None else self.dense.tensors()
        return {**self._base_tensors(), **self._head_tensors(), **dense}

    def tied(self) -> dict[str, str]:
        """Tensors that a file may hold besides `tensors` -> the tensor that each must equal."""
        return {}

    @property
    def skipped_token(self) -> int | None:
        """A token that positions do not count, so that a text with it would get other positions."""
        return None

    def activation_of(self, module: str) -> str:
        """The activation of a part of transformers' model, by that part's name."""
        return self.hidden_act

    def adapted(self, found: Mapping[str, Shape]) -> Self:
        """This configuration, completed from the stored tensors (by canonical name)."""
        return self

    def with_head(self, head: str, num_labels: int = 0) -> Self:
        """The same model under another head, whose labels have no names. Raises ModelError."""
        return replace(
            self,
            head=head,
            num_labels=num_labels,
            labels=(),
            problem_type=None,
            entailment=None,
            dense=None,
            **self._settings_of_head(head),
        )

    @classmethod
    def _settings_of_head(cls, head: str) -> dict[str, Any]:
        """Fields of the family that follow from the head."""
        return {}

    def is_ignored(self, name: str) -> bool:
        """Whether a stored tensor, by canonical name, is not used in the computation."""
        return self.naming.ignored.fullmatch(name) is not None

    @abstractmethod
    def _base_tensors(self) -> dict[str, Shape]:
        """Weights below the head; the table of tokens comes first."""

    @abstractmethod
    def _head_tensors(self) -> dict[str, Shape]:
        """Weights of the head."""

    def to_public(self) -> dict[str, Any]:
        """The configuration in JSON types (tuples become lists), with its `family`."""
        values = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {"family": self.family, **values}

    @classmethod
    def from_public(cls, data: object) -> Self:
        """Inverse of `to_public`; the data may come from an untrusted peer.

        Raises ModelError for a missing or unknown key, a wrong type or a value out of bounds.
        """
        if not isinstance(data, Mapping):
            raise ModelError(f"an architecture must be a mapping, found {short(data)}")
        given = dict(data)
        family = given.pop("family", None)
        if family != cls.family:
            raise ModelError(f"family {short(family)} is not {cls.family!r}")
        expected = {f.name for f in fields(cls)}
        if given.keys() != expected:
            odd = sorted(short(key) for key in given.keys() ^ expected)
            raise ModelError(f"an architecture of family {cls.family!r} lacks or adds: {odd[:3]}")
        return cls(**{name: cls._value_from_public(name, value) for name, value in given.items()})

    @classmethod
    def _value_from_public(cls, name: str, value: object) -> Any:
        """The value of a field; a wrong type is passed on for the constructor to refuse."""
        if name == "generation" and value is not None:
            return GenerationSettings.from_public(value)
        if name == "dense" and value is not None:
            return DenseHead.from_public(value)
        return tuple(value) if isinstance(value, list) else value

    @classmethod
    def from_hf(cls, data: Mapping[str, Any], *, head: str | None = None) -> Self:
        """From the contents of a Hugging Face `config.json`.

        `head` overrides the one that `architectures` names. Raises ModelError for a missing key
        and for every setting that would change the function computed and is not supported.
        """
        model_type = data.get("model_type")
        check_choice("model_type", model_type, cls.model_types)
        quantisation_of(data)  # refused unless it can be undone
        refuse_unless_neutral(data, {**_NEUTRAL, **cls.neutral})
        name = cls.model_types[str(model_type)]
        chosen = read_head(data, name, cls.heads, head, cls.class_heads)
        vocabulary = required(data, "vocab_size")
        values = {
            "vocab_size": vocabulary,
            "bos_token_id": vocabulary_token(data.get("bos_token_id"), vocabulary),
            "eos_token_ids": vocabulary_tokens(token_ids(data.get("eos_token_id")), vocabulary),
            "pad_token_id": vocabulary_token(data.get("pad_token_id"), vocabulary),
            **cls._read_hf(data),
            **cls._settings_of_head(chosen["head"]),
        }
        return cls(**values, **chosen)

    @classmethod
    @abstractmethod
    def _read_hf(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the family; they override what `from_hf` reads itself."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """A decoder: causal attention, logits of the next token by default.

    Its classifier of sequences reads the last token that is not `pad_token_id`.

    Attributes:
        windowless: those of `model_types` in which every token sees all tokens before it.
    """

    heads: ClassVar[tuple[str, ...]] = (
        "none",
        "causal-lm",
        "sequence-classification",
        "token-classification",
        "question-answering",
    )
    tagger: ClassVar[str] = "classifier"
    windowless: ClassVar[tuple[str, ...]] = ()

    head: str = field(default="causal-lm")

    @classmethod
    def from_hf(cls, data: Mapping[str, Any], *, head: str | None = None) -> Self:
        config = super().from_hf(data, head=head)
        # Absent means true here, but null does not.
        if data.get("is_causal", True) is None:
            raise unsupported("is_causal", None, "true")
        refuse_chunks(data, config.max_positions)
        if data["model_type"] in cls.windowless:
            refuse_windows(data, config.num_layers, config.max_positions)
        return config

    def tied(self) -> dict[str, str]:
        if self.head != "causal-lm" or not self.tie_embeddings:
            return {}
        return {"lm_head.weight": next(iter(self._base_tensors()))}

    def _head_tensors(self) -> dict[str, Shape]:
        hidden, outputs = self.head_inputs, self.num_labels
        if self.head == "causal-lm":
            return {} if self.tie_embeddings else {"lm_head.weight": (self.vocab_size, hidden)}
        if self.head == "sequence-classification":
            return {"score.weight": (outputs, hidden)}
        if self.head == "token-classification":
            return linear(self.tagger, outputs, hidden)
        return linear("qa_outputs", outputs, hidden) if self.head == "question-answering" else {}


def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> dict[str, Shape]:
    """Weight and bias of a linear layer as PyTorch stores it: (outputs, inputs), (outputs,)."""
    weight: dict[str, Shape] = {f"{name}.weight": (outputs, inputs)}
    return {**weight, f"{name}.bias": (outputs,)} if bias else weight


def layer_norm(name: str, size: int) -> dict[str, Shape]:
    """Gain and bias of a LayerNorm."""
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def activation(value: object) -> object:
    """transformers' name of an activation, with its one synonym resolved."""
    return "silu" if value == "swish" else value


def vocabulary_token(value: object, vocabulary: object) -> object:
    """A special token, or None if it is not in the vocabulary and so in no input or answer.

    LLaMA checkpoints write -1, and small GPT-2 ones keep the 50256 of the large vocabulary.
    """
    if type(value) is int and type(vocabulary) is int and not 0 <= value < vocabulary:
        return None
    return value


def vocabulary_tokens(values: tuple[int, ...], vocabulary: object) -> tuple[int, ...]:
    """Those of `values` that the vocabulary has; what is no number at all stays, to be refused."""
    return tuple(v for v in values if v is None or vocabulary_token(v, vocabulary) is not None)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value.to_public() if hasattr(value, "to_public") else value
