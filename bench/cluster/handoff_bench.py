#!/usr/bin/env python3
"""Times the hand-off of prompts between two workers on GPUs: pages through pinned host memory and TCP beside pages from GPU to GPU.

--ucx names the lib folder of a UCX that reaches GPU memory (deploy/ucx.sh). Every path gets the same prompts, and every answer
must be equal. --gpus 2: the decode worker has a GPU of its own.
"""
import csv
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
import cluster  # noqa: E402  tests/e2e/cluster.py: one way to run a cluster from Python

PROMPT_TOKENS = (1024, 8192, 32000)
NEW_TOKENS = 32
WARM_UP_TOKENS = 16
ROUNDS = 5
DIRECT = "tcp,cuda_ipc,cuda_copy,self"
FIELDS = ["machine", "commit", "command", "path", "gpus", "prompt_tokens", "mib", "block_ms", "transfer_ms", "first_token_ms", "second_token_ms"]


class Path:
    """One way for pages to go, with a cluster of its own."""

    def __init__(self, args, name, transports, library):
        self.name = name
        roles = ("prefill", "decode")
        settings = [f"{role}.kv.transports={transports}" for role in roles]
        settings += [f"{role}.engine.num_drafts=0" for role in roles] + [f"decode.engine.gpu={args.gpus - 1}"]
        self.cluster = cluster.Cluster(args, settings=settings)
        self.library = library
        self.rows = {}

    def __enter__(self):
        before = os.environ.get("LD_LIBRARY_PATH")
        if self.library:  # of the workers that are started now
            os.environ["LD_LIBRARY_PATH"] = self.library
        try:
            self.cluster.__enter__()
        finally:
            if before is None:
                os.environ.pop("LD_LIBRARY_PATH", None)
            else:
                os.environ["LD_LIBRARY_PATH"] = before
        for process in self.cluster.processes("prefill") + self.cluster.processes("decode"):
            with open(process["log"], encoding="utf-8") as file:
                print(self.name, *[line.strip() for line in file if "transfer_ready" in line], flush=True)
        return self

    def __exit__(self, *what):
        return self.cluster.__exit__(*what)

    def counters(self):
        """(blocks landed, seconds from announcement to verified over all of them, bytes offered, requests, seconds of the transfer stage)."""
        prefill, decode, router = (self.cluster.processes(role)[0] for role in ("prefill", "decode", "router"))
        time.sleep(0.6)  # workers update their metrics every 250 ms
        stage = "baton_router_stage_seconds"
        return (self.cluster.metric(decode, "baton_kv_blocks_landed_total"), self.cluster.metric(decode, "baton_kv_block_seconds_sum_total"),
                self.cluster.metric(prefill, "baton_kv_bytes_offered_total"), self.cluster.metric(router, stage + "_count", stage="transfer"),
                self.cluster.metric(router, stage + "_sum", stage="transfer"))

    def ask(self, prompt):
        """-> (seconds to the first token, from it to the second, the text)."""
        times, started = [], time.monotonic()
        body = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        events = self.cluster.stream("/v1/completions", body, on_event=lambda i, event: times.append(time.monotonic()))
        failures = [event["error"] for event in events if event != "[DONE]" and "error" in event]
        if failures:
            raise RuntimeError(f"{self.name}: {failures}")
        text = "".join(event["choices"][0]["text"] for event in events if event != "[DONE]" and event["choices"])
        return times[0] - started, times[1] - times[0], text


def measure(path, tokens):
    """Runs ROUNDS prompts that share no prefix -> (the row's figures, the answers)."""
    before = path.counters()
    times, texts = [], []
    for number in range(ROUNDS):
        prompt = [300 + (7 * number + 13 * i + i * i + tokens) % 3000 for i in range(tokens)]
        first, second, text = path.ask(prompt)
        times.append((first, second))
        texts.append(text)
    blocks, seconds, size, requests, transfer = (after - b for after, b in zip(path.counters(), before))
    first, second = (statistics.median(column) for column in zip(*times))
    return [f"{size / ROUNDS / 2**20:.1f}", f"{seconds / blocks * 1e3:.3f}", f"{transfer / requests * 1e3:.2f}", f"{first * 1e3:.1f}",
            f"{second * 1e3:.2f}"], texts


def main():
    parser = cluster.arguments(__doc__)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--csv", required=True, help="rows are appended here")
    parser.add_argument("--ucx", required=True, help="lib folder of a UCX with CUDA")
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=1)
    args = parser.parse_args()
    is_new = not os.path.exists(args.csv)
    answers = {}  # by prompt's tokens, of the first path
    with open(args.csv, "a", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(FIELDS)
        # One cluster at a time: even idle processes on a GPU cost the others milliseconds.
        for name, transports, library in (("staged", "tcp,self", None), ("staged, UCX with CUDA", "tcp,self", args.ucx), ("direct", DIRECT, args.ucx)):
            with Path(args, name, transports, library) as path:
                measure(path, WARM_UP_TOKENS)
                for tokens in PROMPT_TOKENS:
                    figures, texts = measure(path, tokens)
                    cluster.expect_equal(texts, answers.setdefault(tokens, texts), f"answers to prompts of {tokens} tokens, {name}")
                    row = [args.machine, args.commit, "bench/cluster/handoff_bench.py", name, args.gpus, tokens, *figures]
                    writer.writerow(row)
                    file.flush()
                    print(", ".join(f"{field} {value}" for field, value in zip(FIELDS[3:], row[3:])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
