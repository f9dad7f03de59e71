// Follow jobs in Chromium: chromium.js PROGRAM STEPS. Each step is a page that follows `url`, by the browser's own
// `EventSource` or by `fetch`, and is told as `closed` when that is over, with how it ended and what it was answered.
'use strict';

const { chromium } = require('playwright-core');
const { TYPES, frame } = require('./frames.js');

const ARGUMENTS = [
  '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
  '--disable-sync',
];

// These two run in the page.
const byEventSource = ({ url, types }) => new Promise((resolve) => {
  const told = [];
  const source = new EventSource(url);
  const hear = ({ type, data, lastEventId }) => told.push(window.hear({ type, data, lastEventId }));
  for (const type of types) source.addEventListener(type, hear);
  source.addEventListener('error', () => {
    if (source.readyState === EventSource.CLOSED) Promise.all(told).then(() => resolve('over'));
  });
});

const byFetch = async ({ url, key }) => {
  try {
    const answer = await fetch(url, { headers: { 'X-API-Key': key } });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return 'over';
      await window.print(value);
    }
  } catch (error) {
    return error.name;
  }
};

const run = async ([program, steps]) => {
  const browser = await chromium.launchPersistentContext('profile', { executablePath: program, args: ARGUMENTS });
  const print = (text) => { process.stdout.write(text); };
  await browser.exposeFunction('print', print);
  await browser.exposeFunction('hear', (event) => print(frame(event)));
  for (const { page: address, by, url, key } of JSON.parse(steps)) {
    const page = await browser.newPage();
    await page.goto(address);
    const statuses = [];
    page.on('response', (response) => statuses.push(response.status()));
    const outcome = await page.evaluate(by === 'fetch' ? byFetch : byEventSource, { url, key, types: TYPES });
    print(`event: closed\ndata: ${JSON.stringify({ outcome, statuses })}\n\n`);
    await page.close();
  }
  await browser.close();
};

run(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
