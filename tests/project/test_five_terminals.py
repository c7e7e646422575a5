"""The documented way from certificates to the first private token works as it is printed."""

import tempfile
from pathlib import Path

import anyio
import pytest
from five_terminals import MODEL, PORTS, PROMPT, blocks, replaced, run
from ports import free_ports
from reference import save_model, save_tokenizer

from puma_actors.api.local import LocalCluster

pytestmark = pytest.mark.slow

QUESTION = "I see the cat"


def test_from_certificates_to_the_first_token(tmp_path: Path) -> None:
    model = save_tokenizer(save_model(tmp_path / "model", seed=3))

    async def locally() -> str:
        async with LocalCluster.from_pretrained(model) as cluster:
            return "".join([t.text async for t in cluster.generate(QUESTION, max_new_tokens=5)])

    changes = {MODEL: str(model), PROMPT: QUESTION, "-n 24": "-n 5"}
    changes |= dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    with tempfile.TemporaryDirectory(prefix="puma-") as folder:
        shown = run(changes, Path(folder))
        work = Path(folder) / "work"
        stores = {path.name for path in work.glob("store*")}
        assert {path.stat().st_mode & 0o777 for path in work.glob("certs/*.key")} == {0o600}
    expected = anyio.run(locally)
    (answer,) = [text for line, text in shown.items() if "puma generate" in line]
    assert expected.strip()
    assert answer.splitlines()[0] == expected
    (listed,) = [text for line, text in shown.items() if "models list" in line]
    assert "chat" in listed
    assert stores == {"store-dealer", "store-a", "store-b"}
    logs = [text for line, text in shown.items() if "puma party" in line]
    assert [log.count('"session begins"') for log in logs] == [1, 1, 1]
    assert all('"stopped"' in log and QUESTION not in log for log in logs)


def test_the_section_has_the_commands_of_all_roles() -> None:
    text = "\n".join(blocks())
    for role in ("dealer", "evaluator-a", "evaluator-b"):
        assert text.count(f"puma party --role {role}\n") == 1
    for command in ("certs init", "certs issue", "upload", "generate --cluster"):
        assert f"puma {command}" in text
    with pytest.raises(AssertionError, match="is not in the page"):
        replaced(blocks(), {"a word of another page": ""})
