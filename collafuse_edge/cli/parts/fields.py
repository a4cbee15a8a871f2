"""Options made from the fields of a settings dataclass: names, types, defaults and help stand there, once.

A field says its help, and the valid texts where there is a fixed set:
``schedule: Annotated[str, "How the rate falls.", ("cosine", "constant")] = "cosine"``.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

Values = dict[str, Any]
"""What the command line says of the fields of one settings dataclass."""
Command = Callable[..., None]


def takes(parameter: str, settings: type, only: Sequence[str] = (), **defaults: Any) -> Callable[[Command], Command]:
    """Replace a command's parameter, of type ``Values``, by an option for each field of a settings dataclass.

    Args:
        only: the fields; all where it is empty.
        defaults: of this command, where they are not the dataclass's. None: the command finds out.
    """

    def decorate(command: Command) -> Command:
        hints = get_type_hints(settings, include_extras=True)
        chosen = [
            _option(field.name, hints[field.name], defaults.get(field.name, field.default))
            for field in fields(settings)
            if not only or field.name in only
        ]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            of_fields = {option.name: values.pop(option.name) for option in chosen}
            command(**values, **{parameter: of_fields})

        return replace_parameter(run, command, parameter, chosen)

    return decorate


def replace_parameter(run: Command, command: Command, name: str, options: Sequence[inspect.Parameter]) -> Command:
    """Make ``run`` look to typer like ``command`` with some options in the place of one parameter."""
    parameters: list[inspect.Parameter] = []
    for other in inspect.signature(command).parameters.values():
        parameters += options if other.name == name else [other]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(name: str, hint: Any, default: Any) -> inspect.Parameter:
    kind, text, *valid = get_args(hint)
    if valid:
        kind = Literal[valid[0]]
    if default is None:
        kind = kind | None
    annotation = Annotated.__class_getitem__((kind, typer.Option(help=text)))  # type: ignore[attr-defined]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
