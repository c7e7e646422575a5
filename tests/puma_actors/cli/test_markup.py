"""Texts from elsewhere are printed as they are: no markup, no links, no orders to a terminal."""

import json
import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from hosts import addresses_for, write_config
from reference import set_config, usual_logs
from rich.color import ColorSystem

from protocols.base.shares import COMPUTING, Role
from protocols.errors import PumaError
from puma_actors.api.local import LocalCluster, Token
from puma_actors.base.logs import log
from puma_actors.base.texts import printable, shown
from puma_actors.cli import output

D = Role.DEALER
MARKUP = "[link=https://x]good[/link] [b] [/x] :smile: https://y.org 17"
HOSTILE = f"{MARKUP} \x1b]8;;http://z\x07 \x1b[31m \x9b1m \u202eevil\u2066 \r\x08\x00\u2028"
ORDERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
OWN_STYLES = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture
def terminal(monkeypatch):
    """Both consoles as on a terminal of many columns, with colours and links."""
    for console in (output.stdout, output.stderr):
        monkeypatch.setattr(console, "_force_terminal", True)
        monkeypatch.setattr(console, "_color_system", ColorSystem.TRUECOLOR)
        monkeypatch.setattr(console, "_width", 4000)


def tame(text: str, *expected: str) -> None:
    """No terminal control except our own styles; and the expected text, literally."""
    plain = OWN_STYLES.sub("", text)
    assert not ORDERS.search(plain), repr(plain)
    assert expected
    for part in expected:
        assert part in plain, plain


@pytest.fixture
def config(tmp_path, certificates):
    return write_config(tmp_path / "c.toml", addresses_for("tls", tmp_path), certificates)


def test_the_models_of_parties(puma, terminal, config, monkeypatch):
    from puma_actors.hosts import caller as calls
    from puma_actors.hosts.admission import ModelEntry

    fields = dict.fromkeys(("name", "architecture", "head", "created", "problem"), HOSTILE)
    entry = ModelEntry.model_construct(upload="", digest="", bytes=1, loaded=False, **fields)

    async def found(*args):
        return calls.Listing({HOSTILE: dict.fromkeys(COMPUTING, entry)}, {D: PumaError(HOSTILE)})

    monkeypatch.setattr(calls, "survey_models", found)
    monkeypatch.setattr(calls, "problem_of", lambda *args: HOSTILE)
    code, out, err = puma("models", "list", "--cluster", config)
    assert code == 0
    tame(out, MARKUP)
    tame(err, f"no answer from dealer: {MARKUP}")
    assert OWN_STYLES.sub("", out).count(MARKUP) >= 4


def test_removing_a_model(puma, terminal, config, monkeypatch):
    from puma_actors.hosts import caller as calls

    async def found(*args):
        return {D: calls.Removal(D, "kept", HOSTILE)}

    monkeypatch.setattr(calls, "remove_model", found)
    code, _, err = puma("models", "remove", "x", "--cluster", config)
    assert code == 1
    tame(err, f"dealer (kept): {MARKUP}")


def test_ping(puma, terminal, config, monkeypatch):
    from protocols.base.shares import Role
    from puma_actors.hosts import caller as calls
    from puma_actors.hosts.admission import Answer, LinkEntry

    link = LinkEntry.model_construct(
        peer=HOSTILE, problem=HOSTILE, round_trip=None, throughput=None
    )
    fields = {"software": HOSTILE, "role": "dealer", "name": HOSTILE, "links": [link]}
    answer = Answer.model_construct(model=None, plan=None, tokens=0, files=[], models=[], **fields)
    pinged = calls.Pinged(Role.DEALER, "tls://x", answer=answer, problem=HOSTILE)

    async def found(*args):
        return [pinged]

    monkeypatch.setattr(calls, "ping_all", found)
    _, out, _ = puma("ping", "--cluster", config)
    tame(out, MARKUP)


def test_doctor(puma, terminal, monkeypatch):
    from puma_actors.hosts import doctor

    check = doctor.Check(HOSTILE, "ok", HOSTILE)
    monkeypatch.setattr(doctor, "examine", lambda *args, **options: [check])
    code, out, _ = puma("doctor")
    assert code == 0
    tame(out, f"{MARKUP} ")


def test_certificates(puma, terminal, monkeypatch, tmp_path):
    from puma_actors.base import certs

    now = datetime.now(UTC)
    found = SimpleNamespace(
        path=tmp_path / "[b]x.pem",
        identity=SimpleNamespace(role="dealer", name=HOSTILE),
        hosts=(HOSTILE,),
        not_after=now,
        days_left=2.0,
    )
    monkeypatch.setattr(certs, "describe_all", lambda folder: [found])
    code, out, _ = puma("certs", "show")
    assert code == 0
    tame(out, MARKUP, "[b]x.pem")


def odd_place(folder: Path, parent: Path) -> Path:
    """A copy of a model, in a folder with a name that looks like markup."""
    return shutil.copytree(folder, parent / "[link=x]y[b] :smile: \x1b[31m\u202e")


