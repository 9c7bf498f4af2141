// The AI SDK's openai-compatible provider: its completion model, whole and streamed, usage, and errors.
import { API_KEY, BASE_URL, MODEL, PROMPT, packageOf, report } from "./endpoint.mjs";

const { createOpenAICompatible } = packageOf("@ai-sdk/openai-compatible");
const { generateText, streamText } = packageOf("ai");

const provider = createOpenAICompatible({ name: "test", baseURL: BASE_URL, apiKey: API_KEY, includeUsage: true });
const request = { model: provider.completionModel(MODEL), prompt: PROMPT, maxOutputTokens: 8, temperature: 0 };

async function refused(model) {
  try {
    await generateText({ ...request, model, maxRetries: 0 });
  } catch (error) {
    return { class: error.name, status: error.statusCode, message: error.message };
  }
  return { class: null };
}

const answer = await generateText(request);
const stream = streamText(request);
const texts = [];
for await (const text of stream.textStream) {
  texts.push(text);
}

report({
  text: answer.text,
  finish_reason: answer.finishReason,
  usage: answer.usage.totalTokens,
  streamed: texts.join(""),
  stream_end: await stream.finishReason,
  stream_usage: (await stream.usage).totalTokens,
  unknown_model: await refused(provider.completionModel("no-such-model")),
});
