// Builds the controls of the request fields, which come from the server's OpenAPI document (schema.js).

import { compact, parse, parseInteger } from "./json.js";
import { grouped } from "./schema.js";

const MAX_SLIDER_STEPS = 400;
const OPEN_AT_FIRST = new Set(["Basics", "Sampling"]);
const ESCAPES = { n: "\n", t: "\t", r: "\r", "\\": "\\" };

/** Creates an element. Text becomes a text node, so that no text is ever parsed as markup. */
export function element(name, attributes = {}, ...children) {
  const created = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    created.setAttribute(key, value === true ? "" : value);
  }
  created.append(...children.filter((child) => child !== undefined && child !== null));
  return created;
}

export class Form {
  /**
   * `initial` maps fields to the values that this page starts with instead of the server's defaults.
   * `onChange` is called after each change by the user.
   */
  constructor(fields, initial, onChange) {
    this._initial = initial;
    this._onChange = onChange;
    this._rows = new Map();
    this._groups = [];
    this._denied = new Map();
    this.root = element("div", {}, ...grouped(fields).map((group) => this._group(group)));
    this.reset();
  }

  /** Returns {values: fields to send, problems: {field: message}}. Fields with their default value are omitted. */
  read() {
    const values = {};
    const problems = {};
    for (const [name, row] of this._rows) {
      try {
        const value = this._denied.has(name) ? undefined : row.control.read();
        if (value !== undefined) values[name] = value;
      } catch (problem) {
        problems[name] = problem.message;
      }
    }
    // The server rejects one without the other.
    if (!values.stream) delete values.stream_options;
    if (!values.logprobs) delete values.top_logprobs;
    this._count(values);
    return { values, problems };
  }

  get names() {
    return [...this._rows.keys()];
  }

  /** Whether the user has changed this field since the page was opened or reset. */
  isTouched(name) {
    return this._rows.get(name)?.isTouched ?? false;
  }

  set(name, value) {
    this._rows.get(name)?.control.write(value);
  }

  reset() {
    for (const [name, row] of this._rows) {
      row.control.write(this._initial[name]);
      row.isTouched = false;
    }
    this.show({});
  }

  /** Disables the fields in `denied` (field -> reason) and caps numbers at `maxima` (field -> number). */
  limit({ denied, maxima }) {
    this._denied = new Map(Object.entries(denied));
    for (const [name, row] of this._rows) {
      const isDenied = this._denied.has(name);
      row.root.classList.toggle("denied", isDenied);
      row.note.hidden = !isDenied;
      row.note.textContent = this._denied.get(name) ?? "";
      for (const input of row.control.inputs) input.disabled = isDenied;
      row.control.limit?.(maxima[name]);
    }
  }

  /** Shows a message at each of these fields only. Returns the control of the first one, or null. */
  show(problems) {
    let first = null;
    for (const [name, row] of this._rows) {
      const problem = problems[name];
      row.problem.hidden = !problem;
      row.problem.textContent = problem ?? "";
      row.root.classList.toggle("wrong", Boolean(problem));
      for (const input of row.control.inputs) {
        if (problem) input.setAttribute("aria-invalid", "true");
        else input.removeAttribute("aria-invalid");
      }
      if (problem && !first) {
        first = row.control.inputs[0];
        row.root.closest("details").open = true;
      }
    }
    return first;
  }

  _group({ title, fields }) {
    const count = element("span", { class: "count" });
    const isWide = matchMedia("(min-width: 60rem)").matches;
    const details = element(
      "details",
      { class: "group", open: isWide && OPEN_AT_FIRST.has(title) },
      element("summary", {}, title, count),
      ...fields.map((field) => this._row(field)),
    );
    this._groups.push({ count, names: fields.map((field) => field.name) });
    return details;
  }

  _row(field) {
    const id = `field-${field.name}`;
    const control = controlOf(field, id);
    const problem = element("p", { class: "problem", id: `${id}-problem`, hidden: true });
    const note = element("p", { class: "note", hidden: true });
    const help = element("p", { class: "help", id: `${id}-help` }, ...inCode(field.help + control.hint));
    const name = element("code", {}, field.name);
    const isFieldset = field.kind === "object";
    const label = isFieldset ? element("span", { class: "label", id: `${id}-label` }, name) : element("label", { for: id }, name);
    const root = element(
      "div",
      {
        class: `field kind-${field.kind}`,
        "data-field": field.name,
        role: isFieldset ? "group" : undefined,
        "aria-labelledby": isFieldset ? `${id}-label` : undefined,
      },
      label,
      control.root,
      problem,
      note,
      help,
    );
    for (const input of control.inputs) input.setAttribute("aria-describedby", `${id}-problem ${id}-help`);
    const row = { control, problem, note, root, isTouched: false };
    control.root.addEventListener("input", () => {
      row.isTouched = true;
      this._onChange(field.name);
    });
    this._rows.set(field.name, row);
    return root;
  }

  _count(values) {
    for (const { count, names } of this._groups) {
      const set = names.filter((name) => name in values).length;
      count.textContent = set ? `${set} set` : "";
    }
  }
}

