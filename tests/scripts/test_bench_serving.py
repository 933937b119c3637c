from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.bench.serving.throughput import Options, serving

REFUSING = """#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_a_server_that_refuses_the_warm_up_ends_the_benchmark(tmp_path: Path) -> None:
    server = tmp_path / "python"
    server.write_text(REFUSING.format(python=sys.executable))
    server.chmod(0o755)
    options = Options(str(server), "tiny", [0.75], ["plugin"], [1], ["repeated"], [2], 1, folder=str(tmp_path))
    with pytest.raises(ValueError, match=r"^rate 0: requests of the warm-up failed \(.*'status 400': 2.*see .*log$"):
        serving(options)
