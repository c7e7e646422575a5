"""`puma chat`: conversations, what Ctrl-C ends, and where there is no terminal."""

import io
import os
import pty
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace

import anyio
import pytest
from conversation import IDS, PROMPT
from party_processes import COMMAND, environment
from waiting import HANG, until

from models.tokens.tokenizer import Tokenizer
from protocols.errors import ConfigError, PeerFailed
from puma_actors.api.local import LocalCluster
from puma_actors.api.usage import Usage
from puma_actors.cli.commands import generate
from puma_actors.cli.commands.talking import conversation as conversations
from puma_actors.cli.commands.talking import terminal
from puma_actors.cli.commands.talking.conversation import Conversation, cost_line
from puma_actors.cli.commands.talking.terminal import Session, talk
from puma_actors.cli.requests import open_requests
from puma_actors.cli.where import Where


@pytest.fixture
def made():
    """Every cluster that was opened."""
    return []


@pytest.fixture
def opener(folder, made):
    @asynccontextmanager
    async def opened():
        async with LocalCluster.from_pretrained(folder) as cluster:
            made.append(cluster)
            yield cluster

    return opened


def chat(tokens=4, **options):
    return Conversation({"max_new_tokens": tokens, "temperature": 0}, {**options}, {})


def lines(*given):
    """A `Read` that gives them; errors are raised."""
    left = [*given, EOFError()]

    def read():
        line = left.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    read.left = left
    return read


