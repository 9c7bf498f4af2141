// Lossless JSON: integers beyond 2^53 (seeds are int64) become BigInt, which JSON.stringify does not support.

/** Parses JSON. Integers that a double cannot represent become BigInt. Throws SyntaxError. */
export function parse(text) {
  return JSON.parse(text, (_, value, context) => {
    const source = context?.source; // missing in browsers before 2025, which round
    const isRounded = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
    return isRounded && source && /^-?\d+$/.test(source) ? BigInt(source) : value;
  });
}

/** Writes JSON on one line. */
export function compact(value) {
  return write(value, (item) => compact(item));
}

/** Writes JSON with a line for each member of the outermost object, and for each object of a list in it. */
export function pretty(value) {
  const members = Object.entries(value).map(([name, item]) => `  ${JSON.stringify(name)}: ${listed(item, compact, "  ")}`);
  return members.length ? `{\n${members.join(",\n")}\n}` : "{}";
}

/** Writes a value with `writeItem`; a list of objects with a line for each. `indent` is that of the first line. */
export function listed(value, writeItem, indent) {
  const isLong = Array.isArray(value) && value.some((item) => item !== null && typeof item === "object");
  return isLong ? `[\n${value.map((item) => `${indent}  ${writeItem(item)}`).join(",\n")}\n${indent}]` : writeItem(value);
}

/** Describes an error of `parse` for its author: what the browser says, with the line and column if it gives them. */
export function syntaxProblem(error) {
  const place = /line (\d+) column (\d+)/.exec(error.message);
  const cause = error.message.replace(/^JSON\.parse: /, "").replace(/ (?:in JSON )?at (?:position|line) .*$/, "");
  return `This is not valid JSON: ${cause}${place ? ` (line ${place[1]}, column ${place[2]})` : ""}.`;
}

function write(value, inner) {
  if (typeof value === "bigint") return String(value);
  if (Array.isArray(value)) return `[${value.map(inner).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${inner(item)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** Parses user input as an integer: a number, a BigInt where a number would round, or NaN if it is invalid. */
export function parseInteger(text) {
  if (!/^[-+]?\d+$/.test(text.trim())) return NaN;
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : BigInt(text.trim().replace(/^\+/, ""));
}