/** Renders text between backquotes as code. */
export function inCode(text) {
  return text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

function controlOf(field, id) {
  return (CONTROLS[field.kind] ?? CONTROLS.json)(field, id);
}

// Each control is {root, inputs, hint, read, write}. read returns undefined to omit the field, and throws an Error with a
// message for the user if the value is invalid. write(undefined) sets the default.
const CONTROLS = {
  boolean(field, id) {
    const input = element("input", { type: "checkbox", id });
    const usual = field.default ?? /Default true\b/.test(field.help);
    return {
      root: element("div", { class: "control" }, input),
      inputs: [input],
      hint: "",
      read: () => (input.checked === usual ? undefined : input.checked),
      write: (value) => void (input.checked = value ?? usual),
    };
  },

  integer: (field, id) => numeric(field, id, { step: 1, read: parseInteger, expected: "an integer" }),

  number: (field, id) => numeric(field, id, { step: "any", read: Number, expected: "a number" }),

  enum(field, id) {
    const options = field.options.map((option) => element("option", { value: option }, option));
    const input = element("select", { id }, element("option", { value: "" }, "default"), ...options);
    return {
      root: element("div", { class: "control" }, input),
      inputs: [input],
      hint: "",
      read: () => (input.value === "" || input.value === field.default ? undefined : input.value),
      write: (value) => void (input.value = value ?? ""),
    };
  },

  string(field, id) {
    return area(id, 1, "", (text) => (text === "" ? undefined : text), (value) => value);
  },

  strings(field, id) {
    const read = (text) => {
      const lines = text.split("\n").filter((line) => line !== "");
      return lines.length ? lines.map(unescapeLine) : undefined;
    };
    return area(id, 2, " (one per line; \\n is a line break)", read, (value) => [value].flat().map(escapeLine).join("\n"));
  },

  integers(field, id) {
    const read = (text) => {
      const values = text.split(/[\s,]+/).filter(Boolean).map(parseInteger);
      if (values.some(Number.isNaN)) throw new Error("Enter integers separated by commas or spaces.");
      return values.length ? values : undefined;
    };
    return area(id, 1, " (separated by commas or spaces)", read, (value) => value.join(", "));
  },

  json(field, id) {
    const read = (text) => {
      if (text.trim() === "") return undefined;
      try {
        return parse(text);
      } catch {
        throw new Error("This is not valid JSON.");
      }
    };
    return area(id, 2, " (JSON)", read, compact);
  },

  object(field, id) {
    const parts = field.fields.map((inner) => {
      const innerId = `${id}-${inner.name}`;
      const control = controlOf(inner, innerId);
      const label = element("label", { for: innerId, title: inner.help }, element("code", {}, inner.name));
      return { name: inner.name, control, root: element("div", { class: `inner kind-${inner.kind}` }, label, control.root) };
    });
    return {
      root: element("div", { class: "control inners" }, ...parts.map((part) => part.root)),
      inputs: parts.flatMap((part) => part.control.inputs),
      hint: "",
      read() {
        const entries = parts.map((part) => [part.name, part.control.read()]).filter(([, value]) => value !== undefined);
        return entries.length ? Object.fromEntries(entries) : undefined;
      },
      write: (value) => parts.forEach((part) => part.control.write(value?.[part.name])),
    };
  },
};

function numeric(field, id, { step, read, expected }) {
  const usual = field.default ?? field.help.match(/Default (-?[\d.]*\d)/)?.[1];
  const number = element("input", {
    type: "number", id, step, min: field.minimum, max: tame(field.maximum), placeholder: usual ?? "default", inputmode: "decimal",
  });
  const slider = sliderFor(field, usual);
  const follow = () => {
    if (slider) slider.value = number.value === "" ? (usual ?? field.minimum) : number.value;
    slider?.classList.toggle("unset", number.value === "");
  };
  number.addEventListener("input", follow);
  slider?.addEventListener("input", () => {
    number.value = slider.value;
    follow();
  });
  return {
    root: element("div", { class: "control" }, slider, number),
    inputs: slider ? [number, slider] : [number],
    hint: "",
    read() {
      if (number.validity.badInput) throw new Error(`This must be ${expected}.`);
      if (number.value === "") return undefined;
      const value = read(number.value);
      if (Number.isNaN(value)) throw new Error(`This must be ${expected}.`);
      return value === field.default ? undefined : value;
    },
    write(value) {
      number.value = value ?? "";
      follow();
    },
    limit(cap) {
      const maximum = Math.min(cap ?? Infinity, field.maximum ?? Infinity);
      if (cap === undefined && !number.dataset.cap) return;
      number.dataset.cap = cap ?? "";
      for (const input of slider ? [number, slider] : [number]) input.max = Number.isFinite(maximum) ? maximum : "";
      if (Number(number.value) > maximum) this.write(maximum);
    },
  };
}

/** Browsers parse min and max as doubles, and would reject the limits of int64 because of rounding. */
function tame(limit) {
  return limit === undefined || Math.abs(limit) > Number.MAX_SAFE_INTEGER ? undefined : limit;
}

/** A slider for small ranges. The number input does the same, so the slider is no tab stop. */
function sliderFor(field, usual) {
  const { minimum, maximum } = field;
  if (minimum === undefined || maximum === undefined) return null;
  const step = field.kind === "integer" ? 1 : maximum - minimum > 1 ? 0.05 : 0.01;
  if ((maximum - minimum) / step > MAX_SLIDER_STEPS) return null;
  return element("input", {
    type: "range", min: minimum, max: maximum, step, value: usual ?? minimum, tabindex: "-1", "aria-hidden": "true",
  });
}

function area(id, rows, hint, read, shown) {
  const input = element("textarea", { id, rows, spellcheck: "false", autocapitalize: "off" });
  return {
    root: element("div", { class: "control" }, input),
    inputs: [input],
    hint,
    read: () => read(input.value),
    write: (value) => void (input.value = value === undefined ? "" : shown(value)),
  };
}

function unescapeLine(line) {
  return line.replace(/\\(?:u([0-9a-fA-F]{4})|([ntr\\]))/g, (_, code, letter) =>
    code ? String.fromCharCode(parseInt(code, 16)) : ESCAPES[letter],
  );
}

function escapeLine(text) {
  return text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t").replaceAll("\r", "\\r");
}
