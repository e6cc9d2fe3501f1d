// <ribbon-shelf>: the answers of several prompts and methods, one ribbon at a time.
//
// A child <script type="application/json"> holds a list of traces. Two ordinary selects choose prompt and method; what
// stood in the element before (the first trace as plain markup, for readers without scripts) is replaced.

import { el } from "./dom.js";
import { visible, WRITERS } from "./steps.js";

const INDENTED = /```|\n {2,}\S/;
const LEGEND = {
  draft: ["draft", "guessed by the method, accepted by the target"],
  forced: ["forced", "the form of the answer left no choice"],
  bonus: ["bonus", "added by the target at the end of a step"],
  plain: ["plain", "written without a draft"],
};
let numShelves = 0;

class RibbonShelf extends HTMLElement {
  #traces = [];
  #at = null;

  connectedCallback() {
    this.start();
  }

  /** Show the traces, once the parser has read them: a later element of a page is connected while it is still empty. */
  start() {
    const data = this.querySelector('script[type="application/json"]');
    if (this.ribbon || !data) return;
    this.#traces = JSON.parse(data.textContent);
    if (!this.#traces.length) return;
    numShelves += 1;
    this.prompts = choice();
    this.methods = choice();
    this.said = el("p", { class: "shelf-said", dir: "auto" });
    this.ribbon = el("acceptance-ribbon", { label: "Answer, token by token" });
    const controls = el("div", { class: "shelf-controls" }, this.#named("Prompt", this.prompts), this.#named("Method", this.methods));
    this.legend = el("ul", { class: "shelf-legend", "aria-label": "Who wrote a token" });
    this.replaceChildren(data, controls, this.said, this.legend, this.ribbon);
    this.prompts.addEventListener("change", () => this.#choose());
    this.methods.addEventListener("change", () => this.#show());
    const named = new Map(this.#traces.map((trace) => [promptOf(trace), trace]));
    this.prompts.replaceChildren(...[...named].map(([key, trace]) => el("option", { value: key }, titleOf(trace))));
    controls.hidden = this.#traces.length < 2;
    this.#choose(promptOf(this.#traces[0]), this.#traces[0].method);
  }

  #named(name, select) {
    select.id = `shelf-${numShelves}-${name}`;
    return el("span", { class: "shelf-choice" }, el("label", { for: select.id }, name), select);
  }

  /** Say who wrote a token: of the kinds in this answer, and of the parts of its method where it has several. */
  #explain() {
    const present = new Set(this.#at.steps.flatMap((step) => step.tokens.map((token) => token.by)));
    const [first, ...others] = this.ribbon.parts.map(visible);
    const items = Object.keys(WRITERS)
      .filter((by) => present.has(by))
      .map((by) => item(by, LEGEND[by][0], by === "draft" && others.length ? `by ${first}, accepted by the target` : LEGEND[by][1]));
    if (others.length) items.splice(1, 0, item("draft other", "draft", `by ${others.join(", ")}, accepted too`));
    this.legend.replaceChildren(...items, item("first", "a", "a tick begins a step"));
  }

  /** Offer the methods that answered the prompt, and keep the chosen one where it did. */
  #choose(prompt = this.prompts.value, wanted = this.methods.value) {
    this.prompts.value = prompt;
    const methods = this.#traces.filter((trace) => promptOf(trace) === prompt).map((trace) => trace.method);
    this.methods.replaceChildren(...methods.map((name) => el("option", { value: name }, visible(name))));
    this.methods.value = methods.includes(wanted) ? wanted : methods[0];
    this.#show();
  }

  #show() {
    const trace = this.#traces.find((one) => promptOf(one) === this.prompts.value && one.method === this.methods.value);
    if (!trace || trace === this.#at) return;
    this.#at = trace;
    this.said.textContent = visible(trace.prompt);
    if (this.said.scrollHeight > this.said.clientHeight) this.said.tabIndex = 0; // or no key scrolls a long prompt
    else this.said.removeAttribute("tabindex");
    this.ribbon.plainMs = trace.plain_ms;
    this.ribbon.steps = trace.steps;
    this.ribbon.classList.toggle("code", INDENTED.test(this.ribbon.text));
    this.#explain();
  }
}

function item(kind, name, says) {
  return el("li", {}, el("span", { class: `token ${kind}` }, name), ` ${says}`);
}

function choice() {
  return el("select");
}

function promptOf(trace) {
  return JSON.stringify([trace.target, trace.category, trace.prompt_id, trace.temperature, trace.prompt]);
}

function titleOf(trace) {
  const start = [...visible(trace.prompt).replace(/\s+/g, " ")];
  const short = start.length > 48 ? `${start.slice(0, 47).join("")}\u2026` : start.join("");
  const hot = trace.temperature > 0 ? `temperature ${trace.temperature}` : "";
  return [visible(trace.category), hot, short].filter(Boolean).join(" \u00b7 ");
}

customElements.define("ribbon-shelf", RibbonShelf);
