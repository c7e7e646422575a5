"""The layers above a model's last hidden states: the heads of all families, over `Ops`.

Every head is an optional dense layer, an optional norm, and a projection; the families differ in
these and in the names of the weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.checkpoints.checkpoint import Checkpoint
from models.configs.architecture import ModelConfig
from models.configs.encoders.deberta import DebertaV2Config
from models.configs.encoders.electra import ElectraConfig
from models.configs.encoders.encoder import BertConfig, EncoderConfig, RobertaConfig
from models.configs.encoders.modernbert import ModernBertConfig
from models.configs.tasks.dense import IDENTITY, DenseHead, dense_name
from models.programs.folding import Matrix, Source, Stored, dense
from models.programs.plan import Parameter
from models.programs.program import UNIT_ROWS, Batch, Rows
from protocols.drivers.ops import Ops, Parameters, Tensor
from protocols.errors import ConfigError
from protocols.functions.normalize import Norm

UNIT_EPS = 1e-24
"""Below the square of torch's smallest norm; a row of zeros stays zero."""
_LOGITS = ("causal-lm", "masked-lm")


@dataclass(frozen=True, slots=True)
class Head:
    """The layers of a head.

    Attributes:
        dense, activation: a layer before the projection (its weights' name), or "".
        norm: the LayerNorm after it, or "".
        projection: the weights' name, or "" for the embedding table.
        columns: outputs of the dense layer; 0: as many as the hidden state has.
    """

    projection: str = ""
    dense: str = ""
    activation: str = ""
    norm: str = ""
    columns: int = 0


def head_of(config: ModelConfig) -> Head | None:
    """The head's layers; None for the bare model."""
    head = config.head
    if head == "none":
        return None
    if isinstance(config, ModernBertConfig):
        return _modern_head(config)
    if head == "question-answering":
        return Head("qa_outputs")
    if not isinstance(config, EncoderConfig):
        names = {"causal-lm": "lm_head", "sequence-classification": "score"}
        tagger = str(getattr(config, "tagger", "classifier"))
        tied = head == "causal-lm" and config.tie_embeddings
        return Head("" if tied else names.get(head, tagger))
    if head == "masked-lm":
        return _masked_head(config)
    return Head("classifier") if head == "token-classification" else _sequence_head(config)


def _modern_head(config: ModernBertConfig) -> Head:
    projection = config.decoder()[0] if config.head == "masked-lm" else "classifier"
    tied = config.head == "masked-lm" and config.tie_embeddings
    return Head("" if tied else projection, "head.dense", config.transform_act, "head.norm")


def _sequence_head(config: EncoderConfig) -> Head:
    if isinstance(config, RobertaConfig):
        return Head("classifier.out_proj", "classifier.dense", "tanh")
    if isinstance(config, DebertaV2Config):
        return Head("classifier", "pooler.dense", config.pooler_act)
    if isinstance(config, ElectraConfig):
        return Head("classifier.out_proj", "classifier.dense", "gelu")
    if isinstance(config, BertConfig):
        return Head("classifier", "bert.pooler.dense", "tanh")
    return Head("classifier", "pre_classifier", "relu")


def _masked_head(config: EncoderConfig) -> Head:
    if isinstance(config, RobertaConfig):
        names = ("lm_head.dense", "lm_head.layer_norm")
    elif isinstance(config, ElectraConfig):
        names = ("generator_predictions.dense", "generator_predictions.LayerNorm")
    elif isinstance(config, BertConfig):
        name = "cls.predictions.transform"
        names = (f"{name}.dense", f"{name}.LayerNorm")
    else:
        names = ("vocab_transform", "vocab_layer_norm")
    projection = "" if config.tie_embeddings else config.decoder()[0]
    return Head(projection, names[0], config.transform_act, names[1], config.embedding_size)


def default_rows(config: ModelConfig) -> Rows:
    """The rows that a head is meant for."""
    if config.dense is not None:
        return config.dense.pooling
    if config.head == "sequence-classification":
        if isinstance(config, ModernBertConfig) and config.pooling == "mean":
            return "mean"
        return "first" if isinstance(config, EncoderConfig) else "last"
    return "all"


def proven_rows(config: ModelConfig) -> tuple[Rows, ...]:
    """The rows whose evaluations reach every place that any allowed rows reach."""
    if config.dense is not None:
        return "all", config.dense.pooling, UNIT_ROWS[config.dense.pooling]
    return ("all", "unit") if config.head == "none" else (default_rows(config),)


def check_rows(config: ModelConfig, rows: str) -> None:
    """Raises ConfigError: the head has no such rows."""
    allowed = ["all", "first", "last"]
    if config.head == "none":
        allowed += ["mean", "unit"]
    if config.dense is not None:
        allowed = list(proven_rows(config))
    if config.head == "sequence-classification":
        allowed = [default_rows(config)]
    if rows not in allowed:
        raise ConfigError(
            f"rows {rows!r} do not fit head {config.head!r}: use one of {', '.join(allowed)}"
        )


def columns_of(config: ModelConfig, rows: Rows = "all") -> int:
    """Number of columns of a result row."""
    if config.dense is not None and rows != "all":
        return config.dense.columns
    if config.head == "none":
        return config.head_inputs
    return config.vocab_size if config.head in _LOGITS else config.num_labels


def table_columns(config: ModelConfig) -> int:
    """Columns of the shared embedding table: one more where it is also a head with a bias."""
    tied_bias = config.head == "masked-lm" and config.tie_embeddings
    columns = config.embedding_size if isinstance(config, EncoderConfig) else config.head_inputs
    return columns + tied_bias


