"""An authority for tests, and the certificates that it gives; with the command of OpenSSL."""

import subprocess
from pathlib import Path
from typing import NamedTuple

# Of the system's configuration nothing is used, so that it cannot differ.
CONFIG = """
[req]
distinguished_name = nobody
[nobody]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
"""

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")


class Certificate(NamedTuple):
    certificate: Path
    key: Path


class Authority:
    """Signs certificates into files of a directory; `certificate` is its own."""

    def __init__(self, directory):
        self.directory = directory
        (directory / "openssl.cnf").write_text(CONFIG)
        self._own = self._make("authority", "-extensions", "authority")
        self.certificate = self._own.certificate

    def signs(self, *names, file=""):
        """Return a certificate for these names, each as "DNS:a.example" or "IP:192.0.2.1"."""
        signer = ("-CA", self._own.certificate, "-CAkey", self._own.key)
        return self._make(file or names[0].replace(":", "_"), *_leaf(names), *signer)

    def unsigned(self, *names, file="self"):
        """Return a certificate that signs itself."""
        return self._make(file, *_leaf(names))

    def _make(self, file, *options):
        made = Certificate(self.directory / f"{file}.pem", self.directory / f"{file}.key")
        command = ["openssl", "req", "-x509", *KEY, "-subj", f"/CN={file}", "-days", "1"]
        files = ["-config", self.directory / "openssl.cnf", "-out", made.certificate, "-keyout", made.key]
        done = subprocess.run([*command, *files, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return made


def _leaf(names):
    return "-extensions", "server", "-addext", f"subjectAltName={','.join(names)}"
