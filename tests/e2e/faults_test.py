#!/usr/bin/env python3
"""Faults of each kind against real processes over UCX: the client's bytes must be those of a run without faults."""
import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import cluster
from cluster import expect_equal, text_of

CHAT = "/v1/chat/completions"
LONG_PROMPT = "438-recall-lines-4096"  # an exact case of 8 chunks
CATCHABLE_S = 1.5  # a state that gauges, which follow after 250 ms, are sure to show
MAX_CLIENTS = 64


def eval_request(args, name, salt=""):
    with open(os.path.join(args.model, "evals.json"), encoding="utf-8") as file:
        request = next(case["request"] for case in json.load(file) if case["id"] == name)
    return {**request, "cache_salt": salt} if salt else request


def longest_answer(args):
    """The exact case whose answer takes the most tokens."""
    with open(os.path.join(args.model, "evals.json"), encoding="utf-8") as file:
        cases = [case for case in json.load(file) if case["exact"] and set(case["expected"]) == {"answer"}]
    return max((case for case in cases if "tools" not in case["request"]), key=lambda case: len(case["expected"]["answer"]))["id"]


def wait_for(condition, seconds, what):
    """The first true value of `condition`, asked until `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.002)
    raise AssertionError(f"{what}: not within {seconds} s")


def busy(running, role, name):
    """A process of that role whose gauge is above 0."""
    return next((p for p in running.processes(role) if running.metric(p, name) > 0), None)


def clients_for(seconds_each):
    """How many clients at once keep a worker at it long enough to be caught: one on a CPU, many on a GPU."""
    return max(1, min(MAX_CLIENTS, round(CATCHABLE_S / seconds_each)))


class Faults:
    """Each public method is one check; they share a parsed command line."""

    def __init__(self, args):
        self.args = args

    def prefill_killed_in_mid_prompt(self):
        with cluster.Cluster(self.args, prefill=2, decode=1) as running:
            firsts = []
            started = time.monotonic()
            want = text_of(running.stream(CHAT, eval_request(self.args, LONG_PROMPT, "calm"),
                                          on_event=lambda i, event: firsts.append(time.monotonic())))[:3]
            count = clients_for(firsts[0] - started)
            requests = [eval_request(self.args, LONG_PROMPT, f"storm {i}") for i in range(count)]
            with concurrent.futures.ThreadPoolExecutor(count) as pool:
                jobs = [pool.submit(running.stream, CHAT, request) for request in requests]
                victim = wait_for(lambda: busy(running, "prefill", "baton_worker_prompts_computing"), 30, "a prompt computing")
                running.kill(victim)
                for job in jobs:
                    expect_equal(text_of(job.result())[:3], want, "an answer after the loss")
            router = running.processes("router")[0]
            expect_equal(running.metric(router, "baton_router_workers_lost_total"), 1, "workers lost")
            if running.metric(router, "baton_router_retargets_total") < 1:
                raise AssertionError("no prompt was given to the other worker: it died too late")
            expect_equal(running.wait_until_clean(5, skip=[victim["name"]]), {}, "still held")

    def decode_killed_in_mid_stream(self):
        # Long enough to be running still when the gauges of a GPU's worker show it.
        request = {**eval_request(self.args, longest_answer(self.args)), "logprobs": True, "ignore_eos": True, "max_tokens": 800}
        for drafts in self.args.drafts.split(","):
            settings = [f"{role}.engine.num_drafts={drafts}" for role in ("prefill", "decode")]
            with cluster.Cluster(self.args, prefill=1, decode=2, settings=settings) as running:
                want = [event["choices"] for event in running.stream(CHAT, request)[:-1]]
                wait_for(lambda: not busy(running, "decode", "baton_worker_sequences_running"), 5, "idle workers")
                self.check_killed(running, request, want, f"k = {drafts}")

    def check_killed(self, running, request, want, what):
        """The decode worker of a stream dies at its tenth event; nothing of that is to be seen in the stream."""
        victim = []

        def kill_at_tenth(index, _):
            if index == 10:
                victim.append(wait_for(lambda: busy(running, "decode", "baton_worker_sequences_running"), 5, "a sequence"))
                running.kill(victim[0])

        events = running.stream(CHAT, request, on_event=kill_at_tenth)
        expect_equal(tokens_of([e["choices"] for e in events[:-1]]), tokens_of(want), f"the tokens after the loss, {what}")
        expect_equal(text_of(events)[:3], text_of([{"choices": choices} for choices in want])[:3], f"the text after the loss, {what}")
        router = running.processes("router")[0]
        if running.metric(router, "baton_router_recoveries_total") < 1:
            raise AssertionError("no recovery was counted: the worker died too late")
        expect_equal(running.metric(router, "baton_router_repeat_mismatches_total"), 0, "repeats that differ")
        expect_equal(running.wait_until_clean(5, skip=[victim[0]["name"]]), {}, "still held")

    def drained_decode_hands_its_sequence_on(self):
        # Long enough to be running still when the worker has said that it drains.
        greedy = {**eval_request(self.args, longest_answer(self.args)), "logprobs": True, "ignore_eos": True, "max_tokens": 1500}
        seeded = {**greedy, "temperature": 1.0, "top_p": 0.95, "seed": 7}
        for variant, request in (("greedy", greedy), ("seeded", seeded)):
            with cluster.Cluster(self.args, prefill=1, decode=2) as running:
                calm = [event["choices"] for event in running.stream(CHAT, request)[:-1]]
                # Gauges follow after 250 ms: the calm run's worker must not be taken for the next one's.
                wait_for(lambda: not busy(running, "decode", "baton_worker_sequences_running"), 5, "idle workers")
                victim = []

                def drain_at_fifth(index, _, running=running, victim=victim):
                    if index == 5:
                        victim.append(wait_for(lambda: busy(running, "decode", "baton_worker_sequences_running"), 5, "a sequence"))
                        os.kill(victim[0]["pid"], signal.SIGTERM)

                events = running.stream(CHAT, request, on_event=drain_at_fifth)
                expect_equal(tokens_of([e["choices"] for e in events[:-1]]), tokens_of(calm), f"the tokens of a moved {variant} sequence")
                expect_equal(text_of(events)[:3], text_of([{"choices": choices} for choices in calm])[:3], f"its text, {variant}")
                self.check_moved(running, victim[0])

    def check_moved(self, running, drained):
        """One sequence went from `drained` to the other decode worker and no token was computed a second time."""
        router = running.processes("router")[0]
        other = next(p for p in running.processes("decode") if p["name"] != drained["name"])
        expect_equal(running.metric(router, "baton_router_moves_total", outcome="moved"), 1, "sequences moved")
        expect_equal(running.metric(router, "baton_router_recoveries_total"), 0, "recoveries")
        expect_equal(running.metric(router, "baton_router_repeat_mismatches_total"), 0, "repeats that differ")
        expect_equal(running.metric(other, "baton_worker_replayed_tokens_total"), 0, "tokens replayed")
        expect_equal(running.wait_until_clean(5, skip=[drained["name"]]), {}, "still held")
        how = wait_for(lambda: running.how_it_ended(drained), 10, "the end of the drained worker")
        expect_equal(how, "exited with 0", "how the drained worker ended")

    def client_gone_frees_its_pages(self):
        with cluster.Cluster(self.args) as running:
            gone = 0
            for name, role, gauge in ((longest_answer(self.args), "decode", "baton_worker_sequences_running"),
                                      (LONG_PROMPT, "prefill", "baton_worker_prompts_computing")):
                count = 1 if role == "decode" else 24  # a GPU is soon done with one prompt
                clients = [self.open_stream(running, name, f"{role} {i}") for i in range(count)]
                gone += count
                wait_for(lambda g=gauge, r=role: busy(running, r, g), 30, gauge)
                for client in clients:
                    client.close()
                # The step that is running is not broken off.
                step = max(running.metric(p, "baton_worker_last_step_seconds") for p in running.processes(role))
                expect_equal(running.wait_until_clean(1 + step), {}, f"still held 1 s after the clients of {name} left")
            expect_equal(running.metric(running.processes("router")[0], "baton_router_requests_ended_total", outcome="cancelled"),
                         gone, "requests cancelled")

    def open_stream(self, running, name, salt):
        """A client that has asked for 2000 tokens and reads nothing."""
        body = json.dumps({**eval_request(self.args, name, salt), "stream": True, "ignore_eos": True, "max_tokens": 2000}).encode()
        client = socket.create_connection(("127.0.0.1", running.port))
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return client

    def overload_is_429(self):
        settings = ["router.plan.max_queued_requests=2", "decode.limits.max_sequences=1"]
        with cluster.Cluster(self.args, settings=settings) as running:
            request = {**eval_request(self.args, longest_answer(self.args)), "max_tokens": 60}
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                answers = list(pool.map(lambda _: running.post(CHAT, request), range(12)))
            codes = sorted({answer.status for answer in answers})
            expect_equal(codes, [200, 429], "status codes of 12 requests for 1 place and 2 waiting")
            for answer in answers:
                if answer.status == 429:
                    assert int(answer.headers["retry-after"]) >= 1, answer.headers
                    expect_equal(answer.json()["error"]["type"], "TooManyRequestsError", "error type")
            texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers if answer.status == 200}
            expect_equal(len(texts), 1, "different greedy answers")

    def no_worker_is_503(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [os.path.join(self.args.bin, "baton-router"), "--model", self.args.model, "--set", "workers=127.0.0.1:1",
                   "--set", f"http.port={port}", "--set", "plan.no_worker_grace_ms=100"]
        with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as router:
            try:
                running = cluster.Cluster(self.args)
                running.port = port
                wait_for(lambda: is_listening(port), 20, "the router listening")
                expect_equal(running.get("/health").status, 503, "/health")
                expect_equal(running.get("/ready").status, 503, "/ready")
                answer = running.post(CHAT, {"messages": [{"role": "user", "content": "hi"}]})
                expect_equal(answer.status, 503, "a chat")
                assert int(answer.headers["retry-after"]) >= 1, answer.headers
                router.send_signal(signal.SIGTERM)
                expect_equal(router.wait(20), 0, "exit code after SIGTERM")
            finally:
                router.kill()

    def drain_finishes_what_is_open(self):
        with cluster.Cluster(self.args) as running:
            request = eval_request(self.args, longest_answer(self.args))
            want = text_of(running.stream(CHAT, request))[:3]
            router = running.processes("router")[0]

            def stop_at_fifth(index, _):
                if index == 5:
                    os.kill(router["pid"], signal.SIGTERM)

            expect_equal(text_of(running.stream(CHAT, request, on_event=stop_at_fifth))[:3], want, "the answer of a draining router")
            running.expected_code = 1  # it ends without its router
            running.process.wait(30)


def tokens_of(chunks):
    """(bytes, logprob) of every token of a streamed chat answer with logprobs; chunk borders do not matter."""
    return [(tuple(entry["bytes"]), entry["logprob"]) for choices in chunks for choice in choices
            for entry in (choice["logprobs"] or {"content": []})["content"]]


def is_listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main():
    parser = cluster.arguments(__doc__)
    parser.add_argument("--drafts", default="3", help="numbers of drafts to lose a decode worker with: 3,1,0")
    args = parser.parse_args()
    faults = Faults(args)
    checks = [faults.prefill_killed_in_mid_prompt, faults.decode_killed_in_mid_stream, faults.drained_decode_hands_its_sequence_on,
              faults.client_gone_frees_its_pages, faults.overload_is_429, faults.no_worker_is_503, faults.drain_finishes_what_is_open]
    sys.exit(cluster.run_checks(checks, args.only))


if __name__ == "__main__":
    main()
