"""A party that is killed at any moment uses no unit twice, and offers none that is not whole."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from party_processes import ROOT, environment
from waiting import HANG

STRIDE = 13
"""Every so many lines of the package, from one run to the next, the process is killed."""


def test_killed_at_any_line_no_unit_is_used_twice(tmp_path: Path) -> None:
    script = ROOT / "tests" / "support" / "sharing" / "crashes.py"
    support = [ROOT, script.parent, script.parent.parent]
    found = subprocess.run(
        [sys.executable, script, tmp_path, str(STRIDE)],
        env={**environment(), "PYTHONPATH": ":".join(map(str, support))},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    logs = sorted(tmp_path.glob("*/log"))
    assert len(logs) > 25
    ends = Counter(check_log(log.read_text().splitlines()) for log in logs)
    # The kills fell before, between and after the uses, and the last run was not killed.
    assert min(ends["none"], ends["one"], ends["both"]) > 0


def check_log(lines: list[str]) -> str:
    """How many units the killed process had used."""
    events = [(line.split()[0], line.split()[-1]) for line in lines]
    before = events[: events.index(("restarted", "restarted"))]
    after = events[len(before) + 1 :]
    claimed = [unit for what, unit in before if what == "claimed"]
    used = [unit for what, unit in before if what == "used"]
    again = [unit for what, unit in after if what == "used"]
    assert set(used) <= set(claimed)
    assert not set(claimed) & set(again), "a unit was used before and after the restart"
    assert len(again) == len(set(again))
    published = {unit for what, unit in before if what == "published"}
    assert published - set(claimed) <= set(again) | lost_in_the_middle(before), lines
    assert after[-1][0] == "clean"
    return ("none", "one", "both")[len(used)]


def lost_in_the_middle(before: list[tuple[str, ...]]) -> set[str]:
    """A unit whose name was removed when the process was killed: it may be lost."""
    return {unit for what, unit in before if what == "claiming"}
