// Shows the completion: one card per choice, with its text split into tokens that can be inspected.

import { element } from "./form.js";
import { duration } from "./timing.js";
import { TokenCutter, colourOf, percent } from "./tokens.js";

const NEAR_END_PX = 40; // the text scrolls along only if the user has not scrolled up further than this

export class Output {
  /** `root` contains the cards, `tip` shows the details of a token, `announcement` is read by screen readers. */
  constructor(root, tip, announcement) {
    this._root = root;
    this._tip = tip;
    this._announcement = announcement;
    this._cards = new Map();
    this._current = null; // the span whose token is shown
    root.addEventListener("pointerover", (event) => this._point(event));
    root.addEventListener("pointerout", (event) => event.pointerType === "mouse" && this.hideTip());
    root.addEventListener("click", (event) => this._point(event));
    root.addEventListener("keydown", (event) => this._walk(event));
    root.addEventListener("focusout", () => this.hideTip());
    addEventListener("scroll", () => this.hideTip(), { capture: true, passive: true });
  }

  /** Removes the cards before a new completion. */
  begin() {
    this.hideTip();
    this._cards.clear();
    this._root.replaceChildren();
    this._root.setAttribute("aria-busy", "true");
  }

  /** Appends the chunks of one read. `waits` maps a choice's index to the milliseconds since its previous chunk. */
  show(answers, waits) {
    for (const answer of answers) {
      for (const choice of answer.choices) this._card(choice.index).push(choice, waits.get(choice.index) ?? null);
    }
  }

  /** Marks the completion as ended, for any reason. */
  end() {
    this._root.setAttribute("aria-busy", "false");
    for (const card of this._cards.values()) card.root.classList.remove("running");
  }

  /** [[index, finish reason or null]], ordered by index. */
  get finishes() {
    return [...this._cards].sort(([a], [b]) => a - b).map(([index, card]) => [index, card.finish]);
  }

  hideTip() {
    this._current?.classList.remove("current");
    this._current = null;
    this._tip.hidden = true;
  }

  _card(index) {
    if (!this._cards.has(index)) {
      const card = new Card(index);
      const after = [...this._cards.keys()].filter((other) => other > index).sort((a, b) => a - b)[0];
      this._cards.set(index, card);
      this._root.insertBefore(card.root, after === undefined ? null : this._cards.get(after).root);
      this._root.classList.toggle("several", this._cards.size > 1);
    }
    return this._cards.get(index);
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

class Card {
  constructor(index) {
    this.finish = null;
    this._index = index;
    this._cutter = new TokenCutter();
    this._chip = element("span", { class: "chip", hidden: true });
    this._text = element("div", {
      class: "text", tabindex: "0", role: "group", "aria-label": `Text of choice ${index}; use the arrow keys to move through its tokens`,
    });
    const head = element("h3", {}, `Choice ${index}`, this._chip);
    this.root = element("article", { class: "choice running" }, head, this._text);
  }

  push(choice, wait) {
    const text = this._text;
    const follows = text.scrollHeight - text.scrollTop - text.clientHeight < NEAR_END_PX;
    text.append(...this._cutter.push(choice, wait).map(spanOf));
    if (choice.finish_reason) {
      this.finish = choice.finish_reason;
      this._chip.hidden = false;
      this._chip.textContent = choice.finish_reason;
      this.root.classList.remove("running");
    }
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
