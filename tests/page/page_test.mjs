// The chat page in headless Chromium against a running cluster. Usage: page_test.mjs URL CASE.json OUTPUT-FOLDER [API-KEY]
// CASE has the message to send, its tools and the call that the model makes. Exits 1 on a failure.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import {check, finish, load} from '../clients/checks.mjs';

const [url, casePath, folder, apiKey] = process.argv.slice(2);
const {chromium} = load('playwright-core');
const wanted = JSON.parse(fs.readFileSync(casePath, 'utf8'));
const browser = await chromium.launch({executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: ['--no-sandbox']});

// A page whose every problem and every request to another host is kept.
async function open(options = {}) {
  const page = await browser.newPage(options);
  page.problems = [];
  page.on('pageerror', error => page.problems.push(String(error)));
  page.on('console', message => { if (message.type() === 'error' && !/status of 401/.test(message.text())) page.problems.push(message.text()); });
  page.on('request', request => { if (new URL(request.url()).origin !== new URL(url).origin && !request.url().startsWith('data:')) page.problems.push(request.url()); });
  await page.goto(url);
  if (apiKey) {
    await page.locator('#key_dialog[open]').waitFor();
    await page.fill('#key', apiKey);
    await page.keyboard.press('Enter');
  }
  await page.locator('#model option').first().waitFor({state: 'attached'});
  return page;
}

async function send(page, text) {
  await page.fill('#text', text);
  await page.keyboard.press('Enter');
  await page.locator('#send:not([hidden])').waitFor({timeout: 120000});
}

async function setUp(page) {
  await page.click('#toggle');
  await page.selectOption('#effort', 'low');
  await page.fill('#temperature', '0');
  await page.fill('#tools', JSON.stringify(wanted.tools));
  await page.locator('#tools').blur();
  await page.click('#toggle');
}

