"""The command ends as the class of an error says."""

import pytest

from protocols import errors
from protocols.errors import PumaError
from puma_actors.cli.commands import reports

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PumaError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_has_its_code(puma, monkeypatch, kind):
    def fail(*given: object, **named: object) -> None:
        raise kind("what went wrong")

    monkeypatch.setattr(reports, "run_costs", fail)
    code, out, err = puma("costs")
    assert code == kind.exit_code
    assert out == ""
    word = "busy" if kind is errors.Busy else "error"
    assert err == f"{word}: what went wrong\n"


def test_a_class_that_is_made_later_has_its_code_too(puma, monkeypatch):
    class SpecialError(errors.StoreError):
        exit_code = 77

    def fail(*given: object, **named: object) -> None:
        raise SpecialError("special")

    monkeypatch.setattr(reports, "run_costs", fail)
    assert puma("costs")[0] == 77


def test_help_names_the_codes(puma, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = " ".join(puma("--help")[1].split())
    assert (
        "Exit codes: 0 done, 1 failed on the way, 2 wrong input, 3 parties are busy, "
        "4 a party's store is damaged, 130 interrupted." in out
    )
