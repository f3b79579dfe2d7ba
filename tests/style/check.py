#!/usr/bin/env python3
"""The house rules that a machine can check: who may include whom, sizes, and a few banned words.

Usage: check.py [ROOT]. Prints one line per breach and exits 1 if there is any. ARCHITECTURE.md shows the same include table.
"""
import pathlib
import re
import subprocess
import sys

# What each folder may include of ours. The longest matching prefix wins.
MAY_INCLUDE = {
    "common": ["common"],
    "proto": ["common", "proto"],
    "kernels": ["common", "kernels"],
    "engine": ["common", "engine", "kernels/ops.h", "kernels/tensor.h", "kernels/weights.h", "kernels/device.h",
               "kernels/memory_queue.h", "kernels/test_device.h", "kernels/page_layout.h", "kernels/tail_header.h", "kernels/model_config.h"],
    "kvtransfer": ["common", "kvtransfer"],
    "worker": ["common", "proto", "engine", "kvtransfer", "kernels", "worker"],
    "prefill-worker": ["common", "proto", "engine", "kvtransfer", "kernels", "worker", "prefill-worker"],
    "decode-worker": ["common", "proto", "engine", "kvtransfer", "kernels", "worker", "decode-worker"],
    "router": ["common", "proto/wire.h", "proto/session_outbox.h", "router"],
    "router/net": ["common", "proto", "router"],
    "cli": ["common", "proto", "cli"],
    "tests": [""],
    "bench": [""],
}
# Headers of other people's that only some files may see: pattern of the include, allowed paths.
ONLY_IN = [
    (r"^(ucp|ucs|uct)/", r"^(kvtransfer/ucx/|tests/|bench/)"),
    (r"^(grpc|grpcpp)/", r"(_service|_client|_test)\.cc$"),
    (r"\.pb\.h$", r"(^proto/wire\w*\.(cc|h)$|(_service|_client|_test|_fuzz)\.cc$)"),
    (r"^boost/(asio|beast)", r"^(router/http/|cli/|tests/|bench/)"),
    (r"^civetweb\.h$", r"^worker/metrics_server\.cc$"),
    (r"^prometheus/", r"^common/metrics\.cc$"),
    (r"^simdjson\.h$", r"^router/text/json_parse\.cc$"),
    (r"^spdlog/", r"^common/log\.cc$"),
    (r"^yaml-cpp/", r"^(common/config\.cc|tests/)"),
    (r"^cuda", r"^kernels/cuda/"),
    (r"^third_party/llg_c/", r"^common/(grammar|vocabulary)\.cc$"),
    (r"^kernels/(cpu|cuda)/", r"^(kernels/|worker/hardware\.cc|tests/|bench/|engine/.*_test\.cc|worker/.*_test\.cc)"),
    (r"^kvtransfer/ucx/", r"^(kvtransfer/ucx/|worker/hardware\.cc|tests/|bench/)"),
]
MAX_LINES = {".h": 200, ".cc": 500, ".cuh": 500, ".cu": 700, ".py": 500}
MAX_FUNCTION = 70
MAX_COLUMNS = 100
# path: reason. An exception is a sentence somebody can argue with.
SIZE_EXCEPTIONS = {
    "proto/wire.h": "the session's messages read as one table",
}
BANNED = [
    (re.compile(r"\bTODO\b(?!\(#\d+\))|\bFIXME\b|\bXXX\b"), "unfinished work without an issue number"),
    (re.compile(r"\busing namespace\b"), "using namespace"),
    (re.compile(r"sleep_for|system_clock::now|steady_clock::now|absl::Now\(\)|std::rand\b|random_device"), "time or chance not injected"),
    (re.compile(r"absl::Mutex\b"), "absl::Mutex: use common/mutex.h"),
]
TIME_IS_FINE = re.compile(r"^(common/(clock|rng)|tests/|bench/)")
INCLUDE = re.compile(r'^\s*#include\s+["<]([^">]+)[">]')
NOT_A_FUNCTION = re.compile(r"^\s*(if|for|while|switch|else|do|try|catch|namespace|class|struct|enum|union|extern|return)\b")


def folder_rule(path):
    parts = path.split("/")
    for length in range(len(parts) - 1, 0, -1):
        prefix = "/".join(parts[:length])
        if prefix in MAY_INCLUDE:
            return MAY_INCLUDE[prefix]
    return None


def check_includes(path, lines):
    rule = folder_rule(path)
    ours = tuple(MAY_INCLUDE)
    is_test = path.endswith("_test.cc")
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        header = match.group(1)
        if rule is not None and header.split("/")[0] in ours and not is_test:
            if not any(header.startswith(allowed) for allowed in rule):
                yield number, f"{path.split('/')[0]} may not include {header}"
        for pattern, allowed in ONLY_IN:
            if re.search(pattern, header) and not re.search(allowed, path):
                yield number, f"{header} is not for this file"


def function_spans(lines):
    """(first line, length) of blocks that open like a function; braces in strings and comments are taken out first."""
    stack = []
    for number, raw in enumerate(lines, 1):
        line = re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])*\'|//.*', "", raw)
        for char in line:
            if char == "{":
                head = line
                back = number - 2
                while back >= 0 and ")" in head and head.count("(") < head.count(")"):
                    head = lines[back] + " " + head
                    back -= 1
                is_function = "(" in head and not NOT_A_FUNCTION.match(head) and "[" not in head.split("(")[0]
                stack.append((number, is_function))
            elif char == "}" and stack:
                first, is_function = stack.pop()
                if is_function:
                    yield first, number - first + 1


def check_sizes(path, lines):
    suffix = pathlib.Path(path).suffix
    limit = MAX_LINES.get(suffix)
    if limit and len(lines) > limit and path not in SIZE_EXCEPTIONS:
        yield len(lines), f"{len(lines)} lines, limit {limit}"
    if suffix not in (".h", ".cc", ".cu", ".cuh"):
        return
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_COLUMNS:
            yield number, f"{len(line)} columns, limit {MAX_COLUMNS}"
    for first, length in function_spans(lines):
        if length > MAX_FUNCTION:
            yield first, f"function of {length} lines, limit {MAX_FUNCTION}"
    if suffix in (".h", ".cuh") and "#pragma once" not in lines[:3]:
        yield 1, "no #pragma once"


def check_words(path, lines):
    for number, line in enumerate(lines, 1):
        code = line.split("//")[0]
        for pattern, reason in BANNED:
            text = line if "unfinished" in reason else code
            if pattern.search(text) and not ("time or chance" in reason and TIME_IS_FINE.match(path)):
                yield number, reason


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True)
    breaches = 0
    for path in listed.stdout.split("\n"):
        if pathlib.Path(path).suffix not in (".h", ".cc", ".cu", ".cuh", ".py") or path == "tests/style/check.py":
            continue
        if not (root / path).exists():
            continue
        lines = (root / path).read_text(encoding="utf-8").split("\n")
        if lines and lines[-1] == "":
            lines.pop()
        for check in (check_includes, check_sizes, check_words):
            for number, message in check(path, lines):
                print(f"{path}:{number}: {message}")
                breaches += 1
    print(f"{breaches} breaches of the house rules")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
