"""From data to a table: what is right in it, and a finding for each key that is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from lbd.core.config import values
from lbd.core.config.findings import Finding, Place
from lbd.core.config.locate import Part
from lbd.core.words import did_you_mean, quote


class Table(BaseModel):
    """A table of the file. Every key has a default here; `required` are those it cannot do without.

    `elsewhere` are keys that people look for here, and where they belong.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    required: ClassVar[tuple[str, ...]] = ()
    elsewhere: ClassVar[Mapping[str, str]] = {}


T = TypeVar("T", bound=Table)

_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "list_type": "a list",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


def read(model: type[T], raw: Mapping[str, object], place: Place, found: list[Finding]) -> T:
    """Return what is right in a table; what is wrong goes to `found` and takes the default."""
    found.extend(
        Finding(place, f'the key "{key}" is missing; every [[{place.path[0]}]] has one')
        for key in model.required
        if key not in raw
    )
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
    for detail in wrong:
        path = detail["loc"]
        part: Part = "value"
        if path[-1] == "[key]":
            # A key that is wrong itself, of a table whose keys are not lbd's.
            path, part = path[:-1], "key"
        where = Place(place.file, (*place.path, *path))
        kind, value = detail["type"], detail["input"]
        if kind == "extra_forbidden":
            found.append(Finding(where, _unknown(model, path), part="key"))
        elif kind == "value_error":
            found.append(Finding(where, str(detail["ctx"]["error"]), part))
        elif kind == "list_type" and isinstance(value, dict) and len(where.path) == 1:
            found.append(Finding(where, f"write [[{path[0]}]] in two brackets; there can be several"))
        else:
            found.append(Finding(where, f"must be {_WANTED[kind]}, not {values.described(value)}"))
    keys = {detail["loc"][0] for detail in wrong}
    return model.model_validate({key: value for key, value in raw.items() if key not in keys})


def _unknown(model: type[Table], path: tuple[str | int, ...]) -> str:
    key = str(path[-1])
    for step in path[:-1]:
        if isinstance(step, str):
            model = _inner(model, step)
    if key in model.elsewhere:
        return model.elsewhere[key]
    known = [field.alias or name for name, field in model.model_fields.items()]
    return f"unknown key {quote(key)}{did_you_mean(key, known)}"


def _inner(model: type[Table], key: str) -> type[Table]:
    """Return the table that the key of another holds: alone, in a list, or as one choice of several."""
    kinds = [model.model_fields[key].annotation]
    while kinds:
        kind = kinds.pop()
        if isinstance(kind, type) and issubclass(kind, Table):
            return kind
        kinds.extend(get_args(kind))
    return model
