// The card of one step: what it won or lost, where its time went, and the draft tree with the fate of every node.

import { counted, el, fixed, ms, svg } from "./dom.js";
import { isForced, labelled, PARTS, treeRows, visible } from "./steps.js";

const ROW = 24;
const LANE = 14;
const MOST_ROWS = 300;
const OUTCOMES = {
  accepted: ["\u2713", "accepted"],
  rejected: ["\u2715", "rejected"],
  unread: ["\u2219", "fell with it"],
  bonus: ["+", "bonus"],
  plain: ["+", "plain"],
  root: ["", "before"],
};

/** Return the content of a step's card; `before` is the text of the token before it. */
export function stepCard(step, before, plainMs) {
  return [
    el("p", { class: "card-headline" }, headline(step)),
    verdict(step, plainMs),
    step.ms ? times(step.ms) : null,
    step.nodes.length ? tree(step, before) : el("p", { class: "card-note" }, "Nothing was drafted: a step of plain decoding."),
    choices(step),
  ].filter((part) => part !== null);
}

function headline(step) {
  const accepted = step.tokens.filter((token) => token.by === "draft" || token.by === "forced").length;
  const took = step.ms ? ` in ${ms(step.ms.total)}` : "";
  const verb = isForced(step) ? "forced" : "kept";
  const drafted = step.nodes.length ? ` \u00b7 ${verb} ${fixed(accepted)} of ${fixed(step.nodes.length)}` : "";
  return `${counted(step.tokens.length, "token")}${took}${drafted}`;
}

function verdict(step, plainMs) {
  if (!step.ms || !plainMs || !step.nodes.length) return null;
  const plain = plainMs * step.tokens.length;
  const saved = plain - step.ms.total;
  const won = saved >= 0;
  return el(
    "p",
    { class: `card-verdict ${won ? "won" : "lost"}` },
    el("b", {}, `${won ? "\u25b2 won" : "\u25bc lost"} ${ms(Math.abs(saved))}`),
    ` \u2014 plain decoding takes about ${ms(plain)} for ${step.tokens.length === 1 ? "this token" : "these"}`,
  );
}

function times(spent) {
  const parts = PARTS.filter((part) => spent[part] > 0);
  const bar = el("div", { class: "times-bar", "aria-hidden": "true" });
  const names = el("dl", { class: "times" });
  for (const part of parts) {
    const piece = el("i", { class: `part ${part}` });
    piece.style.flexGrow = spent[part];
    bar.append(piece);
    const share = fixed((100 * spent[part]) / spent.total);
    names.append(
      el("div", {}, el("dt", {}, el("i", { class: `part ${part}`, "aria-hidden": "true" }), part), el("dd", {}, ms(spent[part]), el("small", {}, ` ${share} %`))),
    );
  }
  return el("div", { class: "times-block" }, bar, names);
}

function tree(step, before) {
  const rows = treeRows(step);
  const shown = rows.slice(0, MOST_ROWS);
  const lanes = 1 + Math.max(...shown.map((row) => row.lane));
  const body = el("tbody");
  for (const row of shown) body.append(treeRow(row, step, before, lanes));
  const table = el(
    "table",
    { class: "tree" },
    el("caption", { class: "visually-hidden" }, "Draft tree of this step"),
    el("thead", {}, el("tr", {}, ...["Token", "Target's probability", "Outcome"].map((name) => el("th", { scope: "col" }, name)))),
    body,
  );
  const hidden = rows.length - shown.length;
  const more = hidden ? el("p", { class: "card-note" }, `and ${counted(hidden, "node")} more`) : null;
  const known = step.nodes.some((node) => node.prob !== null);
  const by = step.part ? ` by ${visible(step.part)}` : "";
  const says = el("p", { class: "card-note" }, `Draft tree${by}${known ? ", with the target's probabilities" : ""}`);
  return el("div", { class: "tree-block" }, says, el("div", { class: "tree-scroll" }, table, lines(shown, lanes)), more);
}

function treeRow(row, step, before, lanes) {
  const node = row.node === "added" ? step.tokens.at(-1) : (step.nodes[row.node] ?? { text: before });
  const [mark, says] = OUTCOMES[row.kind];
  const first = el("th", { scope: "row" }, el("bdi", {}, labelled(node.text, 24)));
  first.style.paddingInlineStart = `${lanes * LANE + 8}px`;
  const prob = node.prob ?? null;
  return el(
    "tr",
    { class: row.kind },
    first,
    el("td", { class: "prob" }, prob === null ? "" : probability(prob)),
    el("td", { class: "outcome" }, el("span", { class: "mark", "aria-hidden": "true" }, mark), ` ${says}`),
  );
}

function probability(prob) {
  const bar = el("i", { class: "prob-bar", "aria-hidden": "true" });
  bar.style.width = `${Math.round(Math.min(prob, 1) * 32)}px`;
  return el("span", {}, bar, prob > 0 && prob < 0.005 ? "< 0.01" : fixed(prob, 2));
}

/** Return what the target would most probably have written in the place of the step's last token. */
function choices(step) {
  const last = step.tokens.at(-1);
  const top = last?.top.filter((one) => one.prob !== null) ?? [];
  if (!top.length) return null;
  const named = top.map((one) => el("li", {}, el("bdi", {}, labelled(one.text, 24)), " ", probability(one.prob)));
  const place = el("p", { class: "card-note" }, "The target\u2019s choices for ", el("bdi", {}, `\u201c${labelled(last.text, 24)}\u201d`));
  return el("div", { class: "choices" }, place, el("ol", {}, ...named));
}

/** Return the edges and dots of a tree, drawn over the first column: the accepted path last, on top. */
function lines(rows, lanes) {
  const x = (lane) => lane * LANE + 7.5;
  const y = (row) => row * ROW + ROW / 2 + 0.5;
  const drawing = svg("svg", { class: "tree-lines", width: lanes * LANE + 4, height: rows.length * ROW, "aria-hidden": "true" });
  const edges = [];
  const dots = [];
  rows.forEach((row, index) => {
    if (row.kind !== "root") {
      const parent = rows[row.above];
      const turn = `M${x(parent.lane)} ${y(row.above)}V${y(index) - 6}q0 6 6 6H${x(row.lane)}`;
      const straight = `M${x(row.lane)} ${y(row.above)}V${y(index)}`;
      edges.push(svg("path", { class: `edge ${row.kind}`, d: parent.lane === row.lane ? straight : turn }));
    }
    dots.push(svg("circle", { class: `dot ${row.kind}`, cx: x(row.lane), cy: y(index), r: row.kind === "root" ? 3 : 4 }));
  });
  const kept = (edge) => !edge.classList.contains("rejected") && !edge.classList.contains("unread");
  drawing.append(...edges.filter((edge) => !kept(edge)), ...edges.filter(kept), ...dots);
  return drawing;
}