def test_inspect(puma, terminal, classifier, tmp_path):
    labels = {str(number): HOSTILE for number in range(3)}
    place = set_config(odd_place(classifier, tmp_path), id2label=labels)
    code, out, err = puma("inspect", place)
    assert (code, err) == (0, "")
    tame(out, MARKUP, "[link=x]y[b] :smile: ?[31m?/model.safetensors: supported")


def test_labels(puma, terminal, classifier, tagger, tmp_path, monkeypatch):
    from puma_actors.cli.commands import run_text

    monkeypatch.setattr(run_text, "_SHOWN_CHARACTERS", 4000)
    for number, (command, model) in enumerate([("classify", classifier), ("tag", tagger)]):
        names = json.loads((model / "config.json").read_text())["id2label"]
        labels = {each: f"{HOSTILE}{each}" for each in names}
        place = odd_place(model, tmp_path / str(number))
        set_config(place, id2label=labels, label2id={v: int(k) for k, v in labels.items()})
        code, out, err = puma(command, "-m", place, "--text", "[b] :smile: the cat")
        assert code == 0, err
        tame(out, MARKUP)
        tame(err, "loading")


def test_an_answer(puma, terminal, folder, monkeypatch):
    async def said(self, ids, sampling, **draft):
        self.usage.stop_reason = "length"
        for part in ("A ", HOSTILE[:50], HOSTILE[50:], "\n\t\u05d0\u200d\U0001f468"):
            yield Token(1, part)

    monkeypatch.setattr(LocalCluster, "generate", said)
    code, out, err = puma("generate", "-m", folder, "-p", "[b]")
    assert code == 0
    tame(out, MARKUP, "\n\t\u05d0\u200d\U0001f468\n")
    tame(err, "loading")
    code, out, err = puma("generate", "-m", folder, "-p", "[b]", "--json")
    assert out.isascii()
    assert json.loads(out)["text"] == f"A {HOSTILE}\n\t\u05d0\u200d\U0001f468"


def test_a_note_of_a_published_tokenizer(puma, terminal, folder, monkeypatch):
    from models.tokens.tokenizer import Tokenizer

    load = Tokenizer.load

    def noted(path):
        found = load(path)
        found.note = HOSTILE
        return found

    monkeypatch.setattr(Tokenizer, "load", noted)
    _, _, err = puma("generate", "-m", folder, "-p", "I see", "-n", 1)
    tame(err, f"note: {MARKUP}")


def test_profile_and_compare(puma, terminal, folder, tmp_path):
    place = odd_place(folder, tmp_path)
    code, out, _ = puma("profile", "-m", place, "--tokens-in", 2, "--tokens-out", 1)
    assert code == 0
    tame(out, "[link=x]y[b] :smile: ?[31m?")
    code, out, err = puma("compare", "-m", place, "--input-ids", "1,2", "--threshold", 1e-12)
    assert code == 0, err
    tame(out, "the first place that strays: ")
    html = tmp_path / "[b]:smile:.html"
    code, out, _ = puma("profile", "-m", folder, "--tokens-in", 2, "--html", html)
    tame(out, f"written: {html}")


@pytest.mark.parametrize("command", [("inspect", "x/"), ("generate", "-p", "x", "-m", "x/")])
def test_errors(puma, terminal, command):
    hostile = HOSTILE.replace("\x00", "")
    code, out, err = puma(*command[:-1], command[-1] + hostile)
    assert (code, out) == (2, "")
    assert not ORDERS.search(err.rstrip("\n"))
    assert err.count("\n") == 1
    code, _, err = puma("--debug", *command[:-1], command[-1] + hostile)
    assert not ORDERS.search(err)


def test_progress(terminal, capsys):
    with output.progress(quiet=False) as report:
        report(HOSTILE, 0.5)
        report.write(shown(HOSTILE))
    out, err = capsys.readouterr()
    tame(out, MARKUP)
    tame(err, MARKUP)


def test_logs(capsys):
    from puma_actors.base.logs import show_logs

    with usual_logs():
        for as_json in (False, True):
            show_logs(0, as_json=as_json)
            log.warning(HOSTILE, text=HOSTILE)
            err = capsys.readouterr().err
            assert not ORDERS.search(err.rstrip("\n"))
            assert ":smile:" in err


def test_what_is_shown():
    assert shown("a\nb\tc ü 界 \u200d") == "a\nb\tc ü 界 \u200d"
    assert shown("\x1b[1m\r\x9b\u202e\x7f") == "?[1m????"
    assert printable("a\nb\u202e") == "a?b?"
    assert shown("\U0001fae8\ue000") == "\U0001fae8\ue000"


def test_every_console_is_made_in_one_place():
    """A console of rich's own reads markup in what it is given."""
    folder = Path(output.__file__).parent.parent
    for path in folder.rglob("*.py"):
        if path.name != "output.py":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"rich\.(console|markup|live|progress|status|prompt)\b", text), (
                path
            )
            assert "rich import print" not in text
    assert "rich" in sys.modules
