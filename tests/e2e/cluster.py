"""A cluster of real processes for tests: started by `baton up`, spoken to over HTTP, killed by role."""
import argparse
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = re.compile(r"^([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="([^"]*)"')


def arguments(doc):
    """The parser every end-to-end test starts from."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--bin", default=str(ROOT / "build/release/bin"), help="folder of the programs")
    parser.add_argument("--model", default=str(ROOT / "models/demo"), help="folder of the checkpoint")
    parser.add_argument("--only", default="", help="run the checks or cases whose name contains this")
    return parser


class Answer:
    """One HTTP answer, read to its end."""

    def __init__(self, response):
        self.status = response.status
        self.headers = {key.lower(): value for key, value in response.getheaders()}
        self.text = response.read().decode()

    def json(self):
        return json.loads(self.text)


class Cluster:
    """Use as a context manager: ready inside, stopped after."""

    def __init__(self, args, prefill=1, decode=1, settings=()):
        self.folder = tempfile.TemporaryDirectory(prefix="baton-e2e-")
        self.state_file = os.path.join(self.folder.name, "state.json")
        self.command = [os.path.join(args.bin, "baton"), "up", "--port=0", f"--prefill={prefill}", f"--decode={decode}",
                        f"--model={args.model}", f"--state-file={self.state_file}", f"--log-dir={self.folder.name}/logs"]
        for setting in settings:
            self.command += ["--set", setting]
        self.process = None
        self.state = None
        self.expected_code = 0  # of `baton up`

    def __enter__(self):
        self.output = open(os.path.join(self.folder.name, "up.log"), "w+", encoding="utf-8")
        self.process = subprocess.Popen(self.command, stdout=self.output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 180
        while not os.path.exists(self.state_file):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.output.seek(0)
                raise RuntimeError("the cluster did not start:\n" + self.output.read())
            time.sleep(0.05)
        with open(self.state_file, encoding="utf-8") as file:
            self.state = json.load(file)
        self.port = self.state["port"]
        return self

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if kind is not None:
            self.print_logs()
        self.output.close()
        self.folder.cleanup()
        if kind is None and code != self.expected_code:
            raise RuntimeError(f"baton up exited with {code}, want {self.expected_code}")

    def print_logs(self, lines=25):
        for process in self.state["processes"] if self.state else []:
            with open(process["log"], encoding="utf-8", errors="replace") as file:
                print(f"--- the end of {process['name']}'s log\n" + "".join(file.readlines()[-lines:]))

    def connect(self, timeout=600):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=600):
        connection = self.connect(timeout)
        text = body if isinstance(body, (str, type(None))) else json.dumps(body)
        all_headers = {} if body is None else {"Content-Type": "application/json"}
        all_headers.update(headers or {})
        connection.request(method, path, body=None if text is None else text.encode(), headers=all_headers)
        answer = Answer(connection.getresponse())
        connection.close()
        return answer

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body, headers=None, timeout=600):
        return self.request("POST", path, body, headers, timeout)

    def stream(self, path, body, headers=None, on_event=None, timeout=600):
        """Reads a stream to its end; returns its events' data. `on_event(i, event)` is called as each arrives."""
        connection = self.connect(timeout)
        connection.request("POST", path, body=json.dumps({**body, "stream": True}).encode(),
                           headers={"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read().decode()}")
        events = []
        for line in response:
            if not line.startswith(b"data: "):
                continue
            data = line[6:].decode().rstrip("\n")
            events.append(data if data == "[DONE]" else json.loads(data))
            if on_event:
                on_event(len(events) - 1, events[-1])
        connection.close()
        return events

    def processes(self, role):
        return [process for process in self.state["processes"] if process["role"] == role]

    def kill(self, process):
        os.kill(process["pid"], signal.SIGKILL)

    def how_it_ended(self, process):
        """What `baton up` says of the end of a child, such as "exited with 0"; None while it runs."""
        with open(self.output.name, encoding="utf-8") as file:
            match = re.search(rf"^{process['name']} \(pid {process['pid']}\) (.*)$", file.read(), re.MULTILINE)
        return match and match[1]

    def metrics_text(self, process):
        port = process.get("metrics_port", process.get("http_port"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/metrics")
        return Answer(connection.getresponse()).text

    def metrics(self, process):
        """{(name, frozenset of (label, value)): value} of one process."""
        samples = {}
        for line in self.metrics_text(process).splitlines():
            match = SAMPLE.match(line)
            if match:
                samples[(match[1], frozenset(LABEL.findall(match[2] or "")))] = float(match[3])
        return samples

    def metric(self, process, name, **labels):
        return self.metrics(process).get((name, frozenset(labels.items())), 0.0)

    def leftovers(self, process):
        """What a worker still holds for requests; empty when nothing."""
        samples = self.metrics(process)
        held = [(("baton_worker_pages", frozenset({("state", state)})), state) for state in ("booked", "leased", "quarantined")]
        held += [((name, frozenset()), name) for name in
                 ("baton_worker_sequences_running", "baton_worker_sequences_waiting", "baton_worker_prompts_queued",
                  "baton_worker_prompts_computing", "baton_worker_prompts_sending", "baton_kv_open_landings",
                  "baton_kv_open_sends")]
        missing = [name for key, name in held if key not in samples]
        if missing:
            raise RuntimeError(f"{process['name']} does not report {missing}")
        return {name: samples[key] for key, name in held if samples[key] != 0}

    def wait_until_clean(self, timeout, skip=()):
        """Waits until no running worker holds anything; returns what is left after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            left = {p["name"]: self.leftovers(p) for p in self.processes("prefill") + self.processes("decode")
                    if p["name"] not in skip}
            left = {name: held for name, held in left.items() if held}
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.02)


def text_of(events):
    """(content, reasoning, finish_reason, usage) of a streamed chat answer."""
    content, reasoning, finish, usage = "", "", None, None
    for event in events:
        if event == "[DONE]":
            continue
        if "error" in event:
            raise RuntimeError(f"error in the stream: {event['error']}")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            content += choice["delta"].get("content") or ""
            reasoning += choice["delta"].get("reasoning_content") or ""
            finish = choice["finish_reason"] or finish
    return content, reasoning, finish, usage


def calls_of(events):
    """The tool calls of a streamed chat answer with one choice, put together as clients do."""
    calls = []
    for event in events:
        for choice in [] if event == "[DONE]" else event["choices"]:
            for part in choice["delta"].get("tool_calls", []):
                if part["index"] == len(calls):
                    calls.append({"id": part["id"], "type": part["type"],
                                  "function": {"name": part["function"]["name"], "arguments": ""}})
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return calls


def run_checks(checks, only=""):
    """Runs named functions, prints one line each; returns the exit code."""
    failures = 0
    for check in checks:
        if only not in check.__name__:
            continue
        started = time.monotonic()
        try:
            check()
            print(f"ok      {check.__name__} ({time.monotonic() - started:.1f} s)", flush=True)
        except Exception as error:  # pylint: disable=broad-except; one check must not hide the others
            failures += 1
            print(f"FAILED  {check.__name__} ({time.monotonic() - started:.1f} s): {error!r}", flush=True)
    return 1 if failures else 0


def expect_equal(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, want {want!r}")
