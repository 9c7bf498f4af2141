// Splits the chunks of one choice into pieces of text, each with its tokens.

/**
 * Splits the text of a choice along its tokens. The text is authoritative: it may lag behind the tokens (a stop string
 * that may be about to complete, a partial character), and several tokens may form one character. A piece is {text,
 * tokens, wait}; a token is {text, id, logprob, top, offset}, each null if the server did not send it. A piece without
 * text is a token that produced none: an end token, or one removed with a stop string.
 */
export class TokenCutter {
  constructor() {
    this._tokens = [];
    this._text = "";
  }

  /** Returns the pieces that this chunk completes. `wait` is the time that it took to arrive, in milliseconds. */
  push(choice, wait) {
    this._tokens.push(...tokensOf(choice).map((token) => ({ ...token, wait })));
    this._text += choice.text ?? "";
    const pieces = this._whole();
    const isHeld = this._tokens.length > 0 && (this._tokens[0].text ?? "").startsWith(this._text);
    if (this._text && !isHeld) pieces.push(this._rest(wait));
    return choice.finish_reason ? [...pieces, ...this._end(wait)] : pieces;
  }

  /** Takes the tokens whose complete text has arrived. */
  _whole() {
    const pieces = [];
    while (this._tokens.length && this._tokens[0].text !== null && this._text.startsWith(this._tokens[0].text)) {
      const token = this._tokens[0];
      if (!token.text && !this._text) break; // it may belong to the following text
      this._tokens.shift();
      this._text = this._text.slice(token.text.length);
      pieces.push({ text: token.text, tokens: [token], wait: token.wait });
    }
    return pieces;
  }

  _rest(wait) {
    const piece = { text: this._text, tokens: this._tokens, wait };
    this._tokens = [];
    this._text = "";
    return piece;
  }

  _end(wait) {
    const pieces = this._text ? [this._rest(wait)] : [];
    const ghosts = this._tokens.map((token) => ({ text: "", tokens: [token], wait: token.wait }));
    this._tokens = [];
    return [...pieces, ...ghosts];
  }
}

function tokensOf(choice) {
  const { logprobs, token_ids: own = [], prompt_token_ids: prompt = [] } = choice;
  if (!logprobs?.tokens) {
    return own.map((id) => ({ text: null, id, logprob: null, top: null, offset: null }));
  }
  const count = logprobs.tokens.length;
  const ids = [own, [...prompt, ...own]].find((each) => each.length === count); // logprobs include an echoed prompt
  return logprobs.tokens.map((text, index) => ({
    text,
    id: ids?.[index] ?? idIn(text),
    logprob: logprobs.token_logprobs?.[index] ?? null,
    top: logprobs.top_logprobs?.[index] ?? null,
    offset: logprobs.text_offset?.[index] ?? null,
  }));
}

/** With return_tokens_as_token_ids, the id is sent instead of the token's text. */
function idIn(text) {
  const found = /^token_id:(\d+)$/.exec(text);
  return found ? Number(found[1]) : null;
}

/** The CSS class of a piece's color: p0 for very likely tokens to p4 for unlikely ones, "" if unknown. */
export function colourOf(piece) {
  const known = piece.tokens.map((token) => token.logprob).filter((logprob) => logprob !== null);
  if (!known.length) return "";
  const least = Math.exp(Math.min(...known));
  return `p${[0.9, 0.6, 0.3, 0.1].filter((limit) => least < limit).length}`;
}

/** Formats a logprob as a probability in percent. */
export function percent(logprob) {
  const value = Math.exp(logprob) * 100;
  if (value >= 99.95) return "100 %";
  return value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}
