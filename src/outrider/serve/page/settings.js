// What the next answer is decoded with: method, draft nodes, length, temperature; and what plain decoding costs here.
//
// An event "plain" says that the plain speed is known anew, "change" that a setting or the server's facts changed.

import { el } from "../ribbon/dom.js";
import { serverFacts } from "./stream.js";

export const PLAIN = "none";

/** Return a method's name without its settings. */
export function shortened(name) {
  return name === PLAIN ? "plain" : name.split(":", 1)[0];
}

export class Settings extends EventTarget {
  facts = { target: "", method: PLAIN, methods: [PLAIN], num_nodes: 0, budget: "fixed" };
  plainMs = null;

  /** `form` holds the controls named method, nodes, limit, temperature and key. */
  constructor(form) {
    super();
    this.form = form;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => this.#changed());
    form.elements.key.addEventListener("change", () => this.load().catch(() => {}));
  }

  /** Read the server's facts and build the controls from them. */
  async load() {
    const facts = await serverFacts(this.key);
    const methods = [...new Set([...(facts.methods ?? []), facts.method, PLAIN])].filter((name) => typeof name === "string");
    this.facts = { ...this.facts, ...facts, methods };
    this.form.querySelector(".methods").replaceChildren(...choices(methods, this.facts.method));
    const nodes = this.form.elements.nodes;
    nodes.max = Math.max(this.facts.num_nodes, 1);
    nodes.value = this.facts.num_nodes;
    this.#changed();
  }

  #changed() {
    const { nodes } = this.form.elements;
    nodes.disabled = this.method === PLAIN || this.facts.num_nodes < 1;
    const adaptive = this.facts.budget === "auto" ? "up to " : "";
    this.form.querySelector("output").value = this.method === PLAIN ? "none" : `${adaptive}${nodes.value}`;
    this.dispatchEvent(new Event("change"));
  }

  get method() {
    return this.form.elements.method?.value || this.facts.method;
  }

  /** The method to race against plain decoding: the chosen one, else the server's own, else another; or undefined. */
  get challenger() {
    return [this.method, this.facts.method, ...this.facts.methods].find((name) => name !== PLAIN);
  }

  get key() {
    return this.form.elements.key.value;
  }

  /** Ask for the API key. */
  askForKey() {
    const field = this.form.elements.key.closest("label");
    field.hidden = false;
    this.form.closest("details").open = true;
    this.form.elements.key.focus();
  }

  /** Return the body of a request with these settings. */
  body(messages, method = this.method, seed = 0) {
    const { nodes, limit, temperature } = this.form.elements;
    const body = {
      model: this.facts.target,
      messages,
      max_tokens: Math.max(1, Math.round(Number(limit.value) || 1)),
      temperature: Math.max(0, Number(temperature.value) || 0),
      seed,
    };
    if (method !== this.facts.method) body.outrider_method = method;
    if (method !== PLAIN) body.outrider_num_nodes = Number(nodes.value);
    return body;
  }

  /** Note the speed of an answer that was decoded plainly. */
  notePlain(tally) {
    if (!tally.msPerToken) return;
    this.plainMs = tally.msPerToken;
    this.dispatchEvent(new Event("plain"));
  }
}

/** Return a switch, or a list where there are too many methods for one. */
function choices(methods, chosen) {
  if (methods.length <= 3) {
    return methods.map((name) => {
      const input = el("input", { type: "radio", name: "method", value: name, checked: name === chosen });
      return el("label", {}, input, el("span", { title: name }, shortened(name)));
    });
  }
  const options = methods.map((name) => el("option", { value: name, selected: name === chosen }, shortened(name)));
  return [el("select", { name: "method", "aria-label": "Method" }, ...options)];
}
