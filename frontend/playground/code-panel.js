// The code of the request in the form: its tabs and the button that copies it.

import { curl, javascript, json, python } from "./code.js";
import { tabList } from "./tabs.js";

const LANGUAGES = { curl, python, javascript, json };
const COPIED_MS = 1500;

export class CodePanel {
  /** `read` returns the body of the request. */
  constructor(baseUrl, read) {
    this._baseUrl = baseUrl;
    this._read = read;
    this._language = "curl";
    this._code = document.getElementById("code");
    this._button = document.getElementById("copy-code");
    this._announcement = document.getElementById("copy-announcement");
    this._mark = tabList(document.getElementById("code-tabs"), (tab) => this._choose(tab));
    this._button.addEventListener("click", () => this._copy());
    this._mark(document.getElementById("tab-curl"));
  }

  show() {
    this._code.firstElementChild.textContent = LANGUAGES[this._language](this._baseUrl, this._read());
  }

  _choose(tab) {
    this._language = tab.dataset.language;
    this._mark(tab);
    this._code.setAttribute("aria-labelledby", tab.id);
    this.show();
  }

  async _copy() {
    const code = this._code.firstElementChild;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code); // the clipboard API requires https
      document.execCommand("copy");
    }
    this._announcement.textContent = "Copied";
    this._button.textContent = "Copied";
    setTimeout(() => {
      this._button.textContent = "Copy";
      this._announcement.textContent = "";
    }, COPIED_MS);
  }
}
