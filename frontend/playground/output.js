// Shows the completion: one card per choice, with its text split into tokens that can be inspected.

import { element } from "./form.js";
import { TokenText } from "./token-text.js";

export class Output {
  /** `root` contains the cards. */
  constructor(root) {
    this._root = root;
    this._cards = new Map();
  }

  /** Removes the cards before a new completion. */
  begin() {
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
}

class Card {
  constructor(index) {
    this.finish = null;
    this._chip = element("span", { class: "chip", hidden: true });
    this._text = new TokenText(`Text of choice ${index}`);
    const head = element("h3", {}, `Choice ${index}`, this._chip);
    this.root = element("article", { class: "choice running" }, head, this._text.root);
  }

  push(choice, wait) {
    this._text.push(choice, wait);
    if (choice.finish_reason) {
      this.finish = choice.finish_reason;
      this._chip.hidden = false;
      this._chip.textContent = choice.finish_reason;
      this.root.classList.remove("running");
    }
  }
}
