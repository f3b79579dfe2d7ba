#!/usr/bin/env python3
"""Structured output through a real cluster: every answer keeps to its constraint, with drafts and without, after a loss as well."""
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import cluster
from cluster import expect_equal, text_of
from faults_test import busy, wait_for

CHAT = "/v1/chat/completions"
RECORD = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "tags": {"type": "array", "items": {"enum": ["red", "green", 3]}, "minItems": 1, "maxItems": 3},
    "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Place"}]}},
    "required": ["name", "age", "tags", "home"], "additionalProperties": False,
    "$defs": {"Place": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "old": {"type": "boolean"}},
                        "required": ["zip", "old"], "additionalProperties": False}}}
SCHEMAS = [RECORD, {"type": "array", "items": {"type": "integer", "minimum": -50, "maximum": 5000}, "minItems": 2, "maxItems": 4},
           {"type": "string", "pattern": "^[a-f]{3,9}$"}, {"enum": ["yes", "no", None]}]
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def fault(value, schema, root):
    """What is wrong with a value, of the keywords that these tests use; None when nothing is."""
    if "$ref" in schema:
        return fault(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if "anyOf" in schema:
        faults = [fault(value, one, root) for one in schema["anyOf"]]
        return None if None in faults else f"{value!r} is none of {faults}"
    if "enum" in schema:
        return None if any(value == one and type(value) is type(one) for one in schema["enum"]) else f"{value!r} is not in {schema['enum']}"
    kind = schema["type"]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = is_number if kind == "number" else is_number and value == int(value) if kind == "integer" else isinstance(value, KINDS[kind])
    if not fits:
        return f"{value!r} is no {kind}"
    if kind == "string":
        fits = len(value) <= schema.get("maxLength", len(value)) and re.search(schema.get("pattern", ""), value)
    elif kind == "array":
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return next(filter(None, (fault(one, schema["items"], root) for one in value)), None) if fits else f"{len(value)} items"
    elif kind == "object":
        fits = set(schema["required"]) <= set(value) <= set(schema["properties"])
        return next(filter(None, (fault(one, schema["properties"][key], root) for key, one in value.items())), None) if fits else f"{list(value)}"
    elif kind == "integer":
        fits = schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return None if fits else f"{value!r} does not keep to {schema}"


def chat(text="Tell me about the weather.", thinks=False, **members):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 400, "temperature": 0,
            "chat_template_kwargs": {"thinking": thinks}, **members}


