"""Who may connect to a service, and how much: what a connection passes before a backend is chosen.

A service with lists or limits goes to `guard`, then to `limited`, and from there to the chain of its class.
Prefixes written in a service are elements with the listen address in the key. Those of a file are a set of
their own, which services share: a long list for many services would be too many elements, and nftables is
slow with many intervals of several fields.
"""

from __future__ import annotations

from hashlib import blake2b

from lbd.core import limits
from lbd.core.draft import Draft
from lbd.core.settings import Access, Network, PrefixFile, Service
from lbd.core.shape import Reading, address_type, common, ip, prefix, verdicts
from lbd.core.state import Map
from lbd.core.virtual import Virtual


def needed(service: Service) -> bool:
    """Tell whether a service has anything to be passed."""
    return service.allow is not None or service.deny != Access() or limits.needed(service.limits)


def refuse(service: Service) -> str:
    """Return the chain that a refused connection goes to."""
    return f"refuse_{service.refusal}"


def add(draft: Draft, virtual: Virtual, reading: Reading, chain: str) -> str:
    """Put the lists and limits of `virtual` into their maps; return the chain where they begin.

    `chain` is that of its class, where they end.
    """
    draft.put(f"schedule{common(reading)}", verdicts(reading), virtual.where.key, f"goto {chain}")
    _deny(draft, virtual, reading)
    _allow(draft, virtual, reading)
    limits.add(draft, virtual, reading, refuse(virtual.service))
    return f"guard{common(reading)}"


def chains(draft: Draft, reading: Reading) -> None:
    """Make the chains of a reading, with the rules that its maps ask for."""
    ends, key, guard = common(reading), reading.key, reading.guard
    if f"schedule{ends}" not in draft.maps:
        return
    client = f"{guard}{key} . {ip(reading.family)} saddr vmap"
    rules = [
        (f"deny_files{ends}", f"{guard}{key} vmap"),
        (f"deny{ends}", client),
        (f"allow{ends}", client),
        (f"unless{ends}", f"{guard}{key} vmap"),
    ]
    asked = [f"{rule} @{name}" for name, rule in rules if name in draft.maps]
    draft.chain(f"guard{ends}", *asked, f"goto limited{ends}")
    draft.chain(f"limited{ends}", *limits.rules(draft, reading), f"{guard}{key} vmap @schedule{ends}", "drop")


def _listed(reading: Reading) -> Map:
    types = reading.shape.types(reading.family, reading.shape.fields)
    return Map((*types, address_type(reading.family)), "verdict", 0, interval=True)


def _of(reading: Reading, networks: tuple[Network, ...]) -> list[str]:
    return [prefix(network) for network in networks if network.version == reading.family]


def _deny(draft: Draft, virtual: Virtual, reading: Reading) -> None:
    service, key = virtual.service, virtual.where.key
    for denied in _of(reading, service.deny.prefixes):
        draft.put(f"deny{common(reading)}", _listed(reading), f"{key} . {denied}", f"goto {refuse(service)}")
    if sets := _sets(draft, service.deny.files, reading):
        chain = draft.chain(
            f"deny_{_digest(sets)}_{service.refusal}{reading.family}",
            *(f"{ip(reading.family)} saddr @{name} goto {refuse(service)}" for name in sets),
        )
        draft.put(f"deny_files{common(reading)}", verdicts(reading), key, f"jump {chain}")


def _allow(draft: Draft, virtual: Virtual, reading: Reading) -> None:
    service, key = virtual.service, virtual.where.key
    if service.allow is None:
        return
    for allowed in _of(reading, service.allow.prefixes):
        verdict = f"goto limited{common(reading)}"
        draft.put(f"allow{common(reading)}", _listed(reading), f"{key} . {allowed}", verdict)
    # Who is not in the list itself may be in one of its files, and is refused otherwise.
    verdict = f"goto {refuse(service)}"
    if sets := _sets(draft, service.allow.files, reading):
        chain = draft.chain(
            f"allow_{_digest(sets)}_{service.refusal}{reading.family}",
            *(f"{ip(reading.family)} saddr @{name} return" for name in sets),
            f"goto {refuse(service)}",
        )
        verdict = f"jump {chain}"
    draft.put(f"unless{common(reading)}", verdicts(reading), key, verdict)


def _sets(draft: Draft, files: tuple[PrefixFile, ...], reading: Reading) -> list[str]:
    """Have a set for each file, also for one with no prefix of the family, and return their names."""
    names = []
    for file in files:
        prefixes = _of(reading, file.prefixes)
        # Named by what is in it: another list is another set, which is filled before a rule names it. Taking
        # prefixes out of one is slow, and a set that is emptied and filled again is empty for a moment.
        content = "\n".join((file.path, *prefixes)).encode(errors="surrogateescape")
        name = f"list_{blake2b(content, digest_size=6).hexdigest()}_{reading.family}"
        if name not in draft.maps:
            draft.declare(name, Map((address_type(reading.family),), (), 0, interval=True))
            draft.elements[name] = dict.fromkeys(prefixes, "")
        names.append(name)
    return names


def _digest(names: list[str]) -> str:
    return blake2b(" ".join(names).encode(), digest_size=6).hexdigest()
