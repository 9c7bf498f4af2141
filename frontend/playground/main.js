// The page: connects the forms, the request, the output and the code.

import { Account, mark } from "./account.js";
import { limitsOf } from "./capabilities.js";
import { asCompletion } from "./chat-chunks.js";
import { ChatView } from "./chat-view.js";
import { CodePanel } from "./code-panel.js";
import { Form, element, inCode } from "./form.js";
import { compact, parse } from "./json.js";
import { Output } from "./output.js";
import { RequestError, complete, getJson } from "./request.js";
import { exampleOf, fieldsOf } from "./schema.js";
import { tabList } from "./tabs.js";
import { Timing, drawGaps, duration } from "./timing.js";
import { TokenInspector } from "./token-text.js";

const BASE_URL = new URL("openai/v1", document.baseURI).href; // relative, for proxies that add a path prefix
// Fields that the page sets by itself. Those in DISPENSABLE are dropped if the model rejects them.
const STREAM = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true }, return_token_ids: true };
const MODES = {
  completion: {
    path: "/completions", schema: "CompletionRequest", initial: { max_tokens: 128, logprobs: 5, ...STREAM },
    input: "prompt", verb: "Run", skip: "Skip to the prompt", read: (answers) => answers,
  },
  chat: {
    path: "/chat/completions", schema: "ChatCompletionRequest",
    initial: { max_tokens: 512, logprobs: true, top_logprobs: 5, ...STREAM },
    input: "message", verb: "Send", skip: "Skip to the message", read: (answers) => answers.map(asCompletion),
  },
};
const DISPENSABLE = new Set(["logprobs", "top_logprobs", "return_token_ids", "stream_options"]);
const KEY_HELP = "`make serve` and `triton-completions serve` print the key, with a link that brings it here, and store a generated one in `.run/api-key`.";
const PROMPT_HELP = {
  json: 'A string, a list of strings, a list of token ids or a list of such lists: ["One", "Two"] or [1, 2, 3].',
};

const $ = (id) => document.getElementById(id);
const output = new Output($("choices"));
const inspector = new TokenInspector([$("choices"), $("turns")], $("tip"), $("token-announcement"));
const account = new Account(BASE_URL, setStatus, showCapabilities);
const chat = new ChatView({ onChange: showCode, run });
const code = new CodePanel(BASE_URL, () => readRequest().body);
const markMode = tabList($("mode-tabs"), (tab) => chooseMode(tab.dataset.mode));
const forms = {}; // by mode, once the API description is loaded
let mode = "completion";
let form = null; // that of the mode
let running = null; // the AbortController of the running request

// --- The request in the form ----------------------------------------------------------------------------------------

function readRequest(withDraft = true) {
  const { values, problems } = form.read();
  const content = mode === "chat" ? chat.read(problems, withDraft) : { prompt: readPrompt(problems) };
  return { body: { model: $("model").value, ...content, ...values }, problems };
}

function readPrompt(problems) {
  const prompt = $("prompt").value;
  if ($("prompt-form").value !== "json") return prompt;
  try {
    return parse(prompt);
  } catch {
    problems.prompt = "This is not valid JSON.";
    return prompt;
  }
}

/** Shows a message at each of these fields only. Returns the control of the first one, or null. */
function showProblems(problems) {
  const first = form.show(problems);
  mark($("model"), problems.model);
  const inModel = problems.model ? $("model") : null;
  if (mode === "chat") return chat.show(problems) ?? inModel ?? first;
  mark($("prompt"), problems.prompt, $("prompt-problem"));
  return problems.prompt ? $("prompt") : (inModel ?? first);
}

function showCode() {
  if (form) code.show();
}

// --- Completion or chat ---------------------------------------------------------------------------------------------

