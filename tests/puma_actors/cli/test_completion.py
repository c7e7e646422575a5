"""Completions of the Tab key in a shell, and their speed."""

import os
import subprocess
import sys

import pytest

from puma_actors.cli.app import app

PUMA = "import sys; sys.argv[0] = 'puma'; from puma_actors.cli import main; main()"
LOADED = PUMA.replace("main()", "\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)")


def complete(words: str, code: str = PUMA) -> subprocess.CompletedProcess[str]:
    """What a shell's completion runs, once its script is installed."""
    asked = {"_PUMA_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **asked},
        check=True,
    )


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("puma per", {"perplexity"}),
        ("puma models ", {"list", "remove"}),
        ("puma generate --approx", {"--approximation"}),
        ("puma generate --approximation ", {"tight", "fast", "puma"}),
        ("puma party --role evaluator-", {"evaluator-a", "evaluator-b"}),
    ],
)
def test_words_are_completed(words, offered):
    assert set(complete(words).stdout.split()) == offered


def test_completion_loads_nothing_heavy():
    loaded = set(complete("puma gen", LOADED).stderr.split())
    assert "puma_actors.cli.app" in loaded
    assert not {"numpy", "numba", "transformers"} & loaded


def test_the_help_offers_to_install_it(puma):
    code, out, _ = puma("--help")
    assert code == 0
    assert "--install-completion" in out
    assert "--show-completion" in out


def test_commands_do_not_repeat_the_offer(puma):
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert "-completion" not in puma(name, "--help")[1]
