"""Answers on terminals and in pipes: text as it comes, one status line, progress in long work."""

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest
from conversation import IDS, PROMPT
from hypothesis import given
from hypothesis import strategies as st
from reference import torch_greedy
from rich.cells import cell_len
from secure_models import tiny_config
from waiting import HANG

from models.programs.plan import draft_plan
from models.programs.predict import predict
from models.programs.program import Batch
from models.tokens.tokenizer import Tokenizer
from protocols.base.lane import Settings
from protocols.drivers import attending
from puma_actors.api.usage import Step
from puma_actors.cli import following, progress, screen
from puma_actors.cli.output import amount

pytestmark = pytest.mark.slow

PUMA = [sys.executable, "-c", "from puma_actors.cli import main; main()"]
TOKEN = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\x1b[D78]|[^\x1b]", re.S)


class Terminal:
    """As much of a terminal as is needed: rows that scroll away are kept."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows: list[list[str]] = [[]]
        self.top = self.row = self.column = 0
        self.saved = (0, 0)

    def feed(self, text: str) -> None:
        for token in TOKEN.findall(text):
            if token in ("\n", "\x1bD"):
                self._down()
                self.column = 0 if token == "\n" else self.column
            elif token == "\r":
                self.column = 0
            elif token == "\x1b[A":
                self.row = max(self.top, self.row - 1)
            elif token == "\x1b[B":
                self.row = min(self.row + 1, self.top + self.height - 1)
            elif token == "\x1b7":
                self.saved = (self.row - self.top, self.column)
            elif token == "\x1b8":
                self.row, self.column = self.top + self.saved[0], self.saved[1]
            elif token == "\x1b[K":
                del self.rows[self.row][self.column :]
            elif token == "\x1b[J":
                del self.rows[self.row][self.column :], self.rows[self.row + 1 :]
            elif token.startswith("\x1b"):
                assert token.endswith("m"), token
            else:
                self._put(token)

    def _down(self) -> None:
        self.row += 1
        while len(self.rows) <= self.row:
            self.rows.append([])
        self.top = max(self.top, self.row - self.height + 1)

    def _put(self, character: str) -> None:
        size = cell_len(character)
        if self.column + size > self.width:
            self._down()
            self.column = 0
        row = self.rows[self.row]
        row += [" "] * (self.column + size - len(row))
        row[self.column : self.column + size] = [character, *[""] * (size - 1)]
        self.column += size

    @property
    def text(self) -> list[str]:
        found = ["".join(row).rstrip() for row in self.rows]
        while found and not found[-1]:
            found.pop()
        return found


class Stream(io.StringIO):
    """A terminal's stream."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.terminal.feed(text)
        return len(text)


STATUS = "~" * 30
PARTS = st.lists(
    st.one_of(
        st.text(st.sampled_from("ab \n界é"), min_size=1, max_size=30).map(lambda t: ("text", t)),
        st.just(("status", "")),
        st.text(st.sampled_from("xyz"), min_size=1, max_size=30).map(lambda t: ("note", f"{t}\n")),
    ),
    max_size=30,
)


@given(parts=PARTS, width=st.integers(2, 40), height=st.integers(2, 6))
def test_a_status_line_leaves_the_text_as_it_would_be_alone(parts, width, height):
    shown, alone = Terminal(width, height), Terminal(width, height)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", Stream(shown))
        patch.setattr(sys, "stderr", Stream(shown))
        patch.setattr(screen, "_width", lambda stream: width)
        ours = False
        with screen.Screen() as found:
            for kind, text in parts:
                if kind == "text":
                    found.write(text)
                    alone.feed(text)
                    ours = not text.endswith("\n")
                elif kind == "note":
                    print(text, end="", file=sys.stderr)
                    alone.feed(f"\n{text}" if ours else text)
                    ours = False
                else:
                    found.status(STATUS)
                    below = [row for row in shown.text if "~" in row]
                    assert len(below) <= 1
                    if below:
                        assert shown.text[-1] == "~" * min(30, width - 1)
                        assert "\n".join(shown.text[:-1]).rstrip("\n") == "\n".join(alone.text)
                    full = alone.column == width
                    assert bool(below) is not full
    assert shown.text == alone.text
    assert (shown.row, shown.column) == (alone.row, alone.column)


