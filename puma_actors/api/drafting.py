"""One answer, token by token: what is drafted, and how much of it is accepted."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio

from models.configs.validate import short
from models.drafts.drafter import DRAFT_TOKENS, Drafting, Pace
from models.drafts.ngram import NgramDrafting
from models.drafts.small_model import ModelDrafting
from models.texts.requested import DraftOptions
from models.tokens.sampling import Proposal, Sampler, SamplingConfig
from models.tokens.tokenizer import Tokenizer
from protocols.base.ring import Floats
from protocols.errors import ConfigError
from puma_actors.roles.messages import MAX_DRAFT


class Drafts:
    """Finds what drafts the answers of one model; a small model is loaded once."""

    def __init__(self) -> None:
        self._loaded: dict[str, Drafting] = {}

    def find(
        self, options: DraftOptions, tokenizer: Tokenizer | None, vocab_size: int
    ) -> tuple[Drafting | None, int]:
        """What drafts, and the most tokens that it proposes a step; None, 0: nothing does. It takes
        a while if a small model must be loaded.

        Args:
            tokenizer, vocab_size: those of the model that answers.

        Raises:
            ConfigError: an option is unusable, or the draft has another tokenizer. ModelError: the
            draft's model cannot be read.
        """
        wanted, most = check_draft(options)
        if wanted is None:
            return None, 0
        if not isinstance(wanted, str):
            return wanted, most
        found = self._loaded.get(wanted)
        if found is None:
            found = ModelDrafting.load(wanted, tokenizer, vocab_size)
            self._loaded = {wanted: found}  # one at a time: it may be gigabytes
        return found, most


def check_draft(options: DraftOptions) -> tuple[str | Drafting | None, int]:
    """What is asked for: nothing, a model by its path or name, or a `Drafting`; and the most tokens
    that it proposes a step.

    Raises:
        ConfigError: an option is unusable.
    """
    wanted: Any = options.get("draft")
    most = options.get("draft_tokens")
    if most is not None and (type(most) is not int or not 1 <= most <= MAX_DRAFT):
        raise ConfigError(f"draft_tokens={short(most)}: give a whole number from 1 to {MAX_DRAFT}")
    if wanted in (None, "none"):
        if most is not None:
            raise ConfigError(f"draft_tokens={most} without a draft: give draft='ngram', or a path")
        return None, 0
    if isinstance(wanted, Path):
        wanted = str(wanted)
    if wanted == "ngram":
        wanted = NgramDrafting()
    if not (isinstance(wanted, str) and wanted) and not callable(getattr(wanted, "begin", None)):
        raise ConfigError(f"draft={short(wanted)}: give 'ngram', the path of a model, or None")
    return wanted, DRAFT_TOKENS if most is None else most


class Answer:
    """One answer: chooses tokens from what the parties reveal, and drafts those of the next step.

    Args:
        ids: the prompt. Its answer is added by the caller, see `chosen`.
        sampling, ends: how tokens are chosen, and the ids that end the answer.
        secret: whether the parties reveal only the best token of each row.
        drafting: what drafts. costs: of its proposals, see `Pace`.
    """

    def __init__(
        self,
        ids: Sequence[int],
        sampling: SamplingConfig,
        ends: Collection[int],
        *,
        secret: bool,
        drafting: Drafting | None,
        costs: Sequence[int] = (),
    ) -> None:
        self.text = list(ids)
        """Prompt and answer so far."""
        self.accepted = 0
        """How many tokens of the last draft stay."""
        self.logits: Floats | None = None
        """Those of the last token; None if they are secret."""
        self._ends = ends
        self._secret = secret
        self._sampler = Sampler(sampling, prompt=len(ids), ends=ends)
        self._drafter = None if drafting is None else drafting.begin(sampling, len(ids), ends)
        self._pace = Pace(costs)
        self._draft: list[Proposal] = []

    def chosen(self, results: Floats) -> Iterator[int]:
        """The tokens that one step yields: one more than are accepted. Each is chosen when it is
        asked for, after the one before it.
        """
        self.accepted = 0
        for place, row in enumerate(results[-1 - len(self._draft) :]):
            proposal = self._draft[place] if place < len(self._draft) else None
            token = self._choice(row, proposal)
            self.logits = None if self._secret else row
            agrees = proposal is not None and proposal.token == token
            self.accepted += agrees
            self.text.append(token)
            yield token
            if not agrees:
                return

    def _choice(self, row: Any, proposal: Proposal | None) -> int:
        return int(row) if self._secret else self._sampler.next(row, self.text, proposal)

    async def next(self, room: int) -> list[int]:
        """The tokens of the next step: the last one of the answer, and the draft.

        room: how many more tokens the answer may have.
        """
        self._pace.note(len(self._draft), self.accepted)
        self._draft = []
        most = min(self._pace.next, room - 1)
        if self._drafter is not None and most > 0:
            propose = self._drafter.propose
            found = await anyio.to_thread.run_sync(propose, tuple(self.text), most)
            self._draft = self._usable(found)
        return [self.text[-1], *(proposal.token for proposal in self._draft)]

    @property
    def proposed(self) -> int:
        """Number of tokens in the draft."""
        return len(self._draft)

    def _usable(self, found: list[Proposal]) -> list[Proposal]:
        """A draft up to the token that ends the answer, after which nothing is wanted."""
        for place, proposal in enumerate(found):
            if proposal.token in self._ends:
                return found[: place + 1]
        return found