const page = await open({viewport: {width: 1000, height: 800}});
await check('a streamed answer has folded thinking and one tool call', async () => {
  await setUp(page);
  await send(page, wanted.message);
  const answer = page.locator('.assistant').last();
  assert.equal(await answer.locator('details').count(), 1);
  assert.equal(await answer.locator('details').evaluate(details => details.open), false);
  assert.equal((await answer.locator('details > div').textContent()).trim(), wanted.reasoning);
  assert.equal(await answer.locator('.card').count(), 1);
  assert.equal(await answer.locator('.card h2').textContent(), 'tool call ' + wanted.call.name);
  assert.deepEqual(JSON.parse(await answer.locator('.card pre').textContent()), wanted.call.arguments);
});
await check('it shows its rate and its stages', async () => {
  const answer = page.locator('.assistant').last();
  assert.match(await answer.locator('.rate').textContent(), /^\d+ tokens, [\d.]+ tokens\/s, first after \d+ ms, prompt \d+ \(\d+ cached\)$/);
  const label = await answer.locator('.bar').getAttribute('aria-label');
  for (const stage of ['parse', 'queue', 'booking', 'prefill_queue', 'prefill', 'emit', 'transfer', 'decode_queue', 'first_step', 'decode'])
    assert.match(label, new RegExp(stage + ' [\\d.]+ ms'));
  assert.equal(await answer.locator('.bar i').count(), 10);
  await answer.locator('summary').click();
  await page.screenshot({path: path.join(folder, 'page-light.png')});
});
await check('a call is answered with a result', async () => {
  await page.fill('.tool-result', wanted.result);
  await page.click('.send-results');
  await page.locator('.assistant').nth(1).waitFor();
  await page.locator('#send:not([hidden])').waitFor({timeout: 120000});
  assert.equal((await page.locator('.assistant').nth(1).locator('.content').textContent()).trim(), wanted.answer);
});
await check('what the user says is text, not markup; code fences become blocks', async () => {
  await page.click('#new');
  await send(page, '<img src=x onerror="document.title=1"> & <b>bold</b>');
  assert.equal(await page.locator('.user').last().textContent(), '<img src=x onerror="document.title=1"> & <b>bold</b>');
  assert.equal(await page.locator('#log img, #log b').count(), 0);
  const blocks = await page.evaluate(() => {
    const text = 'one\ntwo\n\n\nthree <i>\n```js\nlet a = `b`;\n\n  c\n```\nafter ``` it';
    return [1, 2, 3, 7, text.length].map(size => {
      const root = document.createElement('div');
      const writer = new Blocks(root);
      for (let i = 0; i < text.length; i += size) writer.write(text.slice(i, i + size));
      writer.finish();
      return [...root.children].map(element => element.tagName + ':' + element.textContent);
    });
  });
  for (const cut of blocks) assert.deepEqual(cut, ['P:one\ntwo', 'P:three <i>', 'PRE:let a = `b`;\n\n  c', 'P:after ``` it']);
});
await check('errors are shown and can be tried again', async () => {
  await page.click('#new');
  await page.click('#toggle');
  await page.fill('#tools', '[1');
  await page.locator('#tools').blur();
  await send(page, 'hello');
  assert.match(await page.locator('.error').textContent(), /^Tools are no JSON: /);
  await page.fill('#tools', '');
  await page.fill('#max_tokens', '99999999');
  await page.click('.again');
  await page.locator('.error', {hasText: 'Error 400'}).waitFor();
  assert.match(await page.locator('.error').textContent(), /maximum context length is \d+ tokens/);
  await page.fill('#max_tokens', '5');
  await page.click('.again');
  await page.locator('.note', {hasText: 'limit of tokens'}).waitFor();
  await page.fill('#max_tokens', '');
});
await check('an answer can be stopped', async () => {
  await page.click('#new');
  await page.evaluate(() => {  // as slow as a long answer: the stream is held after its first chunk
    const real = window.fetch;
    window.fetch = async (...all) => {
      const answer = await real(...all);
      const held = new ReadableStream({start(controller) {
        all[1].signal.addEventListener('abort', () => controller.error(new DOMException('', 'AbortError')));
        controller.enqueue(new TextEncoder().encode('data: {"choices":[{"delta":{"content":"be"},"finish_reason":null}]}\n\n'));
      }});
      window.fetch = real;
      return new Response(held, {status: answer.status});
    };
  });
  await page.fill('#text', 'go');
  await page.keyboard.press('Enter');
  await page.locator('.content', {hasText: 'be'}).waitFor();
  await page.keyboard.press('Escape');
  await page.locator('.note', {hasText: 'Stopped.'}).waitFor();
  assert.equal(await page.locator('#send').isVisible(), true);
});
await check('conversations stay after a reload, keys do not leave the tab', async () => {
  const titles = await page.locator('#history li').count();
  await page.reload();
  assert.equal(await page.locator('#history li').count(), titles + 1);  // and a new one
  assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes('sk-')), false);
  assert.equal(await page.evaluate(() => sessionStorage.getItem('baton.key')), apiKey || null);
});
await check('a long answer stays smooth', async () => {
  const worst = await page.evaluate(async () => {
    const view = new AnswerView(document.getElementById('log'));
    const answer = new Answer(view);
    let last = performance.now(), most = 0;
    for (let i = 0; i < 300; i++) {
      for (let k = 0; k < 40; k++) answer.take({choices: [{delta: {content: 'word ' + (k % 20 ? '' : '\n\n')}, finish_reason: null}]});
      await new Promise(requestAnimationFrame);
      const now = performance.now();
      if (i > 10) most = Math.max(most, now - last);
      last = now;
    }
    answer.end();
    return {most, length: view.root.textContent.length};
  });
  assert.ok(worst.length > 60000, JSON.stringify(worst));
  assert.ok(worst.most < 1000, JSON.stringify(worst));  // a shared machine; quadratic work takes seconds
});
await check('dark and narrow', async () => {
  const phone = await open({viewport: {width: 390, height: 780}, colorScheme: 'dark'});
  await setUp(phone);
  await send(phone, wanted.message);
  const overflow = await phone.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.equal(overflow, 0);
  await phone.screenshot({path: path.join(folder, 'page-dark-phone.png')});
  assert.deepEqual(phone.problems, []);
});
await check('nothing went wrong in the console and no other host was asked', async () => {
  assert.deepEqual(page.problems.filter(problem => !/status of 400/.test(problem)), []);
});
await browser.close();
finish();
