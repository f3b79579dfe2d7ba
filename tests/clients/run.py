#!/usr/bin/env python3
"""Clients that people use, unmodified, against a real cluster with the demo checkpoint; and the chat page in Chromium.

install.sh puts them into the folder that --clients names. Nothing is skipped: a client that is missing fails.
"""
import glob
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
import cluster  # pylint: disable=wrong-import-position
from cluster import expect_equal  # pylint: disable=wrong-import-position

KEY = "sk-test-clients-0123456789"
REQUESTS = 20
COUNTERS = ("baton_router_prompt_tokens_total", "baton_router_completion_tokens_total")


def load_cases(model):
    """A plain question, and one whose answer thinks, calls one tool and goes on with its result."""
    with open(os.path.join(model, "evals.json"), encoding="utf-8") as file:
        cases = [case for case in json.load(file) if case["exact"]]
    plain = next(c for c in cases if c["skill"] == "country_fact" and not c["thinking"])
    tool = next(c for c in cases if c["skill"] == "tool answer" and c["thinking"] and len(c["request"]["messages"]) == 3)
    asked, called, result = tool["request"]["messages"]
    call = called["tool_calls"][0]["function"]
    return {
        "plain": {"message": plain["request"]["messages"][-1]["content"], "answer": plain["expected"]["answer"]},
        "call": {"message": asked["content"], "reasoning": called["reasoning_content"], "tools": tool["request"]["tools"],
                 "call": {"name": call["name"], "arguments": json.loads(call["arguments"])},
                 "result": result["content"], "answer": tool["expected"]["answer"]},
    }


