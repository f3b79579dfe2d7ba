// The openai npm SDK, unmodified, against a running cluster. Usage: sdk_test.mjs URL CASES.json API-KEY
import assert from 'node:assert/strict';
import fs from 'node:fs';
import {check, finish, load} from './checks.mjs';

const [url, casesPath, apiKey] = process.argv.slice(2);
const OpenAI = load('openai');
const {call, plain} = JSON.parse(fs.readFileSync(casesPath, 'utf8'));
const client = new OpenAI.OpenAI({baseURL: url + '/v1', apiKey, maxRetries: 0});
const model = (await client.models.list()).data[0].id;
const user = content => [{role: 'user', content}];
const base = {model, messages: user(plain.message), temperature: 0, reasoning_effort: 'none'};

await check('chat, whole and streamed', async () => {
  const whole = await client.chat.completions.create(base);
  assert.equal(whole.choices[0].message.content, plain.answer);
  let text = '', usage;
  for await (const chunk of await client.chat.completions.create({...base, stream: true, stream_options: {include_usage: true}})) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, plain.answer);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});
await check('tools with a full round trip, streamed', async () => {
  const common = {model, tools: call.tools, temperature: 0, reasoning_effort: 'low'};
  const first = await client.chat.completions.stream({...common, messages: user(call.message)}).finalChatCompletion();
  const message = first.choices[0].message;
  assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), call.call.arguments);
  const history = [...user(call.message), message, {role: 'tool', tool_call_id: message.tool_calls[0].id, content: call.result}];
  const second = await client.chat.completions.create({...common, messages: history});
  assert.equal(second.choices[0].message.content, call.answer);
});
await check('errors are typed', async () => {
  await assert.rejects(client.chat.completions.create({...base, temperature: -1}), error => error instanceof OpenAI.BadRequestError && error.param === 'temperature');
  await assert.rejects(client.chat.completions.create({...base, model: 'no-such-model'}), OpenAI.NotFoundError);
  await assert.rejects(new OpenAI.OpenAI({baseURL: url + '/v1', apiKey: 'sk-wrong-key', maxRetries: 0}).models.list(), OpenAI.AuthenticationError);
});
await check('responses, streamed', async () => {
  const stream = await client.responses.create({model, input: plain.message, temperature: 0, reasoning: {effort: 'none'}, stream: true});
  let text = '', last;
  for await (const event of stream) {
    if (event.type === 'response.output_text.delta') text += event.delta;
    last = event;
  }
  assert.equal(text, plain.answer);
  assert.equal(last.type, 'response.completed');
});
finish();
