// The conversation: its turns on the page, and the messages that they make.

import { ChatAnswer } from "./chat-answer.js";
import { element } from "./form.js";

const ROLES = { user: "You", assistant: "Assistant" };

export class Conversation {
  /** `onChange` is called after each change by the user, `onRun` to ask for an answer to what is left. */
  constructor(root, { onChange, onRun }) {
    this._root = root;
    this._onChange = onChange;
    this._onRun = onRun;
    this._turns = [];
    this._running = null; // the turn that is being answered
    root.addEventListener("input", onChange);
  }

  get isEmpty() {
    return !this._turns.length;
  }

  /** Whether the last turn is an answer without tool calls, to which nothing is left to say for the model. */
  get isAnswered() {
    const last = this._turns.at(-1);
    return last?.role === "assistant" && !last.answer.calls.length;
  }

  /** [[index, finish reason or null]] of the running or last answer, ordered by index. */
  get finishes() {
    const answers = this._turns.at(-1)?.answers ?? new Map();
    return [...answers].sort(([a], [b]) => a - b).map(([index, answer]) => [index, answer.finish]);
  }

  /** The messages of the next request. Of an answer that is being made, only the text that it continues. */
  messages() {
    return this._turns.flatMap((turn) => {
      if (turn === this._running) return turn.prefix ? [{ role: "assistant", content: turn.prefix }] : [];
      return turn.role === "user" ? [{ role: "user", content: turn.text }] : turn.answer.messages();
    });
  }

  /** Marks the results of tools that are missing. Returns the control of the first one, or null. */
  showProblems() {
    const calls = this._turns.flatMap((turn) => (turn.role === "assistant" ? turn.answer.calls : []));
    for (const { result, problem } of calls) {
      const isMissing = !result.value.trim();
      problem.hidden = !isMissing;
      problem.textContent = isMissing ? "Enter what the function returned." : "";
      if (isMissing) result.setAttribute("aria-invalid", "true");
      else result.removeAttribute("aria-invalid");
    }
    return calls.find(({ result }) => !result.value.trim())?.result ?? null;
  }

  addUser(text) {
    const turn = this._add("user");
    turn.text = text;
    turn.body.append(element("div", { class: "said" }, text));
    this._addButtons(turn, ["Edit", "Delete"]);
  }

  clear() {
    this._cut(0);
    this._onChange();
  }

  // --- The answer that is being made ----------------------------------------------------------------------------------

  begin(continues) {
    const last = this._turns.at(-1);
    const prefix = continues && last?.role === "assistant" ? last.answer.content : "";
    if (prefix) this._cut(this._turns.length - 1);
    const turn = this._add("assistant");
    turn.prefix = prefix;
    turn.answers = new Map();
    this._running = turn;
    this._answer(turn, 0);
    this._root.setAttribute("aria-busy", "true");
  }

  show(answers, waits) {
    for (const { choices } of answers) {
      for (const choice of choices) this._answer(this._running, choice.index).push(choice, waits.get(choice.index) ?? null);
    }
  }

  /** Ends the answer for any reason; one without anything in it is removed. */
  end() {
    const turn = this._running;
    this._running = null;
    this._root.setAttribute("aria-busy", "false");
    for (const answer of turn.answers.values()) answer.end("stopped");
    if ([...turn.answers.values()].every((answer) => answer.isEmpty && answer.finish === "stopped")) {
      this._cut(this._turns.indexOf(turn));
    } else {
      if (turn.answers.size > 1) this._offer(turn);
      this._addButtons(turn, ["Regenerate", "Edit", "Delete"]);
    }
    this._onChange();
  }

  _answer(turn, index) {
    if (!turn.answers.has(index)) {
      const answer = new ChatAnswer(index, turn.prefix);
      turn.answers.set(index, answer);
      turn.answer ??= answer;
      const after = [...turn.answers].filter(([other]) => other > index).sort(([a], [b]) => a - b)[0];
      turn.body.insertBefore(answer.root, after?.[1].root ?? null);
      turn.body.classList.toggle("several", turn.answers.size > 1);
    }
    return turn.answers.get(index);
  }

  _offer(turn) {
    const name = `choice-of-turn-${this._turns.indexOf(turn)}`;
    for (const answer of turn.answers.values()) {
      answer.offer(name, answer === turn.answer, () => {
        turn.answer = answer;
        this._onChange();
      });
    }
  }

  // --- Turns ----------------------------------------------------------------------------------------------------------

  _add(role) {
    const buttons = element("div", { class: "turn-buttons" });
    const body = element("div", { class: role === "assistant" ? "choices" : "" });
    const head = element("div", { class: "turn-head" }, element("h3", {}, ROLES[role]), buttons);
    const turn = { role, buttons, body, root: element("li", { class: `turn ${role}` }, head, body) };
    this._turns.push(turn);
    this._root.append(turn.root);
    return turn;
  }

  /** Removes this turn and those after it. */
  _cut(index) {
    for (const turn of this._turns.splice(index)) turn.root.remove();
  }

  _addButtons(turn, names) {
    const actions = { Edit: () => this._edit(turn), Delete: () => this._delete(turn), Regenerate: () => this._regenerate(turn) };
    for (const name of names) {
      const label = `${name} ${turn.role === "user" ? "this message" : "this answer"}`;
      const button = element("button", { type: "button", class: "quiet", "aria-label": label }, name);
      button.addEventListener("click", () => this._running || actions[name]());
      turn.buttons.append(button);
    }
  }

  _delete(turn) {
    this._turns.splice(this._turns.indexOf(turn), 1);
    turn.root.remove();
    this._onChange();
  }

  _regenerate(turn) {
    this._cut(this._turns.indexOf(turn));
    this._onRun();
  }

  _edit(turn) {
    const text = turn.role === "user" ? turn.text : turn.answer.content;
    const rows = Math.min(12, Math.max(2, text.split("\n").length));
    const area = element("textarea", { rows, "aria-label": turn.role === "user" ? "Message" : "Answer" });
    area.value = text;
    const button = (name, classes, action) => {
      const made = element("button", { type: "button", class: classes }, name);
      made.addEventListener("click", () => {
        editor.remove();
        turn.root.classList.remove("editing");
        action();
        turn.buttons.firstElementChild?.focus();
      });
      return made;
    };
    const save = () => this._rewrite(turn, area.value);
    const resend = () => {
      save();
      this._cut(this._turns.indexOf(turn) + 1);
      this._onRun();
    };
    const buttons = [button("Save", "quiet", save), button("Cancel", "quiet", () => {})];
    if (turn.role === "user") buttons.unshift(button("Send again", "quiet primary", resend));
    const editor = element("div", { class: "editor" }, area, element("div", { class: "turn-buttons" }, ...buttons));
    turn.root.append(editor);
    turn.root.classList.add("editing");
    area.focus();
  }

  _rewrite(turn, text) {
    if (turn.role === "user") {
      turn.text = text;
      turn.body.firstElementChild.textContent = text;
    } else if (text !== turn.answer.content) {
      turn.answer.rewrite(text);
    }
    this._onChange();
  }
}
