"""Options made from the fields of a settings dataclass: names, types, defaults and help stand there, once.

A field says its help, and the valid texts where there is a fixed set:
``schedule: Annotated[str, "How the rate falls.", ("cosine", "constant")] = "cosine"``. Those that only a command has
may say it as typer does, ``Annotated[int, typer.Option(...)]``. A field whose type is such a dataclass stands for the
fields of that one, or for those it names: ``Annotated[EngineOptions, ("threads", "device")]``.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

Values = dict[str, Any]
"""What the command line says of the fields of one settings dataclass, where a command fills in what it leaves open."""
Command = Callable[..., None]


def takes(parameter: str, settings: type, only: Sequence[str] = (), **defaults: Any) -> Callable[[Command], Command]:
    """Replace a command's parameter by an option for each field of a settings dataclass.

    The command is given an instance of ``settings``, or, where the parameter is annotated as ``Values``, a dict.

    Args:
        only: the fields; all where it is empty.
        defaults: of this command, where they are not the dataclass's. None: the command finds out.
    """

    def decorate(command: Command) -> Command:
        chosen = _options(settings, only, defaults)
        as_values = inspect.signature(command).parameters[parameter].annotation is Values

        @functools.wraps(command)
        def run(**values: Any) -> None:
            said = {option.name: values.pop(option.name) for option in chosen}
            command(**values, **{parameter: said if as_values else _filled(settings, said)})

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


def _options(settings: type, only: Sequence[str], defaults: Mapping[str, Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(settings, include_extras=True)
    options: list[inspect.Parameter] = []
    for field in fields(settings):
        inner = _inner(hints[field.name])
        if inner is not None:
            options += _options(*inner, {})
        elif not only or field.name in only:
            options.append(_option(field.name, hints[field.name], defaults.get(field.name, field.default)))
    return options


def _filled(settings: type, said: Mapping[str, Any]) -> Any:
    """The dataclass, and those inside it, from the values of their options."""
    hints = get_type_hints(settings, include_extras=True)
    values = {}
    for field in fields(settings):
        inner = _inner(hints[field.name])
        if inner is not None:
            values[field.name] = _filled(inner[0], said)
        elif field.name in said:
            values[field.name] = said[field.name]
    return settings(**values)


def _inner(hint: Any) -> tuple[type, tuple[str, ...]] | None:
    """(dataclass, names of its fields or none for all) where a field stands for another dataclass's fields."""
    kind, *names = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    is_inner = is_dataclass(kind) and not any(_is_of_typer(name) for name in names)
    return (kind, names[0] if names else ()) if is_inner else None


def _option(name: str, hint: Any, default: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if default is MISSING else default
    kind, text, *valid = get_args(hint)
    if valid:
        kind = Literal[valid[0]]
    if default is None and type(None) not in get_args(kind):
        kind = kind | None
    said = text if _is_of_typer(text) else typer.Option(help=text)
    annotation = Annotated.__class_getitem__((kind, said))  # type: ignore[attr-defined]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _is_of_typer(said: object) -> bool:
    return type(said).__module__.startswith("typer")
