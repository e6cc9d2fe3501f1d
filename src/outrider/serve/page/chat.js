// A chat of several turns. Each answer streams into a ribbon; a plain run of the same turn gives its gain.

import { counted, el, fixed, ms } from "../ribbon/dom.js";
import { PLAIN } from "./settings.js";
import { Tally, readStep } from "../ribbon/steps.js";
import { completion } from "./stream.js";

const INDENTED = /```|\n {2,}\S/;

/** Decode one request into `ribbon` (or into nothing) and return its text, counts and end. */
export async function decode(body, { signal, key, ribbon = null }) {
  const began = performance.now();
  const answer = { text: "", ids: [], steps: [], tally: new Tally(), usage: null, finish: null, firstMs: null };
  for await (const piece of completion(body, { signal, key })) {
    answer.text += piece.content;
    answer.finish = piece.finish ?? answer.finish;
    answer.usage = piece.usage ?? answer.usage;
    const bare = piece.content && !answer.steps.length ? { tokens: [{ text: piece.content, by: "plain" }] } : null;
    const raw = piece.step ?? bare;
    if (!raw) continue;
    answer.firstMs ??= performance.now() - began;
    if (piece.step) {
      const step = readStep(raw, answer.steps.length + 1);
      answer.steps.push({ raw, step, atMs: performance.now() - began });
      answer.tally.add(step);
      answer.ids.push(...step.tokens.map((token) => token.id));
    }
    ribbon?.add(raw);
    if (ribbon && INDENTED.test(answer.text)) ribbon.classList.add("code");
  }
  return answer;
}

export class Chat {
  #messages = [];
  #running = null;

  constructor(root, settings, status) {
    this.settings = settings;
    this.status = status;
    this.turns = root.querySelector(".turns");
    this.welcome = root.querySelector(".welcome");
    this.form = root.querySelector(".composer");
    this.field = this.form.querySelector("textarea");
    this.send = this.form.querySelector(".send");
    this.stop = this.form.querySelector(".stop");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.say(this.field.value);
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.say(this.field.value);
    });
    this.stop.addEventListener("click", () => this.#running?.abort());
    root.querySelector(".again").addEventListener("click", () => this.clear());
    for (const example of root.querySelectorAll(".examples button")) {
      example.addEventListener("click", () => this.say(example.dataset.prompt));
    }
    settings.addEventListener("plain", () => {
      for (const ribbon of this.turns.querySelectorAll("acceptance-ribbon")) ribbon.plainMs = settings.plainMs;
    });
  }

  /** Start a new conversation. */
  clear() {
    this.#running?.abort();
    this.#messages = [];
    this.turns.replaceChildren();
    this.welcome.hidden = false;
    this.field.focus();
  }

  /** Send what a person wrote, and stream the answer. */
  async say(said) {
    const text = said.trim().toWellFormed();
    if (!text || this.#running) return;
    this.field.value = "";
    this.welcome.hidden = true;
    const messages = this.#messages;
    messages.push({ role: "user", content: text });
    const body = this.settings.body([...messages], undefined, Math.floor(Math.random() * 2 ** 31));
    const turn = this.#turn(text);
    const answer = await this.#answer(turn, body);
    if (!answer) {
      if (messages === this.#messages) messages.pop();
      return;
    }
    messages.push({ role: "assistant", content: answer.text.toWellFormed() });
    if ((body.outrider_method ?? this.settings.facts.method) === PLAIN) this.settings.notePlain(answer.tally);
    this.#finish(turn, answer, body);
  }

  #turn(text) {
    const ribbon = el("acceptance-ribbon", { label: "Answer, token by token" });
    const foot = el("div", { class: "turn-foot" });
    const turn = el("article", { class: "turn", "aria-label": `Turn ${this.turns.children.length + 1}` }, el("p", { class: "said", dir: "auto" }, text), ribbon, foot);
    this.turns.append(turn);
    ribbon.plainMs = this.settings.plainMs;
    turn.scrollIntoView({ block: "end" });
    return { turn, ribbon, foot };
  }

  /** Stream an answer; return it, or null where there is none. */
  async #answer({ ribbon, foot }, body) {
    const abort = this.#start();
    const follow = new ResizeObserver(() => this.#follow(ribbon));
    follow.observe(ribbon);
    ribbon.setAttribute("aria-busy", "true");
    try {
      return await decode(body, { signal: abort.signal, key: this.settings.key, ribbon });
    } catch (error) {
      if (error.name !== "AbortError") return this.#failed(foot, error);
      foot.append(el("span", { class: "ended" }, "stopped"));
      return ribbon.text ? { text: ribbon.text, ids: [], steps: [], tally: ribbon.tally, usage: null, finish: "stopped", firstMs: null } : null;
    } finally {
      follow.disconnect();
      ribbon.setAttribute("aria-busy", "false");
      this.#end();
    }
  }

  #start() {
    const abort = new AbortController();
    this.#running = abort;
    this.send.hidden = true;
    this.stop.hidden = false;
    this.status.textContent = "Decoding.";
    return abort;
  }

  #end() {
    this.#running = null;
    this.send.hidden = false;
    this.stop.hidden = true;
  }

  /** Keep the end of the text in sight while it is written, unless the reader scrolled away. */
  #follow(ribbon) {
    const page = document.scrollingElement;
    const below = page.scrollHeight - page.scrollTop - page.clientHeight;
    if (below < 240 && !ribbon.contains(document.activeElement)) page.scrollTop = page.scrollHeight;
  }

  #failed(foot, error) {
    const again = error.retryAfter ? `; try again in ${counted(Math.ceil(error.retryAfter), "second")}` : "";
    foot.append(el("p", { class: "problem", role: "alert" }, `${error.message}${again}`));
    if (error.status === 401) this.settings.askForKey();
    this.status.textContent = "";
    return null;
  }

  #finish({ ribbon, foot }, answer, body) {
    const { tau, tokensPerS, numTokens } = answer.tally;
    const rate = tokensPerS ? `, ${fixed(tokensPerS)} tokens per second` : "";
    this.status.textContent = `Answer of ${counted(numTokens, "token")}: ${fixed(tau ?? 0, 2)} a step${rate}.`;
    const facts = [
      counted(numTokens, "token"),
      answer.usage ? `${counted(answer.usage.prompt_tokens, "prompt token")}` : null,
      answer.firstMs ? `first tokens after ${ms(answer.firstMs)}` : null,
      answer.finish === "length" ? "cut at the length limit" : null,
    ];
    const copy = el("button", { type: "button", class: "quiet" }, "Copy text");
    copy.addEventListener("click", () => navigator.clipboard?.writeText(answer.text));
    foot.prepend(el("span", { class: "facts" }, facts.filter(Boolean).join(" \u00b7 ")));
    foot.append(copy);
    const method = body.outrider_method ?? this.settings.facts.method;
    if (method !== PLAIN && answer.finish !== "stopped") foot.append(this.#comparison(ribbon, answer, body));
  }

  /** Return the button that decodes the same turn plainly, for its gain and for the equality of the texts. */
  #comparison(ribbon, answer, body) {
    const button = el("button", { type: "button", class: "quiet" }, "Compare with plain decoding");
    button.addEventListener("click", async () => {
      if (this.#running) return;
      button.disabled = true;
      const abort = this.#start();
      const result = el("span", { class: "result" });
      try {
        const { outrider_num_nodes: _, ...request } = body;
        const plain = await decode({ ...request, outrider_method: PLAIN }, { signal: abort.signal, key: this.settings.key });
        this.settings.notePlain(plain.tally);
        const gain = ribbon.tally.gain(plain.tally.msPerToken);
        const same = plain.text === answer.text;
        result.classList.toggle("problem", !same);
        result.textContent = `${gain ? `${fixed(gain, 2)}\u00d7 plain decoding` : "No times given"}; ${same ? "the texts are equal" : "the texts differ"}.`;
        button.replaceWith(result);
        this.status.textContent = result.textContent;
      } catch (error) {
        button.disabled = false;
        if (error.name !== "AbortError") button.after(el("p", { class: "problem", role: "alert" }, error.message));
      } finally {
        this.#end();
      }
    });
    return button;
  }
}
