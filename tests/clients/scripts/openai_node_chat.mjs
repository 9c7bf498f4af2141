// openai-node's chat: whole, streams, its stream() and runTools() helpers, tools, structured output, errors.
import { API_KEY, BASE_URL, MODEL, failure, packageOf, report } from "./endpoint.mjs";

const OpenAI = packageOf("openai");
const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0 });
const MESSAGES = [{ role: "user", content: "What is the capital of France?" }];
const ASKED = [{ role: "user", content: "What is the weather in Paris?" }];
const RESULT = '{"sky": "rain", "degrees": 12}';
const PARAMETERS = {
  type: "object",
  properties: { city: { enum: ["Paris", "Rome", "Oslo"] }, days: { type: "integer", minimum: 1, maximum: 7 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const TOOL = { type: "function", function: { name: "get_weather", parameters: PARAMETERS, strict: true } };
const GREEDY = { model: MODEL, messages: MESSAGES, max_completion_tokens: 8, temperature: 0 };
const FORCED = { ...GREEDY, messages: ASKED, max_completion_tokens: 100, tools: [TOOL], tool_choice: "required" };
FORCED.parallel_tool_calls = false;

const answer = await client.chat.completions.create(GREEDY);
const chunks = [];
const options = { stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...GREEDY, ...options, stream: true })) {
  chunks.push(chunk);
}

const choice = (await client.chat.completions.create(FORCED)).choices[0];
const call = choice.message.tool_calls[0];
const stream = client.chat.completions.stream(FORCED);
const pieces = [];
stream.on("tool_calls.function.arguments.delta", (event) => pieces.push(event.arguments_delta));
const streamed = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0];

const history = [...ASKED, choice.message, { role: "tool", tool_call_id: call.id, content: RESULT }];
const last = await client.chat.completions.create({ ...GREEDY, messages: history });
const parsed = await client.chat.completions.parse({
  ...FORCED,
  tools: undefined,
  tool_choice: undefined,
  parallel_tool_calls: undefined,
  response_format: { type: "json_schema", json_schema: { name: "weather", schema: PARAMETERS, strict: true } },
});

// Its loop: sends the call back with the function's result; with one function named, it ends after the call.
const calledWith = [];
const run = client.chat.completions.runTools({
  ...FORCED,
  tool_choice: { type: "function", function: { name: "get_weather" } },
  tools: [{ ...TOOL, function: { ...TOOL.function, parse: JSON.parse, function: (given) => calledWith.push(given) } }],
});
await run.done();

report({
  text: answer.choices[0].message.content,
  usage: answer.usage.total_tokens,
  streamed: chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""),
  stream_usage: chunks.at(-1).usage.total_tokens,
  finish_reason: choice.finish_reason,
  content: choice.message.content,
  name: call.function.name,
  arguments: JSON.parse(call.function.arguments),
  streamed_call: streamed.function.arguments === call.function.arguments,
  adds_up: pieces.join("") === streamed.function.arguments,
  pieces: pieces.length,
  after_result: last.choices[0].message.content,
  parsed: JSON.parse(parsed.choices[0].message.content),
  called_with: calledWith,
  bad_role: await failure(() =>
    client.chat.completions.create({ ...GREEDY, messages: [{ role: "robot", content: "a" }] }),
  ),
});
