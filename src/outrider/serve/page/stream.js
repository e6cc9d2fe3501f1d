// The server's answers: facts about it, and a chat completion as a stream of pieces.

const HEADERS = { "Content-Type": "application/json" };

/** An answer that says no: its sentence, its status, and the seconds after which to try again. */
export class Refusal extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Return what the server says about its target, methods and limits. */
export async function serverFacts(key) {
  const answer = await fetch("outrider/info", { headers: authorised({}, key) });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

/** Yield {content, step, usage, finish} for every chunk of a streamed chat completion. */
export async function* completion(body, { signal, key }) {
  const request = { ...body, stream: true, stream_options: { include_usage: true }, return_steps: true };
  const answer = await fetch("v1/chat/completions", {
    method: "POST",
    headers: authorised(HEADERS, key),
    body: JSON.stringify(request),
    signal,
  });
  if (!answer.ok) throw await refusal(answer);
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(sentence(chunk), 200);
    const choice = chunk.choices?.[0];
    yield {
      content: typeof choice?.delta?.content === "string" ? choice.delta.content : "",
      step: chunk.outrider ?? choice?.outrider ?? null,
      usage: chunk.usage ?? null,
      finish: choice?.finish_reason ?? null,
    };
  }
}

/** Yield the data of every server-sent event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function authorised(headers, key) {
  return key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
}

async function refusal(answer) {
  const body = await answer.json().catch(() => null);
  const seconds = Number.parseFloat(answer.headers.get("Retry-After") ?? "");
  return new Refusal(sentence(body) ?? `the server answered ${answer.status}`, answer.status, Number.isFinite(seconds) ? seconds : null);
}

function sentence(body) {
  const message = body?.error?.message ?? body?.detail;
  return typeof message === "string" ? message : null;
}
