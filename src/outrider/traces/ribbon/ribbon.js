// <acceptance-ribbon>: a text whose every token shows who wrote it, and on hover, focus or click the step it came from.
//
//   ribbon.add(step)         one more step, as the server sends it (steps.js)
//   ribbon.steps = [...]     all of them; or a child <script type="application/json"> with the array
//   ribbon.plainMs = 4.1     milliseconds a token of plain decoding, where they are known
//   ribbon.reveal(3)         show the first three steps only
//
// A click holds a step while the pointer moves on. Arrow left and right move by token, up and down by step; Enter goes
// into the card, Escape closes it.

import { stepCard } from "./card.js";
import { el, fixed } from "./dom.js";
import { labelled, readStep, Tally, visible, WRITERS } from "./steps.js";
import { Strip } from "./strip.js";

let numRibbons = 0;

export class AcceptanceRibbon extends HTMLElement {
  #steps = [];
  #tokens = []; // {span, step}: the element of each token and the index of its step
  #starts = []; // the index of each step's first token
  #active = -1;
  #tabStop = 0;
  #quiet = false;
  #pinned = false;
  #plainMs = null;
  #tally = new Tally();
  #parts = [];

  connectedCallback() {
    if (this.body) return;
    this.#build();
    const data = this.querySelector('script[type="application/json"]');
    if (data) this.steps = JSON.parse(data.textContent);
  }

