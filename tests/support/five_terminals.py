"""The commands of the section "Five terminals" in docs/hosts.md, run as they stand there.

    python tests/support/five_terminals.py                the page's own model, from the hub
    python tests/support/five_terminals.py --model path   another one

Each block of the section is one shell. Those that run `puma party` stay; the others follow one
another. What is replaced (the model, the ports, the prompt) must be found in the text.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from waiting import HANG, until_now

ROOT = Path(__file__).parents[2]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT = "What is the capital of France?"
PORTS = ("7101", "7102", "7103")


def blocks() -> list[str]:
    """The shell commands of the section, one text for each block."""
    text = (ROOT / "docs" / "hosts.md").read_text("utf-8")
    section = re.search(r"^## Five terminals\n(.*?)^##", text, re.DOTALL | re.MULTILINE)
    assert section, "docs/hosts.md has no section 'Five terminals'"
    return re.findall(r"^```sh\n(.*?)^```", section.group(1), re.DOTALL | re.MULTILINE)


def replaced(text: list[str], changes: Mapping[str, str]) -> list[str]:
    """The blocks with other words in them, each of which must occur."""
    for old, new in changes.items():
        assert any(old in block for block in text), f"{old!r} is not in the page's commands"
        text = [block.replace(old, new) for block in text]
    return text


def environment(folder: Path) -> dict[str, str]:
    """Where `puma` is this source tree's, and nothing is configured."""
    command = folder / "bin" / "puma"
    command.parent.mkdir()
    code = "from puma_actors.cli import main; main()"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{code}" "$@"\n')
    command.chmod(0o700)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PUMA_CL")}
    path = f"{command.parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT)}


def run(changes: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Run all blocks in a folder.

    Returns:
        What each block printed, by its last line; the parties' logs too.

    Raises:
        RuntimeError: a command failed.
    """
    env, work = environment(folder), folder / "work"
    work.mkdir()
    shown: dict[str, str] = {}
    parties: list[tuple[str, subprocess.Popen[str], Path]] = []
    try:
        for block in replaced(blocks(), changes):
            last = block.strip().splitlines()[-1]
            shell = ["bash", "-euo", "pipefail", "-c", block]
            if "puma party" in block:
                log = folder / f"{len(parties)}.log"
                with log.open("w") as out:
                    started = subprocess.Popen(
                        shell, cwd=work, env=env, stdout=out, stderr=out, text=True,
                        start_new_session=True,
                    )  # fmt: skip
                parties.append((last, started, log))
                continue
            for _, party, log in parties:
                _wait_for_links(party, log)
            shown[last] = _finish(shell, work, env)
    finally:
        for last, party, log in parties:
            _stop(party)
            shown[last] = log.read_text()
    return shown


def _finish(shell: list[str], work: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        shell, cwd=work, env=env, capture_output=True, text=True, timeout=HANG, check=False
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode} of\n{shell[-1]}\n{done.stderr}")
    return done.stdout


def _wait_for_links(party: "subprocess.Popen[str]", log: Path) -> None:
    def linked() -> bool:
        if party.poll() is not None:
            raise RuntimeError(f"a party did not start:\n{log.read_text()}")
        return log.read_text().count('"link up"') >= 2

    until_now(linked, log.read_text)


def _stop(party: "subprocess.Popen[str]") -> None:
    """Ctrl-C in its terminal: only for the shell and its processes."""
    if party.poll() is None:
        os.killpg(party.pid, signal.SIGINT)
    try:
        party.wait(HANG)
    except subprocess.TimeoutExpired:
        os.killpg(party.pid, signal.SIGKILL)
        party.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--prompt", default=PROMPT)
    given = parser.parse_args()
    model = str(Path(given.model).resolve()) if Path(given.model).exists() else given.model
    with tempfile.TemporaryDirectory(prefix="puma-") as folder:
        shown = run({MODEL: model, PROMPT: given.prompt}, Path(folder))
    print(next(text for line, text in shown.items() if "puma generate" in line), end="")


if __name__ == "__main__":
    main()