def on_terminal(folder, *arguments: object) -> Terminal:
    """What a terminal of 40 x 5 shows of a command, and had shown."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 40, 0, 0))
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "40", "LINES": "5", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [*PUMA, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, env=environ
    )
    os.close(theirs)
    terminal, data = Terminal(40, 5), b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # both ends are closed
            break
        if not part:
            break
        data += part
    os.close(ours)
    assert process.wait(HANG) == 0, data
    terminal.feed(data.decode().replace("\r\n", "\n"))
    return terminal


def test_a_long_answer_on_a_small_terminal(folder, puma, reference):
    many = 39  # the next token would be a toss-up, and no two runs need say the same
    _, leads = torch_greedy(reference, IDS, many)
    assert min(leads) > 0.03
    arguments = ("generate", "-m", folder, "-p", PROMPT, "-n", many)
    _, out, _ = puma(*arguments)
    assert len(out) > 120  # more than fits the screen's five rows beside the table
    found = on_terminal(folder, *arguments)
    alone = Terminal(40, 5)
    alone.feed(out)
    start = found.text.index(alone.text[0])
    assert found.text[start : start + len(alone.text)] == alone.text
    assert found.text[:start] == []
    assert not any("left" in row or "loading" in row for row in found.text)
    assert any("stopped: " in row for row in found.text)  # what follows


def test_long_work_tells_how_far_it_is_in_pipes(puma, folder, tmp_path, monkeypatch):
    for module, name in ((progress, "EVERY"), (following, "_PATIENCE"), (progress, "_PATIENCE")):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(progress, "TICK", 0.002)
    slow = ("-m", folder, "--network", "8ms")
    code, out, err = puma("generate", *slow, "-p", PROMPT, "-n", 3)
    assert code == 0
    lines = err.splitlines()
    told = [re.match(r"running the model on 7 tokens · (\d+)% · (\d+) of (\d+) rounds · ", each)
            for each in lines]  # fmt: skip
    rounds = [(int(each[2]), int(each[3])) for each in told if each]
    assert len(rounds) > 5
    assert rounds == sorted(rounds)
    assert len({total for _, total in rounds}) == 1
    assert 0 < rounds[-1][0] <= rounds[0][1]
    assert any(re.search(r"about \d+ s left", each) for each in lines)
    assert any(
        re.search(r"^2 tokens · [\d.]+ tokens/s .* at most \d+ s left", each) for each in lines
    )
    assert "rounds" not in out
    code, out, err = puma("forward", *slow, "--input-ids", "1,2", "-o", tmp_path / "x.npz")
    assert code == 0
    assert re.search(r"running the model on 2 tokens · \d+% · \d+ of \d+ rounds", err)
    code, out, err = puma("generate", *slow, "-p", PROMPT, "-n", 2, "--json")
    assert (code, err) == (0, "")


def test_the_rounds_told_are_the_predicted(folder, monkeypatch):
    from puma_actors.api.blocking import PrivateModel

    with PrivateModel.from_pretrained(folder) as model:
        found, counted = following.Following(model.cluster), []
        monkeypatch.setattr(following, "_PATIENCE", 0.0)
        step = type(model.cluster.client).step

        async def last(self, inference, *given):
            result = await step(self, inference, *given)
            counted.append(found._predicted(model.cluster.step))
            return result

        monkeypatch.setattr(type(model.cluster.client), "step", last)
        model.forward([1, 2, 3])
        (cost,) = model.usage.steps
        assert counted[0].rounds == cost.rounds


def test_a_prediction_beside_the_request_takes_no_longer_than_another(monkeypatch):
    """It shares the processor with the request: equal layers are traced only once. It ends
    with its step.
    """
    config = tiny_config(layers=12)
    step = Step(0, Batch((5,), "last"), 1, 0, Settings(), 0.0)
    requests = SimpleNamespace(step=step, plan=draft_plan(config))
    attended = 0
    attend = attending.attend

    def counted(*args, **options):
        nonlocal attended
        attended += 1
        return attend(*args, **options)

    monkeypatch.setattr(attending, "attend", counted)
    expected = predict(config, step.batch)[0].cost
    alone, attended = attended, 0
    found = following.Following(requests)
    assert found._predicted(step) == expected
    assert attended == alone < 12
    requests.step, found._known = None, {}
    assert found._predicted(step) is None


def test_texts_in_several_batches_are_counted_together(puma, folder, monkeypatch):
    from puma_actors.api import pipelines

    for module, name in ((progress, "EVERY"), (following, "_PATIENCE"), (progress, "TICK")):
        monkeypatch.setattr(module, name, 0.002)
    init = pipelines.TextPipeline.__init__

    def small(self, *args, **options):
        init(self, *args, **{**options, "batch_tokens": 4})

    monkeypatch.setattr(pipelines.TextPipeline, "__init__", small)
    texts = [part for text in ("I see", "the red cat", "I see the cat") for part in ("-t", text)]
    code, _, err = puma("embed", "-m", folder, "--network", "10ms", *texts)
    assert code == 0, err
    told = re.findall(r"running the model on (\d+) tokens · (\d+)%", err)
    assert len({tokens for tokens, _ in told}) == 1
    shares = [int(share) for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] > 60
    assert any(0 < share < 40 for share in shares)


def test_no_line_cuts_a_text_in_one_file(tmp_path, monkeypatch):
    with (tmp_path / "both").open("w+") as both, (tmp_path / "other").open("w+") as other:
        for err, expected in ((both, "a line\nThe answer.\nlast\n"), (other, "The answer.\n")):
            both.seek(0)
            both.truncate()
            monkeypatch.setattr(sys, "stdout", both)
            monkeypatch.setattr(sys, "stderr", err)
            with screen.Screen() as shown:
                shown.line("a line")
                shown.write("The ")
                shown.line("5 tokens")
                shown.write("answer.\n")
                shown.line("last")
            both.seek(0)
            assert both.read() == expected
        other.seek(0)
        assert other.read() == "a line\n5 tokens\nlast\n"


# -- streams that are closed, narrow, or left ------------------------------------------------------


def run(command: str, *arguments: object, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """A shell's line, in which "$@" stands for puma and the arguments."""
    return subprocess.run(
        ["bash", "-c", command, "bash", *PUMA, *map(str, arguments)],
        capture_output=True,
        check=False,
        env={**os.environ, **environ},
        timeout=HANG,
    )