def as_format(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


class Constraints:
    """Each public method is one check; they share one cluster."""

    def __init__(self, running):
        self.running = running

    def _ask(self, **body):
        """The one choice of a whole answer, after checking that the streamed one says the same."""
        answer = self.running.post(CHAT, body)
        expect_equal(answer.status, 200, f"the status of {answer.text[:300]}")
        choice = answer.json()["choices"][0]
        content, _, finish, _ = text_of(self.running.stream(CHAT, body))
        expect_equal((content, finish), (choice["message"]["content"] or "", choice["finish_reason"]), "the streamed answer")
        return choice

    def every_json_validates(self):
        for schema in SCHEMAS:
            for seed in range(4):
                for thinks in (False, True):
                    body = chat(thinks=thinks, temperature=1.0 if seed else 0, seed=seed, **as_format(schema))
                    if thinks:  # a mind at temperature 1 may wander: its budget ends it
                        body["thinking_token_budget"] = 40
                    choice = self._ask(**body)
                    expect_equal(choice["finish_reason"], "stop", f"finish_reason of {choice}")
                    wrong = fault(json.loads(choice["message"]["content"]), schema, schema)
                    expect_equal(wrong, None, f"what is wrong with {choice['message']['content']}")

    def any_object_is_an_object(self):
        choice = self._ask(**chat(response_format={"type": "json_object"}, max_tokens=60))
        assert choice["message"]["content"].startswith("{"), choice
        if choice["finish_reason"] == "stop":
            json.loads(choice["message"]["content"])

    def regexes_choices_and_grammars_are_kept(self):
        cases = [({"guided_regex": "[0-9]{3}-[0-9]{4}"}, r"[0-9]{3}-[0-9]{4}"), ({"regex": "(ab|cd)+e"}, "(ab|cd)+e"),
                 ({"guided_choice": ["zebra", "quagga"]}, "zebra|quagga"), ({"structured_outputs": {"choice": ["Nay"]}}, "Nay"),
                 ({"guided_grammar": "start: \"<\" /[a-z]{2}/ \">\""}, "<[a-z]{2}>"),
                 ({"ebnf": "root ::= \"(\" root \")\" | [xyz]"}, r"\(*[xyz]\)*")]
        for members, pattern in cases:
            choice = self._ask(**chat(**members, max_tokens=60))
            if choice["finish_reason"] == "stop":
                assert re.fullmatch(pattern, choice["message"]["content"]), (members, choice)
            else:
                assert "(" in pattern, choice  # only what may go on without an end is cut
        text = self.running.post("/v1/completions", {"prompt": "The answer:", "temperature": 0, "guided_choice": ["qq", "qz"]}).json()
        assert text["choices"][0]["text"] in ("qq", "qz"), text

    def the_first_token_is_masked(self):
        answer = self.running.post(CHAT, chat(guided_choice=["xylophone"], max_tokens=1)).json()["choices"][0]
        assert answer["message"]["content"] and "xylophone".startswith(answer["message"]["content"]), answer

    def several_choices_each_keep_to_it(self):
        body = chat(n=3, temperature=1.0, seed=5, logprobs=True, **as_format(RECORD))
        for choice in self.running.post(CHAT, body).json()["choices"]:
            expect_equal(fault(json.loads(choice["message"]["content"]), RECORD, RECORD), None, "what is wrong")

    def strict_tools_are_called_by_schema(self):
        parameters = {"type": "object", "properties": {"q": {"enum": ["sun", "rain"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
                      "required": ["q", "n"], "additionalProperties": False}
        tools = [{"type": "function", "function": {"name": name, "strict": True, "parameters": parameters}} for name in ("look", "seek")]
        for thinks in (False, True):
            for seed in range(3):
                body = chat(thinks=thinks, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=seed,
                            temperature=1.0 if seed else 0, thinking_token_budget=30)
                choice = self._ask(**body)
                expect_equal(choice["finish_reason"], "tool_calls", f"finish_reason of {choice}")
                expect_equal(len(choice["message"]["tool_calls"]), 1, "calls")
                function = choice["message"]["tool_calls"][0]["function"]
                assert function["name"] in ("look", "seek"), function
                arguments = json.loads(function["arguments"])
                expect_equal(list(arguments), ["q", "n"], "the arguments")
                assert arguments["q"] in ("sun", "rain") and arguments["n"] in range(10), arguments

    def what_is_not_supported_is_refused(self):
        answer = self.running.post(CHAT, chat(**as_format({"type": "array", "uniqueItems": True})))
        expect_equal(answer.status, 400, "the status")
        assert "uniqueItems" in answer.json()["error"]["message"], answer.text
        expect_equal(answer.json()["error"]["param"], "response_format", "param")
        message = self.running.post("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "a"}], "output_config": {
            "format": {"type": "json_schema", "schema": {"not": {}}}}})
        expect_equal((message.status, message.json()["error"]["type"]), (400, "invalid_request_error"), "the refusal of a message")

    def other_surfaces_keep_to_it(self):
        message = self.running.post("/v1/messages", {
            "max_tokens": 300, "temperature": 0, "thinking": {"type": "disabled"}, "messages": [{"role": "user", "content": "a"}],
            "output_config": {"format": {"type": "json_schema", "schema": RECORD}}}).json()
        expect_equal(fault(json.loads(message["content"][0]["text"]), RECORD, RECORD), None, "what is wrong with the message")
        response = self.running.post("/v1/responses", {
            "input": "a", "max_output_tokens": 300, "temperature": 0, "chat_template_kwargs": {"thinking": False},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": RECORD}}}).json()
        text = next(item for item in response["output"] if item["type"] == "message")["content"][0]["text"]
        expect_equal(fault(json.loads(text), RECORD, RECORD), None, "what is wrong with the response")

    def models_say_so(self):
        for path in ("/v1/models", "/v1/models/" + self.running.get("/v1/models").json()["data"][0]["id"]):
            model = self.running.get(path).json()
            capabilities = model.get("data", [model])[0]["capabilities"]
            expect_equal(capabilities, {"structured_outputs": True, "strict_tools": True}, "the capabilities")

    def nothing_is_left(self):
        expect_equal(self.running.wait_until_clean(5), {}, "what workers still hold")


def answer_survives_a_lost_worker(args):
    """A constrained answer whose decode worker is killed goes on elsewhere with the same tokens."""
    letters = {"type": "array", "items": {"enum": ["alpha", "beta", "gamma"]}, "minItems": 250, "maxItems": 250}
    # Long enough to be running still when the gauges of a GPU's worker show it.
    request = chat("List letters.", max_tokens=3000, temperature=1.0, seed=11, **as_format(letters))
    with cluster.Cluster(args, decode=2) as running:
        want = text_of(running.stream(CHAT, request))
        # Gauges follow after 250 ms: that run's worker must not be taken for the next one's.
        wait_for(lambda: not busy(running, "decode", "baton_worker_sequences_running"), 5, "idle workers")
        victim = []

        def kill_at_twentieth(index, _):
            if index == 20:
                victim.append(wait_for(lambda: busy(running, "decode", "baton_worker_sequences_running"), 5, "a sequence"))
                running.kill(victim[0])

        got = text_of(running.stream(CHAT, request, on_event=kill_at_twentieth))
        expect_equal(got[:3], want[:3], "the answer after the loss")
        expect_equal(fault(json.loads(got[0]), letters, letters), None, "what is wrong with it")
        router = running.processes("router")[0]
        if running.metric(router, "baton_router_recoveries_total") < 1:
            raise AssertionError("no recovery was counted: the worker died too late")
        expect_equal(running.metric(router, "baton_router_repeat_mismatches_total"), 0, "repeats that differ")
        expect_equal(running.wait_until_clean(5, skip=[victim[0]["name"]]), {}, "still held")


def full_grammar_memory_holds_up_no_others(args):
    """While grammars fill a decode worker's memory, more of them wait for their turn, and requests without one pass them."""
    def ask(index):  # 250 kB each, charged 37 MB: six or seven fill the worker's 256 MiB
        grammar = f"start: {' ' * 250_000}/{index}[0-9]{{300}}/"
        return running.post(CHAT, chat(guided_grammar=grammar, max_tokens=400))

    def refusals():
        return running.metric(decode, "baton_grammar_memory_refusals_total")

    settings = ["decode.limits.grammar_mib=256", "decode.limits.max_sequences=16"]
    with cluster.Cluster(args, settings=settings) as running, ThreadPoolExecutor(10) as clients:
        decode = running.processes("decode")[0]
        answers = [clients.submit(ask, index) for index in range(10)]
        first = wait_for(refusals, 60, "a refusal")
        queued_ms = []
        while len(queued_ms) < 9 or (len(queued_ms) < 99 and refusals() == first):
            body = chat(max_tokens=4, stream_options={"include_usage": True, "include_stage_times": True})
            queued_ms.append(text_of(running.stream(CHAT, body))[3]["stage_times_ms"]["queue"])
        # Each refusal keeps those with a grammar away for 200 ms.
        assert sorted(queued_ms)[len(queued_ms) // 2] < 20, f"requests without a grammar waited {queued_ms} ms"
        assert refusals() > first, "none with a grammar waited meanwhile"
        for index, answer in enumerate(answers):
            answer = answer.result()
            expect_equal(answer.status, 200, f"the status of {answer.text[:300]}")
            text = answer.json()["choices"][0]["message"]["content"]
            assert re.fullmatch(f"{index}[0-9]{{300}}", text), text
        expect_equal(running.wait_until_clean(5), {}, "what workers still hold")
        wait_for(lambda: running.metric(decode, "baton_grammar_memory_bytes") == running.metric(decode, "baton_grammar_cache_bytes"), 5,
                 "no memory but that of kept grammars")


def main():
    args = cluster.arguments(__doc__).parse_args()
    code = 0
    for drafts in (3, 0):
        settings = [f"{role}.engine.num_drafts={drafts}" for role in ("prefill", "decode")]
        with cluster.Cluster(args, settings=settings + ["router.api.honour_thinking_budget=true"]) as running:
            checks = Constraints(running)
            names = [name for name in vars(Constraints) if not name.startswith("_")]
            print(f"k = {drafts}")
            code |= cluster.run_checks([getattr(checks, name) for name in names], args.only)
    checks = [bound(check, args) for check in (answer_survives_a_lost_worker, full_grammar_memory_holds_up_no_others)]
    return code | cluster.run_checks(checks, args.only)


def bound(check, args):
    """`check(args)` as a check without arguments."""
    def run():
        check(args)
    run.__name__ = check.__name__
    return run


if __name__ == "__main__":
    sys.exit(main())