  #build() {
    const id = `ribbon-${(numRibbons += 1)}`;
    const label = this.getAttribute("label") ?? "Tokens by step";
    this.body = el("div", { class: "ribbon-text", role: "listbox", "aria-orientation": "horizontal", "aria-label": label, dir: "auto" });
    this.figures = el("dl", { class: "figures" });
    this.strip = new Strip((step, pin) => this.#point(this.#starts[step] ?? -1, pin));
    this.hint = el("p", { class: "hint" }, "Point at a token, or move along the text with the arrow keys, to see its step; a click holds it.");
    this.card = this.#emptyCard(id);
    const margin = el("aside", { class: "ribbon-margin", "aria-label": "Figures and steps" }, this.figures, this.strip.element, this.hint, this.card);
    this.append(el("div", { class: "ribbon-layout" }, el("div", { class: "ribbon-reading" }, this.body), margin));
    this.body.addEventListener("pointerover", (event) => this.#point(this.#at(event.target), false));
    this.body.addEventListener("click", (event) => this.#point(this.#at(event.target), true));
    this.body.addEventListener("focusin", (event) => !this.#quiet && this.#open(this.#at(event.target)));
    this.addEventListener("keydown", (event) => this.#key(event));
    this.#showFigures();
  }

  #emptyCard(id) {
    this.heading = el("h3", { id: `${id}-title` });
    this.content = el("div", { class: "card-content" });
    const close = el("button", { type: "button", class: "card-close", "aria-label": "Close the card", onclick: () => this.#close() }, "\u00d7");
    const header = el("header", {}, this.heading, close);
    return el("section", { class: "card", id, tabindex: "-1", "aria-labelledby": `${id}-title`, hidden: true }, header, this.content);
  }

  get steps() {
    return this.#steps;
  }

  set steps(raw) {
    if (!this.body) this.#build();
    this.#close();
    this.#steps = [];
    this.#tokens = [];
    this.#starts = [];
    this.#tabStop = 0;
    this.#tally = new Tally();
    this.#parts = [];
    this.body.replaceChildren();
    this.strip.clear();
    for (const step of raw) this.#add(step);
    this.#showFigures();
  }

  /** Add one step. */
  add(raw) {
    if (!this.body) this.#build();
    this.#add(raw);
    this.#showFigures();
  }

  /** Counts and times so far. */
  get tally() {
    return this.#tally;
  }

  /** The text as the model wrote it, not as it is shown. */
  get text() {
    return this.#steps.map((step) => step.tokens.map((token) => token.text).join("")).join("");
  }

  set plainMs(value) {
    this.#plainMs = value;
    if (!this.body) return;
    this.strip.compare(value);
    this.#showFigures();
    if (this.#active >= 0) this.#fill(this.#tokens[this.#active].step);
  }

  /** Show the first `number` steps; the others keep their place and are not seen. */
  reveal(number) {
    [...this.body.children].forEach((span, place) => span.classList.toggle("to-come", place >= number));
  }

  #add(raw) {
    const step = readStep(raw, this.#steps.length + 1);
    this.#steps.push(step);
    this.#starts.push(step.tokens.length ? this.#tokens.length : -1);
    this.#tally.add(step);
    const span = el("span", { class: "step", role: "presentation" });
    step.tokens.forEach((token, place) => span.append(this.#token(token, step, place)));
    this.body.append(span);
    this.strip.add(step, this.#plainMs);
  }

  #token(token, step, place) {
    const index = this.#tokens.length;
    const blank = token.text === "" ? " empty" : /^[\r\n]+$/.test(token.text) ? " line-end" : "";
    const byPart = step.part && token.by === "draft";
    const attributes = {
      class: `token ${token.by}${byPart && this.#partOf(step) > 0 ? " other" : ""}${place === 0 ? " first" : ""}${blank}`,
      role: "option",
      "aria-selected": "false",
      "aria-label": `${labelled(token.text)}, ${WRITERS[token.by]}${byPart ? ` (${labelled(step.part)})` : ""}, step ${step.number}`,
      tabindex: index === this.#tabStop ? "0" : "-1",
      "data-token": index,
    };
    const span = el("span", attributes, visible(token.text));
    this.#tokens.push({ span, step: this.#steps.length - 1 });
    return span;
  }

  /** Return the place of the part that drafted a step among those of the text. */
  #partOf(step) {
    if (!this.#parts.includes(step.part)) this.#parts.push(step.part);
    return this.#parts.indexOf(step.part);
  }

  /** The parts of a method that drafted, as they came; tokens of any but the first have a ribbon of two lines. */
  get parts() {
    return [...this.#parts];
  }

  #showFigures() {
    const { tau, tokensPerS, numDrafted, numAccepted } = this.#tally;
    const gain = numDrafted ? this.#tally.gain(this.#plainMs) : null;
    const figures = [
      ["tau", "tokens a step", tau === null ? "\u2013" : fixed(tau, 2)],
      ["speed", "tokens/s", tokensPerS === null ? "\u2013" : fixed(tokensPerS)],
      ["gain", "over plain", gain === null ? "\u2013" : `${fixed(gain, 2)}\u00d7`],
      ["accepted", "of drafts kept", numDrafted ? `${fixed((100 * numAccepted) / numDrafted)} %` : "\u2013"],
    ];
    const shown = figures.map(([kind, name, value]) => el("div", { class: kind }, el("dt", {}, name), el("dd", {}, value)));
    this.figures.replaceChildren(...shown);
  }

  /** Return the index of the token that an event happened on, or -1. */
  #at(target) {
    const span = target.closest?.(".token");
    return span && !span.parentElement.classList.contains("to-come") ? Number(span.dataset.token) : -1;
  }

  /** The pointer is on a token. A click holds its step, and a second one releases it; until then others open nothing. */
  #point(index, pin) {
    if (index < 0 || (this.#pinned && !pin)) return;
    if (pin) this.#pinned = !(this.#pinned && index === this.#active);
    this.card.classList.toggle("pinned", this.#pinned);
    this.#open(index);
    if (pin) this.#tokens[index].span.focus({ preventScroll: true });
  }

  #open(index) {
    if (index < 0 || index === this.#active) return;
    const before = this.#tokens[this.#active];
    const now = this.#tokens[index];
    before?.span.setAttribute("aria-selected", "false");
    this.#tokens[this.#tabStop].span.setAttribute("tabindex", "-1");
    now.span.setAttribute("tabindex", "0");
    now.span.setAttribute("aria-selected", "true");
    this.#active = this.#tabStop = index;
    if (before?.step === now.step) return;
    if (before) this.body.children[before.step].classList.remove("active");
    this.body.children[now.step].classList.add("active");
    this.strip.choose(now.step);
    this.#fill(now.step);
  }

  #fill(step) {
    const record = this.#steps[step];
    const earlier = this.#steps.slice(0, step).findLast((other) => other.tokens.length);
    this.heading.textContent = `Step ${fixed(record.number)} of ${fixed(this.#steps.length)}`;
    this.content.replaceChildren(...stepCard(record, earlier?.tokens.at(-1).text ?? "(prompt)", this.#plainMs));
    this.card.hidden = false;
    this.hint.hidden = true;
  }

  /** Close the card; where the focus was in it, it goes back to the token. */
  #close() {
    if (this.#active < 0) return;
    const { span, step } = this.#tokens[this.#active];
    if (this.card.contains(document.activeElement)) {
      this.#quiet = true;
      span.focus({ preventScroll: true });
      this.#quiet = false;
    }
    span.setAttribute("aria-selected", "false");
    this.body.children[step].classList.remove("active");
    this.strip.choose(-1);
    this.#active = -1;
    this.#pinned = false;
    this.card.classList.remove("pinned");
    this.card.hidden = true;
    this.hint.hidden = false;
  }

  #key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const on = event.target.closest(".token");
    if (event.key === "Escape" && this.#active >= 0) this.#close();
    else if (on && (event.key === "Enter" || event.key === " ")) {
      this.#open(this.#at(on));
      this.card.focus({ preventScroll: true });
    } else {
      const to = on ? this.#destination(event.key, Number(on.dataset.token)) : undefined;
      if (to === undefined) return;
      this.#tokens[to].span.focus();
    }
    event.preventDefault();
  }

  /** Return the token that a key leads to, or undefined for other keys. */
  #destination(key, at) {
    const last = this.#tokens.length - 1;
    const starts = this.#starts.filter((start) => start >= 0);
    const within = starts.findLastIndex((start) => start <= at);
    const places = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      ArrowUp: starts[Math.max(within - 1, 0)],
      ArrowDown: starts[within + 1] ?? last,
      Home: 0,
      End: last,
    };
    return key in places ? Math.min(Math.max(places[key], 0), last) : undefined;
  }
}

customElements.define("acceptance-ribbon", AcceptanceRibbon);
