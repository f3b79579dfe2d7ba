#!/usr/bin/env python3
"""CPU of the router per request, by stage, and its tokenizer beside Hugging Face's.

The router program runs alone in its process, between a client that only asks and a worker that only speaks the session's protocol
(router_load). Its CPU is what the kernel counts for the process between the first request and the last answer; the stages are timed
by themselves, in one thread, on the same bodies, and `rest` is what is left: HTTP, planner, session, kernel. Run in the project's root;
tokenizer rows need the wheel `tokenizers` (pip install tokenizers==0.22.1).

The case `short` is about time: first its saturation (as many requests as 32 connections get through, each sending its next one when its
answer is complete), then a quarter and half of that rate at random times (a Poisson process, times counted from when a request was due). The
worker answers at once and has room for everything, so that the time to the first byte is what everything but the model adds. The note counts from
when a request was sent and leaves out the two round trips to the worker (booking, prompt to first token), which the router's log tells by request:
then it is HTTP, parsing, planning and writing, both ways, in the router and in the client. --realtime runs all three programs under SCHED_FIFO, so that other work on the machine does not wait in the times.
"""
import argparse
import csv
import json
import lzma
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIELDS = ["machine", "commit", "command", "case", "requests", "prompt_tokens", "answer_tokens", "cpu_ms", "parse_ms", "messages_ms",
          "render_ms", "tokenize_ms", "format_ms", "rest_ms", "first_p50_ms", "first_p99_ms", "cores", "tokens_per_s", "note"]
TOKENIZER_FIELDS = ["machine", "commit", "command", "text", "mb", "baton_mb_per_s", "hf_mb_per_s", "ratio", "note"]
TICK = os.sysconf("SC_CLK_TCK")


def tokenizer_json():
    return lzma.decompress((ROOT / "tests/data/tokenizer/tokenizer.json.xz").read_bytes())


def chinese_text():
    """Sentences of Chinese words of the vocabulary, the earlier ones (which are the more frequent) more often."""
    visible = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    bytes_of = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    vocab = json.loads(tokenizer_json())["model"]["vocab"]
    words = []
    for token, _ in sorted(vocab.items(), key=lambda item: item[1]):
        text = bytes(bytes_of.get(c, 0) for c in token).decode(errors="ignore")
        if re.fullmatch("[\u4e00-\u9fa5]{1,4}", text):
            words.append(text)
    rng, out = random.Random(2), []
    while len(out) < 250_000:
        out += [words[int(len(words) ** rng.random()) - 1] for _ in range(rng.randrange(3, 14))] + [rng.choice("，，，。！？")]
    return "".join(out)


