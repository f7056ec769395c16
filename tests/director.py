"""The director of the experiment as a file: one service, and its real servers in `lbd.lab.topology`."""

PATH = "/etc/lbd.toml"

ONE = "192.168.2.73:9999"
TWO = "192.168.2.74:9999"
VIP = "192.168.18.58"
PORT = 8888


def service(*backends: str) -> str:
    """Return the five-line file with these backends; the backends are on its line 5."""
    listed = ", ".join(f'"{backend}"' for backend in backends)
    return f"""\
[[service]]
name = "web"
listen = "{VIP}:{PORT}"
interface = "eth0"
backends = [{listed}]
"""


BAD = service(ONE).replace(f'["{ONE}"]', '"not a list"')
PLACE = "lbd.toml:5:12"  # where it is bad
