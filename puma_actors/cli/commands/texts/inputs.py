"""Texts, pairs and questions from options, files and standard input.

A file with a name in .jsonl holds JSON lines; any other holds one text per line. So does standard
input, but for inputs that need several parts it holds JSON lines.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from protocols.errors import ConfigError

JSON_LINES = (".jsonl", ".ndjson")
STANDARD_INPUT = Path("-")


def read_texts(texts: Sequence[str], file: Path | None, *, what: str = "text") -> list[str]:
    """The texts of the command line, then those of a file, one per line; empty lines are skipped.

    In a file of JSON lines, each line is a string or an object with one text, under the key `what`.

    Raises:
        ConfigError: the file cannot be read, or there are no texts.
    """
    return [item[what] for item in read_items(texts, file, [what])]


def read_items(
    texts: Sequence[str], file: Path | None, keys: Sequence[str], *, optional: str = ""
) -> list[dict[str, Any]]:
    """As `read_texts`, for inputs of several parts: objects with these keys.

    The texts of the command line, and lines that are not JSON objects, only have the first part.

    Args:
        keys: the parts, of which `optional` may be missing.

    Raises:
        ConfigError: the file cannot be read, a part is missing or empty, or there are no texts.
    """
    first = keys[0]
    found: list[dict[str, Any]] = [{first: text} for text in texts]
    named = [f"--{first}"] * len(found)
    if file is not None:
        for number, item in _lines(file, keys, len(keys) - bool(optional)):
            found.append(item)
            named.append(f"--file, line {number}")
    if not found:
        raise ConfigError(f"nothing was given: give --{first} or --file")
    for place, item in zip(named, found, strict=True):
        for key in keys:
            if key in item or key != optional:
                _check(place, key, item)
    return found


def _lines(file: Path, keys: Sequence[str], needed: int) -> Iterator[tuple[int, dict[str, Any]]]:
    as_json = file.suffix in JSON_LINES or (file == STANDARD_INPUT and needed > 1)
    content = _content(file)
    # In JSON, other line separators are part of a text.
    lines = content.split("\n") if as_json else content.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item: Any = line
        if as_json:
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                raise ConfigError(f"--file: line {number} of {file} is not JSON") from None
        if isinstance(item, str):
            item = {keys[0]: item}
        if not isinstance(item, Mapping) or not item.keys() <= set(keys):
            wanted = ", ".join(map(repr, keys))
            raise ConfigError(
                f"--file: line {number} of {file} is neither a string nor an object with the keys "
                f"{wanted}"
            )
        yield number, dict(item)


def _content(file: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if file == STANDARD_INPUT else file.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--file: cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--file: {file} is not UTF-8 text: convert it") from None


def _check(place: str, key: str, item: Mapping[str, Any]) -> None:
    """Raise ConfigError if a part is missing, or is neither a text nor a list of texts."""
    value = item.get(key)
    texts = value if isinstance(value, list) and value else [value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        what = "list of documents" if key == "documents" else key
        raise ConfigError(f"{place}: a {what} is empty or missing: give some text")


def read_pairs(
    texts: Sequence[str], pairs: Sequence[str], file: Path | None
) -> list[dict[str, Any]]:
    """Texts and their second texts, as {"text": ..., "text_pair": ...}. Raises as `read_items`."""
    if pairs and len(pairs) != len(texts):
        raise ConfigError(
            f"{len(texts)} texts for {len(pairs)} second texts: give a --pair for each --text"
        )
    for pair in pairs:
        _check("--pair", "text_pair", {"text_pair": pair})
    found = read_items(texts, file, ["text", "text_pair"], optional="text_pair")
    for item, pair in zip(found, pairs, strict=False):
        item["text_pair"] = pair
    return found


def read_questions(
    questions: Sequence[str], contexts: Sequence[str], file: Path | None
) -> list[dict[str, Any]]:
    """Questions and contexts, as {"question": ..., "context": ...}.

    Raises:
        ConfigError: as `read_items`, or there are several of both, and not as many.
    """
    most = max(len(questions), len(contexts))
    both = [list(each) * (most if len(each) == 1 else 1) for each in (questions, contexts)]
    if len(both[0]) != len(both[1]):
        raise ConfigError(
            f"{len(questions)} questions for {len(contexts)} contexts: give --question and "
            "--context as often, or one of them once"
        )
    given = [{"question": asked, "context": context} for asked, context in zip(*both, strict=True)]
    for item in given:
        for key in item:
            _check(f"--{key}", key, item)
    if file is None and given:
        return given
    return given + read_items([], file, ["question", "context"])


def read_queries(
    queries: Sequence[str], documents: Sequence[str], corpus: Path | None, file: Path | None
) -> list[dict[str, Any]]:
    """Queries and their documents, as {"query": ..., "documents": [...]}.

    Args:
        documents, corpus: the documents of all `queries`, and a file with more of them.
        file: JSON lines of further queries, each with documents of its own.

    Raises:
        ConfigError: as `read_items`, or a query has no documents.
    """
    if file is not None and file.suffix not in JSON_LINES and file != STANDARD_INPUT:
        raise ConfigError(
            f'--file: {file} must hold JSON lines, with a name in .jsonl: {{"query": ..., '
            '"documents": [...]}; documents alone are given with --documents'
        )
    texts = read_texts(documents, corpus, what="document") if documents or corpus else []
    found = [{"query": query, "documents": texts} for query in queries]
    if found and not texts:
        raise ConfigError("a query has no documents: give --document or --documents")
    if texts and not found:
        raise ConfigError("documents have no query: give --query")
    for item in found:
        _check("--query", "query", item)
    if found and file is None:
        return found
    return found + read_items([], file, ["query", "documents"])


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
