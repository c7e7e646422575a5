"""Options that many commands have: declared once, and given to a command as one value."""

import ast
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

import puma_actors.cli
from models.programs.steps import RequestSettings
from protocols.base.lane import Settings
from protocols.errors import ConfigError
from puma_actors.cli.options import AnyTree, Approximation, Choice, RunChoice
from puma_actors.cli.settings import fixed_settings_of, settings_of
from puma_actors.cli.spread import spread
from puma_actors.cli.where import Where

FOLDER = Path(puma_actors.cli.__file__).parent
Size = Annotated[int, typer.Option("--size", "-s", help="How big.")]


@dataclass(frozen=True)
class Shape:
    size: Size = 3
    round_: Annotated[bool, typer.Option("--round")] = False


def call(command, *arguments):
    app = typer.Typer()
    app.command()(spread(command))
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_command_gets_a_group_as_one_value():
    seen = []

    def make(name: str, *, shape: Shape, last: Annotated[int, typer.Option()] = 7) -> None:
        """Make it."""
        seen.append((name, shape, last))

    assert call(make, "box", "-s", "4", "--round", "--last", "2").exit_code == 0
    assert call(make, "box").exit_code == 0
    assert seen == [("box", Shape(4, True), 2), ("box", Shape(), 7)]
    shown = call(make, "--help").output
    assert "Make it." in shown
    assert shown.index("How big.") < shown.index("--round") < shown.index("--last")
    assert call(make, "box", "--shape", "x").exit_code == 2


def test_an_option_that_comes_twice_is_a_bug():
    def make(size: Size = 1, *, shape: Shape) -> None:
        """Make it."""

    with pytest.raises(ValueError, match="duplicate parameter name: 'size'"):
        spread(make)


def test_nothing_to_spread_changes_nothing():
    seen = []

    def make(size: Size = 1) -> None:
        seen.append(size)

    assert call(make, "--size", "5").exit_code == 0
    assert seen == [5]


def test_no_option_is_declared_twice():
    """Commands that have the same option take it from `cli/options.py`."""
    found = Counter(
        ast.unparse(node)
        for path in sorted(FOLDER.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Option" and node.args
    )
    assert len(found) > 10
    assert not {option: count for option, count in found.items() if count > 1}


def test_what_is_not_said_is_the_usual():
    assert Where() == Where(codec=False, network=None, cluster=None, tokenizer=None)
    assert settings_of(RunChoice()) == RequestSettings.of(None)
    assert fixed_settings_of(Choice()) == Settings()
    chosen = RunChoice(approximation=Approximation.FAST, tree=AnyTree.TRAFFIC, lanes="4")
    settings = settings_of(chosen, secret_logits=True)
    assert (settings.approximation, settings.tree) == ("fast", "traffic")
    assert (settings.lanes, settings.reveal) == (4, "argmax")


@pytest.mark.parametrize("lanes", ["0", "1025", "-1", "1.5", "", "all", "9" * 9])
def test_lanes_are_a_number_or_auto(lanes):
    with pytest.raises(ConfigError, match="give auto, or a whole number from 1 to 1024"):
        settings_of(RunChoice(lanes=lanes))
    assert settings_of(RunChoice(lanes="3")).lanes == 3
