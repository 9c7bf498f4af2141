// The page: connects the form, the request, the output and the code.

import { curl, json, python } from "./code.js";
import { Form, element, inCode } from "./form.js";
import { compact, parse } from "./json.js";
import { limitsOf } from "./capabilities.js";
import { Output } from "./output.js";
import { RequestError, complete, getJson } from "./request.js";
import { exampleOf, fieldsOf } from "./schema.js";
import { Timing, drawGaps, duration } from "./timing.js";

const BASE_URL = new URL("openai/v1", document.baseURI).href; // relative, for proxies that add a path prefix
const LANGUAGES = { curl, python, json };
const KEY_ITEM = "api-key";
// Fields that the page sets by itself. Those in DISPENSABLE are dropped if the model rejects them.
const INITIAL = {
  max_tokens: 128,
  stream: true,
  stream_options: { include_usage: true, continuous_usage_stats: true },
  logprobs: 5,
  return_token_ids: true,
};
const DISPENSABLE = new Set(["logprobs", "return_token_ids", "stream_options"]);
const KEY_HELP = "`make serve` and `triton-completions serve` print the key, with a link that brings it here, and store a generated one in `.run/api-key`.";
const PROMPT_HELP = {
  json: 'A string, a list of strings, a list of token ids or a list of such lists: ["One", "Two"] or [1, 2, 3].',
};

const $ = (id) => document.getElementById(id);
const output = new Output($("choices"), $("tip"), $("token-announcement"));
let form = null;
let running = null; // the AbortController of the running request
let language = "curl";
let needsKey = true; // unless the server's document declares no security

// --- The request in the form ----------------------------------------------------------------------------------------

function readRequest() {
  const { values, problems } = form.read();
  let prompt = $("prompt").value;
  if ($("prompt-form").value === "json") {
    try {
      prompt = parse(prompt);
    } catch {
      problems.prompt = "This is not valid JSON.";
    }
  }
  return { body: { model: $("model").value, prompt, ...values }, problems };
}

function showProblems(problems) {
  const first = form.show(problems);
  mark($("prompt"), problems.prompt, $("prompt-problem"));
  mark($("model"), problems.model);
  return problems.prompt ? $("prompt") : problems.model ? $("model") : first;
}

function mark(control, problem, place) {
  if (problem) control.setAttribute("aria-invalid", "true");
  else control.removeAttribute("aria-invalid");
  if (place) {
    place.hidden = !problem;
    place.textContent = problem ?? "";
  }
}

function showCode() {
  if (!form) return;
  $("code").firstElementChild.textContent = LANGUAGES[language](BASE_URL, readRequest().body);
}

// --- Running it -----------------------------------------------------------------------------------------------------

async function run() {
  if (running || !form) return;
  const { body, problems } = readRequest();
  const firstInvalid = showProblems(problems);
  if (firstInvalid) {
    firstInvalid.focus();
    setStatus("Not sent: a parameter has an invalid value.");
    return;
  }
  running = new AbortController();
  setRunning(true);
  $("failure").hidden = true;
  $("timing").hidden = true;
  output.begin();
  try {
    await runUntilOver(body, running.signal);
  } finally {
    output.end();
    running = null;
    setRunning(false);
  }
}

async function runUntilOver(body, signal) {
  const timing = new Timing(performance.now());
  const painter = new Painter(timing);
  setStatus("Running …");
  try {
    for await (const answers of complete(`${BASE_URL}/completions`, $("key").value.trim(), compact(body), signal)) {
      const now = performance.now();
      if (answers[0]?.choices[0] && !body.stream) timing.whole(answers[0], now);
      painter.add(answers, body.stream ? timing.arrived(answers, now) : new Map());
    }
    painter.finish();
    setStatus("Done.");
  } catch (error) {
    painter.finish();
    await failed(error, body, signal);
  }
}

