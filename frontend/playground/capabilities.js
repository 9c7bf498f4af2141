// Derives what a model does not support from its `capabilities` at /openai/v1/models/{id}.

const NOTE = "Not supported by this model.";
const SAME_AS = { top_logprobs: "logprobs" }; // chat's name of the number
const GUIDED = /^(response_format|structured_outputs|guided_.*)$/; // each of them requires one of the `guides`

/**
 * Returns {denied: {field: reason}, maxima: {field: number}} for the fields with these names. False and null mean that a
 * field is not supported, a number is its maximum, and an empty list of `guides` rules out every guided field. All other
 * fields are left to the server to reject.
 */
export function limitsOf(capabilities, names) {
  const denied = {};
  const maxima = {};
  for (const name of names) {
    const value = GUIDED.test(name) ? capabilities?.guides : capabilities?.[SAME_AS[name] ?? name];
    const isEmpty = Array.isArray(value) && !value.length;
    if (value === false || value === null || isEmpty) denied[name] = NOTE;
    else if (typeof value === "number") maxima[name] = value;
  }
  return { denied, maxima };
}