class Clients:
    """Each public method is one check; they share one cluster that asks for a key."""

    def __init__(self, running, args, folder):
        self.running, self.args, self.folder = running, args, folder
        self.url = f"http://127.0.0.1:{running.port}"
        self.clients = os.path.abspath(args.clients)
        self.cases = load_cases(args.model)
        models = running.request("GET", "/v1/models", headers={"Authorization": "Bearer " + KEY}).json()
        self.model = models["data"][0]["id"]
        capabilities = models["data"][0].get("capabilities") or {}
        self.cases["enforces_schemas"] = capabilities.get("structured_outputs", False)
        self.cases_file = self.write("cases.json", self.cases)
        self.page_file = self.write("page.json", self.cases["call"])

    def write(self, name, value):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(value, file)
        return path

    def run(self, command, timeout=900, **environment):
        """Runs a client; its output is shown, and returned."""
        done = subprocess.run(command, cwd=self.folder, timeout=timeout, check=False, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, env={**os.environ, "NODE_FOLDER": os.path.join(self.clients, "node"), **environment})
        if done.returncode != 0:
            print(done.stdout[-6000:])
            raise RuntimeError(f"{os.path.basename(command[0])} exited with {done.returncode}")
        return done.stdout

    def python(self, name):
        return os.path.join(self.clients, name, "bin/python")

    def counted(self):
        router = self.running.processes("router")[0]
        return [self.running.metric(router, name) for name in COUNTERS]

    def counts_of(self, run):
        """(prompt tokens, completion tokens) that the router counted while `run` ran, and what that returned."""
        before = self.counted()
        out = run()
        # The router publishes its counters a little after a request's end: wait until they stand still.
        after = None
        while (now := self.counted()) != after:
            after = now
            time.sleep(0.5)
        return [int(b - a) for a, b in zip(before, after)], out

    def python_sdks(self):
        print(self.run([self.python("sdk"), str(HERE / "sdk_test.py"), self.url, self.cases_file, KEY]), end="")

    def npm_sdk(self):
        print(self.run(["node", str(HERE / "sdk_test.mjs"), self.url, self.cases_file, KEY]), end="")

    def chat_page(self):
        pictures = os.path.join(self.clients, "pictures")
        os.makedirs(pictures, exist_ok=True)
        print(self.run(["node", str(HERE.parent / "page/page_test.mjs"), self.url, self.page_file, pictures, KEY]), end="")

    def baton_bench(self):
        program = os.path.join(os.path.abspath(self.args.bin), "baton")
        svg, csv = os.path.join(self.folder, "plot.svg"), os.path.join(self.folder, "rows.csv")
        counts, out = self.counts_of(lambda: self.run(
            [program, "bench", f"--url={self.url}", f"--num-prompts={REQUESTS}", "--concurrency=4", "--warm-up=0", "--api=completions",
             "--input-length=40", "--output-length=8", "--ignore-eos", f"--csv={csv}", f"--svg={svg}"], OPENAI_API_KEY=KEY))
        print(out, end="")
        assert f"{REQUESTS} succeeded, 0 failed, 0 not finished" in out, out
        expect_equal(counts, [REQUESTS * 40, REQUESTS * 8], "what the router counted")
        assert f"tokens            {REQUESTS * 40} in (" in out and f", {REQUESTS * 8} out" in out, out
        with open(csv, encoding="utf-8") as file:
            expect_equal(len(file.readlines()), 2, "lines of the CSV file")
        with open(svg, encoding="utf-8") as file:
            assert f"({REQUESTS} requests)" in file.read()

    def sglang_bench_serving(self):
        self.sglang_bench("sglang-oai-chat")

    def sglang_bench_serving_native(self):  # its default: /generate
        self.sglang_bench("sglang")

    def sglang_bench(self, backend):
        result = os.path.join(self.folder, f"{backend}.jsonl")
        counts, _ = self.counts_of(lambda: self.run(
            [self.python("sglang"), str(HERE / "sglang_shim.py"), "--backend", backend, "--base-url", self.url, "--model", self.model,
             "--tokenizer", os.path.abspath(self.args.model), "--dataset-name", "random-ids", "--num-prompts", str(REQUESTS),
             "--random-input-len", "40", "--random-output-len", "8", "--random-range-ratio", "1", "--max-concurrency", "4",
             "--warmup-requests", "0", "--output-file", result], HF_HUB_OFFLINE="1", OPENAI_API_KEY=KEY, API_KEY=KEY))
        with open(result, encoding="utf-8") as file:
            said = json.loads(file.readlines()[-1])
        expect_equal(said["completed"], REQUESTS, "requests that succeeded")
        expect_equal(said["total_output_tokens"], counts[1], "output tokens")

    def aiperf(self):
        counts, out = self.counts_of(lambda: self.run(
            [os.path.join(self.clients, "aiperf/bin/aiperf"), "profile", "--model", self.model, "--url", self.url, "--endpoint-type", "chat",
             "--streaming", "--tokenizer", os.path.abspath(self.args.model), "--request-count", str(REQUESTS), "--concurrency", "4",
             "--synthetic-input-tokens-mean", "40", "--output-tokens-mean", "8", "--use-server-token-count", "--api-key", KEY,
             "--extra-inputs", "ignore_eos:true", "--artifact-dir", self.folder, "--ui", "none"]))
        files = glob.glob(os.path.join(self.folder, "**/profile_export_aiperf.json"), recursive=True)
        assert files, out[-3000:]
        with open(files[0], encoding="utf-8") as file:
            said = json.load(file)
        expect_equal(said["request_count"]["avg"], REQUESTS, "requests that succeeded")
        expect_equal(said["total_osl"]["avg"], counts[1], "output tokens, reasoning included")


def main():
    parser = cluster.arguments(__doc__)
    parser.add_argument("--clients", default=str(cluster.ROOT / "build/clients"), help="folder of the clients")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="baton-clients-") as folder:
        keys = os.path.join(folder, "keys")
        with open(keys, "w", encoding="utf-8") as file:
            file.write(f"tests {KEY} admin\n")
        with cluster.Cluster(args, settings=[f"router.http.api_keys_file={keys}"]) as running:
            clients = Clients(running, args, folder)
            return cluster.run_checks([clients.python_sdks, clients.npm_sdk, clients.chat_page, clients.baton_bench,
                                       clients.sglang_bench_serving, clients.sglang_bench_serving_native, clients.aiperf], args.only)


if __name__ == "__main__":
    sys.exit(main())
