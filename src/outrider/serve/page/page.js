// The page: tabs, theme and the parts of it.

import "../ribbon/ribbon.js";
import { Chat } from "./chat.js";
import { Race } from "./race.js";
import { Settings } from "./settings.js";

const THEMES = ["auto", "light", "dark"];

function remembered(name, fallback) {
  try {
    return localStorage.getItem(name) ?? fallback;
  } catch {
    return fallback; // storage is switched off
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // storage is switched off
  }
}

function setTheme(button, theme) {
  document.documentElement.dataset.theme = theme;
  button.textContent = `theme: ${theme}`;
  button.setAttribute("aria-label", `Theme: ${theme}`);
}

function themes(button) {
  const first = remembered("outrider-theme", "auto");
  setTheme(button, THEMES.includes(first) ? first : "auto");
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    setTheme(button, next);
    remember("outrider-theme", next);
  });
}

function tabs(list) {
  const all = [...list.querySelectorAll('[role="tab"]')];
  const choose = (tab) => {
    for (const other of all) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
    }
  };
  list.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) choose(tab);
  });
  list.addEventListener("keydown", (event) => {
    const turn = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!turn) return;
    const next = all[(all.indexOf(document.activeElement) + turn + all.length) % all.length];
    choose(next);
    next.focus();
  });
}

function describe(settings, facts) {
  const { target, budget, max_len: limit } = settings.facts;
  facts.textContent = `${target}${limit ? ` \u00b7 ${limit.toLocaleString("en")} tokens of context` : ""}${budget === "auto" ? " \u00b7 budget auto" : ""}`;
  document.title = target ? `Outrider \u00b7 ${target}` : "Outrider";
}

async function start() {
  const find = (selector) => document.querySelector(selector);
  themes(find("#theme"));
  tabs(find(".tabs"));
  find(".settings").open = !matchMedia("(max-width: 44rem)").matches;
  const settings = new Settings(find("#settings"));
  const status = find("#status");
  new Chat(find("#chat"), settings, status);
  new Race(find("#race"), settings, status);
  settings.addEventListener("change", () => describe(settings, find("#facts")));
  try {
    await settings.load();
  } catch (error) {
    find("#facts").textContent = error.message;
    if (error.status === 401) settings.askForKey();
  }
  document.documentElement.dataset.ready = "";
}

start();
