"""The tables of the file, key by key: their types, their defaults, what is not built yet.

The only user of pydantic. A table that is wrong in one key goes on with its others, so that one run tells
everything; a key whose feature is not built is refused, never ignored.
"""

from lbd.core.config.tables.cells import Entries, PrefixEntry
from lbd.core.config.tables.files import (
    AddressTable,
    DirectorTable,
    DropInTable,
    MainTable,
    RealServerTable,
    RouteTable,
    RuleTable,
)
from lbd.core.config.tables.reading import Table, read
from lbd.core.config.tables.service import (
    BackendTable,
    DefaultsTable,
    LimitsTable,
    PersistenceTable,
    PinTable,
    ServiceTable,
)

__all__ = [
    "AddressTable",
    "BackendTable",
    "DefaultsTable",
    "DirectorTable",
    "DropInTable",
    "Entries",
    "LimitsTable",
    "MainTable",
    "PersistenceTable",
    "PinTable",
    "PrefixEntry",
    "RealServerTable",
    "RouteTable",
    "RuleTable",
    "ServiceTable",
    "Table",
    "read",
]
