from typing import NamedTuple
class Sent(NamedTuple):
    protocol: int
    address: str
    port: int
    backend: str
    backend_port: int
