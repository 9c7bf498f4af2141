// The API key, and the models that it may use.

import { element } from "./form.js";
import { getJson } from "./request.js";

const KEY_ITEM = "api-key";
const $ = (id) => document.getElementById(id);

/** Marks a control as invalid, and shows the message in `place`. Without a problem, removes both. */
export function mark(control, problem, place) {
  if (problem) control.setAttribute("aria-invalid", "true");
  else control.removeAttribute("aria-invalid");
  if (place) {
    place.hidden = !problem;
    place.textContent = problem ?? "";
  }
}

export class Account {
  /** `onModel(capabilities)` is called with those of the chosen model, or null if they are unknown. */
  constructor(baseUrl, setStatus, onModel) {
    this._baseUrl = baseUrl;
    this._setStatus = setStatus;
    this._onModel = onModel;
    this.needsKey = true; // unless the server's document declares no security
    $("key").addEventListener("change", () => {
      this.rememberKey();
      this.loadModels();
    });
    $("account").addEventListener("submit", (event) => event.preventDefault());
    $("show-key").addEventListener("click", () => {
      this.foldKey(false);
      $("key").focus();
    });
    $("model").addEventListener("change", () => this.loadCapabilities());
  }

  get key() {
    return $("key").value.trim();
  }

  async loadModels() {
    if (this.needsKey && !this.key) {
      this._setStatus("Enter the API key to run this request.");
      return;
    }
    try {
      const { data } = await getJson(`${this._baseUrl}/models`, this.key);
      const before = $("model").value;
      $("model").replaceChildren(...data.map(({ id }) => element("option", { value: id }, id)));
      if (data.some(({ id }) => id === before)) $("model").value = before;
      mark($("key"), false);
      this.foldKey(true);
      if ($("status").textContent.startsWith("Enter the API key")) this._setStatus("");
    } catch (error) {
      if (error.code === "invalid_api_key") mark($("key"), true);
      return;
    }
    await this.loadCapabilities();
  }

  async loadCapabilities() {
    const id = $("model").value;
    const path = id.split("/").map(encodeURIComponent).join("/");
    let capabilities = null; // all fields stay enabled; the server rejects what it does not support
    try {
      ({ capabilities } = await getJson(`${this._baseUrl}/models/${path}`, this.key));
    } catch {
      // As above.
    }
    if ($("model").value === id) this._onModel(capabilities);
  }

  rememberKey() {
    try {
      if ($("key").value) sessionStorage.setItem(KEY_ITEM, this.key);
      else sessionStorage.removeItem(KEY_ITEM);
    } catch {
      // The browser blocks storage: the key is lost when the page is closed.
    }
  }

  recallKey() {
    try {
      $("key").value = sessionStorage.getItem(KEY_ITEM) ?? "";
    } catch {
      $("key").value = "";
    }
  }

  /** Hides the key on narrow screens once the server has accepted it; a button shows it again. */
  foldKey(isFolded) {
    $("account").classList.toggle("folded", isFolded);
    $("show-key").hidden = !isFolded;
  }
}
