// A race: one prompt decoded with the method and plainly, one after the other, then replayed side by side.
//
// The clock of the replay is the sum of the steps' times as the engine measured them. Reading the prompt is left out:
// the second run may find it in a cache. The method runs first, for methods that learn from earlier answers would
// find the whole answer of a plain run. Two short runs before the race, on another prompt, warm up both.

import { decode } from "./chat.js";
import { counted, el, fixed, ms } from "../ribbon/dom.js";
import { PLAIN, shortened } from "./settings.js";

const WARM_UP = [{ role: "user", content: "Count from one to nine." }];
const LASTS_MS = 8000;

export class Race {
  #abort = null;
  #lanes = [];
  #clock = { at: 0, frame: 0, last: 0, playing: false };

  constructor(root, settings, status) {
    this.settings = settings;
    this.status = status;
    this.root = root;
    this.form = root.querySelector("form");
    this.result = root.querySelector(".race-result");
    this.stage = root.querySelector(".race-stage");
    this.tracks = root.querySelector(".tracks");
    this.columns = root.querySelector(".race-columns");
    this.scrub = root.querySelector(".scrub");
    this.time = root.querySelector(".race-time");
    this.play = root.querySelector(".play");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#abort) this.#abort.abort();
      else this.run(this.form.elements.prompt.value.trim().toWellFormed());
    });
    this.play.addEventListener("click", () => this.#toggle());
    this.scrub.addEventListener("input", () => {
      this.#pause();
      this.#show(Number(this.scrub.value));
    });
  }

  /** Decode a prompt both ways and replay it. */
  async run(prompt) {
    const method = this.settings.challenger;
    if (!prompt) return;
    if (!method) {
      this.#say("This server has no method to race: it was started with the method none.", true);
      return;
    }
    const abort = (this.#abort = new AbortController());
    this.#pause();
    this.stage.hidden = true;
    this.#busy(true);
    const messages = [{ role: "user", content: prompt }];
    try {
      for (const name of [method, PLAIN]) {
        this.#say(`Warming up: ${title(name)}.`);
        await this.#decode({ ...this.settings.body(WARM_UP, name), max_tokens: 8 });
      }
      const answers = [];
      for (const name of [method, PLAIN]) {
        this.#say(`Decoding ${title(name)}: run ${answers.length + 1} of 2.`);
        answers.push(await this.#decode(this.settings.body(messages, name)));
      }
      this.settings.notePlain(answers[1].tally);
      this.#set([method, PLAIN], answers);
    } catch (error) {
      this.#say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
      if (error.status === 401) this.settings.askForKey();
    } finally {
      if (this.#abort === abort) this.#abort = null;
      this.#busy(false);
    }
  }

  #decode(body) {
    return decode(body, { signal: this.#abort.signal, key: this.settings.key });
  }

  #busy(busy) {
    this.form.querySelector("button").textContent = busy ? "Stop" : "Race";
    this.root.setAttribute("aria-busy", String(busy));
  }

  #say(text, problem = false) {
    this.result.textContent = text;
    this.result.classList.toggle("problem", problem);
  }

  /** Set up the lanes of two answers, say who won, and replay. */
  #set(names, answers) {
    this.stage.hidden = false;
    this.tracks.replaceChildren();
    this.columns.replaceChildren();
    this.#lanes = answers.map((answer, place) => this.#lane(names[place], answer));
    const longest = Math.max(...this.#lanes.map((lane) => lane.totalMs));
    for (const lane of this.#lanes) {
      lane.strip.element.style.width = `${(100 * lane.totalMs) / longest}%`;
      lane.ribbon.plainMs = this.settings.plainMs;
    }
    this.scrub.max = longest;
    this.scrub.step = longest / 500;
    this.#verdict(answers);
    const slowly = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#show(slowly ? longest : 0);
    if (!slowly) this.#toggle();
  }

  #lane(name, answer) {
    const ribbon = el("acceptance-ribbon", { class: "lane", label: `Text ${title(name)}, token by token` });
    this.columns.append(el("section", { class: "race-column", "aria-label": title(name) }, el("h3", {}, title(name)), ribbon));
    ribbon.steps = answer.steps.map(({ raw }) => raw);
    if (/```|\n {2,}\S/.test(answer.text)) ribbon.classList.add("code");
    const ends = stepEnds(answer.steps);
    const totalMs = ends.at(-1) ?? 0;
    const value = el("span", { class: "track-time" }, ms(totalMs));
    this.tracks.append(el("div", { class: "track" }, el("span", { class: "track-name" }, title(name)), el("div", { class: "track-run" }, ribbon.strip.element), value));
    return { name, ribbon, strip: ribbon.strip, ends, totalMs, shown: -1 };
  }

  #verdict([first, second]) {
    const [fast, plain] = this.#lanes;
    const same = first.text === second.text && String(first.ids) === String(second.ids);
    const tokens = counted(first.tally.numTokens, "token");
    const timed = first.tally.numTimed && second.tally.numTimed;
    const ratio = fixed(plain.totalMs / fast.totalMs, 2);
    const times = `${ratio}\u00d7: ${ms(fast.totalMs)} ${title(fast.name)}, ${ms(plain.totalMs)} plainly${timed ? "" : ", by the clock of this page"}.`;
    const differs = [...first.text].findIndex((character, place) => character !== [...second.text][place]);
    const texts = same ? `The texts are equal: ${tokens}.` : `The texts differ from character ${differs < 0 ? "the end" : differs + 1} on.`;
    this.result.classList.toggle("problem", !same);
    this.result.replaceChildren(el("strong", {}, times), " ", el("span", { class: same ? "equal" : "differ" }, `${same ? "\u2713" : "\u2715"} ${texts}`));
  }

  get #longest() {
    return Number(this.scrub.max);
  }

  #toggle() {
    if (this.#clock.playing) return this.#pause();
    if (this.#clock.at >= this.#longest) this.#show(0);
    this.#clock.playing = true;
    this.#clock.last = performance.now();
    this.play.textContent = "Pause";
    this.#clock.frame = requestAnimationFrame((now) => this.#tick(now));
    return undefined;
  }

  #pause() {
    cancelAnimationFrame(this.#clock.frame);
    this.#clock.playing = false;
    this.play.textContent = "Play";
  }

  #tick(now) {
    const speed = this.#longest / LASTS_MS;
    const at = this.#clock.at + Math.max(now - this.#clock.last, 0) * speed;
    this.#clock.last = now;
    this.#show(at);
    if (at >= this.#longest) this.#pause();
    else this.#clock.frame = requestAnimationFrame((next) => this.#tick(next));
  }

  /** Show both lanes as they stood after `at` measured milliseconds. */
  #show(at) {
    this.#clock.at = Math.min(at, this.#longest);
    this.scrub.value = this.#clock.at;
    const slower = LASTS_MS / this.#longest;
    const pace = slower >= 1 ? `slowed ${fixed(slower, 1)} times` : `${fixed(1 / slower, 1)} times as fast`;
    this.time.textContent = `${ms(this.#clock.at)} of ${ms(this.#longest)}, ${pace}`;
    this.scrub.setAttribute("aria-valuetext", ms(this.#clock.at));
    for (const lane of this.#lanes) {
      const number = lane.ends.filter((end) => end <= this.#clock.at + 1e-6).length;
      if (number === lane.shown) continue;
      lane.shown = number;
      lane.ribbon.reveal(number);
      lane.strip.reveal(number);
    }
  }
}

function title(name) {
  return name === PLAIN ? "plainly" : `with ${shortened(name)}`;
}

/** Return when each step ended, from the start of the first: measured by the engine, else as the page received it. */
function stepEnds(steps) {
  const timed = steps.every(({ step }) => step.ms);
  let at = 0;
  return steps.map(({ step, atMs }, place) => {
    at += timed ? step.ms.total : atMs - (steps[place - 1]?.atMs ?? atMs);
    return at;
  });
}