function chooseMode(name) {
  if (running) return;
  mode = name;
  markMode($(`mode-${name}`));
  for (const each of Object.keys(MODES)) $(`${each}-view`).hidden = each !== name;
  for (const slot of $(`${name}-view`).querySelectorAll(".slot")) {
    // Buttons, status, errors and timing are those of both.
    const filled = document.querySelector(`.slot[data-slot="${slot.dataset.slot}"]:not(:empty)`);
    if (filled !== slot) slot.replaceChildren(...filled.childNodes);
  }
  $("failure").hidden = true;
  $("timing").hidden = true;
  $("run-label").textContent = MODES[name].verb;
  $("skip").textContent = MODES[name].skip;
  $("skip").href = `#${MODES[name].input}`;
  form = forms[name] ?? null;
  if (form) $("fields").replaceChildren(form.root);
  history.replaceState(null, "", location.pathname + location.search + (name === "chat" ? "#chat" : ""));
  showCode();
}

// --- Running it -----------------------------------------------------------------------------------------------------

/** `withDraft`: in a chat, send the text of the message too. */
async function run(withDraft = true) {
  if (running || !form) return;
  const { body, problems } = readRequest(withDraft);
  const firstInvalid = showProblems(mode === "chat" ? { ...chat.problemOf(body, withDraft), ...problems } : problems);
  if (firstInvalid) {
    firstInvalid.focus();
    setStatus("Not sent: a field has an invalid value.");
    return;
  }
  running = new AbortController();
  setRunning(true);
  inspector.hideTip();
  $("failure").hidden = true;
  $("timing").hidden = true;
  if (mode === "chat" && withDraft) chat.takeDraft();
  const view = mode === "chat" ? chat.conversation : output;
  if (mode === "chat") chat.begin(body);
  else output.begin();
  try {
    await runUntilOver(body, view, running.signal);
  } finally {
    view.end();
    running = null;
    setRunning(false);
  }
}

async function runUntilOver(body, view, signal) {
  const timing = new Timing(performance.now());
  const painter = new Painter(timing, view);
  const { path, read } = MODES[mode];
  setStatus("Running …");
  try {
    for await (const found of complete(BASE_URL + path, account.key, compact(body), signal)) {
      const now = performance.now();
      const answers = read(found);
      if (answers[0]?.choices[0] && !body.stream) timing.whole(answers[0], now);
      painter.add(answers, body.stream ? timing.arrived(answers, now) : new Map());
    }
    painter.finish();
    setStatus("Done.");
  } catch (error) {
    painter.finish();
    await failed(error, body, view, signal);
  }
}

