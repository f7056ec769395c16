"""A Config as the text of files, which core/config.parse makes the same Config of."""

from datetime import datetime

from lbd.core.probes import (
    AgentProbe,
    DnsProbe,
    ExecProbe,
    GrpcProbe,
    HttpProbe,
    IcmpProbe,
    TcpProbe,
    UdpProbe,
)
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
            removed_percent=director.removed_percent,
            removed_from=director.removed_from,
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
            "timeout": _duration(kept.timeout),
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
        on_down=service.on_down,
        health=service.health and _there(_health(service.health)),
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


def _health(health):
    timing = health.timing
    keys = {
        "interval": _duration(timing.interval),
        "timeout": _duration(timing.timeout),
        "fast_interval": _duration(timing.fast),
        "rise": timing.rise,
        "fall": timing.fall,
        "start": timing.start,
        "address": health.address and str(health.address),
        "port": health.port,
        "source": health.source and str(health.source),
        "slow_start": _duration(health.slow_start) if health.slow_start else None,
        "panic": health.panic,
    }
    return _probe(health.probe) | keys


def _probe(probe):
    match probe:
        case TcpProbe():
            keys = {"type": "tcp", "send": _bytes(probe.send or None), "expect": _bytes(probe.expect or None)}
        case UdpProbe():
            keys = {"type": "udp", "send": _bytes(probe.send), "expect": _bytes(probe.expect)}
        case AgentProbe():
            keys = {"type": "agent", "send": _bytes(probe.send or None)}
        case IcmpProbe():
            keys = {"type": "icmp"}
        case ExecProbe():
            keys = {"type": "exec", "command": list(probe.command)}
        case DnsProbe():
            keys = {"type": "dns", "query": probe.query, "record": probe.record}
            keys["answers"] = list(probe.answers) or None
        case GrpcProbe():
            keys = {"type": "grpc", "service": probe.service or None, "tls": bool(probe.tls)}
        case HttpProbe():
            keys = {
                "type": "https" if probe.tls else "http",
                "method": probe.method,
                "path": probe.path,
                "host": probe.host or None,
                "headers": dict(probe.headers),
                "status": [f"{low}-{high}" for low, high in probe.status],
                "body": probe.body.decode() or None,
                "http_version": probe.version,
            }
    tls = getattr(probe, "tls", None)
    if tls:
        keys |= {"sni": tls.name or None, "verify": tls.verify, "ca": tls.authorities or None}
    return keys


def _bytes(data):
    return None if data is None else {"hex": data.hex()}


def _duration(seconds):
    return f"{round(seconds * 1000)}ms"


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
            return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in _there(value).items()) + " }"
    return "[" + ", ".join(map(_value, value)) + "]"
