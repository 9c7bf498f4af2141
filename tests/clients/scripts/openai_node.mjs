// openai-node: whole and streamed, lists, logprobs, models, errors by class.
import { API_KEY, BASE_URL, GREEDY, MODEL, PROMPT, failure, packageOf, report } from "./endpoint.mjs";

const OpenAI = packageOf("openai");
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0 });

const refused = (fields, by = client) => failure(() => by.completions.create({ ...GREEDY, ...fields }));

async function chunksOf(fields) {
  const chunks = [];
  for await (const chunk of await client.completions.create({ ...GREEDY, ...fields, stream: true })) {
    chunks.push(chunk);
  }
  return chunks;
}

const answer = await client.completions.create({ ...GREEDY, logprobs: 2 });
const stream = await chunksOf({ stream_options: { include_usage: true } });
const many = await client.completions.create({ ...GREEDY, prompt: [PROMPT, "Once upon a time"], n: 2 });
const interleaved = await chunksOf({ prompt: [PROMPT, PROMPT], n: 2 });
const echoed = await chunksOf({ prompt: "a\u2028b\u2029c\u0085d", echo: true, max_tokens: 1 });
const models = [];
for await (const model of client.models.list()) {
  models.push(model.id);
}
const choices = stream.flatMap((chunk) => chunk.choices);

report({
  text: answer.choices[0].text,
  request_id: Boolean(answer._request_id),
  finish_reason: answer.choices[0].finish_reason,
  usage: [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens],
  logprob_tokens: answer.choices[0].logprobs.tokens,
  streamed: choices.map((choice) => choice.text).join(""),
  stream_end: choices.at(-1).finish_reason,
  stream_usage: stream.at(-1).usage.total_tokens,
  indices: many.choices.map((choice) => choice.index),
  interleaved: [0, 1, 2, 3].map((index) =>
    interleaved
      .flatMap((chunk) => chunk.choices)
      .filter((choice) => choice.index === index)
      .map((choice) => choice.text)
      .join(""),
  ),
  echoed: echoed.map((chunk) => chunk.choices[0].text).join("").slice(0, 7),
  models,
  model: (await client.models.retrieve(MODEL)).id,
  unknown_model: await refused({ model: "no-such-model" }),
  bad_field: await refused({ temperature: 9 }),
  bad_key: await refused({}, client.withOptions({ apiKey: "sk-wrong" })),
});
