// Measures time to first token, token rate and inter-token latency. Times are milliseconds of performance.now().

const MAX_POINTS = 240;

export class Timing {
  constructor(startedAt) {
    this._startedAt = startedAt;
    this._choices = new Map(); // index -> {tokens, lastAt}
    this._firstAt = null;
    this._firstTokens = 0; // tokens of the first read, which have no gap
    this._lastAt = null;
    this._usage = null;
    this._isStream = true;
    this.gaps = []; // per token, in order of arrival
    this.isCounted = true; // false: the number of tokens per chunk is unknown
  }

  /** Records the chunks of one read. Returns a map of choice index -> milliseconds since the choice's previous chunk. */
  arrived(answers, now) {
    const before = new Map([...this._choices].map(([index, choice]) => [index, { ...choice }]));
    for (const answer of answers) {
      if (answer.usage && !answer.choices.length) this._usage = answer.usage;
      for (const choice of answer.choices) this._count(choice, answer, now);
    }
    const waits = new Map();
    let tokens = 0;
    for (const [index, choice] of this._choices) {
      const old = before.get(index) ?? { tokens: 0, lastAt: null };
      const added = choice.tokens - old.tokens;
      if (added <= 0) continue;
      tokens += added;
      waits.set(index, now - (old.lastAt ?? this._startedAt));
      if (old.lastAt !== null) this.gaps.push((now - old.lastAt) / added);
      choice.lastAt = now;
    }
    if (tokens) {
      if (this._firstAt === null) {
        this._firstAt = now;
        this._firstTokens = tokens;
      }
      this._lastAt = now;
    }
    return waits;
  }

  /** Records the response of a request without streaming. */
  whole(answer, now) {
    this._isStream = false;
    this._usage = answer.usage;
    this._lastAt = now;
  }

  _count(choice, answer, now) {
    const known = this._choices.get(choice.index) ?? { tokens: 0, lastAt: null };
    const reported = answer.usage?.completion_tokens; // running count of this choice (continuous_usage_stats)
    const inChunk = choice.token_ids?.length ?? choice.logprobs?.tokens?.length;
    if (reported === undefined && inChunk === undefined) this.isCounted = false;
    known.tokens = reported ?? known.tokens + (inChunk ?? (choice.text ? 1 : 0));
    this._choices.set(choice.index, known);
  }

  /** {first, rate, median, p95, total, completionTokens, promptTokens}; null where nothing is known. */
  summary(now, isOver) {
    const counted = [...this._choices.values()].reduce((sum, choice) => sum + choice.tokens, 0);
    const tokens = this._usage?.completion_tokens ?? counted;
    const sorted = [...this.gaps].sort((a, b) => a - b);
    const end = this._lastAt ?? now;
    const streamed = this._isStream && this._firstAt !== null && end > this._firstAt;
    return {
      first: this._firstAt === null ? null : this._firstAt - this._startedAt,
      rate: streamed
        ? ((counted - this._firstTokens) * 1000) / (end - this._firstAt)
        : this._isStream || !tokens ? null : (tokens * 1000) / (end - this._startedAt),
      median: at(sorted, 0.5),
      p95: at(sorted, 0.95),
      total: (isOver ? end : now) - this._startedAt,
      completionTokens: tokens || null,
      promptTokens: this._usage?.prompt_tokens ?? null,
    };
  }
}

function at(sorted, part) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] : null;
}

/** Formats milliseconds. */
export function duration(ms) {
  if (ms === null) return "–";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

/** Draws the gaps into an svg element, scaled to the longest one, and sets its label for screen readers. */
export function drawGaps(svg, gaps, { median, p95 }) {
  svg.replaceChildren();
  svg.toggleAttribute("hidden", gaps.length < 2);
  if (gaps.length < 2) return;
  const size = Math.ceil(gaps.length / MAX_POINTS);
  const points = [];
  for (let start = 0; start < gaps.length; start += size) points.push(Math.max(...gaps.slice(start, start + size)));
  const top = Math.max(...points);
  const x = (index) => (index * 240) / Math.max(points.length - 1, 1);
  const y = (gap) => 38 - (gap / top) * 36;
  const line = points.map((gap, index) => `${x(index).toFixed(1)},${y(gap).toFixed(1)}`).join(" ");
  svg.append(shape("polygon", { points: `0,40 ${line} 240,40`, class: "area" }), shape("polyline", { points: line, class: "line" }));
  svg.setAttribute(
    "aria-label",
    `Inter-token latency over the completion: median ${duration(median)}, 95th percentile ${duration(p95)}, longest ${duration(top)}`,
  );
}

function shape(name, attributes) {
  const created = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries({ ...attributes, "vector-effect": "non-scaling-stroke" })) created.setAttribute(key, value);
  return created;
}
