"""Texts, pairs and questions from options, files and standard input.

A file with a name in .jsonl holds JSON lines; any other holds one text per line. So does standard
input, but for inputs that need several parts it holds JSON lines.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from protocols.errors import ConfigError
from puma_actors.cli.commands.reading import STDIN, Reader, name_of
from puma_actors.cli.commands.texts.options import Texts

JSON_LINES = (".jsonl", ".ndjson")


def read_texts(given: Texts) -> list[str]:
    """The texts of the options, then those of `--file`, one per line; empty lines are skipped.

    In a file of JSON lines, each line is a string or an object with one text, under "text".

    Raises:
        ConfigError: a text is empty or cannot be read, or there are no texts.
    """
    return [item["text"] for item in _of_texts(Reader(), given, ["text"])]


def read_pairs(given: Texts, pairs: Sequence[str]) -> list[dict[str, str]]:
    """Texts and their second texts, as {"text": ..., "text_pair": ...}.

    Lines of a file that are not JSON objects have no second text.

    Raises:
        ConfigError: as `read_texts`, or there are second texts, but not one for each text.
    """
    reader = Reader()
    seconds = reader.texts("--pair", pairs)
    found = _of_texts(reader, given, ["text", "text_pair"], optional="text_pair")
    firsts = len(given.text or []) + len(given.text_file or [])
    if seconds and len(seconds) != firsts:
        raise ConfigError(
            f"{firsts} texts for {len(seconds)} second texts: give a --pair for each --text"
        )
    for item, second in zip(found, seconds, strict=False):
        item["text_pair"] = second
    return found


def read_questions(
    questions: Sequence[str],
    contexts: Sequence[str],
    context_files: Sequence[Path],
    file: Path | None,
) -> list[dict[str, str]]:
    """Questions and contexts, as {"question": ..., "context": ...}.

    Raises:
        ConfigError: a text is empty or cannot be read, there are none, or there are several
            questions and several contexts, and not as many.
    """
    reader = Reader()
    both = [
        reader.texts("--question", questions),
        reader.texts("--context", contexts, context_files),
    ]
    counts = [len(each) for each in both]
    both = [each * (max(counts) if len(each) == 1 else 1) for each in both]
    if len(both[0]) != len(both[1]):
        raise ConfigError(
            f"{counts[0]} questions for {counts[1]} contexts: give --question and --context as "
            "often, or one of them once"
        )
    found = [{"question": asked, "context": text} for asked, text in zip(*both, strict=True)]
    return found + _of_file(reader, file, ["question", "context"], needed=not found)


def read_queries(
    queries: Sequence[str], documents: Sequence[str], corpus: Path | None, file: Path | None
) -> list[dict[str, Any]]:
    """Queries and their documents, as {"query": ..., "documents": [...]}.

    Args:
        documents, corpus: the documents of all `queries`, and a file with more of them.
        file: JSON lines of further queries, each with documents of its own.

    Raises:
        ConfigError: a text is empty or cannot be read, or a query has no documents.
    """
    if file is not None and file.suffix not in JSON_LINES and str(file) != STDIN:
        raise ConfigError(
            f'--file: {file} must hold JSON lines, with a name in .jsonl: {{"query": ..., '
            '"documents": [...]}; documents alone are given with --documents'
        )
    reader = Reader()
    asked = reader.texts("--query", queries)
    texts = reader.texts("--document", documents)
    if corpus is not None:
        lines = _lines(reader, "--documents", corpus, ["document"])
        texts += [item["document"] for item in lines]
    if asked and not texts:
        raise ConfigError("a query has no documents: give --document or --documents")
    if texts and not asked:
        raise ConfigError("documents have no query: give --query")
    found = [{"query": query, "documents": texts} for query in asked]
    return found + _of_file(reader, file, ["query", "documents"], needed=not found)


def _of_texts(
    reader: Reader, given: Texts, keys: Sequence[str], *, optional: str = ""
) -> list[dict[str, Any]]:
    """The texts of the options as the first part of inputs, then the inputs in the file."""
    texts = reader.texts("--text", given.text or [], given.text_file or [])
    found = [{keys[0]: text} for text in texts]
    return found + _of_file(reader, given.file, keys, optional=optional, needed=not found)


def _of_file(
    reader: Reader, file: Path | None, keys: Sequence[str], *, needed: bool, optional: str = ""
) -> list[dict[str, Any]]:
    """The inputs in a file; ConfigError if there is none, although it is `needed`."""
    if file is not None:
        return list(_lines(reader, "--file", file, keys, optional=optional))
    if needed:
        raise ConfigError(f"nothing was given: give --{keys[0]} or --file")
    return []


def _lines(
    reader: Reader, option: str, file: Path, keys: Sequence[str], *, optional: str = ""
) -> Iterator[dict[str, Any]]:
    """The inputs in a file, with these keys, of which `optional` may be missing. A line that is not
    a JSON object is the first part of an input.
    """
    standard = str(file) == STDIN
    as_json = file.suffix in JSON_LINES or (standard and len(keys) - bool(optional) > 1)
    content = reader.file(option, file)
    # In JSON, other line separators are part of a text.
    lines = content.split("\n") if as_json else content.splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{option}: line {number} of {name_of(file)}"
            item = _input(place, line, keys) if as_json else {keys[0]: line}
            for key in keys:
                if key in item or key != optional:
                    _check(place, key, item)
            yield item


def _input(place: str, line: str, keys: Sequence[str]) -> dict[str, Any]:
    """What a line of JSON says. Raises ConfigError for anything but a text or an object."""
    try:
        item: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{place} is not JSON") from None
    if isinstance(item, str):
        return {keys[0]: item}
    if not isinstance(item, Mapping) or not item.keys() <= set(keys):
        wanted = ", ".join(map(repr, keys))
        raise ConfigError(f"{place} is neither a string nor an object with the keys {wanted}")
    return dict(item)


def _check(place: str, key: str, item: Mapping[str, Any]) -> None:
    """Raise ConfigError if a part is missing, or is neither a text nor a list of texts."""
    value = item.get(key)
    texts = value if isinstance(value, list) and value else [value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        what = "list of documents" if key == "documents" else key
        raise ConfigError(f"{place}: a {what} is empty or missing: give some text")


def single_or_all(items: Sequence[Any], *, alone: bool) -> Any:
    """The inputs of a task; a single one is not in a list if it stands `alone`."""
    return items[0] if alone and len(items) == 1 else list(items)


def titles_of(
    items: Sequence[Mapping[str, Any]], *, alone: bool, key: str | None = None
) -> list[str] | None:
    """Titles for the results: one part of each input, the first by default; None for an input that
    stands `alone`.
    """
    if alone and len(items) == 1:
        return None
    return [str(item[key] if key else next(iter(item.values()))) for item in items]
