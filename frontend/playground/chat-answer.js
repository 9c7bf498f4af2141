// One choice of an answer in the conversation: reasoning, text, tool calls and their results, and the model's own tokens.

import { element } from "./form.js";
import { TokenText } from "./token-text.js";

let lastId = 0;

export class ChatAnswer {
  /** `prefix` is text before the answer, which it continues. */
  constructor(index, prefix = "") {
    this.content = prefix;
    this.reasoning = "";
    this.calls = []; // {id, name, arguments, result: a textarea or null}
    this.finish = null;
    this._id = `answer-${++lastId}`;
    this._chunks = []; // until the answer is known to be content only or not
    this._isParsed = false; // whether it has reasoning or tool calls, so that the tokens are not those of the content
    this._decoder = new TextDecoder();
    this._chip = element("span", { class: "chip", hidden: true });
    this._head = element("h4", {}, element("span", { class: "choice-name" }, `Choice ${index}`), this._chip);
    this._thoughts = element("div", { class: "thoughts" });
    this._thinking = element("details", { class: "reasoning", open: true, hidden: true }, element("summary", {}, "Reasoning"), this._thoughts);
    this._text = new TokenText(`Text of the answer, choice ${index}`);
    if (prefix) this._text.root.append(prefix);
    this._plain = element("div", { class: "said", hidden: true });
    this._calls = element("ol", { class: "calls", "aria-label": "Tool calls", hidden: true });
    this._raw = new TokenText(`Tokens of the answer, choice ${index}`);
    this._rawBox = element(
      "details",
      { class: "reasoning", hidden: true },
      element("summary", {}, "Tokens, as the model wrote them"),
      this._raw.root,
    );
    this.root = element("article", { class: "choice running" }, this._head, this._thinking, this._text.root, this._plain, this._calls, this._rawBox);
  }

  /** Takes a choice of chat-chunks.js. */
  push(choice, wait) {
    this.reasoning += choice.reasoning;
    this.content += choice.text;
    if (!this._isParsed && (choice.reasoning || choice.calls.length)) this._showParsed();
    if (this._isParsed) {
      this._thoughts.append(choice.reasoning);
      this._showContent(choice.text);
      for (const part of choice.calls) this._addCall(part);
      this._pushRaw(choice, wait);
    } else {
      this._text.push(choice, wait);
      this._chunks.push([choice, wait]);
    }
    if (choice.finish_reason) this._end(choice.finish_reason);
  }

  /** Ends the answer. `reason` is for one that has no finish reason, as when it was stopped. */
  end(reason) {
    if (this.finish === null) this._end(reason);
    this._chunks = [];
    this._calls.querySelectorAll(".result").forEach((row) => (row.hidden = false));
  }

  get isEmpty() {
    return !this.content && !this.reasoning && !this.calls.length;
  }

  /** The answer as a message of the next request, followed by the results of its tool calls. */
  messages() {
    const message = { role: "assistant", content: this.content || (this.calls.length ? null : "") };
    if (this.reasoning) message.reasoning_content = this.reasoning;
    if (!this.calls.length) return [message];
    message.tool_calls = this.calls.map(({ id, name, arguments: text }) => ({
      id, type: "function", function: { name, arguments: text },
    }));
    return [message, ...this.calls.map(({ id, result }) => ({ role: "tool", tool_call_id: id, content: result.value }))];
  }

  /** The results that are not entered yet, as text areas. */
  get missingResults() {
    return this.calls.map(({ result }) => result).filter((result) => !result.value.trim());
  }

  /** Replaces the content by text that no model has written, so the tokens are gone. */
  rewrite(text) {
    this.content = text;
    this._text.root.hidden = true;
    this._rawBox.hidden = true;
    this._plain.replaceChildren(text);
    this._plain.hidden = !text;
  }

  /** Adds the choice of this answer as the one that the conversation continues with. */
  offer(name, isChosen, onChoose) {
    const input = element("input", { type: "radio", name, id: `${this._id}-chosen`, checked: isChosen });
    input.addEventListener("change", onChoose);
    this._head.append(element("label", { class: "inline", for: input.id }, input, "continue with this one"));
  }

  _showParsed() {
    this._isParsed = true;
    this._text.root.hidden = true;
    for (const [choice, wait] of this._chunks.splice(0)) {
      this._showContent(choice.text);
      this._pushRaw(choice, wait);
    }
  }

  _showContent(text) {
    if (text && this.reasoning) this._thinking.open = false;
    this._thinking.hidden = !this.reasoning;
    this._plain.append(text);
    this._plain.hidden = !this._plain.textContent;
  }

  /** Without logprobs there is no text of tokens to show. */
  _pushRaw(choice, wait) {
    const bytes = choice.bytes?.every(Array.isArray) ? choice.bytes.flat() : [];
    const text = this._decoder.decode(new Uint8Array(bytes), { stream: !choice.finish_reason });
    if (choice.logprobs || choice.finish_reason) this._raw.push({ ...choice, text }, wait);
    this._rawBox.hidden = !this._raw.root.childElementCount;
  }

  _addCall(part) {
    const call = (this.calls[part.index] ??= this._newCall());
    call.id += part.id ?? "";
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
    call.nameBox.textContent = call.name;
    call.argumentsBox.textContent = call.arguments;
    call.label.replaceChildren("Result of ", element("code", {}, call.name));
  }

  _newCall() {
    const id = `${this._id}-result-${this.calls.length}`;
    const result = element("textarea", { id, rows: 2, spellcheck: "false", "aria-describedby": `${id}-problem` });
    const call = {
      id: "", name: "", arguments: "", result,
      problem: element("p", { class: "problem", id: `${id}-problem`, hidden: true }),
      nameBox: element("code", { class: "call-name" }),
      argumentsBox: element("code", {}),
      label: element("label", { for: id }),
    };
    const row = element("div", { class: "result", hidden: true }, call.label, result, call.problem);
    this._calls.append(element("li", { class: "call" }, call.nameBox, element("pre", {}, call.argumentsBox), row));
    this._calls.hidden = false;
    return call;
  }

  _end(reason) {
    this.finish = reason;
    this._chip.hidden = !reason || reason === "stop"; // the usual end of a message
    this._chip.textContent = reason ?? "";
    this._thinking.open = this._thinking.open && !this.content;
    this.root.classList.remove("running");
  }
}
