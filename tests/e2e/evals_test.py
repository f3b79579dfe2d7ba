#!/usr/bin/env python3
"""The demo checkpoint's evals through a real cluster: every exact case must answer exactly.

Configurations: drafts on and off (k = 3, 0), one and two decode workers. --quick: all cases once with k = 3 and two decode
workers, and the 20 shortest with k = 0.
"""
import concurrent.futures
import json
import os
import sys
import time

import cluster


def load_cases(model):
    """The cases that must be exact, those with tools and with a schema among them."""
    with open(os.path.join(model, "evals.json"), encoding="utf-8") as file:
        return [case for case in json.load(file) if case["exact"]]


def judge_calls(calls, expected):
    """Compares tool calls with the expected ones; returns an error or None."""
    got = [{"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])} for call in calls]
    if got != expected:
        return f"calls {got!r}, want {expected!r}"
    ids = [call["id"] for call in calls]
    if len(set(ids)) != len(ids) or any(call["type"] != "function" for call in calls):
        return f"calls with ids {ids}"
    return None


def judge(running, case, index):
    """Asks one case, streamed or whole in turn; returns an error or None."""
    if index % 2 == 0:
        events = running.stream("/v1/chat/completions", case["request"])
        content, reasoning, finish, _ = cluster.text_of(events)
        calls = cluster.calls_of(events)
    else:
        answer = running.post("/v1/chat/completions", case["request"])
        if answer.status != 200:
            return f"status {answer.status}: {answer.text}"
        choice = answer.json()["choices"][0]
        content, reasoning = choice["message"]["content"] or "", choice["message"]["reasoning_content"] or ""
        calls, finish = choice["message"].get("tool_calls", []), choice["finish_reason"]
    expected = case["expected"]
    if content != expected.get("answer", ""):
        return f"content {content!r}, want {expected.get('answer', '')!r}"
    if "json" in expected and json.loads(content) != expected["json"]:
        return f"JSON {content!r}, want {expected['json']!r}"
    error = judge_calls(calls, expected.get("calls", []))
    if error:
        return error
    if "reasoning" in expected and reasoning != expected["reasoning"]:
        return f"reasoning {reasoning!r}, want {expected['reasoning']!r}"
    if finish != expected.get("finish_reason", "tool_calls" if "calls" in expected else "stop"):
        return f"finish_reason {finish!r}"
    return None


def run(args, cases, drafts, decode):
    """Returns the number of failed cases."""
    started = time.monotonic()
    settings = [f"{role}.engine.num_drafts={drafts}" for role in ("prefill", "decode")]
    failures = 0
    with cluster.Cluster(args, decode=decode, settings=settings) as running:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            jobs = {pool.submit(judge, running, case, i): case for i, case in enumerate(cases)}
            for job in concurrent.futures.as_completed(jobs):
                error = job.exception() or job.result()
                if error:
                    failures += 1
                    print(f"FAILED  {jobs[job]['id']}: {error}", flush=True)
        left = running.wait_until_clean(5)
        time.sleep(0.6)  # workers update their metrics every 250 ms
        decoders = running.processes("decode")
        accepted = sum(running.metric(p, "baton_worker_drafts_accepted_total") for p in decoders)
        used = sum(running.metric(p, "baton_worker_finished_total") > 0 for p in decoders)
    if (accepted > 0) != (drafts > 0):
        failures += 1
        print(f"FAILED  drafts accepted: {accepted} with k = {drafts}")
    if used != decode and len(cases) > 8:
        failures += 1
        print(f"FAILED  {used} of {decode} decode workers were used")
    if left:
        failures += 1
        print(f"FAILED  still held afterwards: {left}")
    print(f"{len(cases)} cases, {failures} failures: k = {drafts}, {decode} decode worker(s), "
          f"{time.monotonic() - started:.0f} s", flush=True)
    return failures


def main():
    parser = cluster.arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="the part that make test runs")
    args = parser.parse_args()
    cases = [case for case in load_cases(args.model) if args.only in case["id"]]
    if not cases:
        sys.exit("no case is left")
    shortest = sorted(cases, key=lambda case: len(json.dumps(case["request"])))[:20]
    plan = [(cases, 3, 2), (shortest, 0, 1)] if args.quick else [(cases, k, d) for k in (3, 0) for d in (1, 2)]
    failures = sum(run(args, chosen, drafts, decode) for chosen, drafts, decode in plan)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