def interrupt():
    """Ctrl-C."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def test_a_conversation_has_a_memory_until_it_is_cleared(
    folder, opener, made, answer, tmp_path, capsys
):
    said = Tokenizer.load(folder).decode(answer[:4])
    file = tmp_path / "said.md"
    talked = chat()
    read = lines("I see", "", "/clear", f"/save {file}", f"/save {file}", "/save", "/nope", "/help")
    with Session(opener) as session:
        talk(session, talked, PROMPT, read)
        assert made[0].usage.prompt_ids[: len(IDS) - 1] == IDS[:-1]
        assert len(made[0].usage.prompt_ids) > len(IDS) + 4
    out, err = capsys.readouterr()
    assert out.startswith(f"{said}\n")
    assert "a new conversation" in err
    assert "nothing was said yet" in err
    assert "/save: name a new file" in err
    assert "there is no command /nope" in err
    assert "only you can read" in err
    assert err.count(" rounds · ") == 2  # what each answer took
    assert talked.messages == []
    assert not file.exists()


def test_what_was_said_is_saved_for_its_owner_only(opener, tmp_path, capsys):
    file = tmp_path / "said.md"
    with Session(opener) as session:
        talk(session, chat(), PROMPT, lines(f"/save {file}", f"/save {file}", "/save /no/such/a"))
    out, err = capsys.readouterr()
    assert file.read_text() == f"## You\n\n{PROMPT}\n\n## Answer\n\n{out.strip()}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert err.count("error: ") == 2


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(opener, made, monkeypatch, capsys):
    def shown(text, seen=[]):  # noqa: B006 - counts calls
        seen.append(text)
        if len(seen) == 2:
            interrupt()
        return text

    monkeypatch.setattr(generate, "shown", shown)
    talked = Conversation({"max_new_tokens": 10, "temperature": 0, "eos_token_id": None}, {}, {})
    with Session(opener) as session:
        talk(session, talked, PROMPT, lines("I see", "/nope"))
        assert made[0].client._inferences == {}
    assert [each["role"] for each in talked.messages] == ["user", "assistant"] * 2
    out, err = capsys.readouterr()
    assert out.startswith(talked.messages[1]["content"] + "\n")
    assert len(talked.messages[1]["content"]) < len(talked.messages[3]["content"])
    assert "no command /nope" in err


@pytest.mark.parametrize(("quickly", "left"), [(60.0, 2), (0.0, 0)])
def test_ctrl_c_twice_quickly_ends_the_chat(monkeypatch, quickly, left):
    monkeypatch.setattr(terminal, "QUICKLY", quickly)
    read = lines(KeyboardInterrupt(), KeyboardInterrupt(), "/help")
    talk(None, chat(), None, read)
    assert len(read.left) == left


def test_ctrl_c_twice_during_an_answer_ends_the_chat(opener, monkeypatch):
    main = threading.main_thread().ident

    async def pressed():
        await until(lambda: sys._current_frames()[main].f_code.co_name == "wait")
        interrupt()

    async def stubborn(cluster, ids, sampling, draft, said):
        said.append("Well")
        await pressed()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await pressed()
                await ended.wait()

    ended = anyio.Event()
    monkeypatch.setattr(conversations, "stream", stubborn)
    read, talked = lines("/help"), chat()
    with Session(opener) as session:
        talk(session, talked, PROMPT, read)
        session._background._portal.call(ended.set)
    assert len(read.left) == 2


class Fake:
    """A cluster that answers, or is lost."""

    def __init__(self, lost):
        self.lost = lost
        self.usage = Usage()
        self.tokenizer = SimpleNamespace(chat=lambda asked: [1])

    def most_new_tokens(self, length):
        return 10

    def sampling(self, options):
        return None


@pytest.mark.parametrize("begun", [False, True])
def test_a_lost_session_is_opened_again(monkeypatch, capsys, begun):
    made = []

    @asynccontextmanager
    async def opened():
        made.append(Fake(lost=not made))
        yield made[-1]
        if made[-1].lost:
            raise PeerFailed("dealer has gone")

    async def stream(cluster, ids, sampling, draft, said):
        if begun or not cluster.lost:
            said.append("Well")
        if cluster.lost:
            raise PeerFailed("dealer has gone")

    monkeypatch.setattr(conversations, "stream", stream)
    talked = chat()
    with Session(opened) as session:
        talk(session, talked, "Hello", lines("Hello?"))
    assert len(made) == 2
    assert capsys.readouterr().err.count("dealer has gone") == begun
    assert len(talked.messages) == 4


def test_a_conversation_that_is_too_long_goes_on_when_it_is_cleared(opener, capsys):
    talked = chat(1)
    with Session(opener) as session:
        talk(session, talked, PROMPT, lines("cat " * 400, "/clear", PROMPT))
    err = capsys.readouterr().err
    assert "too many" in err
    assert "/clear begins a new one" in err
    assert talked.messages[0]["content"] == PROMPT


def test_bytes_that_are_no_text_are_refused(capsys):
    talk(None, chat(), None, lines("caf\udce9"))
    assert "not UTF-8" in capsys.readouterr().err


def test_the_line_of_costs():
    usage = Usage(token_ids=[1], seconds={"prefill": 1.25, "decode": 2.0}, stop_reason="length")
    assert cost_line(usage).startswith("1 token in 3.2 s · 0 rounds · ")
    assert cost_line(usage).endswith(" · stopped: token limit")


# -- the command -----------------------------------------------------------------------------------


def test_without_a_terminal_one_prompt_is_answered(folder, answer, puma, monkeypatch, tmp_path):
    said = Tokenizer.load(folder).decode(answer[:3])
    file = tmp_path / "prompt.txt"
    file.write_text(f"{PROMPT}\n")
    ask = ("chat", "--model", folder, "-n", 3, "--temperature", 0)
    for given in ([], ["--prompt-file", file]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{PROMPT}\n".encode())))
        code, out, err = puma(*ask, *given)
        assert (code, out) == (0, f"{said}\n")
        assert " rounds · " in err
        assert "\x1b" not in out + err
    code, _, err = puma(*ask, "--prompt", "x", "--prompt-file", file)
    assert (code, "both given" in err) == (2, True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    code, _, err = puma(*ask)
    assert (code, "is empty" in err) == (2, True)


async def test_a_model_that_cannot_chat_is_refused_before_it_is_loaded(folder, classifier):
    with pytest.raises(ConfigError, match="text"):
        async with open_requests(str(classifier), None, Where(), check=chat().check, quiet=True):
            raise AssertionError


def test_in_a_terminal(folder, answer):
    """The real thing: a line is read, answered, and Ctrl-D ends the chat."""
    said = Tokenizer.load(folder).decode(answer[:3])
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "chat", "--model", folder, "-n", "3", "--temperature", "0"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**environment(), "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(slave)
    seen, at = b"", 0
    try:
        for awaited, typed in (
            (b"> ", f"{PROMPT}\r".encode()),
            (b" rounds ", b""),
            (b"> ", b"\x04"),
        ):
            while awaited not in seen[at:]:
                seen += os.read(master, 4096)
            at = seen.index(awaited, at) + len(awaited)
            os.write(master, typed)
        assert process.wait(HANG) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert said in seen.decode(errors="replace")
