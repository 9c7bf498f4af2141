// openai-node on a slow server with one slot: keep-alive comments, its retry, two ways to abort, a late failure.
import { API_KEY, BASE_URL, MODEL, failure, packageOf, report } from "./endpoint.mjs";

const OpenAI = packageOf("openai");
const statuses = [];

async function noted(url, init) {
  const response = await fetch(url, init);
  statuses.push(response.status);
  return response;
}

const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 8, fetch: noted });
const start = (max_tokens, options) =>
  client.completions.create({ model: MODEL, prompt: "a", max_tokens, stream: true, ignore_eos: true }, options);

async function textsOf(stream) {
  const texts = [];
  for await (const chunk of stream) {
    texts.push(chunk.choices[0].text);
  }
  return texts;
}

const commented = await textsOf(await start(3));

const broken = await start(1000);
for await (const _ of broken) {
  break; // closes the connection
}
await client.completions.create({ model: MODEL, prompt: "b", max_tokens: 1 }); // 429 while the slot is still taken
const afterBreak = statuses.splice(0);

const signals = new AbortController();
const aborted = await start(1000, { signal: signals.signal });
const untilAbort = [];
for await (const chunk of aborted) {
  untilAbort.push(chunk.choices[0].text);
  signals.abort(); // ends the loop without an exception
}

const whole = new AbortController();
setTimeout(() => whole.abort(), 300);
const abortedWhole = await failure(() =>
  client.completions.create({ model: MODEL, prompt: "c", max_tokens: 1000 }, { signal: whole.signal }),
);

const slow = await start(3); // takes the slot until the retry of the next request
const [retried] = await Promise.all([
  client.completions.create({ model: MODEL, prompt: "d", max_tokens: 1 }),
  textsOf(slow),
]);

const late = await failure(async () => textsOf(await start(1000)));

report({
  commented: commented.length,
  after_break: afterBreak.at(-1),
  until_abort: untilAbort.length,
  aborted_whole: abortedWhole.class,
  retries: statuses.filter((status) => status === 429).length,
  retried: retried.usage.completion_tokens,
  late,
});
