"""`puma convert`: write a pickled checkpoint as safetensors, with a Python that has torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from protocols.errors import ConfigError, ModelError
from puma_actors.cli.options import JsonOption

_SCRIPT = Path(__file__).with_name("conversion.py")
_REMEDY = (
    "install them into an environment of their own, and name its Python: "
    "`python -m venv ENV && ENV/bin/pip install torch transformers --extra-index-url "
    "https://download.pytorch.org/whl/cpu`, then `puma convert {folder} {out} "
    "--python ENV/bin/python`"
)


def convert(
    folder: Annotated[
        str, typer.Argument(help="A folder with pytorch_model.bin, or a name on the hub.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    python: Annotated[
        Path | None,
        typer.Option(
            help="A Python with torch and transformers. Default: the one that runs this.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a pickled checkpoint or LoRA adapter as safetensors, with tokenizer and settings.

    The model is read by the class that its config.json names, as tensors
    only: no code in it is run. Needs torch and transformers.
    """
    from puma_actors.cli.output import print_json, say, tell

    if os.path.lexists(out):
        raise ConfigError(f"{out} exists: name a folder that does not, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    said = _run(_interpreter(python), folder, out)
    problem = said.get("error")
    if problem is not None:
        needed = f" in {python or sys.executable}: {_REMEDY.format(folder=folder, out=out)}"
        raise ModelError(f"{problem}{needed if problem.endswith(' missing') else ''}")
    said["not_supported"] = _judged(out)
    if as_json:
        print_json(said)
        return
    say((str(out), "bold"), f": {said['class']}, in safetensors")
    for text, found in (
        ("weights that this class has no place for, left out", ", ".join(said["left_out"])),
        ("no tokenizer was written", said["tokenizer"]),
        ("it is converted, but cannot be run here", said["not_supported"]),
    ):
        if found:
            tell(f"note: {text}: {found}")


def _interpreter(python: Path | None) -> str:
    if python is None:
        return sys.executable
    found = shutil.which(python)
    if found is None:
        raise ConfigError(f"--python: {python} is no program: give the path of a Python")
    return found


def _run(interpreter: str, folder: str, out: Path) -> dict[str, Any]:
    """Run the script; return its report. Its progress goes to standard error unchanged."""
    done = subprocess.run(  # noqa: S603 - the user's own interpreter
        [interpreter, str(_SCRIPT), folder, str(out)], stdout=subprocess.PIPE, text=True
    )
    lines = done.stdout.splitlines()
    try:
        said = json.loads(lines[-1])
    except (IndexError, ValueError):
        said = None
    if not isinstance(said, dict):
        raise ModelError(f"{interpreter} ended with code {done.returncode} while it converted")
    return said


def _judged(out: Path) -> str:
    """The reason why the result cannot be run here; empty if it can."""
    from models.checkpoints.weights import open_checkpoint

    try:
        open_checkpoint(out).close()
    except ModelError as error:
        return str(error)
    return ""
