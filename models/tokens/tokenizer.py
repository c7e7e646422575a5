"""Converts text to token ids and back, and applies the model's chat template.

A tokenizer is made by transformers from the files of a folder, or read from the metadata of a GGUF
file. Text never leaves the client; the parties only get shares of ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import tokenizers

from models.configs.gguf import gguf_eos_token_ids
from models.files.gguf_reader import GgufFile
from models.files.locate import find_source
from models.tokens.chat_template import (
    ChatOptions,
    Message,
    choose_template,
    render_chat,
    with_system,
)
from models.tokens.cleaning import SETTING, clean, settled
from models.tokens.encoding import Encoding, Side
from models.tokens.folder_tokenizer import has_tokenizer, parts_of_folder
from models.tokens.gguf_tokenizer import templates_of_gguf, tokenizer_from_gguf, warning_of_gguf
from models.tokens.tokenizer_object import INPUTS, LIMIT, SIDE, named_templates, parts_of_object
from protocols.errors import ConfigError, ModelError

__all__ = ["Message", "TokenStream", "Tokenizer"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# transformers writes a huge number where a tokenizer has no limit.
_NO_LIMIT = 1 << 40
_TYPES = "token_type_ids"
_ENDS, _WARNING = "eos_token_ids", "warning"


class Tokenizer:
    """A tokenizer with its special tokens and chat templates.

    `eos_token_ids` are the ids that end a text as far as the tokenizer knows; the configuration
    may name more. `note` is a sentence for the user, or None. `max_length` is the longest input
    that the tokenizer was saved for, or None; `truncation_side` is where longer ones are cut.
    `gives_types`: tokens have a type for each text of a pair; otherwise all types are 0. `warning`
    describes a possible fault, or is None. `cleans`: spaces before punctuation are taken out of
    decoded texts (see `models.tokens.cleaning`).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        eos_token_ids: Sequence[int] = (),
        chat_templates: Mapping[str, str] | None = None,
        max_length: int | None = None,
        truncation_side: Side = "right",
        gives_types: bool = True,
        cleans: bool = False,
        warning: str | None = None,
    ) -> None:
        self._backend = backend
        self.max_length = max_length
        self.truncation_side = truncation_side
        self.gives_types = gives_types
        self.cleans = cleans
        self.warning = warning
        self._special = dict(special_tokens)
        self.eos_token_ids = tuple(eos_token_ids)
        self.chat_templates = dict(chat_templates or {})
        added = backend.get_added_tokens_decoder()
        self._skipped = frozenset(i for i, token in added.items() if token.special)
        self._byte_fallback = "ByteFallback" in str(backend.decoder)
        self.note = None
        if not self.chat_templates:
            self.note = "this model has no chat template; the prompt is continued as plain text"

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load the tokenizer at `path`: next to the weights, in their file, or alone in a folder.

        Raises ModelError if it is missing, damaged or of an unsupported kind.
        """
        try:
            source = find_source(path)
        except ModelError:
            folder = Path(path).expanduser()
            if not folder.is_dir() or not has_tokenizer(folder):
                raise
            return cls.from_folder(folder)  # clients have no weights
        if source.kind == "safetensors":
            return cls.from_folder(source.texts)
        file = GgufFile(source.file)
        try:
            return cls.from_gguf(file.metadata)
        finally:
            file.close()

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether `load` finds a tokenizer, usable or not.

        Raises ModelError if there is no model at the path.
        """
        source = find_source(path)
        if source.kind == "safetensors":
            return has_tokenizer(source.folder)
        file = GgufFile(source.file)
        try:
            return bool(file.metadata.get("tokenizer.ggml.tokens"))
        finally:
            file.close()

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer that transformers' AutoTokenizer makes from a folder.

        It is made from `tokenizer.json`, or from `vocab.txt`, `vocab.json` with `merges.txt`, or
        `tokenizer.model`, with all settings in the folder. Raises ModelError.
        """
        return cls._from_parts(str(folder), *parts_of_folder(folder))

    @classmethod
    def from_object(cls, tokenizer: object) -> Tokenizer:
        """Convert a transformers tokenizer in memory; a `Tokenizer` is returned as it is.

        The object is not changed, and later changes to it have no effect here. Raises ConfigError
        for any other object, and for a slow tokenizer (written in Python).
        """
        if isinstance(tokenizer, Tokenizer):
            return tokenizer
        return cls._from_parts("the tokenizer", *parts_of_object(tokenizer))

    @classmethod
    def _from_parts(
        cls, where: str, data: bytes, config: Mapping[str, Any], templates: Mapping[str, str]
    ) -> Tokenizer:
        try:
            backend = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{where}: cannot be read as a tokenizer ({error})") from None
        # Leftovers from training that would cut or pad a prompt.
        backend.no_truncation()
        backend.no_padding()
        special = _special_tokens(config)
        eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
        return cls(
            backend,
            special_tokens=special,
            eos_token_ids=() if eos is None else (eos,),
            chat_templates=templates,
            max_length=_length_limit(config),
            truncation_side="left" if config.get(SIDE) == "left" else "right",
            gives_types=_TYPES in config.get(INPUTS, [_TYPES]),
            cleans=config.get(SETTING) is True,
        )

    def to_files(self) -> dict[str, bytes]:
        """The whole tokenizer, as the contents of `tokenizer.json` and `tokenizer_config.json`."""
        config = {
            **self._special,
            "chat_template": [
                {"name": name, "template": text} for name, text in self.chat_templates.items()
            ],
            SETTING: self.cleans,
            LIMIT: self.max_length,
            SIDE: self.truncation_side,
            INPUTS: ["input_ids", *([_TYPES] if self.gives_types else [])],
            _ENDS: list(self.eos_token_ids),
            **({} if self.warning is None else {_WARNING: self.warning}),
        }
        return {
            "tokenizer.json": self._backend.to_str().encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Tokenizer:
        """Inverse of `to_files`, for data from a peer. Raises ModelError."""
        damaged = ModelError("the published tokenizer is damaged: pass your own")
        try:
            config = json.loads(files["tokenizer_config.json"])
            data = files["tokenizer.json"]
        except (KeyError, ValueError, RecursionError):
            raise damaged from None
        ends = config.get(_ENDS, []) if isinstance(config, dict) else None
        if not isinstance(ends, list) or not all(type(token) is int for token in ends):
            raise damaged
        try:
            templates = named_templates(config.get("chat_template"))
        except ConfigError:
            raise damaged from None
        made = cls._from_parts("the published tokenizer", data, config, templates)
        made.warning = warning if isinstance(warning := config.get(_WARNING), str) else None
        made.eos_token_ids = tuple(dict.fromkeys((*made.eos_token_ids, *ends)))
        return made

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Read the tokenizer from the metadata of a GGUF file. Raises ModelError."""
        backend, special = tokenizer_from_gguf(metadata)
        return cls(
            backend,
            special_tokens=special,
            eos_token_ids=gguf_eos_token_ids(metadata),
            chat_templates=templates_of_gguf(metadata),
            warning=warning_of_gguf(metadata),
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including added ones."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with the begin token if the tokenizer adds one."""
        return self._encoded(text).ids

    def encode_text(
        self, text: str, pair: str | None = None, *, special_tokens: bool = True
    ) -> Encoding:
        """The tokens of a text or of a pair, with their positions, at any length.

        special_tokens: add the special tokens that the model expects around its input.
        """
        encoded = self._encoded(text, pair, special_tokens=special_tokens)
        return Encoding.of(encoded, types=self.gives_types)

    def _encoded(
        self, text: str, pair: str | None = None, *, special_tokens: bool = True
    ) -> tokenizers.Encoding:
        """Encode a text or a pair. Raises ConfigError for a text that is not valid UTF-8."""
        try:
            (text + (pair or "")).encode()
        except UnicodeEncodeError:
            raise ConfigError("a text is not valid UTF-8: convert it first") from None
        return self._backend.encode(text, pair, add_special_tokens=special_tokens)

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """The text of `ids`, by default without special tokens; U+FFFD for invalid UTF-8."""
        text = self._backend.decode(list(ids), skip_special_tokens=not special_tokens)
        return clean(text) if self.cleans else text

    def decode_begun(self, ids: Sequence[int]) -> str:
        """The text of `ids` as far as it stays the same when more of them follow."""
        # An unfinished character shows as U+FFFD at the end.
        text = self._backend.decode(list(ids), skip_special_tokens=True).rstrip(_REPLACEMENT)
        return settled(text) if self.cleans else text

    # -- single tokens -----------------------------------------------------------------------------

    def special_token(self, name: str) -> str | None:
        """The text of the special token with this name ("mask_token"), or None."""
        return self._special.get(name)

    def special_id(self, name: str) -> int | None:
        """The id of the special token with this name, or None."""
        token = self._special.get(name)
        return None if token is None else self.id_of(token)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling in the vocabulary, or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_of(self, token: int) -> str:
        """The spelling of a token in the vocabulary; "" for an unknown id."""
        return self._backend.id_to_token(token) or ""

    def join(self, tokens: Sequence[str]) -> str:
        """The text of tokens given by their spelling."""
        decoder = self._backend.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    @property
    def marks_subwords(self) -> bool:
        """Whether a token's spelling shows that it continues a word, as "##ing" does."""
        return bool(getattr(self._backend.model, "continuing_subword_prefix", None))

    # -- chats and streams -------------------------------------------------------------------------

    def chat(
        self, text_or_messages: str | Sequence[Message], **options: Unpack[ChatOptions]
    ) -> list[int]:
        """Token ids of a chat, up to the start of the model's answer.

        A string is one user message. Without a template and options a string is encoded unchanged
        (see `note`).

        Raises:
            ConfigError: unusable options, or a chat or options for a model without a template.
            ModelError: the template rejects the messages.
        """
        templates, wanted = self.chat_templates, options.get("chat_template")
        given = [name for name, value in options.items() if value is not None]
        if not templates and wanted is None:
            if given or not isinstance(text_or_messages, str):
                what = f"{given[0]} is of no use" if given else "it takes no chats"
                raise ConfigError(
                    f"the model has no chat template, so {what}: give a text, or a template with "
                    "chat_template=..., or --chat-template FILE"
                )
            return self.encode(text_or_messages)
        template = choose_template(templates, wanted)
        messages: Sequence[Message] = (
            [{"role": "user", "content": text_or_messages}]
            if isinstance(text_or_messages, str)
            else text_or_messages
        )
        # The template writes the begin token itself if the model needs one.
        text = self._rendered(template, messages, options)
        return self._encoded(text, special_tokens=False).ids

    def _rendered(self, template: str, messages: Sequence[Message], options: ChatOptions) -> str:
        """The text of a chat. Raises as `chat`."""
        variables, system = options.get("template_args"), options.get("system")
        if not isinstance(variables, Mapping | None):
            raise ConfigError(f"template_args is {type(variables).__name__}: give a dictionary")
        if system is None:
            return render_chat(template, messages, self._special, variables)
        texts = [
            render_chat(template, with_system(messages, each), self._special, variables)
            for each in (system, f"{system}.")
        ]
        if texts[0] == texts[1]:
            raise ConfigError(
                "the model's chat template leaves system prompts out: put the text into the prompt"
            )
        return texts[0]

    def stream(self) -> TokenStream:
        """A new incremental detokeniser."""
        return TokenStream(self)

    def ends_open(self, token: int) -> bool:
        """Whether the text of a run that ends in `token` may still change.

        Byte tokens of SentencePiece models are decoded in runs: one invalid byte turns the whole
        run into U+FFFD.
        """
        piece = self._backend.id_to_token(token) if self._byte_fallback else None
        return piece is not None and _BYTE_TOKEN.fullmatch(piece) is not None

    def is_skipped(self, token: int) -> bool:
        """Whether `decode` leaves `token` out because it is special."""
        return token in self._skipped


class TokenStream:
    """Decodes a growing list of ids piece by piece.

    The pieces from `push` and the rest from `finish`, joined, are exactly `decode` of all ids. A
    piece never ends within a character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = 0

    def push(self, token: int) -> str:
        """Take one id; return the text that can no longer change (may be empty)."""
        if self._tokenizer.is_skipped(token):
            return ""
        self._ids.append(token)
        if self._tokenizer.ends_open(token):
            return ""
        # Decoding everything again is exact for every decoder, and far cheaper than one token of
        # private inference.
        return self._advance(self._tokenizer.decode_begun(self._ids))

    def finish(self) -> str:
        """Return the text held back, with U+FFFD for characters that were never completed."""
        return self._advance(self._tokenizer.decode(self._ids))

    def _advance(self, text: str) -> str:
        piece = text[self._sent :]
        self._sent += len(piece)
        return piece


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts of the special tokens that templates refer to."""
    return {
        name: token
        for name, token in config.items()
        if name.endswith("_token") and isinstance(token, str)
    }


def _length_limit(config: Mapping[str, Any]) -> int | None:
    limit = config.get(LIMIT)
    return limit if type(limit) is int and 0 < limit < _NO_LIMIT else None
