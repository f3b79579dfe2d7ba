#!/usr/bin/env python3
"""The openai and anthropic SDKs, unmodified, against a running cluster. Usage: sdk_test.py URL CASES.json API-KEY"""
import json
import sys
import time

import anthropic
import openai

URL, CASES, KEY = sys.argv[1], json.load(open(sys.argv[2], encoding="utf-8")), sys.argv[3]
CALL, PLAIN = CASES["call"], CASES["plain"]
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"], "additionalProperties": False}
client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
claude = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
MODEL = client.models.list().data[0].id
GREEDY = {"extra_body": {"temperature": 0}}  # anthropic's SDK has no argument for it any more
NO_THINKING = {"chat_template_kwargs": {"thinking": False}}


def user(text):
    return [{"role": "user", "content": text}]


def expect(got, want, what):
    assert got == want, f"{what}: got {got!r}, want {want!r}"


def ask(**members):
    members = {"model": MODEL, "messages": user(PLAIN["message"]), "temperature": 0, "extra_body": NO_THINKING, **members}
    return client.chat.completions.create(**members)


def chat():
    answer = ask()
    expect(answer.choices[0].message.content, PLAIN["answer"], "content")
    expect(answer.choices[0].finish_reason, "stop", "finish_reason")
    expect(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens, "total_tokens")


def chat_streamed():
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    expect(text, PLAIN["answer"], "content")
    expect(chunks[-1].usage.completion_tokens, ask().usage.completion_tokens, "completion_tokens")


def reasoning():
    message = ask(messages=user(CALL["message"]), tools=CALL["tools"], reasoning_effort="low", extra_body={}).choices[0].message
    expect(message.reasoning_content.strip(), CALL["reasoning"], "reasoning_content")