def corpus():
    """Texts of three kinds, about 1 MB each: English and code from the project's own files."""
    def read(patterns):
        paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
        return "\n".join(path.read_text(encoding="utf-8") for path in paths)
    english = read(["docs/**/*.md", "*.md"])
    code = read(["router/**/*.cc", "worker/*.cc", "engine/**/*.cc"])
    chinese = chinese_text()
    size = 1 << 20
    def fit(text):
        return (text * (size // max(1, len(text.encode())) + 1)).encode()[:size].decode(errors="ignore")
    return {"english": fit(english), "code": fit(code), "chinese": fit(chinese)}


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


class Router:
    """A baton-router with the real tokenizer and one fake worker."""

    def __init__(self, args, folder, step_us, more=()):
        self.load = os.path.join(args.bin, "router_load")
        self.prefix = ["chrt", "-f", "10"] if args.realtime else []
        self.worker = subprocess.Popen([*self.prefix, self.load, "worker", str(step_us)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        session_port = int(self.worker.stdout.readline())
        self.log_path = log_path = os.path.join(folder, "router.log")
        settings = [f"workers=127.0.0.1:{session_port}", "http.host=127.0.0.1", "http.port=0", *more]
        command = [os.path.join(args.bin, "baton-router"), f"--model={folder}"]
        for setting in settings:
            command += ["--set", setting]
        with open(log_path, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.prefix + command, stdout=log, stderr=log)
        self.port = int(self.wait(lambda: re.search(r" serving .*http_port=(\d+)", open(log_path, encoding="utf-8").read()))[1])
        self.wait(self.is_ready)

    def wait(self, until):
        deadline = time.monotonic() + 60
        while True:
            result = until()
            if result:
                return result
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the router does not serve")
            time.sleep(0.05)

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5).status == 200
        except OSError:
            return False

    def run(self, connections, path, per_second=None):
        """-> (CPU seconds of the router, what the client says)."""
        how, where = ("client", [path]) if per_second is None else ("open", [str(per_second), path, path + ".times"])
        before = cpu_seconds(self.process.pid)
        said = subprocess.run([*self.prefix, self.load, how, str(self.port), str(connections), *where], check=True, capture_output=True,
                              cwd=ROOT, timeout=300)
        return cpu_seconds(self.process.pid) - before, json.loads(said.stdout)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        self.worker.stdin.close()
        self.worker.wait(20)


def chat(messages, max_tokens):
    return json.dumps({"messages": messages, "max_tokens": max_tokens, "stream": True, "chat_template_kwargs": {"thinking": False}},
                      ensure_ascii=False)


def user(text):
    return {"role": "user", "content": text}


def cases(texts):
    """name -> (step of the worker in us, connections, answer tokens, warm-up bodies, bodies, note)."""
    rng = random.Random(1)
    mixed = texts["english"][:400_000] + texts["code"][:400_000] + texts["chinese"][:100_000]
    words = mixed.split(" ")

    def prompt(num_bytes):
        """A text that shares no long run with another one."""
        out, size = [], 0
        while size < num_bytes:
            at = rng.randrange(len(words) - 64)
            out += words[at:at + 64]
            size += sum(len(word.encode()) + 1 for word in words[at:at + 64])
        return " ".join(out)
    long_bytes = 345_000  # about 100,000 tokens
    histories = [prompt(long_bytes * 9 // 10) for _ in range(4)]

    def resent(i):
        return chat([user(histories[i % 4]), {"role": "assistant", "content": "Go on."}, user(prompt(long_bytes // 10))], 8)
    return {
        "chat_200": (0, 8, 64, [chat([user(prompt(700))], 64) for _ in range(50)], [chat([user(prompt(700))], 64) for _ in range(1000)],
                     "prompts of about 200 tokens, streamed answers of 64, 8 at once"),
        "prompt_100k": (0, 2, 8, [chat([user(prompt(long_bytes))], 8)], [chat([user(prompt(long_bytes))], 8) for _ in range(24)],
                        "every prompt new"),
        "prompt_100k_resent": (0, 2, 8, [resent(i) for i in range(4)], [resent(i) for i in range(40)],
                               "nine tenths of each prompt came before"),
        "streams_512": (20_000, 512, 500, [], [chat([user("hi")], 500) for _ in range(512)], "paced at 50 tokens/s each"),
    }


def measure(args, folder, name, case):
    step_us, connections, answer, warm_up, bodies, note = case
    path, warm_path = os.path.join(folder, name + ".jsonl"), os.path.join(folder, "warm.jsonl")
    for where, lines in ((path, bodies), (warm_path, warm_up)):
        with open(where, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    router = Router(args, folder, step_us)
    try:
        if warm_up:
            router.run(connections, warm_path)
        cpu, said = router.run(connections, path)
    finally:
        router.stop()
    if said["requests"] != len(bodies):
        raise RuntimeError(f"{name}: {said}")
    with open(warm_path, "a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in bodies)
    load = os.path.join(args.bin, "router_load")
    stages = json.loads(subprocess.run([load, "stages", path], check=True, capture_output=True, cwd=ROOT).stdout)
    chunks = json.loads(subprocess.run([load, "format", os.path.join(folder, "english.txt")], check=True, capture_output=True, cwd=ROOT).stdout)
    cpu_ms = cpu * 1e3 / len(bodies)
    row = {"case": name, "requests": len(bodies), "prompt_tokens": stages.pop("prompt_tokens"), "answer_tokens": answer,
           "cpu_ms": round(cpu_ms, 3), "format_ms": round(chunks["us_per_token"] * answer / 1e3, 3), "first_p50_ms": said["first_p50_ms"],
           "first_p99_ms": said["first_p99_ms"], "cores": round(cpu / said["wall_s"], 3),
           "tokens_per_s": round(answer * len(bodies) / said["wall_s"]), "note": note}
    row.update({key: round(value, 3) for key, value in stages.items()})
    row["rest_ms"] = round(cpu_ms - row["format_ms"] - sum(stages.values()), 3)
    return row


def latencies(log_path, log_from, times_path):
    """By request: milliseconds from when it was due to its first byte at the client; and from when it was sent, without the two waits for the
    worker that the router's log tells."""
    with open(log_path, encoding="utf-8") as log:
        log.seek(log_from)
        waits = {}
        for index, booking, prefill_queue, prefill in re.findall(
                r"request_ended request=load-(\d+) .*booking_ms=(\S+) prefill_queue_ms=(\S+) prefill_ms=(\S+)", log.read()):
            waits[index] = float(booking) + float(prefill_queue) + float(prefill)
    with open(times_path, encoding="utf-8") as file:
        times = [line.split() for line in file]
    if {index for index, _, _ in times} != waits.keys():
        raise RuntimeError(f"{len(times)} times, {len(waits)} lines of the log")
    return [float(due) for _, _, due in times], [float(sent) - waits[index] for index, sent, _ in times]


def at_share(values, share):
    return round(sorted(values)[int(share * (len(values) - 1))], 3)


def latency_rows(args, folder, texts):
    """Saturation by short requests, then shares of it."""
    words = texts["english"].split(" ")
    rng = random.Random(4)

    def write(name, count):
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as file:
            for _ in range(count):
                at = rng.randrange(len(words) - 100)
                file.write(chat([user(" ".join(words[at:at + 100]))], 1) + "\n")
        return path
    path = write("saturate.jsonl", 8000)
    router = Router(args, folder, 0, ["plan.max_prefills_per_worker=64"])
    rows = []

    def row(case, cpu, count, wall, first, note):
        how = f"100 words, {'SCHED_FIFO' if args.realtime else 'normal priority'}, load average {os.getloadavg()[0]:.1f}"
        rows.append({"case": case, "requests": count, "answer_tokens": 1, "cpu_ms": round(cpu * 1e3 / count, 3), "first_p50_ms": first[0],
                     "first_p99_ms": first[1], "cores": round(cpu / wall, 3), "note": f"{note}; {how}"})
    try:
        router.run(32, path)
        cpu, said = router.run(32, path)
        most = said["requests"] / said["wall_s"]
        row("short_saturated", cpu, said["requests"], said["wall_s"], (said["first_p50_ms"], said["first_p99_ms"]),
            f"{most:.0f} requests/s over 32 connections")
        for case, share in (("short_quarter_load", 0.25), ("short_half_load", 0.5)):
            due, added, cpu, wall = [], [], 0, 0
            path = write(case + ".jsonl", int(most * share * 0.7))
            for _ in range(10):  # the kernel stops real-time threads that take a core for 0.95 s of a second
                time.sleep(0.6)
                log_from = os.path.getsize(router.log_path)
                more_cpu, said = router.run(64, path, most * share)
                time.sleep(0.1)
                more_due, more_added = latencies(router.log_path, log_from, path + ".times")
                due, added, cpu, wall = due + more_due, added + more_added, cpu + more_cpu, wall + said["wall_s"]
            parts = ", ".join(f"p{round(part * 100)} {at_share(added, part):.2f}" for part in (0.5, 0.9, 0.99))
            row(case, cpu, len(due), wall, (at_share(due, 0.5), at_share(due, 0.99)),
                f"{len(due) / wall:.0f} requests/s at random times; without the session's two round trips: {parts} ms")
    finally:
        router.stop()
    return rows


def tokenizer_rows(args, folder, texts):
    try:
        import tokenizers
    except ImportError:
        print("no wheel `tokenizers`: its rows are left out", file=sys.stderr)
        return []
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    theirs = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    rows = []
    texts = dict(texts, mixed="".join(texts[name][:300_000] for name in ("english", "code", "chinese")))
    for name, text in texts.items():
        path = os.path.join(folder, name + ".txt")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        size = len(text.encode()) / 1e6
        ours, best, ids = 0, 0, None
        for _ in range(3):  # in turns
            said = json.loads(subprocess.run([os.path.join(args.bin, "router_load"), "tokenize", path, "3"], check=True,
                                             capture_output=True, cwd=ROOT).stdout)
            ours = max(ours, said["mb_per_s"])
            start = time.thread_time()
            ids = theirs.encode(text, add_special_tokens=False).ids
            best = max(best, size / (time.thread_time() - start))
        if len(ids) != said["ids"]:
            raise RuntimeError(f"{name}: {len(ids)} ids there, {said['ids']} here")
        rows.append({"text": name, "mb": round(size, 2), "baton_mb_per_s": round(ours, 2), "hf_mb_per_s": round(best, 2),
                     "ratio": round(ours / best, 2), "note": f"tokenizers {tokenizers.__version__}, one thread's CPU time, equal number of ids"})
    return rows


def append(path, fields, rows, args):
    is_new = not os.path.exists(path)
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for row in rows:
            writer.writerow(dict(row, machine=args.machine, commit=args.commit, command="bench/router/router_bench.py"))
            print(row)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", default="build/release/bin")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--results", default="bench/results")
    parser.add_argument("--only", default="", help="a case, short or tokenizer")
    parser.add_argument("--realtime", action="store_true", help="programs under SCHED_FIFO: needs the right to")
    args = parser.parse_args()
    args.bin = os.path.abspath(args.bin)
    texts = corpus()
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "tokenizer.json"), "wb") as file:
            file.write(tokenizer_json())
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump({"architectures": ["DeepseekV4ForCausalLM"], "max_position_embeddings": 1 << 20, "vocab_size": 129_280}, file)
        with open(os.path.join(folder, "english.txt"), "w", encoding="utf-8") as file:
            file.write(texts["english"][:100_000])
        if args.only in ("", "tokenizer"):
            append(os.path.join(args.results, "tokenizer.csv"), TOKENIZER_FIELDS, tokenizer_rows(args, folder, texts), args)
        if args.only in ("", "short"):
            append(os.path.join(args.results, "router.csv"), FIELDS, latency_rows(args, folder, texts), args)
        for name, case in cases(texts).items():
            if args.only in ("", name):
                append(os.path.join(args.results, "router.csv"), FIELDS, [measure(args, folder, name, case)], args)


if __name__ == "__main__":
    main()
