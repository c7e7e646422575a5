"""The examples of docs/examples run as they stand there, with small models."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import matplotlib
import pytest
from gateway import KEY, NAME, Gateway, gateway
from tiny_models import save, tiny_model
from tiny_texts import save_wordpiece
from waiting import in_time

FOLDER = Path(__file__).parents[3] / "docs" / "examples"
NOTEBOOK = FOLDER / "private_search.ipynb"
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wordpiece(save(tiny_model("bert", "none", seed=1), tmp_path_factory.mktemp("e")))


async def run(served: Gateway, *words: object) -> str:
    """What an example prints."""
    given = {"OPENAI_BASE_URL": f"{served.base}/v1", "OPENAI_API_KEY": KEY}
    with in_time():
        done = await anyio.run_process(
            [*map(str, words)], env={**os.environ, **given}, stderr=subprocess.STDOUT, check=False
        )
    said = done.stdout.decode()
    assert done.returncode == 0, said
    return said


async def test_programs(folder: Path, embedder: Path) -> None:
    async with gateway(folder, embedder) as served:
        vectors = ("--model", embedder.name)
        said = await run(served, sys.executable, FOLDER / "chat.py", "--model", NAME, "I see")
        assert "rounds" in said and "MB between the parties" in said
        said = await run(served, sys.executable, FOLDER / "search.py", *vectors, "the red cat")
        assert len(said.splitlines()) == 4
        said = await run(served, "bash", FOLDER / "gateway.sh", NAME, embedder.name)
    assert "data: [DONE]" in said
    assert '"object":"embedding"' in said.replace(" ", "")
    assert said.count("-- ") == 5


# -- the notebook ----------------------------------------------------------------------------------


def cells() -> list[dict[str, Any]]:
    return json.loads(NOTEBOOK.read_text("utf-8"))["cells"]


def test_the_notebook_runs(
    folder: Path,
    embedder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    models = {
        "EMBEDDER = None": f"EMBEDDER = {str(embedder)!r}",
        "CHAT = None": f"CHAT = {str(folder)!r}",
    }
    sources = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    for old in models:
        assert sum(old in source for source in sources) == 1
    for source in sources:
        for old, new in models.items():
            source = source.replace(old, new)
        exec(compile(source, NOTEBOOK.name, "exec"), names)
    assert names["likeness"].shape == (len(names["questions"]), len(names["notes"]))
    assert {row["name"] for row in names["networks"]} >= {"lan", "wan"}
    assert "rounds" in capsys.readouterr().out
    matplotlib.pyplot.close("all")


def test_the_notebook_shows_what_it_did() -> None:
    """Stored outputs are whole and small, and of one run from the first cell to the last."""
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in kinds
    plots = [
        output
        for cell in code
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    assert len(plots) == 3
    assert "/home/" not in NOTEBOOK.read_text("utf-8")