@pytest.fixture(scope="module")
def expected(folder, reference, request):
    answer = request.getfixturevalue("answer")
    return (Tokenizer.load(folder).decode(answer[:3]) + "\n").encode()


def test_closed_streams(folder, expected):
    generate = ("generate", "-m", folder, "-p", PROMPT, "-n", 3)
    found = run('"$@" 2>&-', *generate)
    assert (found.returncode, found.stdout) == (0, expected)
    found = run('"$@" >&-', *generate)
    assert found.returncode == 0
    assert b"stopped: token limit" in found.stderr
    found = run('"$@" <&- >&- 2>&-', *generate)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    found = run('"$@" 2>&-', *generate[:-1], "0")
    assert (found.returncode, found.stdout) == (2, b"")


def test_a_reader_that_leaves(folder):
    generate = ("generate", "-m", folder, "-p", PROMPT, "-n", 3)
    for arguments in (generate, (*generate, "--json"), ("costs",)):
        reader, writer = os.pipe()
        os.close(reader)
        command = [*PUMA, *map(str, arguments)]
        found = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=HANG
        )
        os.close(writer)
        assert found.returncode == 1
        assert not re.search("rror|ignored|stopped", found.stderr), found.stderr


def test_progress_that_nobody_reads_stops_nothing(folder, expected):
    generate = ("generate", "-m", folder, "-p", PROMPT, "-n", 3)
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [*PUMA, *map(str, generate)],
        stdout=subprocess.PIPE,
        stderr=writer,
        check=False,
        timeout=HANG,
    )
    os.close(writer)
    assert (found.returncode, found.stdout) == (0, expected)


def test_an_encoding_that_lacks_characters(classifier, tmp_path):
    import shutil

    from reference import set_config

    names = {"0": "gut", "1": "schön", "2": "好 \U0001f600"}
    place = set_config(
        shutil.copytree(classifier, tmp_path / "model"),
        id2label=names,
        label2id={name: int(key) for key, name in names.items()},
    )
    arguments = ("classify", "-m", place, "--text", "the cat")
    found = run('"$@"', *arguments, PYTHONIOENCODING="latin-1")
    assert found.returncode == 0, found.stderr
    assert b"sch\xf6n" in found.stdout
    assert b"\\u597d \\U0001f600" in found.stdout
    found = run('"$@"', *arguments, "--json", PYTHONIOENCODING="ascii")
    assert found.returncode == 0, found.stderr
    assert b"\\u597d \\ud83d\\ude00" in found.stdout


def test_a_client_of_parties_elsewhere_tells_the_whole_and_no_share_of_it(folder, monkeypatch):
    """Its own messages do not say how far the parties are."""
    from puma_actors.api.blocking import PrivateModel
    from puma_actors.api.requests import Requests

    monkeypatch.setattr(following, "_PATIENCE", 0.0)
    told: list[str] = []
    with PrivateModel.from_pretrained(folder) as model:
        monkeypatch.setattr(type(model.cluster), "rounds_done", Requests.rounds_done)
        describe = following.Following(model.cluster)
        assert describe().startswith("running the model on shares · ")
        step = type(model.cluster.client).step

        async def asked(self, inference, *given):
            told.append(describe())
            return await step(self, inference, *given)

        monkeypatch.setattr(type(model.cluster.client), "step", asked)
        model.generate(PROMPT, max_new_tokens=3)
        cost = model.usage.steps[0]
    assert told[0] == (
        f"running the model on 7 tokens · {cost.rounds:,} rounds and "
        f"{amount(cost.online)} online in total · 0 s"
    )
    assert told[1].startswith("first token · at most 3 · ")
    assert re.match(r"2 tokens · [\d.]+ tokens/s · \d+ s · at most \d+ s left", told[2])
