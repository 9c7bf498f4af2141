// The request as code to copy. The key is never part of it: both programs read OPENAI_API_KEY.

import { compact, pretty } from "./json.js";

// What openai-python's completions.create takes by name; everything else travels in extra_body.
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

/** The body alone. */
export function json(_baseUrl, body) {
  return pretty(body);
}

/** One word of a POSIX shell. Inside single quotes nothing has a meaning but the quote itself. */
export function shell(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A Python literal. Every escape that JSON.stringify writes means the same in a Python string. */
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