def tools_round_trip():
    answer = ask(messages=user(CALL["message"]), tools=CALL["tools"], reasoning_effort="low", extra_body={})
    expect(answer.choices[0].finish_reason, "tool_calls", "finish_reason")
    message = answer.choices[0].message
    expect([(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls],
           [(CALL["call"]["name"], CALL["call"]["arguments"])], "calls")
    history = user(CALL["message"]) + [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": CALL["result"]}]
    second = ask(messages=history, tools=CALL["tools"], reasoning_effort="low", extra_body={})
    expect(second.choices[0].message.content, CALL["answer"], "the answer after the result")


def tools_streamed_by_the_helper():
    with client.chat.completions.stream(model=MODEL, messages=user(CALL["message"]), tools=CALL["tools"], temperature=0,
                                        reasoning_effort="low") as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    expect(json.loads(message.tool_calls[0].function.arguments), CALL["call"]["arguments"], "arguments")


def json_schema():
    """The prompt carries the schema in any case; that the answer holds to it depends on the grammar back end."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    content = ask(response_format=form, max_tokens=200).choices[0].message.content
    if not CASES["enforces_schemas"]:
        return "not checked against the schema: this server does not say that it enforces one"
    answer = json.loads(content)
    expect(list(answer), ["answer"], "the members of the answer")
    assert isinstance(answer["answer"], str), answer
    return None


def logprobs():
    answer = ask(logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    expect(len(entries), answer.usage.completion_tokens, "one entry a token")
    for entry in entries:
        assert entry.logprob <= 0 and 3 <= len(entry.top_logprobs) <= 4, entry
    text = b"".join(bytes(entry.bytes) for entry in entries).decode()
    assert text.startswith(PLAIN["answer"]), text


def completions():
    answer = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0)
    expect(answer.usage.completion_tokens, 4, "completion_tokens")
    pieces = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, stream=True)
    expect("".join(piece.choices[0].text for piece in pieces), answer.choices[0].text, "the streamed text")


def models():
    expect(client.models.retrieve(MODEL).id, MODEL, "the model's name")


def raises(kind, status, call):
    try:
        call()
    except kind as error:
        expect(error.status_code, status, "status_code")
        return error
    raise AssertionError(f"no {kind.__name__}")


def errors_are_typed():
    error = raises(openai.BadRequestError, 400, lambda: ask(temperature=-1))
    expect(error.param, "temperature", "param")
    raises(openai.NotFoundError, 404, lambda: ask(model="no-such-model"))
    error = raises(openai.BadRequestError, 400, lambda: ask(max_tokens=10**9))
    assert "maximum context length is" in error.message, error.message
    raises(openai.AuthenticationError, 401, openai.OpenAI(base_url=URL + "/v1", api_key="sk-wrong-key", max_retries=0).models.list)
    wrong = anthropic.Anthropic(base_url=URL, api_key="sk-wrong-key", max_retries=0)
    raises(anthropic.AuthenticationError, 401, lambda: wrong.messages.create(model=MODEL, max_tokens=5, messages=user("hi")))
    raises(anthropic.BadRequestError, 400, lambda: claude.messages.create(model=MODEL, max_tokens=5, messages=user("hi"),
                                                                              extra_body={"temperature": -1}))
    raises(anthropic.NotFoundError, 404, lambda: claude.messages.create(model="no-such-model", max_tokens=5, messages=user("hi")))


def responses():
    answer = client.responses.create(model=MODEL, input=PLAIN["message"], temperature=0, reasoning={"effort": "none"})
    expect(answer.output_text, PLAIN["answer"], "output_text")
    expect(answer.status, "completed", "status")
    with client.responses.stream(model=MODEL, input=PLAIN["message"], temperature=0, reasoning={"effort": "none"}) as stream:
        kinds = [event.type for event in stream]
        expect(stream.get_final_response().output_text, PLAIN["answer"], "the streamed output_text")
    expect((kinds[0], kinds[-1]), ("response.created", "response.completed"), "the first and last event")


def responses_tools_round_trip():
    tools = [{"type": "function", "strict": False, **tool["function"]} for tool in CALL["tools"]]
    common = {"model": MODEL, "tools": tools, "temperature": 0, "reasoning": {"effort": "low"}}
    first = client.responses.create(input=user(CALL["message"]), **common)
    call = next(item for item in first.output if item.type == "function_call")
    expect((call.name, json.loads(call.arguments)), (CALL["call"]["name"], CALL["call"]["arguments"]), "the call")
    history = user(CALL["message"]) + first.output + [{"type": "function_call_output", "call_id": call.call_id, "output": CALL["result"]}]
    expect(client.responses.create(input=history, **common).output_text, CALL["answer"], "the answer after the result")


def messages():
    common = {"model": MODEL, "max_tokens": 100, "messages": user(PLAIN["message"]), "thinking": {"type": "disabled"}, **GREEDY}
    answer = claude.messages.create(**common)
    expect(answer.content[0].text, PLAIN["answer"], "text")
    expect(answer.stop_reason, "end_turn", "stop_reason")
    with claude.messages.stream(**common) as stream:
        expect("".join(stream.text_stream), PLAIN["answer"], "the streamed text")
        final = stream.get_final_message()
    expect(final.usage.output_tokens, answer.usage.output_tokens, "output_tokens")
    counted = claude.messages.count_tokens(model=MODEL, messages=user(PLAIN["message"]), thinking={"type": "disabled"})
    expect(counted.input_tokens, answer.usage.input_tokens + answer.usage.cache_read_input_tokens, "the counted tokens")


def messages_tools_round_trip():
    tools = [{"name": tool["function"]["name"], "description": tool["function"].get("description", ""),
              "input_schema": tool["function"]["parameters"]} for tool in CALL["tools"]]
    common = {"model": MODEL, "max_tokens": 1500, "tools": tools, "thinking": {"type": "enabled", "budget_tokens": 1024},
              "output_config": {"effort": "low"}, **GREEDY}
    first = claude.messages.create(messages=user(CALL["message"]), **common)
    expect([block.type for block in first.content if block.type != "text"], ["thinking", "tool_use"], "the blocks")
    use = first.content[-1]
    expect((use.name, use.input, first.stop_reason), (CALL["call"]["name"], CALL["call"]["arguments"], "tool_use"), "the call")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": CALL["result"]}
    history = user(CALL["message"]) + [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = claude.messages.create(messages=history, **common)
    expect(second.content[-1].text, CALL["answer"], "the answer after the result")


def main():
    failures = 0
    for check in (chat, chat_streamed, reasoning, tools_round_trip, tools_streamed_by_the_helper, json_schema, logprobs, completions,
                  models, errors_are_typed, responses, responses_tools_round_trip, messages, messages_tools_round_trip):
        started = time.monotonic()
        try:
            note = check()
            print(f"ok      {check.__name__} ({time.monotonic() - started:.1f} s){': ' + note if note else ''}", flush=True)
        except Exception as error:  # pylint: disable=broad-except; one check must not hide the others
            failures += 1
            print(f"FAILED  {check.__name__}: {error!r}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