async def finish(
    ops: Ops, config: ModelConfig, parameters: Parameters, x: Tensor, batch: Batch
) -> Tensor:
    """Apply the head to the wanted rows of the last hidden states."""
    head = head_of(config)
    if config.dense is not None and batch.rows != "all":
        return await _vectors(ops, config.dense, parameters, x, batch)
    if head is None:
        if batch.rows == "mean":
            return await ops.mean(x, batch.lengths)
        if batch.rows == "unit":
            norm = Norm(config.head_inputs, UNIT_EPS)
            x = await ops.norm(ops.sums(x, batch.lengths), "unit", norm, unit=True)
        return ops.result(x)
    if batch.rows == "mean":
        x = await ops.mean(x, batch.lengths, inner=True)
    if head.dense:
        x = await ops.dense(x, parameters["head.dense"], "head.dense", head.activation)
    if head.norm:
        assert isinstance(config, EncoderConfig)
        norm = Norm(head.columns or config.hidden_size, config.layer_norm_eps, center=True)
        shifts = [parameters["head.shift"]] if "head.shift" in parameters else []
        x = await ops.norm(x, "head.norm", norm, parameters["head.gain"], *shifts)
    if not head.projection:
        return await ops.output(x, parameters["table"], "head", tied=True)
    return await ops.output(x, parameters["head"], "head")


async def _vectors(
    ops: Ops, layers: DenseHead, parameters: Parameters, x: Tensor, batch: Batch
) -> Tensor:
    """Vectors of texts: the pooled hidden states, through the Dense layers."""
    scaled = batch.rows in UNIT_ROWS.values()
    if layers.pooling == "mean":
        x = await ops.mean(x, batch.lengths, inner=True)
    for number, run in enumerate(layers.runs):
        name, activation = f"dense.{number}", run[-1].activation
        if activation != IDENTITY:
            x = await ops.dense(x, parameters[name], name, activation)
        elif scaled:
            x = await ops.linear(x, parameters[name], name)
        else:  # only the last run has no activation
            return await ops.output(x, parameters[name], name)
    if scaled:
        x = await ops.norm(x, "unit", Norm(layers.columns, UNIT_EPS), unit=True)
    return ops.result(x)


def task_parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Kinds and shapes of the head's weights, in upload order."""
    head, hidden, wanted = head_of(config), config.head_inputs, {}
    if config.dense is not None:
        for number, run in enumerate(config.dense.runs):
            rows = run[0].inputs + any(layer.bias for layer in run)
            wanted[f"dense.{number}"] = Parameter("weight", (rows, run[-1].outputs))
    if head is None:
        return wanted
    columns = head.columns or hidden
    if head.dense:
        wanted["head.dense"] = Parameter(
            "weight", (hidden + _has_bias(config, head.dense), columns)
        )
    if head.norm:
        wanted["head.gain"] = Parameter("gain", (columns,))
        if _has_bias(config, head.norm):
            wanted["head.shift"] = Parameter("rows", (columns,))
    if head.projection:
        bias = _has_bias(config, head.projection) or config.head == "masked-lm"
        wanted["head"] = Parameter("weight", (columns + bias, columns_of(config)))
    return wanted


def task_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, Source]]:
    """The head's weights, in the order of `task_parameters`."""
    config = checkpoint.config
    head = head_of(config)
    if config.dense is not None:
        yield from _dense_weights(checkpoint, config.dense)
    if head is None:
        return
    if head.dense:
        yield "head.dense", dense(checkpoint, head.dense)
    if head.norm:
        yield "head.gain", checkpoint.tensor(f"{head.norm}.weight")
        if _has_bias(config, head.norm):
            yield "head.shift", checkpoint.tensor(f"{head.norm}.bias")
    if head.projection and config.head == "masked-lm":
        weight = checkpoint.tensor(f"{head.projection}.weight").T
        bias = checkpoint.tensor(_vocabulary_bias(config))
        yield "head", np.concatenate([weight, bias[None]])
    elif head.projection:
        yield "head", dense(checkpoint, head.projection)


def _dense_weights(checkpoint: Checkpoint, layers: DenseHead) -> Iterator[tuple[str, Matrix]]:
    """The Dense layers, with neighbours multiplied where no activation is between them."""
    first = 0
    for number, run in enumerate(layers.runs):
        matrix = dense(checkpoint, dense_name(first)).values()
        if len(run) > 1:
            columns = run[0].inputs
            weight = matrix[:columns].astype(np.float64)
            bias = matrix[columns:].sum(axis=0, dtype=np.float64)  # zeros if there is none
            for each in range(first + 1, first + len(run)):
                after = dense(checkpoint, dense_name(each)).values().astype(np.float64)
                inputs = weight.shape[1]
                weight = weight @ after[:inputs]
                bias = bias @ after[:inputs] + after[inputs:].sum(axis=0)
            rows = [weight, bias[None]] if any(layer.bias for layer in run) else [weight]
            matrix = np.concatenate(rows).astype(np.float32)
        yield f"dense.{number}", matrix
        first += len(run)


def _has_bias(config: ModelConfig, name: str) -> bool:
    return f"{name}.bias" in config.tensors()


def table_of(checkpoint: Checkpoint, name: str) -> Stored:
    """The embedding table, with the bias of a tied head as its last column."""
    config = checkpoint.config
    if table_columns(config) == checkpoint.shape(name)[1]:
        return Stored(checkpoint, name)
    return Stored(checkpoint, name, _vocabulary_bias(config))


def _vocabulary_bias(config: ModelConfig) -> str:
    assert isinstance(config, EncoderConfig)
    return config.decoder()[1]
