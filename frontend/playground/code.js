// Renders the request as code to copy. It never contains the API key: the programs read OPENAI_API_KEY.

import { compact, listed, pretty } from "./json.js";

// Named arguments of openai-python's completions.create and chat.completions.create. All other fields go into extra_body.
const SHARED_ARGUMENTS = [
  "model", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty", "seed", "stop", "stream",
  "stream_options", "temperature", "top_p", "user",
];
const COMPLETION_ARGUMENTS = new Set([...SHARED_ARGUMENTS, "prompt", "best_of", "echo", "suffix"]);
const CHAT_ARGUMENTS = new Set([
  ...SHARED_ARGUMENTS, "messages", "tools", "tool_choice", "parallel_tool_calls", "top_logprobs", "max_completion_tokens",
  "reasoning_effort", "response_format",
]);

const isChat = (body) => "messages" in body;

/** A curl command for a POSIX shell. */
export function curl(baseUrl, body) {
  return [
    `curl ${body.stream ? "-N " : ""}${shell(`${baseUrl}/${isChat(body) ? "chat/" : ""}completions`)} \\`,
    '  -H "Authorization: Bearer $OPENAI_API_KEY" \\',
    "  -H 'Content-Type: application/json' \\",
    `  -d ${shell(pretty(body))}`,
  ].join("\n");
}

/** A Python program for the openai package. */
export function python(baseUrl, body) {
  const names = isChat(body) ? CHAT_ARGUMENTS : COMPLETION_ARGUMENTS;
  const own = Object.entries(body).filter(([name]) => names.has(name));
  const extra = Object.entries(body).filter(([name]) => !names.has(name));
  const lines = own.map(([name, value]) => `    ${name}=${listed(value, literal, "    ")},`);
  if (extra.length) {
    const members = extra.map(([name, value]) => `        ${literal(name)}: ${literal(value)},`);
    lines.push("    extra_body={", ...members, "    },");
  }
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(baseUrl)})  # reads OPENAI_API_KEY`,
    `completion = client.${isChat(body) ? "chat." : ""}completions.create(`,
    ...lines,
    ")",
    ...pythonOutput(body),
  ].join("\n");
}

function pythonOutput(body) {
  const part = isChat(body) ? (body.tools ? "choice.delta.content or choice.delta.tool_calls or \"\"" : 'choice.delta.content or ""') : "choice.text";
  const whole = isChat(body) ? (body.tools ? "choice.message.content, choice.message.tool_calls" : "choice.message.content") : "choice.text";
  return body.stream
    ? ["for chunk in completion:", "    for choice in chunk.choices:", `        print(${part}, end="", flush=True)`]
    : ["for choice in completion.choices:", `    print(${whole})`];
}

/** A JavaScript module for the openai package. It sends all fields of the object, those that OpenAI does not know too. */
export function javascript(baseUrl, body) {
  const [part, whole] = isChat(body)
    ? ['choice.delta.content ?? ""', body.tools ? "choice.message" : "choice.message.content"]
    : ["choice.text", "choice.text"];
  return [
    'import OpenAI from "openai";',
    "",
    `const client = new OpenAI({ baseURL: ${JSON.stringify(baseUrl)} }); // reads OPENAI_API_KEY`,
    `const completion = await client.${isChat(body) ? "chat." : ""}completions.create(${pretty(body)});`,
    ...(body.stream
      ? [
          "for await (const chunk of completion) {",
          `  for (const choice of chunk.choices) process.stdout.write(${part});`,
          "}",
        ]
      : [`for (const choice of completion.choices) console.log(${whole});`]),
  ].join("\n");
}

/** The body only. */
export function json(_baseUrl, body) {
  return pretty(body);
}

/** Quotes text for a POSIX shell. Within single quotes only the quote itself is special. */
export function shell(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Renders a Python literal. Every escape that JSON.stringify writes has the same meaning in a Python string. */
export function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, item]) => `${literal(name)}: ${literal(item)}`).join(", ")}}`;
  }
  return compact(value);
}
