#!/usr/bin/env python3
"""make_seeds.py FOLDER: what libFuzzer begins with beside tests/fuzz/seeds, from the test vectors and the demo's evals.

FOLDER/<target>/ gets inputs, FOLDER/<target>.dict the words of their JSON. Runs in the project's root.
"""
import hashlib
import json
import pathlib
import re
import sys

# The routes that api_fuzz chooses from by its first byte.
ROUTES = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/generate", "/v1/messages",
          "/v1/messages/count_tokens", "/v1/models/{id}", "/tokenize", "/v1/tokenize", "/detokenize"]
LONGEST_WORD = 32
MOST_INPUTS = 150  # of a target
LONGEST_INPUT = 4096


def cases(path):
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    return content["cases"] if isinstance(content, dict) else content


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Seeds:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.words = {}
        self.counts = {}

    def add(self, target, content):
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogatepass")
        if self.counts.setdefault(target, 0) >= MOST_INPUTS or len(content) > LONGEST_INPUT:
            return
        self.counts[target] += 1
        path = self.folder / target / hashlib.sha1(content).hexdigest()[:12]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def collect(self, target, value):
        """The keys and short texts of a JSON value, for the target's dictionary."""
        if isinstance(value, dict):
            for key, item in value.items():
                self.collect(target, key)
                self.collect(target, item)
        elif isinstance(value, list):
            for item in value:
                self.collect(target, item)
        elif isinstance(value, str) and 0 < len(value) <= LONGEST_WORD and value.isprintable() and " " not in value:
            self.words.setdefault(target, set()).add(json.dumps(value, ensure_ascii=False))

    def body(self, target, value, prefix=b""):
        self.add(target, prefix + compact(value).encode("utf-8", "surrogatepass"))
        self.collect(target, value)

    def write_words(self):
        for target, words in self.words.items():
            escaped = (word.encode("utf-8").decode("latin-1").replace("\\", "\\\\").replace('"', '\\"') for word in sorted(words))
            lines = ("".join(c if 32 <= ord(c) < 127 else f"\\x{ord(c):02x}" for c in word) for word in escaped)
            (self.folder / f"{target}.dict").write_text("".join(f'"{line}"\n' for line in lines), encoding="ascii")


def from_api(seeds):
    for case in cases("tests/data/vectors/api/validation.json"):
        if "body" not in case or case["path"] not in ROUTES:
            continue
        seeds.body("api_fuzz", case["body"], bytes([ROUTES.index(case["path"]), 0]))
        if case["path"] == "/v1/messages":
            seeds.body("messages_fuzz", case["body"])
        elif case["path"] == "/v1/responses":
            seeds.body("responses_fuzz", case["body"])


def from_chats(seeds):
    for case in cases("tests/data/vectors/chat/render_request.json"):
        target, route = {"anthropic": ("messages_fuzz", ROUTES.index("/v1/messages"))}.get(case.get("api"), ("chat_encoder_fuzz", 0))
        seeds.body(target, case["body"])
        seeds.body("api_fuzz", case["body"], bytes([route, 0]))
    for number, case in enumerate(cases("tests/data/vectors/chat/parse.json")):
        if not isinstance(case.get("text"), str):
            continue
        head = bytes([int(case.get("thinking", False)) | (0 if case.get("tools_enabled") else 2), *((number * k) % 256 for k in range(1, 7))])
        seeds.add("dsml_parse_fuzz", head + case["text"].encode("utf-8", "surrogatepass"))


def from_evals(seeds):
    for case in cases("models/demo/evals.json"):
        request = case["request"]
        if "response_format" in request or "tools" in request:
            seeds.body("schema_fuzz", {key: request[key] for key in ("response_format", "tools", "tool_choice") if key in request})
        seeds.collect("api_fuzz", request.get("tools", []))


def main():
    seeds = Seeds(sys.argv[1])
    from_api(seeds)
    from_chats(seeds)
    from_evals(seeds)
    fields = pathlib.Path("router/front/openapi_fields.cc").read_text(encoding="utf-8")
    seeds.collect("api_fuzz", re.findall(r'^ *\{"(\w+)",', fields, re.MULTILINE))
    with open("models/demo/config.json", encoding="utf-8") as file:
        seeds.collect("model_config_fuzz", json.load(file))
    for target, word in (("schema_fuzz", "guided_json guided_regex guided_choice guided_grammar structured_outputs regex choice grammar json "
                          "json_object json_schema response_format type schema strict ebnf enum const anyOf allOf oneOf not if then else $ref $defs "
                          "items prefixItems minItems maxItems uniqueItems properties required additionalProperties patternProperties minLength "
                          "maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minProperties string integer number "
                          "boolean null array object date-time uuid email ipv4 x-guidance"),
                         ("sse_fuzz", "choices delta content reasoning_content usage error message prompt_tokens completion_tokens "
                          "prompt_tokens_details cached_tokens workers data id ready serves_prefill serves_decode prefill_ready decode_ready"),
                         ("shard_index_fuzz", "weight_map metadata total_size")):
        seeds.collect(target, word.split())
    seeds.words["api_fuzz"] |= seeds.words["schema_fuzz"]
    for target in ("messages_fuzz", "responses_fuzz", "chat_encoder_fuzz"):
        seeds.words[target] = seeds.words.get(target, set()) | seeds.words["api_fuzz"]
    seeds.write_words()


if __name__ == "__main__":
    main()