async function failed(error, body, view, signal) {
  if (error.name === "AbortError") {
    setStatus("Stopped.");
    return;
  }
  if (!(error instanceof RequestError)) throw error;
  const param = (error.param ?? "").split(/[.[]/)[0];
  if (error.status === 400 && DISPENSABLE.has(param) && param in body && !form.isTouched(param)) {
    form.set(param, undefined);
    showCode();
    await runUntilOver(readRequest(false).body, view, signal);
    $("status").append(` This model does not support ${param}, so it was omitted.`);
    return;
  }
  showFailure(error, param);
}

function showFailure(error, param) {
  setStatus("");
  const isKey = error.code === "invalid_api_key";
  const facts = [error.status && `status ${error.status}`, error.code, error.requestId && `request ${error.requestId}`];
  const more = error.errors.slice(1).map((each) => element("li", {}, each.message));
  $("failure").replaceChildren(
    element("p", { class: "failure-text" }, isKey && !$("key").value ? "Enter the API key above." : error.message),
    isKey ? element("p", {}, ...inCode(KEY_HELP)) : "",
    more.length ? element("ul", {}, ...more) : "",
    error.retryAfter ? element("p", {}, `Retry in ${error.retryAfter} s.`) : "",
    element("p", { class: "failure-facts" }, facts.filter(Boolean).join(" · ")),
  );
  $("failure").hidden = false;
  const control = showProblems(param ? { [param]: error.message } : {});
  if (isKey) account.foldKey(false);
  mark($("key"), isKey);
  (isKey ? $("key") : control)?.focus();
}

/** Updates the screen once per frame, regardless of the number of chunks. */
class Painter {
  constructor(timing, view) {
    this._timing = timing;
    this._view = view;
    this._waiting = [];
    this._frame = null;
  }

  add(answers, waits) {
    this._waiting.push([answers, waits]);
    this._frame ??= requestAnimationFrame(() => this._paint(false));
  }

  finish() {
    cancelAnimationFrame(this._frame);
    this._paint(true);
  }

  _paint(isOver) {
    this._frame = null;
    for (const [answers, waits] of this._waiting.splice(0)) this._view.show(answers, waits);
    showTiming(this._timing, this._view, isOver);
  }
}

function showTiming(timing, view, isOver) {
  const found = timing.summary(performance.now(), isOver);
  $("timing").hidden = found.completionTokens === null;
  $("t-first").textContent = duration(found.first);
  $("t-rate").textContent = found.rate === null ? "–" : found.rate.toFixed(1) + (timing.isCounted ? "" : " chunks/s");
  $("t-gap").textContent = found.median === null ? "–" : `${duration(found.median)}, p95 ${duration(found.p95)}`;
  $("t-tokens").textContent = `${found.completionTokens ?? "–"}` + (found.promptTokens === null ? "" : ` + ${found.promptTokens} prompt`);
  $("t-total").textContent = duration(found.total);
  const finishes = view.finishes.map(([, finish]) => finish ?? "…");
  $("t-finish").textContent = finishes.length ? [...new Set(finishes)].join(", ") : "–";
  if (isOver || timing.gaps.length % 8 === 0) drawGaps($("spark"), timing.gaps, found);
}

function setRunning(isRunning) {
  $("run").disabled = isRunning;
  $("stop").disabled = !isRunning;
  for (const tab of $("mode-tabs").children) tab.disabled = isRunning;
  document.body.classList.toggle("is-running", isRunning);
}

function setStatus(text) {
  $("status").textContent = text;
}

// --- Start ----------------------------------------------------------------------------------------------------------

function showCapabilities(capabilities) {
  for (const each of Object.values(forms)) {
    each.limit(capabilities ? limitsOf(capabilities, each.names) : { denied: {}, maxima: {} });
  }
  chat.showCapability(capabilities?.chat !== false);
  showCode();
}

/** Takes the tab and the key from the address, as in the link that the launcher prints, and removes the key from there. */
function readAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  const key = values.get("key");
  if (key !== null) {
    $("key").value = key;
    account.rememberKey();
  }
  if (key !== null || values.has("chat")) chooseMode(values.has("chat") ? "chat" : mode);
  return key !== null;
}

function listen() {
  $("request").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  $("request").addEventListener("input", showCode);
  $("stop").addEventListener("click", () => running?.abort());
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) {
      event.preventDefault();
      run();
    } else if (event.key === "Escape") {
      inspector.hideTip();
      running?.abort();
    }
  });
  $("prompt-form").addEventListener("change", () => {
    const help = PROMPT_HELP[$("prompt-form").value];
    $("prompt-help").hidden = !help;
    $("prompt-help").textContent = help ?? "";
    showCode();
  });
  addEventListener("hashchange", () => readAddress() && account.loadModels());
  $("reset").addEventListener("click", () => {
    form.reset();
    showCode();
  });
  $("fields").addEventListener("change", () => form.show(form.read().problems));
  $("colour").addEventListener("change", () => {
    for (const id of ["choices", "turns"]) $(id).classList.toggle("plain", !$("colour").checked);
    $("legend").hidden = !$("colour").checked;
  });
}

async function start() {
  listen();
  if (/Mac|iPhone|iPad/.test(navigator.userAgent)) $("run-keys").textContent = "⌘ ⏎";
  markMode($("mode-completion"));
  if (!readAddress()) account.recallKey();
  const document_ = await getJson(new URL("openai/openapi.json", document.baseURI).href, "");
  account.needsKey = document_.security?.length !== 0;
  const example = exampleOf(document_);
  $("model").replaceChildren(element("option", { value: example.model ?? "" }, example.model ?? "unknown"));
  $("prompt").value ||= "Once upon a time, in a small village by the sea,";
  $("message").value ||= "What is the capital of France?";
  for (const [name, { schema, initial }] of Object.entries(MODES)) {
    forms[name] = new Form(fieldsOf(document_, schema), initial, showCode);
  }
  form = forms[mode];
  $("fields").replaceChildren(form.root);
  showCode();
  document.body.classList.add("is-ready");
  await account.loadModels();
}

start().catch((error) => {
  setStatus("");
  $("failure").textContent = `The page could not load the API description: ${error.message}`;
  $("failure").hidden = false;
});
