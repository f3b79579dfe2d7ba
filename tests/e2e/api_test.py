#!/usr/bin/env python3
"""The HTTP surface of a real cluster: what a curl, an OpenAI client and Prometheus see."""
import subprocess
import sys

import cluster
from cluster import expect_equal, text_of

CHAT = "/v1/chat/completions"
FRANCE = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0,
          "reasoning_effort": "none"}
FIRST_STAGES = ("parse", "queue", "booking", "prefill_queue", "prefill", "emit")
SECOND_STAGES = ("transfer", "decode_queue", "first_step")


class Api:
    """Each public method is one check; they share one cluster."""

    def __init__(self, running):
        self.running = running

    def capital_of_france(self):
        whole = self.running.post(CHAT, FRANCE).json()
        content = whole["choices"][0]["message"]["content"]
        assert "Paris" in content, content
        expect_equal(whole["choices"][0]["finish_reason"], "stop", "finish_reason")
        events = self.running.stream(CHAT, {**FRANCE, "stream_options": {"include_usage": True}})
        expect_equal(events[-1], "[DONE]", "the last event")
        streamed, reasoning, finish, usage = text_of(events)
        expect_equal((streamed, reasoning, finish), (content, "", "stop"), "the streamed answer")
        rendered = self.running.post("/tokenize", FRANCE).json()
        answer = self.running.post("/tokenize", {"prompt": content}).json()
        for counts in (whole["usage"], usage):
            expect_equal(counts["prompt_tokens"], rendered["count"], "prompt_tokens")
            expect_equal(counts["total_tokens"], counts["prompt_tokens"] + counts["completion_tokens"], "total_tokens")
            expect_equal(counts["completion_tokens_details"]["reasoning_tokens"], 0, "reasoning_tokens")
        # The model need not have chosen the canonical cut of its text, so the count is bounded, eos included.
        assert answer["count"] + 1 <= usage["completion_tokens"] <= len(content.encode()) + 1, usage
        expect_equal(whole["usage"]["completion_tokens"], usage["completion_tokens"], "completion_tokens of both ways")

    def openai_client(self):
        try:
            import openai  # pylint: disable=import-outside-toplevel
        except ImportError:
            print("        the openai module is not installed: the wire shapes are checked by the other checks alone")
            return
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.running.port}/v1", api_key="none")
        model = client.models.list().data[0].id
        answer = client.chat.completions.create(model=model, messages=FRANCE["messages"], temperature=0, reasoning_effort="none")
        assert "Paris" in answer.choices[0].message.content
        stream = client.chat.completions.create(model=model, messages=FRANCE["messages"], temperature=0, stream=True,
                                                reasoning_effort="none", stream_options={"include_usage": True})
        chunks = list(stream)
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        expect_equal(text, answer.choices[0].message.content, "the streamed answer")
        expect_equal(chunks[-1].usage.completion_tokens, answer.usage.completion_tokens, "usage")

    def sglang_generate(self):
        ids = self.running.post("/tokenize", FRANCE).json()["tokens"]
        body = {"input_ids": ids, "sampling_params": {"temperature": 0, "max_new_tokens": 24}}
        whole = self.running.post("/generate", body).json()
        assert "Paris" in whole["text"], whole
        events = self.running.stream("/generate", body)
        expect_equal(events.pop(), "[DONE]", "the last event")
        expect_equal((events[-1]["text"], events[-1]["output_ids"]), (whole["text"], whole["output_ids"]), "the streamed answer")
        for before, after in zip(events, events[1:]):
            assert after["text"].startswith(before["text"]), (before, after)
            expect_equal(before["meta_info"]["finish_reason"], None, "finish_reason on the way")
        meta = events[-1]["meta_info"]
        expect_equal(meta["finish_reason"], whole["meta_info"]["finish_reason"], "finish_reason")
        expect_equal((meta["prompt_tokens"], meta["completion_tokens"]), (len(ids), len(whole["output_ids"])), "counts")
        both = self.running.post("/generate", {"text": ["One", "Two"], "sampling_params": {"max_new_tokens": 2}}).json()
        expect_equal([answer["index"] for answer in both], [0, 1], "a list's answers")

    def anthropic_messages(self):
        asked = {"messages": FRANCE["messages"], "thinking": {"type": "disabled"}}
        request = {**asked, "max_tokens": 10 ** 6, "temperature": 0}
        whole = self.running.post("/v1/messages", request).json()
        expect_equal([block["type"] for block in whole["content"]], ["text"], "blocks")
        text = whole["content"][0]["text"]
        assert "Paris" in text, text
        counted = self.running.post("/v1/messages/count_tokens", asked).json()["input_tokens"]
        usage = whole["usage"]
        expect_equal(usage["input_tokens"] + usage["cache_read_input_tokens"], counted, "input tokens")
        events = self.running.stream("/v1/messages", request)
        expect_equal([events[0]["type"], events[-1]["type"]], ["message_start", "message_stop"], "the ends of the stream")
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        expect_equal("".join(delta["text"] for delta in deltas), text, "the streamed answer")
        last = [event for event in events if event["type"] == "message_delta"][0]
        expect_equal((last["delta"]["stop_reason"], last["usage"]["output_tokens"]), ("end_turn", usage["output_tokens"]), "the end")
        stop = text[len(text) // 2:len(text) // 2 + 4]
        cut = self.running.post("/v1/messages", {**request, "stop_sequences": [stop]}).json()
        expect_equal((cut["stop_reason"], cut["stop_sequence"]), ("stop_sequence", stop), "the reason")
        limit = self.running.get("/v1/models").json()["data"][0]["max_model_len"]
        refused = self.running.post("/v1/messages", {**request, "system": "word " * limit})
        assert refused.status == 400 and "prompt is too long" in refused.json()["error"]["message"], refused.text

    def anthropic_client(self):
        try:
            import anthropic  # pylint: disable=import-outside-toplevel
        except ImportError:
            print("        the anthropic module is not installed: the wire shapes are checked by the other checks alone")
            return
        client = anthropic.Anthropic(base_url=f"http://127.0.0.1:{self.running.port}", api_key="none")
        model = client.models.list().data[0].id
        tools = [{"name": "get_weather", "description": "Get the weather of a city", "input_schema": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}]
        messages = [{"role": "user", "content": "What is the weather in Paris?"}]
        common = {"model": model, "max_tokens": 300, "tools": tools, "extra_body": {"temperature": 0}}
        with client.messages.stream(messages=messages, **common) as stream:
            answer = stream.get_final_message()
        whole = client.messages.create(messages=messages, **common)
        calls = [block for block in answer.content if block.type == "tool_use"]
        expect_equal((answer.stop_reason, [call.input for call in calls]), ("tool_use", [{"city": "Paris"}]), "the call")
        expect_equal([block.type for block in whole.content], [block.type for block in answer.content], "blocks of both ways")
        messages += [{"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in answer.content]},
                     {"role": "user", "content": [{"type": "tool_result", "tool_use_id": calls[0].id, "content": "20 degrees"}]}]
        end = client.messages.create(messages=messages, **common)
        expect_equal(end.stop_reason, "end_turn", "the end of the round trip")
        assert end.usage.cache_read_input_tokens > 0, end.usage  # the call came back as it was sampled
        try:
            client.messages.create(model="other", max_tokens=5, messages=messages[:1])
        except anthropic.NotFoundError as error:
            expect_equal(error.status_code, 404, "the status of the typed error")
        else:
            raise AssertionError("an unknown model was served")

    def document_is_served(self):
        document = self.running.get("/openapi.json").json()
        for path in ("/v1/chat/completions", "/v1/messages", "/health"):
            assert path in document["paths"], path
        expect_equal(self.running.get("/health_generate").status, 200, "/health_generate")
        expect_equal(self.running.get("/server_info").status, 404, "an operator's path, without leave")
        expect_equal(self.running.get("/get_model_info").json()["is_generation"], True, "is_generation")

    def thinking_is_split(self):
        answer = self.running.post(CHAT, {**FRANCE, "reasoning_effort": "high"}).json()
        message = answer["choices"][0]["message"]
        assert message["reasoning_content"] and "<think>" not in str(message), message
        reasoning_tokens = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert 0 < reasoning_tokens < answer["usage"]["completion_tokens"], answer["usage"]

    def seeds_repeat(self):
        request = {**FRANCE, "temperature": 1.2, "top_p": 0.95, "seed": 11, "n": 2, "max_tokens": 40,
                   "presence_penalty": 0.5}
        first, second = (self.running.post(CHAT, request).json() for _ in range(2))
        texts = [[choice["message"]["content"] for choice in answer["choices"]] for answer in (first, second)]
        expect_equal(texts[0], texts[1], "two runs of one seed")
        expect_equal([choice["index"] for choice in first["choices"]], [0, 1], "indices")

    def prefix_cache_is_reported(self):
        text = "".join(f"Line {i}: the code is {i * 7}. " for i in range(120))
        request = {**FRANCE, "messages": [{"role": "user", "content": text + "What is line 3?"}], "max_tokens": 8}
        first, second = (self.running.post(CHAT, request).json() for _ in range(2))
        expect_equal(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "cached_tokens of the first time")
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 256, second["usage"]
        expect_equal(second["choices"][0]["message"], first["choices"][0]["message"], "the answer from cached pages")

    def text_completions(self):
        request = {"prompt": ["The capital of France is", "Two and two is"], "max_tokens": 6, "temperature": 0, "logprobs": 2}
        answer = self.running.post("/v1/completions", request).json()
        expect_equal(answer["object"], "text_completion", "object")
        expect_equal([choice["index"] for choice in answer["choices"]], [0, 1], "indices")
        for choice in answer["choices"]:
            lists = choice["logprobs"]
            counts = {len(lists[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
            assert len(counts) == 1 and 1 <= counts.pop() <= 6, lists
            assert all(value <= 0 for value in lists["token_logprobs"]), lists

    def prompts_are_scored(self):
        text = "The capital of France is Paris. " * 20
        request = {"prompt": text, "max_tokens": 4, "temperature": 0, "logprobs": 2, "echo": True}
        path = "/v1/completions"
        answers = [self.running.post(path, request).json() for _ in range(2)]
        choice = answers[0]["choices"][0]
        lists, count = choice["logprobs"], answers[0]["usage"]["prompt_tokens"]
        expect_equal(answers[1]["choices"], answers[0]["choices"], "the second time, with the pages in the cache")
        expect_equal(answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "cached_tokens of a scored prompt")
        assert choice["text"].startswith(text) and len(choice["text"]) > len(text), choice["text"]
        expect_equal((lists["token_logprobs"][0], lists["top_logprobs"][0]), (None, None), "the first token's values")
        assert len(lists["tokens"]) == len(lists["token_logprobs"]) > count, lists
        assert all(value <= 0 for value in lists["token_logprobs"][1:]), lists
        expect_equal("".join(lists["tokens"][:count]), text, "the prompt's tokens")
        scored = self.running.post(path, {**request, "max_tokens": 0}).json()
        expect_equal(scored["choices"][0]["text"], text, "the text of a scored prompt")
        expect_equal(scored["choices"][0]["logprobs"]["token_logprobs"], lists["token_logprobs"][:count], "its values")
        expect_equal(scored["usage"]["completion_tokens"], 0, "completion_tokens of a scored prompt")
        first = [event for event in self.running.stream(path, request) if event != "[DONE]"][0]["choices"][0]
        expect_equal((first["text"], first["logprobs"]["token_logprobs"]), (text, lists["token_logprobs"][:count]),
                     "the first chunk of the streamed echo")
        answer = self.running.post(path, {"prompt": [300] * 1601, "echo": True, "logprobs": 20, "stream": True})
        expect_equal((answer.status, answer.json()["error"]["param"]), (400, "echo"), "a streamed echo beyond what may wait unsent")
        report = self.running.post(CHAT, {**FRANCE, "prompt_logprobs": 1}).json()
        entries = report["prompt_logprobs"]
        expect_equal((len(entries), entries[0]), (report["usage"]["prompt_tokens"], None), "prompt_logprobs")
        assert all(1 <= len(entry) <= 2 and min(e["logprob"] for e in entry.values()) <= 0 for entry in entries[1:]), entries

    def stop_strings_cut(self):
        whole = self.running.post(CHAT, FRANCE).json()["choices"][0]["message"]["content"]
        stop = whole[len(whole) // 2:len(whole) // 2 + 4]
        choice = self.running.post(CHAT, {**FRANCE, "stop": [stop]}).json()["choices"][0]
        expect_equal(choice["message"]["content"], whole[:whole.index(stop)], "the text before the stop string")
        expect_equal((choice["finish_reason"], choice["stop_reason"]), ("stop", stop), "the reason")

    def length_limits(self):
        choice = self.running.post(CHAT, {**FRANCE, "max_tokens": 2}).json()["choices"][0]
        expect_equal(choice["finish_reason"], "length", "finish_reason")
        limit = self.running.get("/v1/models").json()["data"][0]["max_model_len"]
        answer = self.running.post(CHAT, {**FRANCE, "max_tokens": limit})
        expect_equal(answer.status, 400, "max_tokens of the whole context")
        expect_equal(answer.json()["error"]["error_code"], "context_length_exceeded", "error_code")
        answer = self.running.post("/v1/completions", {"prompt": [5] * (limit + 1)})
        expect_equal((answer.status, answer.json()["error"]["param"]), (400, "prompt"), "a prompt beyond the context")

    def bad_input_is_named(self):
        for body, status, param in (("{\"messages\": [", 400, None), ({**FRANCE, "top_p": 2}, 400, "top_p"),
                                    ({**FRANCE, "model": "other"}, 404, "model"), ({"messages": []}, 400, "messages")):
            answer = self.running.post(CHAT, body)
            expect_equal((answer.status, answer.json()["error"]["param"]), (status, param), f"the answer to {body}")
        expect_equal(self.running.post(CHAT, FRANCE, {"Content-Type": "text/plain"}).status, 415, "text/plain")
        expect_equal(self.running.get("/v1/nothing").status, 404, "an unknown path")
        expect_equal(self.running.post(CHAT, FRANCE, {"x-request-id": "mine-1"}).headers["x-request-id"], "mine-1", "x-request-id")

    def tokens_round_trip(self):
        text = "Bonjour, 世界! 1234 <think>"
        tokens = self.running.post("/tokenize", {"prompt": text}).json()["tokens"]
        expect_equal(self.running.post("/detokenize", {"tokens": tokens}).json()["prompt"], text, "detokenize(tokenize)")

    def stages_add_up(self):
        router = self.running.processes("router")[0]
        samples = self.running.metrics(router)

        def total(stages, suffix):
            return [samples[(f"baton_router_stage_seconds_{suffix}", frozenset({("stage", stage)}))] for stage in stages]

        for stages, whole in ((FIRST_STAGES, "first_token"), (SECOND_STAGES, "second_token")):
            count = samples[(f"baton_router_{whole}_seconds_count", frozenset())]
            assert count > 0, whole
            expect_equal(set(total(stages, "count")), {count}, f"observations of the stages of {whole}")
            difference = abs(sum(total(stages, "sum")) - samples[(f"baton_router_{whole}_seconds_sum", frozenset())])
            assert difference <= 0.001 * count, f"{whole}: the stages differ by {difference} s over {count} requests"

    def promtool_is_content(self):
        for process in self.running.state["processes"]:
            text = self.running.metrics_text(process)
            done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
            expect_equal((done.returncode, done.stdout + done.stderr), (0, ""), f"promtool on {process['name']}")
            names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
            strange = {name for name in names if not name.startswith("baton_")}
            expect_equal(strange, set(), f"foreign metrics of {process['name']}")

    def nothing_is_left(self):
        expect_equal(self.running.wait_until_clean(5), {}, "still held after all answers")


def main():
    args = cluster.arguments(__doc__).parse_args()
    with cluster.Cluster(args) as running:
        api = Api(running)
        code = cluster.run_checks(
            [api.capital_of_france, api.openai_client, api.sglang_generate, api.anthropic_messages, api.anthropic_client, api.document_is_served,
             api.thinking_is_split, api.seeds_repeat, api.prefix_cache_is_reported,
             api.text_completions, api.prompts_are_scored, api.stop_strings_cut, api.length_limits, api.bad_input_is_named, api.tokens_round_trip,
             api.stages_add_up, api.promtool_is_content, api.nothing_is_left], args.only)
    sys.exit(code)


if __name__ == "__main__":
    main()
