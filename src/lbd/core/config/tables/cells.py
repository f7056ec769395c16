"""The types of single keys, for pydantic: strict, and with words for who wrote the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, PlainValidator

from lbd.core.config import endpoints, values
from lbd.core.settings import (
    HIGHEST_PORT,
    HashField,
    Log,
    Network,
    OnDown,
    Refusal,
    ReturnPath,
    Scheduler,
    WhenEmpty,
)
from lbd.core.words import quote

HIGHEST_U32 = 2**32 - 1
HIGHEST_BACKUP = 9
# A maglev table is a prime number of slots; 65521 is the highest prime of 16 bits.
LOWEST_SIZE, HIGHEST_SIZE = 3, 65521
_WHEN = "2026-12-31T22:00:00Z"

E = TypeVar("E")


def text(read: Callable[[str], object]) -> PlainValidator:
    """Take a string and nothing that could be turned into one, and read it."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be a string, not {values.described(value)}")  # noqa: TRY004 - pydantic's way
        return read(value)

    return PlainValidator(validate)


def choice(*built: str, refused: Mapping[str, str] | None = None) -> PlainValidator:
    """Take one of some words; those of `refused` are known, with what to say of them."""
    return text(lambda word: values.choice(word, built, refused or {}))


def number(low: int, high: int) -> PlainValidator:
    """Take a whole number in a range."""
    return PlainValidator(lambda value: _whole(value, low, high))


def _whole(value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, not {values.described(value)}")  # noqa: TRY004 - pydantic's way
    if not low <= value <= high:
        raise ValueError(f"{values.described(value)} is out of range; write a number from {low} to {high}")
    return value


def duration(low: str, high: str) -> PlainValidator:
    """Take a duration in a range, as seconds."""
    return text(lambda written: values.duration(written, low, high))


def listed(value: object) -> object:
    """Return a list of one for a string: where there is mostly one, no brackets are needed."""
    return [value] if isinstance(value, str) else value


def some(why: str) -> AfterValidator:
    """Refuse an empty list, with the reason."""

    def validate(found: list[E]) -> list[E]:
        if not found:
            raise ValueError(f"the list is empty{why}")
        return found

    return AfterValidator(validate)


def _once(found: list[E]) -> list[E]:
    for i, each in enumerate(found):
        if each in found[:i]:
            raise ValueError(f"{quote(each) if isinstance(each, str) else each} is listed twice")
    return found


# For short lists only.
ONCE = AfterValidator(_once)


def _prefix_entry(value: object) -> PrefixEntry:
    if isinstance(value, str):
        return values.network(value)
    if not isinstance(value, dict):
        raise ValueError(f"must be a prefix or a table, not {values.described(value)}")  # noqa: TRY004 - as above
    name = value.get("file")
    if value.keys() != {"file"} or not isinstance(name, str):
        raise ValueError('a file of prefixes is written as { file = "lists/office.txt" }, and nothing else')
    return values.file_name(name)


def _backup(value: object) -> int:
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, int) or not 1 <= value <= HIGHEST_BACKUP:
        raise ValueError(
            f"must be true, false or a number from 1 to {HIGHEST_BACKUP}, not {values.described(value)}"
        )
    return value


def _moment(value: object) -> datetime:
    if not isinstance(value, datetime):
        quotes = " without quotes" if isinstance(value, str) else ""
        shown = value.isoformat() if isinstance(value, date | time) else values.described(value)
        raise ValueError(f"must be a date and time{quotes}, as in {_WHEN}, not {shown}")  # noqa: TRY004 - as above
    if value.tzinfo is None:
        written = value.isoformat()
        raise ValueError(
            f"{written} does not say in which time zone; add Z for UTC, or an offset: {written}Z, "
            f"{written}+02:00"
        )
    return value


def _table_size(value: object) -> int:
    size = _whole(value, LOWEST_SIZE, HIGHEST_SIZE)
    if not _is_prime(size):
        above = next(each for each in range(size + 1, HIGHEST_SIZE + 1) if _is_prime(each))
        raise ValueError(f"{size} is not a prime number; the next one above is {above}")
    return size


def _is_prime(candidate: int) -> bool:
    return candidate > 1 and all(candidate % each for each in range(2, int(candidate**0.5) + 1))


# A prefix, or the name of a file of them.
PrefixEntry = Network | str

Interface = Annotated[str, text(values.interface_name)]
SchedulerKey = Annotated[
    Scheduler | None, choice("maglev", "source-hash", "random", "round-robin", "least-connections")
]
HashKey = Annotated[
    list[
        Annotated[
            HashField, choice("source-address", "source-port", "destination-address", "destination-port")
        ]
    ],
    some("; name what makes two connections go to the same backend"),
    ONCE,
]
ReturnPathKey = Annotated[ReturnPath | None, text(endpoints.return_path)]
WhenEmptyKey = Annotated[
    WhenEmpty | None,
    choice(
        "reject",
        "drop",
        refused={
            "backup": "not needed: mark backends with backup = true, they are used when nothing else is left"
        },
    ),
]
RefusalKey = Annotated[Refusal | None, choice("drop", "reject")]
LogKey = Annotated[Log | None, choice("off", "new", "path")]
OnDownKey = Annotated[OnDown | None, choice("keep", "reset")]
PrefixList = list[Annotated[PrefixEntry, PlainValidator(_prefix_entry)]]
AllowKey = Annotated[PrefixList, some(" and nobody could connect; leave the key out to let everybody in")]
BackupKey = Annotated[int, PlainValidator(_backup)]
MomentKey = Annotated[datetime | None, PlainValidator(_moment)]
TableSizeKey = Annotated[int, PlainValidator(_table_size)]
Port = Annotated[int, number(1, HIGHEST_PORT)]
Entries = list[dict[str, object]]

LISTED = BeforeValidator(listed)
