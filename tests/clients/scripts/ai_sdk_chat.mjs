// The AI SDK's openai-compatible provider: its chat model, whole and streamed, a tool and structured output.
import { API_KEY, BASE_URL, MODEL, packageOf, report } from "./endpoint.mjs";

const { createOpenAICompatible } = packageOf("@ai-sdk/openai-compatible");
const { Output, generateText, isStepCount, jsonSchema, streamText, tool } = packageOf("ai");

const provider = createOpenAICompatible({
  name: "test",
  baseURL: BASE_URL,
  apiKey: API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider.chatModel(MODEL);
const greedy = { model, temperature: 0, maxRetries: 0 };
const short = { ...greedy, prompt: "What is the capital of France?", maxOutputTokens: 8 };
const asked = { ...greedy, prompt: "What is the weather in Paris?", maxOutputTokens: 100 };
const schema = jsonSchema({
  type: "object",
  properties: { city: { enum: ["Paris", "Rome", "Oslo"] }, days: { type: "integer", minimum: 1, maximum: 7 } },
  required: ["city", "days"],
  additionalProperties: false,
});
const given = [];
const weather = tool({
  inputSchema: schema,
  execute: async (input) => {
    given.push(input);
    return { sky: "rain", degrees: 12 };
  },
});

const answer = await generateText(short);
const stream = streamText(short);
const texts = [];
for await (const text of stream.textStream) {
  texts.push(text);
}

// Two steps: a call, which is required, and an answer to its result, without one.
const forced = {
  ...asked,
  tools: { weather },
  toolChoice: "required",
  stopWhen: isStepCount(2),
  prepareStep: ({ stepNumber }) => (stepNumber === 0 ? {} : { toolChoice: "none" }),
};
const called = await generateText(forced);
const streamedCall = streamText(forced);
await streamedCall.consumeStream();
const [firstStreamed] = await streamedCall.steps;
const output = await generateText({ ...asked, output: Output.object({ schema }) });

report({
  text: answer.text,
  streamed: texts.join(""),
  usage: answer.usage.totalTokens,
  stream_usage: (await stream.usage).totalTokens,
  steps: called.steps.length,
  finish_reason: called.steps[0].finishReason,
  input: called.steps[0].toolCalls[0].input,
  streamed_input: firstStreamed.toolCalls[0].input,
  given,
  output: output.output,
});
