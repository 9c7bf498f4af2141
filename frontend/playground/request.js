// Sends a request to the completions API and reads the response as it arrives, until the caller aborts.

/** A request that failed, at the server or on the way to it. `param` and `code` come from the server's error. */
export class RequestError extends Error {
  constructor(message, details = {}) {
    super(message);
    this.status = details.status;
    this.code = details.code ?? null;
    this.param = details.param ?? null;
    this.requestId = details.requestId ?? null;
    this.retryAfter = details.retryAfter ?? null;
    this.errors = details.errors ?? []; // [{message, location}]
  }
}

/** GETs JSON. Throws RequestError, or the AbortError of `signal`. */
export async function getJson(url, key, signal) {
  const response = await send(url, { headers: headers(key), signal, cache: "no-store" });
  return await readJson(response);
}

/**
 * POSTs a completion request and yields a list of response objects for each read from the network: chunks of a stream, or
 * the complete response. Throws RequestError, also if a stream is interrupted or reports an error.
 */
export async function* complete(url, key, json, signal) {
  const response = await send(url, {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: json,
    signal,
  });
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
    yield [await readJson(response)];
    return;
  }
  yield* events(response);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const requestId = response.headers.get("x-request-id");
  let rest = "";
  for (;;) {
    const { value, done } = await read(reader, requestId);
    if (done) break;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
    const isDone = data.at(-1) === "[DONE]";
    const found = (isDone ? data.slice(0, -1) : data).map((text) => JSON.parse(text));
    const failed = found.findIndex((item) => item.error);
    if (failed > 0 || (failed < 0 && found.length)) yield failed < 0 ? found : found.slice(0, failed);
    if (failed >= 0) throw new RequestError(found[failed].error.message, { ...found[failed].error, requestId });
    if (isDone) return;
  }
  throw new RequestError("The stream ended unexpectedly.", { requestId });
}

async function read(reader, requestId) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new RequestError("The connection was lost.", { requestId });
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function send(url, options) {
  try {
    return await fetch(url, { credentials: "omit", referrerPolicy: "no-referrer", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // The browser rejects a key with characters that are not allowed in headers.
    if (options.headers.Authorization && !/^[\x21-\x7e ]*$/.test(options.headers.Authorization)) {
      throw new RequestError("The API key contains invalid characters.", { code: "invalid_api_key" });
    }
    throw new RequestError("The server cannot be reached.");
  }
}

async function readJson(response) {
  let body = null;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok && body !== null) return body;
  const error = body?.error ?? {};
  throw new RequestError(error.message ?? `The server returned status ${response.status}.`, {
    ...error,
    status: response.status,
    errors: body?.errors,
    requestId: response.headers.get("x-request-id"),
    retryAfter: response.headers.get("retry-after"),
  });
}
