// Renders the request as code to copy. It never contains the API key: both programs read OPENAI_API_KEY.

import { compact, pretty } from "./json.js";

// Named arguments of openai-python's completions.create. All other fields go into extra_body.
const CLIENT_ARGUMENTS = new Set([
  "model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n",
  "presence_penalty", "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user",
]);

/** A curl command for a POSIX shell. */
export function curl(baseUrl, body) {
  return [
    `curl ${body.stream ? "-N " : ""}${shell(`${baseUrl}/completions`)} \\`,
    '  -H "Authorization: Bearer $OPENAI_API_KEY" \\',
    "  -H 'Content-Type: application/json' \\",
    `  -d ${shell(pretty(body))}`,
  ].join("\n");
}

/** A Python program for the openai package. */
export function python(baseUrl, body) {
  const own = Object.entries(body).filter(([name]) => CLIENT_ARGUMENTS.has(name));
  const extra = Object.entries(body).filter(([name]) => !CLIENT_ARGUMENTS.has(name));
  const lines = own.map(([name, value]) => `    ${name}=${literal(value)},`);
  if (extra.length) {
    const members = extra.map(([name, value]) => `        ${literal(name)}: ${literal(value)},`);
    lines.push("    extra_body={", ...members, "    },");
  }
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(baseUrl)})  # reads OPENAI_API_KEY`,
    "completion = client.completions.create(",
    ...lines,
    ")",
    ...(body.stream
      ? [
          "for chunk in completion:",
          "    for choice in chunk.choices:",
          '        print(choice.text, end="", flush=True)',
        ]
      : ["for choice in completion.choices:", "    print(choice.text)"]),
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
