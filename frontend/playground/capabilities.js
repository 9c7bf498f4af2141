// What a model can't do, by the `capabilities` of its description at /openai/v1/models/{id}.

const NOTE = "Not with this model.";
const GUIDED = /^(response_format|structured_outputs|guided_.*)$/; // all of them need one of the `guides`

/**
 * {denied: {field: why}, most: {field: number}} for the fields with these names. False and null rule a field out, a
 * number is the most that it may be, and an empty list of `guides` rules out every field that asks for one. Fields that
 * are not mentioned are left to the server, which refuses by name.
 */
export function limitsOf(capabilities, names) {
  const denied = {};
  const most = {};
  for (const name of names) {
    const value = GUIDED.test(name) ? capabilities?.guides : capabilities?.[name];
    const isEmpty = Array.isArray(value) && !value.length;
    if (value === false || value === null || isEmpty) denied[name] = NOTE;
    else if (typeof value === "number") most[name] = value;
  }
  return { denied, most };
}