async function failed(error, body, signal) {
  if (error.name === "AbortError") {
    setStatus("Stopped.");
    return;
  }
  if (!(error instanceof RequestError)) throw error;
  const param = (error.param ?? "").split(/[.[]/)[0];
  if (error.status === 400 && DISPENSABLE.has(param) && param in body && !form.isTouched(param)) {
    form.set(param, undefined);
    showCode();
    await runUntilOver(readRequest().body, signal);
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
  if (isKey) foldKey(false);
  mark($("key"), isKey);
  (isKey ? $("key") : control)?.focus();
}

/** Updates the screen once per frame, regardless of the number of chunks. */
class Painter {
  constructor(timing) {
    this._timing = timing;
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
    for (const [answers, waits] of this._waiting.splice(0)) output.show(answers, waits);
    showTiming(this._timing, isOver);
  }
}

function showTiming(timing, isOver) {
  const found = timing.summary(performance.now(), isOver);
  $("timing").hidden = found.completionTokens === null;
  $("t-first").textContent = duration(found.first);
  $("t-rate").textContent = found.rate === null ? "–" : found.rate.toFixed(1) + (timing.isCounted ? "" : " chunks/s");
  $("t-gap").textContent = found.median === null ? "–" : `${duration(found.median)}, p95 ${duration(found.p95)}`;
  $("t-tokens").textContent = `${found.completionTokens ?? "–"}` + (found.promptTokens === null ? "" : ` + ${found.promptTokens} prompt`);
  $("t-total").textContent = duration(found.total);
  const finishes = output.finishes.map(([, finish]) => finish ?? "…");
  $("t-finish").textContent = finishes.length ? [...new Set(finishes)].join(", ") : "–";
  if (isOver || timing.gaps.length % 8 === 0) drawGaps($("spark"), timing.gaps, found);
}

function setRunning(isRunning) {
  $("run").disabled = isRunning;
  $("stop").disabled = !isRunning;
  document.body.classList.toggle("is-running", isRunning);
}

function setStatus(text) {
  $("status").textContent = text;
}

// --- Models and the key ---------------------------------------------------------------------------------------------

async function loadModels() {
  if (needsKey && !$("key").value.trim()) {
    setStatus("Enter the API key to run this request.");
    return;
  }
  try {
    const { data } = await getJson(`${BASE_URL}/models`, $("key").value.trim());
    const before = $("model").value;
    $("model").replaceChildren(...data.map(({ id }) => element("option", { value: id }, id)));
    if (data.some(({ id }) => id === before)) $("model").value = before;
    mark($("key"), false);
    foldKey(true);
    if ($("status").textContent.startsWith("Enter the API key")) setStatus("");
  } catch (error) {
    if (error.code === "invalid_api_key") mark($("key"), true);
    return;
  }
  await loadCapabilities();
}

async function loadCapabilities() {
  const id = $("model").value;
  const path = id.split("/").map(encodeURIComponent).join("/");
  try {
    const model = await getJson(`${BASE_URL}/models/${path}`, $("key").value.trim());
    if ($("model").value === id) form.limit(limitsOf(model.capabilities, form.names));
  } catch {
    form.limit({ denied: {}, maxima: {} }); // all fields stay enabled; the server rejects what it does not support
  }
  showCode();
}

function rememberKey() {
  try {
    if ($("key").value) sessionStorage.setItem(KEY_ITEM, $("key").value.trim());
    else sessionStorage.removeItem(KEY_ITEM);
  } catch {
    // The browser blocks storage: the key is lost when the page is closed.
  }
}

/** Hides the key on narrow screens once the server has accepted it; a button shows it again. */
function foldKey(isFolded) {
  $("account").classList.toggle("folded", isFolded);
  $("show-key").hidden = !isFolded;
}

/** Takes the key from the address, as in the link that the launcher prints, and removes it from there. */
function takeKeyFromAddress() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key === null) return false;
  history.replaceState(null, "", location.pathname + location.search);
  $("key").value = key;
  rememberKey();
  return true;
}

function rememberedKey() {
  try {
    return sessionStorage.getItem(KEY_ITEM) ?? "";
  } catch {
    return "";
  }
}

// --- Code tabs and copying ------------------------------------------------------------------------------------------

function chooseLanguage(name, focuses) {
  language = name;
  for (const tab of $("code-tabs").children) {
    const isChosen = tab.dataset.language === name;
    tab.setAttribute("aria-selected", String(isChosen));
    tab.tabIndex = isChosen ? 0 : -1;
    if (isChosen && focuses) tab.focus();
  }
  $("code").setAttribute("aria-labelledby", `tab-${name}`);
  showCode();
}

function walkTabs(event) {
  const names = Object.keys(LANGUAGES);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) chooseLanguage(names[(names.indexOf(language) + step + names.length) % names.length], true);
}

async function copyCode() {
  const code = $("code").firstElementChild;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code); // the clipboard API requires https
    document.execCommand("copy");
  }
  $("copy-announcement").textContent = "Copied";
  $("copy-code").textContent = "Copied";
  setTimeout(() => {
    $("copy-code").textContent = "Copy";
    $("copy-announcement").textContent = "";
  }, 1500);
}

// --- Start ----------------------------------------------------------------------------------------------------------

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
      output.hideTip();
      running?.abort();
    }
  });
  $("prompt-form").addEventListener("change", () => {
    const help = PROMPT_HELP[$("prompt-form").value];
    $("prompt-help").hidden = !help;
    $("prompt-help").textContent = help ?? "";
    showCode();
  });
  $("key").addEventListener("change", () => {
    rememberKey();
    loadModels();
  });
  $("account").addEventListener("submit", (event) => event.preventDefault());
  $("show-key").addEventListener("click", () => {
    foldKey(false);
    $("key").focus();
  });
  addEventListener("hashchange", () => takeKeyFromAddress() && loadModels());
  $("model").addEventListener("change", loadCapabilities);
  $("reset").addEventListener("click", () => {
    form.reset();
    showCode();
  });
  $("fields").addEventListener("change", () => form.show(form.read().problems));
  $("colour").addEventListener("change", () => {
    $("choices").classList.toggle("plain", !$("colour").checked);
    $("legend").hidden = !$("colour").checked;
  });
  $("code-tabs").addEventListener("click", (event) => chooseLanguage(event.target.dataset.language ?? language, false));
  $("code-tabs").addEventListener("keydown", walkTabs);
  $("copy-code").addEventListener("click", copyCode);
}

async function start() {
  listen();
  if (/Mac|iPhone|iPad/.test(navigator.userAgent)) $("run-keys").textContent = "⌘ ⏎";
  if (!takeKeyFromAddress()) $("key").value = rememberedKey();
  const document_ = await getJson(new URL("openai/openapi.json", document.baseURI).href, "");
  needsKey = document_.security?.length !== 0;
  const example = exampleOf(document_);
  $("model").replaceChildren(element("option", { value: example.model ?? "" }, example.model ?? "unknown"));
  $("prompt").value ||= "Once upon a time, in a small village by the sea,";
  form = new Form($("fields"), fieldsOf(document_), INITIAL, showCode);
  chooseLanguage(language, false);
  document.body.classList.add("is-ready");
  await loadModels();
}

start().catch((error) => {
  setStatus("");
  $("failure").textContent = `The page could not load the API description: ${error.message}`;
  $("failure").hidden = false;
});
