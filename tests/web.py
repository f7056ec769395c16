"""A real nginx on a host of the lab, with pages for every check."""

import subprocess

from lbd.lab.namespaces import wait_until
from running import PATIENCE

PLAIN, OTHER, TLS, HTTP2, TLS_ONLY_1, SELF_SIGNED, ONCE = 8080, 80, 8443, 8081, 8444, 8445, 8082
NAMES = ("a.example", "b.example")

# The pages; `return` of nginx is a page of its own with a Content-Length, a filtered file one in chunks.
PAGES = """
    location = /ok { return 200 "all is ok\\n"; }
    location = /empty { return 204; }
    location = /down { return 503 "ok\\n"; }
    location = /moved { return 302 /ok; }
    location = /asked { return 200 "$request_method|$request_uri|$http_host|$http_user_agent|$http_accept|$http_x_a|$http_connection|$server_protocol|$http_accept_encoding\\n"; }
    location = /sni { return 200 "sni=$ssl_server_name alpn=$ssl_alpn_protocol\\n"; }
    location = /peer { return 200 "$remote_addr\\n"; }
    location /files/ { alias %(files)s/; }
    location /chunked/ { alias %(files)s/; sub_filter_types *; sub_filter nothing else; gzip on; gzip_types *; }
"""  # noqa: E501 - a page is a line

CONFIG = """
user root;
worker_processes 1;
pid %(directory)s/nginx.pid;
error_log %(directory)s/error.log;
events { worker_connections 512; }
http {
    access_log off;
    client_body_temp_path %(directory)s/t1;
    proxy_temp_path %(directory)s/t2;
    fastcgi_temp_path %(directory)s/t3;
    uwsgi_temp_path %(directory)s/t4;
    scgi_temp_path %(directory)s/t5;
    ssl_certificate %(default)s.pem;
    ssl_certificate_key %(default)s.key;
%(servers)s
}
"""


class Nginx:
    """Serves until the lab ends; `files` is where the pages below /files/ and /chunked/ are."""

    def __init__(self, lab, host, authority):
        self.files = lab.directory(host) / "files"
        self.files.mkdir()
        self.files.chmod(0o755)
        addresses = [f"IP:{lab.topology[host].address(family)}" for family in (4, 6)]
        default = authority.signs(*addresses, file="address")
        own = authority.unsigned("DNS:a.example", *addresses)
        pages = PAGES % {"files": self.files}
        servers = [_server(port, "", pages) for port in (PLAIN, OTHER)]
        servers += [_server(PLAIN, "", 'location / { return 200 "of app\\n"; }', name="app.example")]
        servers += [_server(HTTP2, "http2", pages), _server(ONCE, "http2", pages + "keepalive_requests 1;")]
        for port, flags in ((TLS, "ssl http2"), (TLS_ONLY_1, "ssl")):
            servers.append(_server(port, flags, pages))
            servers += [_server(port, flags, pages + _keys(authority.signs(f"DNS:{n}")), n) for n in NAMES]
        servers.append(_server(SELF_SIGNED, "ssl http2", pages + _keys(own)))
        directory = lab.directory(host)
        config = directory / "nginx.conf"
        config.write_text(
            CONFIG
            % {
                "directory": directory,
                "default": default.certificate.with_suffix(""),
                "servers": "\n".join(servers),
            }
        )
        self.log = directory / "error.log"
        argv = ["nginx", "-c", str(config), "-e", str(self.log), "-g", "daemon off;"]
        self.process = lab.popen(host, argv, stderr=subprocess.PIPE)
        ready = wait_until(lambda: (directory / "nginx.pid").exists() or self.process.poll(), PATIENCE)
        assert ready is True, self.process.stderr.read().decode()


def _server(port, flags, body, name="_"):
    # One socket for both families: with two, a test could meet a moment when only one is there.
    default = " default_server ipv6only=off" if name == "_" else ""
    return f"server {{ listen [::]:{port} {flags}{default}; server_name {name}; {body} }}"


def _keys(made):
    return f"ssl_certificate {made.certificate}; ssl_certificate_key {made.key};"
