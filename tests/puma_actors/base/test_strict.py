"""What is wrong with a table of ours is told by place, value and remedy."""

from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from protocols.errors import ConfigError
from puma_actors.base.strict import Strict, config_error, first_fault, read_toml


class Engine(Strict):
    cylinders: int = Field(ge=1)


class Car(Strict):
    engines: list[Engine]
    name: str = ""


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "car: engines is missing: use the manual"),
        ({"engines": [], "wings": 2}, "car: unknown key wings: use the manual"),
        ({"engines": [{"cylinders": 4}, {}]}, "car: engines.1.cylinders is missing: use the"),
        (
            {"engines": [{"cylinders": 0}]},
            "car: engines.0.cylinders = 0: input should be greater than or equal to 1",
        ),
        ({"engines": [{"cylinders": "4"}]}, "car: engines.0.cylinders = '4': input should be"),
        ({"engines": [], "name": 3}, "car: name = 3: input should be a valid string"),
        ({"engines": {"x" * 1000: 1}}, f"car: engines = {{'{'x' * 78}: input should be"),
    ],
)
def test_errors_name_place_value_and_remedy(data, text):
    with pytest.raises(ValidationError) as info:
        Car.model_validate(data)
    assert str(config_error(first_fault(info.value), "car", "use the manual")).startswith(text)


def test_a_remedy_of_our_own_for_values():
    with pytest.raises(ValidationError) as info:
        Car.model_validate({"engines": 3})
    error = config_error(first_fault(info.value), "car", "use the manual", "list the engines")
    assert str(error) == "car: engines = 3: list the engines"


def test_tables_cannot_be_changed():
    with pytest.raises(ValidationError):
        Car(engines=[]).name = "Kitt"


def test_files_are_read_or_refused(tmp_path: Path):
    path = tmp_path / "car.toml"
    with pytest.raises(ConfigError, match=r"^garage: cannot read .*car\.toml \(No such.*\): buy"):
        read_toml(path, "garage: ", "buy one")
    path.write_text("[engine]\ncylinders = 4\n", "utf-8")
    assert read_toml(path) == {"engine": {"cylinders": 4}}
    for content in (b"[engine", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"^.*car\.toml is not TOML: "):
            read_toml(path)
