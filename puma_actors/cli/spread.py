"""Groups of options shared by many commands: declared once, as a dataclass."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator: replaces a parameter whose type is a dataclass of options by those options; the
    command itself gets the dataclass.

    Typer then sees a function with all of them, in the order in which help lists them.
    """
    given = signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {
        each.name: each.annotation for each in given if is_dataclass(each.annotation)
    }
    parameters: list[Parameter] = []
    for each in given:
        if each.name in groups:
            parameters += _options(groups[each.name])
        else:
            parameters.append(each.replace(kind=Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**values: object) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    changed: Any = run
    changed.__signature__ = Signature(parameters)  # raises for duplicate names
    changed.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _options(group: Any) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        yield Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
