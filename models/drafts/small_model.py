"""A small public model as the drafter of a larger one: the client runs it in floating point."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from models.checkpoints.checkpoint import Checkpoint
from models.checkpoints.weights import open_checkpoint
from models.configs.architecture import ModelConfig
from models.programs.families import forward, load_parameters
from models.programs.folding import Matrix
from models.programs.program import Batch, Cache
from models.tokens.sampling import Proposal, Sampler, SamplingConfig
from models.tokens.tokenizer import Tokenizer
from protocols.base.ring import Floats
from protocols.drivers.plain import Plain
from protocols.drivers.trace import run_now
from protocols.errors import ConfigError


class _Quick(Plain):
    """A draft need not be exact."""

    precision = np.float32


class ModelDrafting:
    """As `Drafting`, with a model in memory (4 bytes a weight).

    Args:
        checkpoint: the small model's. It is read here, and may be closed afterwards.
        vocab_size: that of the model that answers.
        name: its name in reports.

    Raises:
        ConfigError: the small model does not predict tokens.
    """

    def __init__(self, checkpoint: Checkpoint, vocab_size: int, name: str) -> None:
        if checkpoint.config.head != "causal-lm":
            raise ConfigError(
                f"draft: {checkpoint.where} has head {checkpoint.config.head!r}, a draft needs "
                "'causal-lm': use another model, or 'ngram'"
            )
        self.name = name
        self._config = checkpoint.config
        self._parameters = dict(load_parameters(checkpoint))
        self._vocab_size = vocab_size

    @classmethod
    def load(
        cls, path: str | Path, tokenizer: Tokenizer | None, vocab_size: int
    ) -> "ModelDrafting":
        """The model at a path, or with a name on the Hugging Face hub.

        Args:
            tokenizer: that of the model that answers.

        Raises:
            ModelError: it cannot be read or is not supported.
            ConfigError: it has another tokenizer, or does not predict tokens.
        """
        checkpoint = open_checkpoint(path)
        try:
            check_tokenizers(tokenizer, Tokenizer.load(checkpoint.path))
            return cls(checkpoint, vocab_size, str(path))
        finally:
            checkpoint.close()

    def begin(self, sampling: SamplingConfig, prompt: int, ends: Collection[int]) -> "ModelDrafter":
        """As `Drafting.begin`."""
        # Its draws must be independent of those that judge them.
        sampler = Sampler(sampling, prompt=prompt, ends=ends, stream="draft")
        return ModelDrafter(self._config, self._parameters, sampler, self._vocab_size)


class ModelDrafter:
    """As `Drafter`: the tokens that the small model would choose, under the same settings."""

    def __init__(
        self,
        config: ModelConfig,
        parameters: dict[str, Matrix],
        sampler: Sampler,
        vocab_size: int,
    ) -> None:
        self._config = config
        self._parameters = parameters
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._cache = Cache.empty(config.num_layers)
        self._seen: list[int] = []  # the tokens in the cache

    def propose(self, ids: Sequence[int], most: int) -> list[Proposal]:
        """As `Drafter.propose`; none once the small model's context is full."""
        proposals: list[Proposal] = []
        text = list(ids)
        while len(proposals) < most and len(text) <= self._config.max_positions:
            proposal = self._sampler.propose(self._logits(text), text)
            proposals.append(proposal)
            text.append(proposal.token)
        return proposals

    def _logits(self, ids: list[int]) -> Floats:
        """Logits of the token after these, as many as the large model has."""
        same = 0
        for mine, given in zip(self._seen, ids[:-1], strict=False):
            if mine != given:
                break
            same += 1
        new = ids[same:]
        ops, batch = _Quick(np.asarray(new, dtype=np.int64)), Batch((len(new),), "last")
        self._cache.keep(ops, same)
        result = run_now(forward(ops, self._config, self._parameters, batch, self._cache))
        self._seen = ids[:]
        logits = np.full(self._vocab_size, -np.inf)
        known = min(self._vocab_size, result.shape[-1])
        logits[:known] = np.asarray(result, dtype=np.float64)[-1, :known]
        return logits


def check_tokenizers(tokenizer: Tokenizer | None, other: Tokenizer) -> None:
    """Raise ConfigError unless a draft's tokenizer has the same tokens as that of the model."""
    if tokenizer is None:
        raise ConfigError(
            "draft: the model has no tokenizer to compare the draft's with: use 'ngram'"
        )
    size = max(tokenizer.vocab_size, other.vocab_size)
    for token in range(size):
        if tokenizer.token_of(token) != other.token_of(token):
            raise ConfigError(
                f"draft: its tokenizer differs from the model's, first at token id {token}: use a "
                "model of the same family, or 'ngram'"
            )
