// What the JavaScript clients are given: a base URL, a key, a model name, and the packages of .venv-clients/node.
import { createRequire } from "node:module";

export const BASE_URL = process.env.CLIENT_BASE_URL;
export const API_KEY = process.env.CLIENT_API_KEY;
export const MODEL = process.env.CLIENT_MODEL;
export const PROMPT = "The capital of France is";
export const GREEDY = { model: MODEL, prompt: PROMPT, max_tokens: 8, temperature: 0 };

// ES modules are looked up beside the script; the packages are elsewhere.
export const packageOf = createRequire(`${process.env.NODE_CLIENTS}/`);

export function report(found) {
  console.log(JSON.stringify(found));
}

// The class of the exception, and what the client read from the error's body and headers.
export async function failure(call) {
  try {
    await call();
  } catch (error) {
    const { status = null, code = null, param = null, type = null, requestID } = error;
    return { class: error.constructor.name, status, code, param, type, has_request_id: Boolean(requestID) };
  }
  return { class: null };
}
