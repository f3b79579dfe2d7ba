#!/usr/bin/env python3
"""Times requests through a real cluster on this machine: a prefill-decode pair beside one worker that does both.

Both clusters run in the same minutes and take turns, so the ratio says what the split costs. Every answer of the two must be equal.
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

PROMPT_TOKENS = (256, 1024, 4096, 8192)
NEW_TOKENS = 64
ROUNDS = 5
FIELDS = ["machine", "commit", "command", "prompt_tokens", "pair_first_token_ms", "mixed_first_token_ms", "first_token_ratio",
          "prefill_tokens_per_s", "pair_token_ms", "mixed_token_ms", "token_ratio"]


def ask(running, prompt):
    """-> (seconds to the first token, seconds a later token, the answer's token ids as text)."""
    times, started = [], time.monotonic()
    body = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    events = running.stream("/v1/completions", body, on_event=lambda i, event: times.append(time.monotonic()))
    text = "".join(event["choices"][0]["text"] for event in events if event != "[DONE]" and event["choices"])
    return times[0] - started, (times[-2] - times[0]) / (NEW_TOKENS - 1), text


def measure(pair, mixed, tokens):
    """Medians over ROUNDS prompts that share no prefix."""
    figures = {pair: [], mixed: []}
    for number in range(ROUNDS):
        prompt = [300 + (7 * number + 13 * i + i * i) % 3000 for i in range(tokens)]
        texts = []
        for running in (pair, mixed) if number % 2 == 0 else (mixed, pair):
            first, later, text = ask(running, prompt)
            figures[running].append((first, later))
            texts.append(text)
        cluster.expect_equal(texts[1], texts[0], f"the answer to prompt {number} of {tokens} tokens")
    return [[statistics.median(column) for column in zip(*figures[running])] for running in (pair, mixed)]


def main():
    parser = cluster.arguments(__doc__)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--csv", required=True, help="rows are appended here")
    args = parser.parse_args()
    is_new = not os.path.exists(args.csv)
    both = ["decode.serve=prefill,decode"]
    with cluster.Cluster(args) as pair, cluster.Cluster(args, prefill=0, settings=both) as mixed, \
            open(args.csv, "a", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(FIELDS)
        for tokens in PROMPT_TOKENS:
            (pair_first, pair_later), (mixed_first, mixed_later) = measure(pair, mixed, tokens)
            row = [args.machine, args.commit, "bench/cluster/cluster_bench.py", tokens, f"{pair_first * 1e3:.1f}",
                   f"{mixed_first * 1e3:.1f}", f"{pair_first / mixed_first:.2f}", f"{tokens / pair_first:.0f}",
                   f"{pair_later * 1e3:.2f}", f"{mixed_later * 1e3:.2f}", f"{pair_later / mixed_later:.2f}"]
            writer.writerow(row)
            print(", ".join(f"{name} {value}" for name, value in zip(FIELDS[3:], row[3:])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
