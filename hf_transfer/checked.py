"""Dataclasses that check their fields when they are built, in Python or from YAML, and say every problem at once in one sentence."""

import dataclasses
import functools
import reprlib
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from hf_transfer.errors import ConfigError, did_you_mean, listed

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]
Given = Annotated[str, Field(min_length=1)]

T = TypeVar("T")
SHORT = reprlib.Repr()
"""Shows a value in a message: a YAML file of a kilobyte may spell one of gigabytes."""
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 200
SHORT.maxlevel = 2


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that checks its fields and raises every problem at once, as one `ConfigError`."""
    checked: Any = checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
    build: Callable[..., None] = checked.__init__

    @functools.wraps(build)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            build(self, *args, **kwargs)
        except ValidationError as error:
            raise ConfigError(_one_sentence(checked, error)) from None

    checked.__init__ = __init__
    return checked


def _one_sentence(cls: type, error: ValidationError) -> str:
    """Put every problem pydantic found in `cls` into one sentence."""
    problems = list(dict.fromkeys(_problem(cls, detail) for detail in error.errors(include_url=False)))
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems in the {cls.__name__}: " + "; ".join(problems)


def _problem(cls: type, detail: Any) -> str:
    keys, owner = _follow(cls, detail["loc"])
    where = ".".join(keys)
    found = detail["input"]
    shown = SHORT.repr(found)
    match detail["type"]:
        case "unexpected_keyword_argument":
            known = [field.name for field in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
            return f"{where}: unknown key{did_you_mean(keys[-1], known) or f', known are {listed(known)}'}"
        case "missing":
            return f"{where}: missing"
        case "value_error":
            message = str(detail["ctx"]["error"])
            return f"{where}: {message}" if where else message
        case "literal_error":
            choices = [choice.strip("' ") for choice in detail["ctx"]["expected"].replace(" or ", ",").split(",")]
            return f"{where}: expected {detail['ctx']['expected']}, found {shown}{_suggestion(found, choices)}"
        case "union_tag_invalid":
            kind = found.get("kind") if isinstance(found, dict) else found
            kinds = [choice.strip("' ") for choice in detail["ctx"]["expected_tags"].split(",")]
            return f"{where}.kind: expected one of {listed(kinds)}, found {SHORT.repr(kind)}{_suggestion(kind, kinds)}"
        case "string_too_short":
            return f"{where}: must not be empty"
        case "string_too_long":
            return f"{where}: expected at most {detail['ctx']['max_length']} characters, found {len(found)}"
        case "string_pattern_mismatch":
            return f"{where}: expected a name of letters, digits, _ and - that starts with a letter or digit, found {shown}"
        case "int_parsing" | "int_type" | "int_from_float":
            return f"{where}: expected a whole number, found {shown}"
        case "float_parsing" | "float_type":
            return f"{where}: expected a number, found {shown}"
        case "dataclass_type":
            return f"{where}: expected a mapping of its fields, found {shown}"
        case _:
            expected = detail["msg"].removeprefix("Input should be ")
            return f"{where}: expected {'a value ' if expected.startswith(('greater', 'less')) else ''}{expected}, found {shown}"


def _suggestion(found: Any, known: list[str]) -> str:
    return did_you_mean(SHORT.repr(found).strip("'"), known)


def _follow(cls: Any, location: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Follow pydantic's location through the fields of a dataclass.

    Args:
        cls: Where it starts.
        location: Fields, keys of mappings, places in lists, and names pydantic gives to the members of a union.

    Returns:
        The user's own keys among them, and the type that the last of them belongs to.
    """
    keys: list[str] = []
    here, owner = cls, cls
    for part in location:
        origin = typing.get_origin(here)
        if origin in (typing.Union, types.UnionType):
            options = typing.get_args(here)
            chosen = [option for option in options if _name_in_union(option) == part]
            if chosen:
                here = _plain(chosen[0])
                continue
        if dataclasses.is_dataclass(here):
            # A problem with an argument given by position.
            name = dataclasses.fields(here)[part].name if isinstance(part, int) else part
            keys.append(name)
            owner, here = here, typing.get_type_hints(here, include_extras=True).get(name)
        elif origin in (dict, list) and not str(part).startswith("["):
            keys.append(str(part))
            owner, here = here, typing.get_args(here)[-1]
        elif not str(part).startswith(("constrained-", "function-", "literal[", "dict[", "list[")):
            keys.append(str(part))
        here = _plain(here)
    return keys, owner


def _plain(annotated: Any) -> Any:
    """Give a type without what is said about it."""
    while typing.get_origin(annotated) is typing.Annotated:
        annotated = typing.get_args(annotated)[0]
    return annotated


def _name_in_union(option: Any) -> Any:
    """Give the name a tagged member of a union goes by: that of its tag."""
    tags = [extra.tag for extra in getattr(option, "__metadata__", ()) if hasattr(extra, "tag")]
    return tags[0] if tags else None
