"""Programs that never close their models still end, and print nothing about it."""

import gc
import subprocess
import sys
import threading

import pytest
from conversation import PROMPT
from reference import save_model
from waiting import HANG

from puma_actors.api.blocking import PrivateModel

pytestmark = pytest.mark.slow

MODEL = """
import sys
from puma_actors.api.blocking import PrivateModel
model = PrivateModel.from_pretrained(sys.argv[1])
print(len(model.forward([1, 2, 3])) > 0)
"""
PIPELINE = """
import sys
from puma_actors.api.pipelines import pipeline
print(len(pipeline("text-generation", sys.argv[1], max_new_tokens=2)("I see")))
pipe = pipeline("text-generation", sys.argv[1], max_new_tokens=2)
print(pipe("I see")[0]["generated_text"] != "")
"""
SCRIPTS = {
    "a model": (MODEL, 0, "True\n", ""),
    "a pipeline": (PIPELINE, 0, "1\nTrue\n", ""),
    "after an exception": (MODEL + "raise ValueError('mine')", 1, "True\n", "ValueError: mine"),
    "in a function": (
        "def main():\n" + MODEL.replace("\n", "\n    ") + "\nmain()",
        0,
        "True\n",
        "",
    ),
    "an exit code": (MODEL + "sys.exit(7)", 7, "True\n", ""),
    "a half-read stream": (
        MODEL + "stream = model.stream([1, 2, 3], max_new_tokens=40)\nprint(next(stream).id >= 0)",
        0,
        "True\nTrue\n",
        "",
    ),
    "a cycle": (MODEL + "model.itself = model\ndel model\nprint(2)", 0, "True\n2\n", ""),
    "several": (
        MODEL
        + "other = PrivateModel.from_pretrained(sys.argv[1])\n"
        + "closed = PrivateModel.from_pretrained(sys.argv[1])\n"
        + "closed.close()\ndel model\nprint(len(other.forward([1, 2])))",
        0,
        "True\n2\n",
        "",
    ),
    "in the middle of a request": (
        MODEL
        + "import threading\n"
        + "begun = threading.Event()\n"
        + "def ask():\n"
        + "    for token in model.stream([1, 2, 3], max_new_tokens=40):\n"
        + "        begun.set()\n"
        + "threading.excepthook = lambda *args: None\n"
        + "threading.Thread(target=ask, daemon=True).start()\n"
        + f"print(begun.wait({HANG}))",
        0,
        "True\nTrue\n",
        "",
    ),
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A model without a tokenizer: reading one takes as long as all the rest of a script."""
    return save_model(tmp_path_factory.mktemp("bare"), seed=3)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_ends(name, folder, bare):
    script, code, out, err = SCRIPTS[name]
    model = folder if script == PIPELINE else bare
    found = subprocess.run(
        [sys.executable, "-W", "default", "-c", script, str(model)],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )
    assert (found.returncode, found.stdout) == (code, out), found.stderr
    lines = found.stderr.splitlines()
    assert lines == [] if not err else (lines[0].startswith("Traceback") and lines[-1] == err)
    assert found.stderr.count("Traceback") == (1 if err else 0)
    assert "Exception ignored" not in found.stderr


def test_an_interactive_session_ends(bare):
    found = subprocess.run(
        [sys.executable, "-i", "-q", "-c", MODEL, str(bare)],
        input="print(model.forward([1, 2]).shape)\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
    )
    assert (found.returncode, found.stdout) == (0, "True\n(2, 46)\n")
    assert "Traceback" not in found.stderr
    assert "Exception ignored" not in found.stderr


def test_a_model_that_nobody_needs_ends(folder):
    model = PrivateModel.from_pretrained(folder)
    assert model.generate(PROMPT, max_new_tokens=1)
    (thread,) = [each for each in threading.enumerate() if each.name == "puma-cluster"]
    del model
    gc.collect()
    thread.join(HANG)
    assert not thread.is_alive()


def test_a_model_may_be_forgotten_in_its_own_thread(folder):
    """Garbage collection runs in any thread that allocates."""
    model = PrivateModel.from_pretrained(folder)
    (thread,) = [each for each in threading.enumerate() if each.name == "puma-cluster"]
    held = [model]

    async def forget() -> None:
        held.clear()
        gc.collect()

    background = model._background
    del model
    background.call(forget)
    thread.join(HANG)
    assert not thread.is_alive()
