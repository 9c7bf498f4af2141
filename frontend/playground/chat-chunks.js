// Reads the objects of the chat API: chunks of a stream, and complete answers.

/**
 * Returns an answer of chat with choices like those of completions, as Timing and TokenCutter read them: {index, text,
 * reasoning, calls, token_ids, logprobs, finish_reason}. `calls` are parts of tool calls, `bytes` those of the tokens.
 */
export function asCompletion(answer) {
  return { ...answer, choices: answer.choices.map(choiceOf) };
}

function choiceOf(choice) {
  const part = choice.delta ?? choice.message ?? {};
  return {
    index: choice.index,
    text: part.content ?? "",
    reasoning: part.reasoning_content ?? part.reasoning ?? "",
    calls: (part.tool_calls ?? []).map((call, index) => ({ index, ...call })),
    token_ids: choice.token_ids,
    logprobs: choice.logprobs?.content ? listsOf(choice.logprobs.content) : null,
    bytes: choice.logprobs?.content?.map((entry) => entry.bytes),
    finish_reason: choice.finish_reason,
  };
}

function listsOf(entries) {
  return {
    tokens: entries.map(({ token }) => token),
    token_logprobs: entries.map(({ logprob }) => logprob),
    top_logprobs: entries.map(({ top_logprobs: top }) =>
      top?.length ? Object.fromEntries(top.map(({ token, logprob }) => [token, logprob])) : null,
    ),
    text_offset: [],
  };
}
