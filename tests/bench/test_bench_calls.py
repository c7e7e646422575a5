"""The count of function calls: what is counted, and a small model once."""

from collections import Counter

from bench.runtime import calls
from bench.runtime.calls import Calls
from bench.tools.harness import Options
from bench.tools.report import console, show


def test_functions_and_built_in_ones_are_counted_where_they_are():
    def called() -> int:
        return len([])

    with Calls() as counted:
        for _ in range(3):
            called()
    found = counted.functions
    assert found["tests/bench/test_bench_calls.py", called.__qualname__] == 3
    assert found["built in", "len"] == 3


def test_a_step_is_the_difference_of_two_requests(monkeypatch, capsys):
    asked = []

    async def request(cluster, tokens):
        asked.append(tokens)
        return Counter({("protocols/a.py", "f"): 100 + 10 * tokens, ("built in", "len"): tokens})

    monkeypatch.setattr(calls, "_request", request)
    (result,) = calls.decode(Options(quick=True))
    assert asked == [calls._FEWER, calls._FEWER, calls._MORE]
    assert (result.details["calls"], result.details["python"]) == (11, 10)
    assert result.details["places"] == [["protocols/a.py", 10], ["built in", 1]]
    show(console(), {"memory_bytes": 0, "cpu": "", "cores": 1, "os": ""}, [result])
    assert "protocols/a.py" in capsys.readouterr().out


def test_a_step_of_the_demo_model_takes_less_than_half_a_million_calls():
    """A layer and what is outside, counted with two layers of its size; they vary by some 3 %."""
    (result,) = calls.decode(Options(quick=True))
    outside = 12_000
    assert outside + 30 * (result.details["calls"] - outside) / 2 < 500_000
