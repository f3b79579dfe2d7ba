#!/usr/bin/env python3
"""Tool calls and thinking budgets through a real cluster, with the demo checkpoint's own tool cases at temperature 0."""
import json
import os
import sys

import cluster
from cluster import calls_of, expect_equal, text_of

CHAT = "/v1/chat/completions"


def load_cases(model):
    with open(os.path.join(model, "evals.json"), encoding="utf-8") as file:
        return [case for case in json.load(file) if case["exact"] and "tools" in case["request"]]


def names_and_arguments(calls):
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


class Tools:
    """Each public method is one check; they share one cluster."""

    def __init__(self, running, model):
        self.running = running
        cases = load_cases(model)
        self.calling = [case["request"] for case in cases if len(case["expected"].get("calls", ())) > 1]
        self.answering = [case["request"] for case in cases if "none needed" in case["skill"]]
        self.thinking = next(request for request in self.calling if request["chat_template_kwargs"]["thinking"])

    def ask(self, request, **members):
        """The one choice of a whole answer, after checking that the streamed one says the same."""
        body = {**request, **members}
        answer = self.running.post(CHAT, body)
        expect_equal(answer.status, 200, f"the status of {answer.text[:300]}")
        choice = answer.json()["choices"][0]
        message = choice["message"]
        events = self.running.stream(CHAT, {**body, "stream_options": {"include_usage": True}})
        content, reasoning, finish, usage = text_of(events)
        whole = (message["content"] or "", message["reasoning_content"] or "", choice["finish_reason"])
        expect_equal((content, reasoning, finish), whole, "the streamed text")
        complete = calls_of(events)[:len(message.get("tool_calls", []))]
        expect_equal(names_and_arguments(complete), names_and_arguments(message.get("tool_calls", [])), "the streamed calls")
        expect_equal(usage["completion_tokens"], answer.json()["usage"]["completion_tokens"], "completion_tokens")
        expect_equal(usage["prompt_tokens"], answer.json()["usage"]["prompt_tokens"], "prompt_tokens")
        choice["usage"] = usage
        return choice

    def a_round_trip_with_results(self):
        for request in (self.calling[0], self.thinking):
            message = self.ask(request)["message"]
            history = request["messages"] + [message] + [
                {"role": "tool", "tool_call_id": call["id"], "content": "{\"ok\": true}"} for call in message["tool_calls"]]
            first = self.running.post("/tokenize", {**request, "messages": request["messages"]}).json()
            second = self.running.post("/tokenize", {**request, "messages": history}).json()
            # With tools every turn extends the one before (protocol.md 2.2), calls and all.
            expect_equal(second["tokens"][:first["count"]], first["tokens"], "the beginning of the second turn's prompt")
            choice = self.ask({**request, "messages": history})
            expect_equal(choice["usage"]["prompt_tokens"], second["count"], "prompt_tokens of the second turn")

    def sampled_calls_are_replayed_token_by_token(self):
        answer = self.running.post(CHAT, {**self.calling[0], "return_token_ids": True}).json()
        choice = answer["choices"][0]
        prompt = self.running.post("/tokenize", self.calling[0]).json()["tokens"]
        message = choice["message"]
        for call in message["tool_calls"]:  # as a client's JSON library would write it
            call["function"]["arguments"] = json.dumps(json.loads(call["function"]["arguments"]), separators=(",", ":"))
        history = self.calling[0]["messages"] + [message, {"role": "user", "content": "Thanks."}]
        after = self.running.post("/tokenize", {**self.calling[0], "messages": history}).json()["tokens"]
        sampled = prompt + choice["token_ids"]
        expect_equal(after[:len(sampled)], sampled, "the prompt that continues the sampled tokens")

    def choice_none_calls_nothing(self):
        for request in self.calling[:2]:
            choice = self.ask(request, tool_choice="none")
            assert "tool_calls" not in choice["message"], choice
            assert "<｜DSML｜tool_calls>" not in (choice["message"]["content"] or ""), choice
            assert choice["finish_reason"] in ("stop", "length"), choice

    def a_named_tool_is_called(self):
        for request in (self.answering[0], self.answering[-1], self.thinking):
            for tool in request["tools"]:
                name = tool["function"]["name"]
                choice = self.ask(request, tool_choice={"type": "function", "function": {"name": name}}, max_tokens=400)
                expect_equal(choice["finish_reason"], "tool_calls", f"finish_reason of {choice}")
                expect_equal(choice["message"]["tool_calls"][0]["function"]["name"], name, "the name of the first call")
                expect_equal(bool(choice["message"]["reasoning_content"]), request["chat_template_kwargs"]["thinking"], "thinking")

    def a_required_call_comes(self):
        for request in (self.calling[0], self.thinking):
            free = self.ask(request)
            choice = self.ask(request, tool_choice="required", max_tokens=400)
            expect_equal(choice["finish_reason"], "tool_calls", "finish_reason")
            # Forced is what the model says anyway here, so forcing changes nothing.
            expect_equal(names_and_arguments(choice["message"]["tool_calls"]),
                         names_and_arguments(free["message"]["tool_calls"]), "the calls")
            expect_equal(choice["message"]["reasoning_content"], free["message"]["reasoning_content"], "the reasoning")
            expect_equal(choice["usage"]["completion_tokens"], free["usage"]["completion_tokens"], "completion_tokens")
            expect_equal(choice["usage"]["prompt_tokens"], free["usage"]["prompt_tokens"], "prompt_tokens")

    def one_call_when_not_parallel(self):
        for request in (self.calling[0], self.thinking):
            both = self.ask(request)["message"]["tool_calls"]
            choice = self.ask(request, parallel_tool_calls=False)
            expect_equal(choice["finish_reason"], "tool_calls", "finish_reason")
            expect_equal(names_and_arguments(choice["message"]["tool_calls"]), names_and_arguments(both[:1]), "the call")

    def a_cut_call_says_length(self):
        request = self.calling[0]
        whole = self.running.post(CHAT, {**request, "max_tokens": 12}).json()["choices"][0]
        expect_equal(whole["finish_reason"], "length", "finish_reason")
        assert "tool_calls" not in whole["message"] and "tool_calls>" in whole["message"]["content"], whole

    def a_thinking_budget_ends_the_reasoning(self):
        free = self.ask(self.thinking)
        used = free["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert used > 4, free
        roomy = self.ask(self.thinking, thinking_token_budget=10_000)
        expect_equal(roomy["message"]["reasoning_content"], free["message"]["reasoning_content"], "the reasoning")
        expect_equal(roomy["usage"], free["usage"] | {"prompt_tokens_details": roomy["usage"]["prompt_tokens_details"]}, "usage")
        for budget in (0, 3):
            tight = self.ask(self.thinking, thinking_token_budget=budget)
            expect_equal(tight["usage"]["completion_tokens_details"]["reasoning_tokens"], budget, "reasoning_tokens")
            assert (free["message"]["reasoning_content"]).startswith(tight["message"]["reasoning_content"] or ""), tight

    def responses_say_the_same(self):
        for request in (self.calling[0], self.thinking):
            message = self.ask(request)["message"]
            body = {"input": [{"role": m["role"], "content": m["content"]} for m in request["messages"]], "temperature": 0,
                    "reasoning": {"effort": request["reasoning_effort"]}, "max_output_tokens": request["max_tokens"],
                    "tools": [{"type": "function", **tool["function"]} for tool in request["tools"]]}
            answer = self.running.post("/v1/responses", body).json()
            expect_equal(answer["status"], "completed", "the status")
            calls = [item for item in answer["output"] if item["type"] == "function_call"]
            expect_equal([(call["name"], json.loads(call["arguments"])) for call in calls],
                         names_and_arguments(message["tool_calls"]), "the calls of the response")
            reasoning = [item["content"][0]["text"] for item in answer["output"] if item["type"] == "reasoning"]
            expect_equal("".join(reasoning), message["reasoning_content"] or "", "the reasoning of the response")
            last = self.running.stream("/v1/responses", body)[-1]
            expect_equal(last["type"], "response.completed", "the last event")
            streamed = [(item["type"], item.get("arguments")) for item in last["response"]["output"]]
            expect_equal(streamed, [(item["type"], item.get("arguments")) for item in answer["output"]], "the streamed items")

    def nothing_is_left(self):
        expect_equal(self.running.wait_until_clean(5), {}, "what workers still hold")


def main():
    args = cluster.arguments(__doc__).parse_args()
    with cluster.Cluster(args, settings=["router.api.honour_thinking_budget=true"]) as running:
        checks = Tools(running, args.model)
        names = [name for name in vars(Tools) if not name.startswith("_") and name != "ask"]
        return cluster.run_checks([getattr(checks, name) for name in names], args.only)


if __name__ == "__main__":
    sys.exit(main())
