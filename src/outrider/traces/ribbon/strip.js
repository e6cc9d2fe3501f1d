// The steps of a text in time: a column per step, as wide as its time, as high as the tokens that it wrote.
//
// Below the line stand the rejected nodes. A dash marks what plain decoding writes in the same time, where its speed is
// known: a column above its dash won, one below it lost.

import { counted, el, ms } from "./dom.js";

const CELL = 6;
const MOST_NEEDED = 12;
const MOST_REJECTED = 12;

export class Strip {
  /** `onstep(index, clicked)` is called for the column under the pointer. */
  constructor(onstep) {
    this.element = el("div", { class: "strip", role: "img", "aria-label": "No steps" });
    for (const event of ["pointerover", "click"]) {
      this.element.addEventListener(event, (happened) => {
        const column = happened.target.closest(".column");
        if (column) onstep(Number(column.dataset.step), event === "click");
      });
    }
    this.clear();
  }

  clear() {
    this.columns = [];
    this.active = -1;
    this.highest = 1;
    this.lowest = 0;
    this.totalMs = 0;
    this.numLost = 0;
    this.element.replaceChildren();
  }

  add(step, plainMs) {
    const up = el("span", { class: "up" });
    for (const by of ["draft", "forced", "bonus", "plain"]) {
      const number = step.tokens.filter((token) => token.by === by).length;
      if (number) up.append(block(`cells ${by}`, number * CELL));
    }
    const even = el("span", { class: "even" });
    up.append(even);
    const rejected = step.nodes.filter((node) => node.outcome !== "accepted").length;
    const down = el("span", { class: "down" });
    if (rejected) down.append(block(`cells rejected${rejected > MOST_REJECTED ? " more" : ""}`, Math.min(rejected, MOST_REJECTED) * 2));
    const element = el("span", { class: "column", "data-step": this.columns.length }, up, down);
    element.style.flexGrow = step.ms?.total ?? 1;
    this.columns.push({ element, even, step });
    this.element.append(element);
    this.highest = Math.max(this.highest, step.tokens.length);
    this.lowest = Math.max(this.lowest, Math.min(rejected, MOST_REJECTED));
    this.totalMs += step.ms?.total ?? 0;
    this.mark(this.columns.at(-1), plainMs);
    this.fit();
  }

  /** Set the dashes of break-even. */
  compare(plainMs) {
    this.numLost = 0;
    for (const column of this.columns) this.mark(column, plainMs);
    this.fit();
  }

  mark({ step, element, even }, plainMs) {
    const known = Boolean(plainMs && step.ms && step.nodes.length);
    const needed = known ? Math.min(step.ms.total / plainMs, MOST_NEEDED) : 0;
    const lost = known && step.tokens.length < needed;
    even.hidden = !known;
    even.style.bottom = `${needed * CELL - 1}px`;
    element.classList.toggle("lost", lost);
    this.highest = Math.max(this.highest, needed);
    this.numLost += lost ? 1 : 0;
  }

  fit() {
    this.element.style.setProperty("--up", `${Math.ceil(this.highest * CELL) + 3}px`);
    this.element.style.setProperty("--down", `${this.lowest * 2}px`);
    const losing = this.numLost ? `, ${this.numLost} of them slower than plain decoding` : "";
    this.element.setAttribute("aria-label", `${counted(this.columns.length, "step")} in ${ms(this.totalMs)}${losing}`);
  }

  /** Highlight one column; -1 none. */
  choose(index) {
    this.columns[this.active]?.element.classList.remove("active");
    this.columns[index]?.element.classList.add("active");
    this.active = index;
  }

  /** Show the first `number` columns as done, the others as still to come. */
  reveal(number) {
    this.columns.forEach(({ element }, place) => element.classList.toggle("to-come", place >= number));
  }
}

function block(kind, height) {
  const made = el("span", { class: kind });
  made.style.height = `${height}px`;
  return made;
}
