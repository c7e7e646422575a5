"""Texts from files and standard input, and what is made of them: chats, by any template."""

import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conversation import IDS, PROMPT
from waiting import HANG

from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster
from puma_actors.cli.commands import reading
from puma_actors.cli.commands.reading import Reader, template_args

SHORT = "{{ messages[-1].content }}{% if more is defined %}{{ ' dog' * more }}{% endif %}"


@pytest.fixture
def stdin(monkeypatch):
    """Give the program a standard input."""

    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a cluster starts: bad input must be found before."""

    async def started(self) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.setattr(LocalCluster, "__aenter__", started)


@pytest.fixture(scope="module")
def named(folder, tmp_path_factory):
    """A model with two chat templates."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("named") / "model")
    (copy / "additional_chat_templates").mkdir()
    (copy / "additional_chat_templates" / "short.jinja").write_text(SHORT)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "chat_template.jinja").write_text(settings.pop("chat_template"))
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    return copy


def prompt_ids(result) -> list[int]:
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)["prompt_ids"]


def refused(result, says: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert re.search(says, err), err
    assert err.count("\n") == 1


# -- reading ---------------------------------------------------------------------------------------

READ = {
    "plain": (b"I see", "I see"),
    "one line break": (b"I see\n", "I see"),
    "two line breaks": (b"I see\n\n", "I see\n"),
    "as Windows writes": (b"\xef\xbb\xbfI\r\nsee\r\n", "I\r\nsee"),
    "a return alone": (b"I see\r", "I see\r"),
    "spaces": (b"  I see \n", "  I see "),
    "letters": ("żółć 日本 🙂\n".encode(), "żółć 日本 🙂"),
}


@pytest.mark.parametrize("case", READ)
def test_a_file_or_stdin_loses_one_line_break(tmp_path, stdin, case):
    data, expected = READ[case]
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    assert Reader().one("--prompt", None, "--prompt-file", file) == expected
    stdin(data)
    assert Reader().one("--prompt", "-", "--prompt-file", None) == expected


UNREADABLE = {
    "empty": (b"", "is empty: give some text"),
    "blank": (b" \n\n", "is empty: give some text"),
    "not UTF-8": (b"ab\xff", r"is not UTF-8 text \(byte 3\): convert it first"),
    "UTF-16": ("I see".encode("utf-16"), r"is not UTF-8 text \(byte 1\)"),
    "large": (b"a" * 65, "has more than 64 B: shorten it"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unusable_files_and_stdin(tmp_path, stdin, monkeypatch, case):
    monkeypatch.setattr(reading, "MOST", 64)
    data, message = UNREADABLE[case]
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=f"--prompt-file: .*prompt.txt {message}"):
        Reader().one("--prompt", None, "--prompt-file", file)
    stdin(data)
    with pytest.raises(ConfigError, match=f"--prompt: standard input {message}"):
        Reader().one("--prompt", "-", "--prompt-file", None)


def test_other_files(tmp_path, stdin):
    reader = Reader()
    for file, message in [
        (tmp_path, "is a directory: give a file"),
        (tmp_path / "none", "cannot read .*none: No such file or directory"),
        (tmp_path / "a\0b", "is no name of a file"),
    ]:
        with pytest.raises(ConfigError, match=message):
            reader.file("--prompt-file", file)
    stdin(b"I see")
    assert reader.text("--context", "-") == "I see"
    with pytest.raises(ConfigError, match="is read by --context and --question: give one of the"):
        reader.text("--question", "-")
    with pytest.raises(ConfigError, match="is read twice"):
        reader.text("--context", "-")
    with pytest.raises(ConfigError, match="--prompt and --prompt-file are both given"):
        reader.one("--prompt", "a", "--prompt-file", tmp_path)
    with pytest.raises(ConfigError, match="no text: give --prompt TEXT, --prompt -, or --prompt-"):
        reader.one("--prompt", None, "--prompt-file", None)


def test_what_never_ends_is_not_read_whole(monkeypatch):
    monkeypatch.setattr(reading, "MOST", 1 << 12)
    with pytest.raises(ConfigError, match="has more than"):
        Reader().file("--prompt-file", reading.Path("/dev/zero"))


def test_a_pipe_is_a_file_too():
    ends = os.pipe()
    os.write(ends[1], b"I see\n")
    os.close(ends[1])
    assert Reader().file("--prompt-file", reading.Path(f"/dev/fd/{ends[0]}")) == "I see"
    os.close(ends[0])


def test_variables():
    given = ["a=1", "b=false", "c=x y", 'd={"e": [null, 2.5]}', "f=", 'g="1"', "h=NaN", "i=a=b"]
    expected = {"a": 1, "b": False, "c": "x y", "d": {"e": [None, 2.5]}, "f": "", "g": "1"}
    assert template_args(given) == {**expected, "h": "NaN", "i": "a=b"}
    for wrong in ("a", "=1", "a b=1", "1a=2"):
        with pytest.raises(ConfigError, match="write NAME=VALUE, such as enable_thinking=false"):
            template_args([wrong])
    with pytest.raises(ConfigError, match="--template-arg a: given twice"):
        template_args(["a=1", "a=2"])


# -- commands --------------------------------------------------------------------------------------


def test_the_prompt_of_generate(puma, named, stdin, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(f"{PROMPT}\n")
    generate = ("generate", "-m", named, "-n", 1, "--json")
    assert prompt_ids(puma(*generate, "--prompt-file", file)) == IDS
    stdin(PROMPT.encode())
    assert prompt_ids(puma(*generate, "-p", "-")) == IDS


def test_chats_of_generate(puma, named, stdin, tmp_path):
    tokenizer = Tokenizer.load(named)
    generate = ("generate", "-m", named, "-n", 1, "--json")
    stdin(b"the dog\n")
    found = prompt_ids(puma(*generate, "-p", PROMPT, "--system", "-"))
    assert found == tokenizer.chat(PROMPT, system="the dog") != IDS
    short = (*generate, "-p", PROMPT, "--chat-template", "short")
    assert prompt_ids(puma(*short)) == IDS[1:-1]
    expected = tokenizer.encode(f"{PROMPT} dog dog")
    assert prompt_ids(puma(*short, "--template-arg", "more=2")) == expected
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }} dog")
    found = prompt_ids(puma(*generate, "-p", PROMPT, "--chat-template", file))
    assert found == tokenizer.encode(f"{PROMPT} dog")


REFUSED = [
    ([], "there is no text: give --prompt TEXT, --prompt -, or --prompt-file"),
    (["-p", "x", "--prompt-file", "y"], "--prompt and --prompt-file are both given"),
    (["--prompt-file", "."], "--prompt-file: . is a directory"),
    (["--prompt-file", "none"], "cannot read none"),
    (["-p", "x", "--raw", "--system", "y"], "system is for the chat template, which raw"),
    (["-p", "x", "--raw", "--template-arg", "a=1"], "template_args is for the chat template"),
    (["-p", "x", "--raw", "--chat-template", "short"], "chat_template is for the chat template"),
    (["-p", "x", "--chat-template", "shrt"], r"neither a file nor one of .* \(default, short\)"),
    (["-p", "x", "--chat-template", "."], "--chat-template: . is a directory"),
    (["-p", "x", "--template-arg", "more=1"], "has no variable 'more'"),
    (["-p", "x", "--template-arg", "more"], "write NAME=VALUE"),
    (["-p", "x", "--system", " "], "--system: the text is empty"),
    (["-p", "x", "--chat-template", "short", "--system", "y"], "leaves system prompts out"),
    (["-p", "-", "--system", "-"], "standard input is read by --prompt and --system"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_refused_before_any_work(puma, no_work, named, stdin, options, says):
    stdin(b"I see")
    refused(puma("generate", "-m", named, *options), says)


def test_texts_of_other_commands(
    puma, no_work, classifier, filler, reader, tagger, judge, ranker, stdin, tmp_path
):
    """What a text says is checked against the model: so it arrived there."""
    long, file = "cat " * 99, tmp_path / "text.txt"
    file.write_text(long)
    says = r"1\d\d tokens do not fit the limit"
    for command, model, more in (
        ("classify", classifier, ()),
        ("embed", filler, ()),
        ("fill-mask", filler, ()),
        ("tag", tagger, ()),
        ("zero-shot", judge, ("--labels", "a")),
    ):
        given = (command, "-m", model, *more, "--no-truncate")
        text = "[MASK]" if command == "fill-mask" else "a"
        refused(puma(*given, "--text-file", file), says)
        refused(puma(*given, "-t", text, "--text-file", file), says)
        stdin(long.encode())
        refused(puma(*given, "-t", text, "-t", "-"), says)
        stdin(f"{text}\n\n{long}\n".encode())
        refused(puma(*given, "--file", "-"), says)
        stdin(b"a")
        refused(puma(*given, "-t", "-", "--file", "-"), "is read by --text and --file")
        refused(puma(*given), "nothing was given: give --text or --file")
    stdin(long.encode())
    pair = ("classify", "-m", classifier, "-t", "a", "--no-truncate", "--pair", "-")
    refused(puma(*pair), "tokens do not fit")
    answer = ("answer", "-m", reader)
    stdin(long.encode())
    refused(puma(*answer, "-q", "-", "--context-file", file), "shorten the question")
    refused(puma(*answer, "-q", "a"), "1 questions for 0 contexts")
    rerank = ("rerank", "-m", ranker, "--no-truncate")
    for options in (
        ("-q", "a", "-d", "-"),
        ("-q", "-", "-d", "a"),
        ("-q", "a", "--documents", "-"),
    ):
        stdin(long.encode())
        refused(puma(*rerank, *options), "tokens do not fit")


def test_closed_stdin(named):
    command = [sys.executable, "-m", "puma_actors", "generate", "-m", str(named), "-p", "-"]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == b"error: --prompt: standard input is empty: give some text\n"


@pytest.mark.parametrize(
    "command", ["generate", "classify", "fill-mask", "tag", "embed", "zero-shot"]
)
def test_help_says_who_sees_arguments(puma, command):
    _, out, _ = puma(command, "--help")
    words = " ".join(re.sub(r"[^a-z ]", " ", out).split())
    assert "in lists of processes" in words
