#!/usr/bin/env python3
"""Times decoding through a real cluster: tokens a second over all streams, and the decode worker's own step time.

--compare KEY=VALUE (twice or more) runs one cluster per setting of the decode worker, side by side and in turns, and demands equal
answers: --compare engine.cuda_graphs=true --compare engine.cuda_graphs=false.
"""
import concurrent.futures
import contextlib
import csv
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
import cluster  # noqa: E402  tests/e2e/cluster.py: one way to run a cluster from Python

PROMPT_TOKENS = 512
NEW_TOKENS = 256
ROUNDS = 3
STEPS = "baton_worker_step_seconds"
FIELDS = ["machine", "commit", "command", "setting", "drafts", "streams", "tokens_per_s", "step_ms", "tokens_per_step"]


def ask(running, number):
    """-> (arrival of the first token, arrival of the last one, the text)."""
    prompt = [300 + (7 * number + 13 * i + i * i) % 3000 for i in range(PROMPT_TOKENS)]
    times = []
    body = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    events = running.stream("/v1/completions", body, on_event=lambda i, event: times.append(time.monotonic()))
    text = "".join(event["choices"][0]["text"] for event in events if event != "[DONE]" and event["choices"])
    return times[0], times[-2], text


def steps_of(running):
    process = running.processes("decode")[0]
    return running.metric(process, STEPS + "_count"), running.metric(process, STEPS + "_sum")


def measure(running, streams, number):
    """One round of `streams` requests at once -> (tokens/s from the first token of the first one, step s, tokens a step, texts)."""
    count, total = steps_of(running)
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        answers = list(pool.map(lambda i: ask(running, number * 1000 + i), range(streams)))
    time.sleep(0.6)  # the worker updates its metrics every 250 ms
    after, after_total = steps_of(running)
    seconds = max(end for _, end, _ in answers) - min(first for first, _, _ in answers)
    tokens = streams * (NEW_TOKENS - 1)
    return tokens / seconds, (after_total - total) / (after - count), tokens / (after - count), [text for _, _, text in answers]


def main():
    parser = cluster.arguments(__doc__)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--csv", required=True, help="rows are appended here")
    parser.add_argument("--compare", action="append", default=[], metavar="KEY=VALUE", help="of the decode worker")
    args = parser.parse_args()
    is_new = not os.path.exists(args.csv)
    with contextlib.ExitStack() as stack:
        clusters = {}
        for setting in args.compare or ["engine.backend=auto"]:
            for drafts in (0, 1, 3):
                settings = [f"decode.{setting}", f"decode.engine.num_drafts={drafts}"]
                clusters[setting, drafts] = stack.enter_context(cluster.Cluster(args, settings=settings))
        writer = csv.writer(stack.enter_context(open(args.csv, "a", encoding="utf-8")))
        if is_new:
            writer.writerow(FIELDS)
        for streams in (1, 8):
            figures = {key: [] for key in clusters}
            for number in range(ROUNDS):
                texts = set()
                for key, running in clusters.items():
                    *row, answers = measure(running, streams, number)
                    figures[key].append(row)
                    texts.add(tuple(answers))
                cluster.expect_equal(len(texts), 1, f"different answers to round {number} of {streams} streams")
            for (setting, drafts), rows in figures.items():
                rate, step, a_step = (statistics.median(column) for column in zip(*rows))
                row = [args.machine, args.commit, "bench/cluster/decode_bench.py --compare " + setting, setting, drafts, streams, f"{rate:.0f}",
                       f"{step * 1e3:.3f}", f"{a_step:.2f}"]
                writer.writerow(row)
                print(", ".join(f"{name} {value}" for name, value in zip(FIELDS[3:], row[3:])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
