// JSON without loss: integers beyond 2^53 (seeds are int64) travel as BigInt, which JSON.stringify can't write.

/** Parses JSON; integers that a double can't hold become BigInt. Throws SyntaxError. */
export function parse(text) {
  return JSON.parse(text, (_, value, context) => {
    const source = context?.source; // browsers before 2025 lack it, and round as they always did
    const isRounded = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
    return isRounded && source && /^-?\d+$/.test(source) ? BigInt(source) : value;
  });
}

/** Writes JSON on one line. */
export function compact(value) {
  return write(value, (item) => compact(item));
}

/** Writes JSON with a line for each member of the outermost object. */
export function pretty(value) {
  const members = Object.entries(value).map(([name, item]) => `  ${JSON.stringify(name)}: ${compact(item)}`);
  return members.length ? `{\n${members.join(",\n")}\n}` : "{}";
}

function write(value, inner) {
  if (typeof value === "bigint") return String(value);
  if (Array.isArray(value)) return `[${value.map(inner).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${inner(item)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

/** Reads what a person typed as an integer: a number, or a BigInt where a number would round. NaN when it is none. */
export function parseInteger(text) {
  if (!/^[-+]?\d+$/.test(text.trim())) return NaN;
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : BigInt(text.trim().replace(/^\+/, ""));
}
