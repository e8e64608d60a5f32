"""A stand-in for Kaggle on loopback, which the real kaggle package is led to; it keeps what it was asked."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Python runs a module of this name at its start: the client has no setting for its address.
SITECUSTOMIZE = """
import os
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = os.environ["FAKE_KAGGLE"]
"""
LAST_MODIFIED = "Fri, 24 Sep 2021 00:00:00 GMT"


class FakeKaggle(ThreadingHTTPServer):
    """Serve one zip.

    Parameters
    ----------
    content : bytes
        The zip.
    refusals : list of (int, dict)
        Status and headers of the first answers to a request for the download; those after it get the zip.
    cuts : list of int
        Bytes after which the first transfers break off.
    stall : float
        Seconds before each answer to a request for the download.
    pace : float
        Seconds between chunks of 100,000 bytes.
    """

    daemon_threads = True

    def __init__(self, content=b"", refusals=(), cuts=(), stall=0.0, pace=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.refusals, self.cuts = content, list(refusals), list(cuts)
        self.stall, self.pace = stall, pace
        self.asked = []  # (path, headers, body) of every request
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """A client that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        if self.path.endswith("IntrospectToken"):
            self.answer(200, {}, {"active": True, "username": "someone"})
            return
        time.sleep(self.server.stall)
        if self.server.refusals:
            status, headers = self.server.refusals.pop(0)
            self.answer(status, headers, {"code": status, "message": "no"})
        else:
            self.answer(302, {"Location": f"{self.server.url}/blob"}, {})

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers), None))
        content = self.server.content
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", LAST_MODIFIED)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        for position in range(start, end, 100_000):
            self.wfile.write(content[position : min(position + 100_000, end)])
            time.sleep(self.server.pace)
        self.close_connection = end < len(content)

    def answer(self, status, headers, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)
