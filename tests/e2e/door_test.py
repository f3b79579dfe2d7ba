#!/usr/bin/env python3
"""The front door of a real router: API keys and their limits, pages of other origins, TLS. A second router joins a running cluster."""
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time

import cluster
from cluster import expect_equal

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0, "reasoning_effort": "none"}
KEYS = """# name key limits
alice sk-alice-secret
bob   sk-bob-secret requests_per_minute=2
carol sk-carol-secret tokens_per_minute=8
ops   sk-ops-secret admin
"""
PAGE = "https://chat.example"


class Door:
    """A router with keys, CORS and TLS; each public method is one check."""

    def __init__(self, args, running):
        folder = running.folder.name
        self.certificate, key = (os.path.join(folder, name) for name in ("certificate.pem", "key.pem"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
                        "-keyout", key, "-out", self.certificate], check=True, capture_output=True)
        keys = os.path.join(folder, "keys")
        with open(keys, "w", encoding="utf-8") as file:
            file.write(KEYS)
        workers = ",".join(f"127.0.0.1:{process['session_port']}" for process in running.processes("prefill") + running.processes("decode"))
        self.log = os.path.join(folder, "door.log")
        settings = [f"workers={workers}", "router_id=door", "http.host=127.0.0.1", "http.port=0", f"http.api_keys_file={keys}",
                    f"http.cors_origins={PAGE}", f"http.tls_certificate_file={self.certificate}", f"http.tls_key_file={key}"]
        command = [os.path.join(args.bin, "baton-router"), f"--model={args.model}"]
        for setting in settings:
            command += ["--set", setting]
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.port = self.wait(lambda: re.search(r" serving .*http_port=(\d+) tls=true", self.log_text()), "the router to serve")[1]
        self.wait(lambda: self.request("GET", "/ready").status == 200, "the workers")

    def log_text(self):
        with open(self.log, encoding="utf-8") as file:
            return file.read()

    def wait(self, until, what):
        deadline = time.monotonic() + 30
        while True:
            result = until()
            if result:
                return result
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"waited for {what}:\n" + self.log_text())
            time.sleep(0.05)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        expect_equal(self.process.wait(60), 0, "the router's exit code")

    def request(self, method, path, body=None, headers=None):
        context = ssl.create_default_context(cafile=self.certificate)
        connection = http.client.HTTPSConnection("127.0.0.1", int(self.port), timeout=60, context=context)
        connection.request(method, path, None if body is None else json.dumps(body).encode(),
                           {"Content-Type": "application/json", **(headers or {})})
        answer = cluster.Answer(connection.getresponse())
        connection.close()
        return answer

    def chat(self, key, **more):
        return self.request("POST", CHAT, {**HELLO, **more}, {"Authorization": f"Bearer {key}"})

    def keys_are_asked_for(self):
        expect_equal(self.request("GET", "/health").status, 200, "/health without a key")
        for path in (CHAT, "/v1/messages", "/tokenize"):
            answer = self.request("POST", path, HELLO)
            expect_equal((answer.status, answer.headers["www-authenticate"]), (401, "Bearer"), path)
            assert "authentication_error" in answer.text, answer.text
        expect_equal(self.chat("sk-eve-secret").status, 401, "a wrong key")
        expect_equal(self.chat("sk-alice-secret").status, 200, "a right key")
        answer = self.request("POST", "/v1/messages", {"messages": HELLO["messages"], "max_tokens": 4}, {"x-api-key": "sk-alice-secret"})
        expect_equal(answer.status, 200, "a right key in Anthropic's header")

    def limits_are_a_keys_own(self):
        statuses = [self.chat("sk-bob-secret").status for _ in range(4)]
        expect_equal(statuses, [200, 200, 429, 429], "four requests of two a minute")
        expect_equal(self.chat("sk-carol-secret").status, 200, "the first tokens")
        answer = self.chat("sk-carol-secret")
        expect_equal((answer.status, answer.json()["error"]["type"]), (429, "rate_limit_error"), "tokens that are owed")
        assert int(answer.headers["retry-after"]) >= 1, answer.headers
        expect_equal(self.chat("sk-alice-secret").status, 200, "another key")

    def operators_have_a_key(self):
        expect_equal(self.request("GET", "/server_info", headers={"x-api-key": "sk-alice-secret"}).status, 404, "alice")
        answer = self.request("GET", "/server_info", headers={"x-api-key": "sk-ops-secret"})
        expect_equal((answer.status, len(answer.json()["decode"])), (200, 1), "ops")

    def pages_may_call(self):
        asked = self.request("OPTIONS", CHAT, headers={"Origin": PAGE, "Access-Control-Request-Headers": "authorization"})
        expect_equal((asked.status, asked.headers["access-control-allow-origin"], asked.text), (204, PAGE, ""), "the preflight")
        stranger = self.request("OPTIONS", CHAT, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers, stranger.headers

    def plain_text_is_not_answered(self):
        with socket.create_connection(("127.0.0.1", int(self.port)), timeout=30) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
            try:
                got = plain.recv(100)
            except ConnectionResetError:
                got = b""
        assert b"HTTP" not in got, got

    def metrics_name_the_keys(self):
        text = self.request("GET", "/metrics").text
        for line in ('baton_router_key_requests_total{key="bob"} 2', 'baton_router_key_refusals_total{key="bob"} 2',
                     'baton_router_key_refusals_total{key="none"} 4'):
            assert f"\n{line}\n" in text, (line, [found for found in text.split("\n") if "key" in found])
        assert "-secret" not in text + self.log_text(), "a key was written down"


def main():
    args = cluster.arguments(__doc__).parse_args()
    with cluster.Cluster(args) as running:
        door = Door(args, running)
        code = cluster.run_checks([door.keys_are_asked_for, door.limits_are_a_keys_own, door.operators_have_a_key, door.pages_may_call,
                                   door.plain_text_is_not_answered, door.metrics_name_the_keys, door.stop], args.only)
    sys.exit(code)


if __name__ == "__main__":
    main()
