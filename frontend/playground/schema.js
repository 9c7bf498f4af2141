// Derives the request fields, and the kind of control each one needs, from the server's OpenAPI document.

const GROUPS = [
  ["Basics", ["temperature", "max_tokens", "top_p", "stop", "seed"]],
  ["Sampling", ["top_k", "min_p", "n", "best_of"]],
  ["Length and end", [
    "min_tokens", "ignore_eos", "stop_token_ids", "include_stop_str_in_output", /^truncat/, "max_completion_tokens",
  ]],
  ["Logprobs and text", [
    "logprobs", "top_logprobs", "return_token_ids", "return_tokens_as_token_ids", "echo", "suffix", "skip_special_tokens",
    "spaces_between_special_tokens", "prompt_logprobs", "add_special_tokens",
  ]],
  ["Penalties and bias", [
    "frequency_penalty", "presence_penalty", "repetition_penalty", "length_penalty", "logit_bias", "bad_words",
    "allowed_token_ids",
  ]],
  ["Tools and template", [
    "tool_choice", "parallel_tool_calls", "reasoning_effort", "include_reasoning", "chat_template_kwargs", "documents",
    "continue_final_message", "add_generation_prompt",
  ]],
  ["Structure", ["response_format", "structured_outputs", /^guided_/]],
  ["Request", ["stream", "stream_options", "user", "priority", /^request_/]],
  ["More", [/./]],
];
const SEPARATE = new Set(["model", "prompt", "messages", "tools"]); // these have controls of their own

/**
 * The request fields in a schema of the document: {name, kind, help, default, minimum, maximum, options, fields}.
 * `kind` is boolean, integer, number, enum, string, strings, integers, object (with `fields`) or json.
 */
export function fieldsOf(document, schema) {
  return fieldsIn(document.components.schemas[schema], document).filter((field) => !SEPARATE.has(field.name));
}

/** The same fields as [{title, fields}], most used groups first. */
export function grouped(fields) {
  const left = new Set(fields);
  const groups = GROUPS.map(([title, names]) => {
    const found = names.flatMap((name) =>
      [...left].filter((field) => (typeof name === "string" ? field.name === name : name.test(field.name))),
    );
    for (const field of found) left.delete(field);
    return { title, fields: found };
  });
  return groups.filter((group) => group.fields.length);
}

/** The example of the completions operation: it names a model before an API key is entered. */
export function exampleOf(document) {
  for (const [path, methods] of Object.entries(document.paths ?? {})) {
    if (path.endsWith("/v1/completions")) {
      return methods.post?.requestBody?.content?.["application/json"]?.example ?? {};
    }
  }
  return {};
}

function fieldsIn(schema, document) {
  return Object.entries(schema.properties ?? {}).map(([name, property]) => describe(name, property, document));
}

function describe(name, property, document) {
  const forms = formsOf(property, document);
  const ranged = forms.find((form) => form.type === "integer" || form.type === "number") ?? {};
  const kind = kindOf(forms);
  return {
    name,
    kind,
    help: property.description ?? forms.find((form) => form.description)?.description ?? "",
    default: property.default ?? undefined,
    minimum: ranged.minimum ?? ranged.exclusiveMinimum,
    maximum: ranged.maximum ?? ranged.exclusiveMaximum,
    options: kind === "enum" ? forms.flatMap((form) => form.enum ?? [form.const]) : undefined,
    fields: kind === "object" ? fieldsIn(forms[0], document) : undefined,
  };
}

/** The alternatives of a property except null, with references resolved. */
function formsOf(property, document, depth = 0) {
  const schema = resolve(property, document);
  const inner = schema.anyOf ?? schema.oneOf ?? (schema.allOf?.length === 1 ? schema.allOf : undefined);
  if (inner && depth < 8) return inner.flatMap((form) => formsOf(form, document, depth + 1));
  if (Array.isArray(schema.type)) {
    return schema.type.filter((type) => type !== "null").map((type) => ({ ...schema, type }));
  }
  return schema.type === "null" ? [] : [schema];
}

function resolve(schema, document) {
  const name = schema.$ref?.match(/^#\/components\/schemas\/(.+)$/)?.[1];
  return name ? (document.components.schemas[name] ?? {}) : schema;
}

function kindOf(forms) {
  const isOption = (form) => form.enum !== undefined || form.const !== undefined;
  if (forms.length && forms.every((form) => isOption(form) && form.type !== "boolean")) return "enum";
  const types = new Set(forms.map((form) => form.type));
  const items = new Set(forms.filter((form) => form.type === "array").map((form) => form.items?.type));
  if (types.has("array")) {
    if (isOnly(items, "string") && [...types].every((type) => type === "array" || type === "string")) return "strings";
    return isOnly(items, "integer") && types.size === 1 ? "integers" : "json";
  }
  if (isOnly(types, "object")) return forms.length === 1 && isFlat(forms[0]) ? "object" : "json";
  if (types.has("object")) return "json";
  if (isOnly(types, "boolean")) return "boolean";
  if (types.has("number")) return "number";
  if (types.has("integer")) return "integer";
  return isOnly(types, "string") ? "string" : "json";
}

function isFlat(form) {
  const properties = Object.values(form.properties ?? {});
  const isScalar = (schema) => (schema.anyOf ?? [schema]).every((part) => /^(boolean|integer|number|null)$/.test(part.type));
  return properties.length > 0 && properties.every(isScalar);
}

function isOnly(set, value) {
  return set.size === 1 && set.has(value);
}
