"""The tables of the file, key by key: their types and their defaults.

The only user of pydantic. A table that is wrong in one key goes on with its others, so that one run tells
everything.
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
from lbd.core.config.tables.health import HealthTable
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
    "HealthTable",
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
