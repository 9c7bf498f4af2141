// The chat tab: system message, tools, conversation, and the next message.

import { mark } from "./account.js";
import { Conversation } from "./conversation.js";
import { parse, syntaxProblem } from "./json.js";

const $ = (id) => document.getElementById(id);
const EXAMPLE = `[
  {
    "type": "function",
    "function": {
      "name": "get_weather",
      "description": "The current weather of a city",
      "parameters": {
        "type": "object",
        "properties": { "city": { "type": "string" } },
        "required": ["city"],
        "additionalProperties": false
      },
      "strict": true
    }
  }
]`;

export class ChatView {
  /** `onChange` is called after each change by the user, `run` to ask for an answer without a further message. */
  constructor({ onChange, run }) {
    this.conversation = new Conversation($("turns"), {
      onChange: () => {
        this._showState();
        onChange();
      },
      onRun: () => run(false),
    });
    $("tools").addEventListener("input", () => this._showTools());
    $("tools-example").addEventListener("click", () => {
      $("tools").value = EXAMPLE;
      this._showTools();
      $("tools").focus();
      $("tools").setSelectionRange(0, 0);
      $("tools").scrollTop = 0;
      onChange();
    });
    $("clear").addEventListener("click", () => {
      this.conversation.clear();
      $("message").focus();
    });
  }

  /** The fields of the request, in the order of the API. `problems` gets {field: message} for what is invalid. */
  read(problems, withDraft) {
    const system = $("system").value;
    const draft = withDraft ? $("message").value : "";
    const messages = [
      ...(system.trim() ? [{ role: "system", content: system }] : []),
      ...this.conversation.messages(),
      ...(draft.trim() ? [{ role: "user", content: draft }] : []),
    ];
    const { tools, problem } = readTools($("tools").value);
    if (problem) problems.tools = problem;
    return { messages, ...(tools.length ? { tools } : {}) };
  }

  /** Why the conversation cannot be sent, as {field: message}; null if it can. */
  problemOf(body, withDraft) {
    const hasDraft = withDraft && $("message").value.trim();
    if (hasDraft || body.continue_final_message) return null;
    if (this.conversation.isEmpty || this.conversation.isAnswered) return { messages: "Enter a message." };
    return null;
  }

  /** Shows these problems. Returns the first invalid control, or null. */
  show(problems) {
    const result = this.conversation.showProblems();
    mark($("tools"), problems.tools);
    this._showTools(problems.tools);
    mark($("message"), problems.messages, $("message-problem"));
    if (problems.tools) $("tools-setup").open = true;
    return problems.tools ? $("tools") : (result ?? (problems.messages ? $("message") : null));
  }

  /** Moves the message from its text area into the conversation. */
  takeDraft() {
    const text = $("message").value;
    if (!text.trim()) return;
    this.conversation.addUser(text);
    $("message").value = "";
    this._showState();
  }

  begin(body) {
    this.conversation.begin(Boolean(body.continue_final_message));
    this._showState();
    $("turns").lastElementChild.scrollIntoView({ block: "nearest" });
  }

  showCapability(isSupported) {
    $("chat-notice").hidden = isSupported;
  }

  _showState() {
    $("turns").hidden = this.conversation.isEmpty;
    $("turns-empty").hidden = !this.conversation.isEmpty;
    $("clear").disabled = this.conversation.isEmpty;
  }

  _showTools(problemOfServer) {
    const { tools, problem = problemOfServer } = readTools($("tools").value);
    mark($("tools"), problem, $("tools-problem"));
    $("tools-count").textContent = problem ? "invalid" : tools.length ? tools.map((tool) => tool.function.name).join(", ") : "";
  }
}

/** Returns {tools, problem}. The server checks the rest. */
function readTools(text) {
  if (!text.trim()) return { tools: [] };
  let tools;
  try {
    tools = parse(text);
  } catch (error) {
    return { tools: [], problem: syntaxProblem(error) };
  }
  if (!Array.isArray(tools)) return { tools: [], problem: "This must be a list: [{ … }, { … }]." };
  const wrong = tools.findIndex((tool) => tool?.type !== "function" || typeof tool.function?.name !== "string");
  if (wrong >= 0) return { tools: [], problem: `Item ${wrong + 1} must have "type": "function" and a "function" with a "name".` };
  return { tools };
}
