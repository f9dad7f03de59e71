// Follow a job with the npm package `eventsource`: eventsource.js URL KEY. Nothing here connects again or ends
// the process: the package does the one, and has nothing left to do after the other.
'use strict';

const { EventSource } = require('eventsource');
const { TYPES, frame } = require('./frames.js');

const [url, key] = process.argv.slice(2);
const source = new EventSource(url, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, 'X-API-Key': key } }),
});
for (const type of TYPES) source.addEventListener(type, (event) => process.stdout.write(frame(event)));
source.addEventListener('error', (error) => {
  console.error(error.message ?? 'the stream ended');
  if (source.readyState === EventSource.CLOSED && error.code !== 204) process.exitCode = 1;
});
