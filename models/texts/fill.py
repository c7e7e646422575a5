"""fill-mask: predict the tokens in place of a mask."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from models.texts.task import Job, TextTask, check_count, check_words, many, softmax
from models.tokens.encoding import Encoding
from protocols.base.ring import Floats
from protocols.errors import ConfigError, ModelError


class FillMask(TextTask):
    """Inputs and outputs as those of transformers' FillMaskPipeline.

    The parties do not learn where the masks are: logits are computed for every token.
    """

    name: ClassVar[str] = "fill-mask"

    @property
    def mask_id(self) -> int:
        """Id of the mask token. Raises ModelError if the tokenizer names none."""
        found = self.tokenizer.special_id("mask_token")
        if found is None:
            raise ModelError(
                "the tokenizer names no mask token: put it into tokenizer_config.json as mask_token"
            )
        return found

    def job(
        self,
        inputs: Any,
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        truncation: bool | None = None,
    ) -> Job:
        """
        Args:
            inputs: a text with one mask or more, or a list of texts.
            top_k: number of tokens to return for each mask.
            targets: tokens to choose from; default: all. Scores remain those over all tokens.
        """
        items, single = many(inputs)
        check_count("top_k", top_k)
        chosen = None if targets is None else self._target_ids(targets)
        encodings = [self._encode(item, truncation) for item in items]

        def finish(results: Sequence[Floats]) -> Any:
            answers = [
                self._answer(encoding, result, top_k, chosen)
                for encoding, result in zip(encodings, results, strict=True)
            ]
            return answers[0] if single or len(answers) == 1 else answers

        return Job(encodings, "all", finish)

    def _encode(self, item: Any, truncation: bool | None) -> Encoding:
        """Raises ConfigError: the text has no mask, or cutting it takes one away unasked."""
        encoding = self.encode(item, truncation=truncation)
        masks = encoding.ids.count(self.mask_id)
        if encoding.dropped:
            lost = self.tokenizer.encode_text(item).ids.count(self.mask_id) - masks
            if lost and (not truncation or not masks):
                raise ConfigError(
                    f"a text has {len(encoding) + encoding.dropped} tokens, more than the limit of "
                    f"{len(encoding)}, and a mask is in the part to cut: shorten the text"
                )
        if not masks:
            mask = self.tokenizer.special_token("mask_token")
            raise ConfigError(f"a text has no mask: write {mask} where a token is to be predicted")
        return encoding

    def _answer(
        self, encoding: Encoding, logits: Floats, top_k: int, targets: list[int] | None
    ) -> Any:
        places = [place for place, token in enumerate(encoding.ids) if token == self.mask_id]
        answers = []
        for place in places:
            scores = softmax(logits[place])
            among = np.arange(len(scores)) if targets is None else np.asarray(targets)
            best = among[np.argsort(-scores[among], kind="stable")][:top_k]
            answers.append(
                [
                    self._proposal(encoding, place, int(token), float(scores[token]), len(places))
                    for token in best
                ]
            )
        return answers[0] if len(places) == 1 else answers

    def _proposal(
        self, encoding: Encoding, place: int, token: int, score: float, masks: int
    ) -> dict[str, Any]:
        ids = list(encoding.ids)
        ids[place] = token
        padding = self.config.pad_token_id
        shown = [i for i in ids if i != padding]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token], special_tokens=True),
            # The other masks must stay visible.
            "sequence": self.tokenizer.decode(shown, special_tokens=masks > 1),
        }

    def _target_ids(self, targets: str | Sequence[str]) -> list[int]:
        """One token per target, by its spelling in the vocabulary or as plain text."""
        words = check_words("targets", targets)
        if not words:
            raise ConfigError("targets is empty: name at least one token, or leave it out")
        found = set()
        for number, word in enumerate(words):
            token = self.tokenizer.id_of(word)
            pieces = self.tokenizer.encode_text(word, special_tokens=False).ids
            if token is None and len(pieces) != 1:
                raise ConfigError(
                    f"targets[{number}] is {len(pieces)} tokens of the vocabulary: name single ones"
                )
            found.add(pieces[0] if token is None else token)
        return sorted(found)
