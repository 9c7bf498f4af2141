// Shows text split into its tokens, and the details of the one that the user points at or moves to.

import { element } from "./form.js";
import { duration } from "./timing.js";
import { TokenCutter, colourOf, percent } from "./tokens.js";

const NEAR_END_PX = 40; // the text scrolls along only if the user has not scrolled up further than this

export class TokenInspector {
  /** `roots` contain the texts, `tip` shows the details of a token, `announcement` is read by screen readers. */
  constructor(roots, tip, announcement) {
    this._tip = tip;
    this._announcement = announcement;
    this._current = null; // the span whose token is shown
    for (const root of roots) {
      root.addEventListener("pointerover", (event) => this._point(event));
      root.addEventListener("pointerout", (event) => event.pointerType === "mouse" && this.hideTip());
      root.addEventListener("click", (event) => this._point(event));
      root.addEventListener("keydown", (event) => this._walk(event));
      root.addEventListener("focusout", () => this.hideTip());
    }
    addEventListener("scroll", () => this.hideTip(), { capture: true, passive: true });
  }

  hideTip() {
    this._current?.classList.remove("current");
    this._current = null;
    this._tip.hidden = true;
  }

  _point(event) {
    const span = event.target.closest?.(".token");
    if (span) this._showTip(span);
  }

  _walk(event) {
    const text = event.target.closest(".text");
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!text || step === undefined || event.ctrlKey || event.metaKey || event.altKey || !text.children.length) return;
    event.preventDefault();
    const spans = text.children;
    const at = this._current?.parentElement === text ? [...spans].indexOf(this._current) + step : step > 0 ? 0 : spans.length - 1;
    const isEdge = Math.abs(step) === Infinity;
    const span = spans[Math.max(0, Math.min(spans.length - 1, isEdge ? (step > 0 ? spans.length - 1 : 0) : at))];
    span.scrollIntoView({ block: "nearest" });
    this._showTip(span);
    this._announcement.textContent = spoken(pieces.get(span));
  }

  _showTip(span) {
    if (this._current === span) return;
    this.hideTip();
    this._current = span;
    span.classList.add("current");
    this._tip.replaceChildren(...described(pieces.get(span)));
    this._tip.hidden = false;
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this._tip;
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
    const below = box.bottom + 6;
    this._tip.style.left = `${left}px`;
    this._tip.style.top = `${below + height > innerHeight && box.top - height > 6 ? box.top - height - 6 : below}px`;
  }
}

const pieces = new WeakMap(); // span -> piece

/** A text that grows by the chunks of one choice. */
export class TokenText {
  constructor(label) {
    this._cutter = new TokenCutter();
    this.root = element("div", { class: "text", tabindex: "0", role: "group", "aria-label": `${label}; use the arrow keys to move through its tokens` });
  }

  /** `wait` is the time that the chunk took to arrive, in milliseconds. */
  push(choice, wait) {
    const text = this.root;
    const follows = text.scrollHeight - text.scrollTop - text.clientHeight < NEAR_END_PX;
    text.append(...this._cutter.push(choice, wait).map(spanOf));
    if (follows) text.scrollTop = text.scrollHeight;
  }
}

function spanOf(piece) {
  const ghost = piece.text === "";
  const classes = ["token", colourOf(piece), ghost && "ghost", piece.text.includes("\n") && "breaks"].filter(Boolean);
  const span = element("span", { class: classes.join(" "), "aria-hidden": ghost ? "true" : undefined });
  // A ghost shows its token in a pseudo-element, so that it is not part of copied text.
  if (ghost) span.dataset.token = piece.tokens[0].text || "∅";
  else span.append(piece.text);
  pieces.set(span, piece);
  return span;
}

function described({ text, tokens, wait }) {
  const shown = [element("p", { class: "tip-text" }, JSON.stringify(text || (tokens[0]?.text ?? "")))];
  if (!text) shown.push(element("p", { class: "tip-note" }, "Not part of the text: an end token, or removed with a stop string."));
  if (tokens.length === 1) {
    shown.push(facts(tokens[0], wait), ...alternatives(tokens[0]));
  } else if (tokens.length) {
    shown.push(element("p", { class: "tip-note" }, `This text consists of ${tokens.length} tokens:`));
    shown.push(element("ul", {}, ...tokens.map((token) => element("li", {}, briefly(token)))));
  } else {
    shown.push(facts({ id: null, logprob: null, offset: null }, wait));
    shown.push(element("p", { class: "tip-note" }, "One chunk of the stream. Set logprobs to see its tokens."));
  }
  return shown;
}

function facts(token, wait) {
  const rows = [
    ["id", token.id],
    ["probability", token.logprob === null ? null : percent(token.logprob)],
    ["logprob", token.logprob === null ? null : token.logprob.toFixed(4)],
    ["offset", token.offset],
    ["arrived after", wait === null ? null : duration(wait)],
  ].filter(([, value]) => value !== null);
  return element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
}

function alternatives(token) {
  const found = Object.entries(token.top ?? {}).sort(([, a], [, b]) => b - a);
  if (!found.length) return [];
  const rows = found.map(([text, logprob]) => {
    const bar = element("span", { class: "bar" });
    bar.style.width = `${Math.max(1, Math.exp(logprob) * 100)}%`;
    const isChosen = text === token.text;
    return element(
      "li",
      { class: isChosen ? "chosen" : undefined },
      bar,
      element("span", { class: "alternative" }, JSON.stringify(text)),
      element("span", { class: "share" }, percent(logprob)),
    );
  });
  return [element("ol", { class: "alternatives", "aria-label": "Most likely tokens at this position" }, ...rows)];
}

function briefly(token) {
  const parts = [token.text === null ? "token" : JSON.stringify(token.text)];
  if (token.id !== null) parts.push(`id ${token.id}`);
  if (token.logprob !== null) parts.push(percent(token.logprob));
  return parts.join(", ");
}

function spoken({ text, tokens }) {
  return tokens.length === 1 ? briefly({ ...tokens[0], text: text || tokens[0].text }) : `${JSON.stringify(text)}, ${tokens.length} tokens`;
}
