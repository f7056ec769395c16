"""A gRPC server with a health service, as a program: `grpc_server.py PORT [KEY CERTIFICATE]`.

The service "good" serves, "bad" does not, and "" (the server as a whole) does. On PORT + 1 is a server
without a health service. It says "ready" and runs until it is ended.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server


def main(port, key="", certificate=""):
    servers = [grpc.server(ThreadPoolExecutor(4)) for _ in range(2)]
    servicer = health.HealthServicer()
    for service, status in (("", "SERVING"), ("good", "SERVING"), ("bad", "NOT_SERVING")):
        servicer.set(service, HealthCheckResponse.ServingStatus.Value(status))
    add_HealthServicer_to_server(servicer, servers[0])
    for number, server in enumerate(servers):
        address = f"[::]:{int(port) + number}"
        if key:
            pair = Path(key).read_bytes(), Path(certificate).read_bytes()
            server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            server.add_insecure_port(address)
        server.start()
    print("ready", flush=True)
    servers[0].wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
