"""A Config as the text of files, which core/config.parse makes the same Config of."""

from datetime import datetime

from lbd.core.source import Source


def sources(config):
    """Return the files that say `config`: the main file, and those of prefixes."""
    access = (each for service in config.services for each in (service.allow, service.deny) if each)
    files = {file.path: file for each in access for file in each.files}
    lists = [
        Source(path, "".join(f"{prefix}\n" for prefix in file.prefixes), kind="prefixes")
        for path, file in files.items()
    ]
    return Source("lbd.toml", toml(config)), lists


def toml(config):
    """Return the main file."""
    director = config.director
    blocks = [
        _block(
            "[director]",
            allow_empty=True,
            forwarding=director.forwarding,
            log_target=director.log_target,
            log_group=director.log_group,
            mark_mask=director.mark_mask,
            devices=list(director.devices),
        )
    ]
    blocks += map(_service, config.services)
    blocks += [_block("[[address]]", address=str(a.address), interface=a.interface) for a in config.addresses]
    blocks += [
        _block(
            "[[route]]",
            to=str(route.to),
            via=route.via and str(route.via),
            interface=route.interface,
            source=route.source and str(route.source),
            table=route.table,
            metric=route.metric,
            replace=route.replace,
        )
        for route in config.routes
    ]
    blocks += [
        _block(
            "[[rule]]",
            **{"from": rule.source and str(rule.source)},
            interface=rule.iif,
            table=rule.table,
            priority=rule.priority,
        )
        for rule in config.rules
    ]
    return "\n".join(blocks)


def _service(service):
    kept = service.persistence
    return _block(
        "[[service]]",
        name=service.name,
        listen=list(map(str, service.listen)) or None,
        mark=service.mark,
        interface=service.interface,
        scheduler=service.scheduler,
        hash=list(service.hash) if service.scheduler == "maglev" else None,
        table_size=service.table_size or None,
        return_path=str(service.return_path),
        persistence=kept
        and {
            "timeout": f"{round(kept.timeout * 1000)}ms",
            "prefix_v4": kept.prefix_v4,
            "prefix_v6": kept.prefix_v6,
        },
        pin=[{"client": str(pin.client), "backend": str(pin.backend)} for pin in service.pins],
        allow=service.allow and _access(service.allow),
        deny=_access(service.deny),
        refuse=service.refusal,
        limits=_limits(service.limits),
        when_empty=service.when_empty,
        sorry_server=list(map(str, service.sorry)) or None,
        offload=service.offload,
        log=service.log,
        ssh=service.ssh,
        backends=list(map(_backend, service.backends)),
    )


def _backend(backend):
    keys = {"address": str(backend), "weight": backend.weight, "state": backend.state}
    keys |= {"drain_until": backend.drain_until, "max_connections": backend.max_connections or None}
    return _there(keys | {"backup": backend.backup or None})


def _access(access):
    return [*map(str, access.prefixes), *({"file": file.path} for file in access.files)]


def _limits(limits):
    rates = {"new": limits.new, "client_new": limits.client_new}
    keys = {f"{name}_per_second": rate and rate.per_second for name, rate in rates.items()}
    keys |= {f"{name}_burst": rate and rate.burst for name, rate in rates.items()}
    return _there(
        keys | {"client_connections": limits.client_connections or None, "synproxy": limits.synproxy}
    )


def _there(keys):
    return {key: value for key, value in keys.items() if value is not None}


def _block(head, **keys):
    return "\n".join([head, *(f"{key} = {_value(value)}" for key, value in _there(keys).items()), ""])


def _value(value):
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return f'"{value}"'
        case datetime():
            return value.isoformat()
        case dict():
            return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(map(_value, value)) + "]"
