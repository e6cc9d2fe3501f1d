// The records of a decoded text, one per step, as server, report and notebook give them (traces/trace.py). Nothing here
// touches the document.
//
//   {"step": 3, "tokens": [{"id": 5, "text": " sky", "by": "draft", "prob": 0.9, "top": [{"text": " sky", "prob": 0.9}]}],
//    "draft": {"ids": [...], "texts": [...], "parents": [-1, 0, 0], "accepted": [0, 2], "probs": [0.9, null, 0.1]},
//    "ms": {"propose": 0.4, "verify": 6.1, "accept": 0.1, "commit": 0.1, "host": 0.3, "total": 7.0}}
//
// A node whose parent was accepted is rejected or accepted; below a rejected node, nodes fall with it, unread.

export const PARTS = ["propose", "verify", "accept", "commit", "host"];
export const WRITERS = {
  draft: "draft, accepted",
  bonus: "bonus, by the target",
  plain: "plain, no draft",
  forced: "forced by the form of the answer",
};

const OWN = new Set(["bonus", "plain"]);
const MAX_NODES = 4096;
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

/** Return the `number`th step of a text, from 1, with every field present and of the right type, whatever came in. */
export function readStep(raw, number) {
  const given = isObject(raw) ? raw : {};
  const tokens = list(given.tokens).map((token) => ({
    id: Number.isInteger(token?.id) ? token.id : null,
    text: text(token?.text),
    by: Object.hasOwn(WRITERS, token?.by) ? token.by : "plain",
    prob: finite(token?.prob),
    top: list(token?.top).map((one) => ({ text: text(one?.text), prob: finite(one?.prob) })),
  }));
  const draft = isObject(given.draft) ? given.draft : {};
  return {
    number,
    tokens,
    part: text(draft.part),
    nodes: readNodes(draft),
    ms: readTimes(given.ms),
  };
}

function readNodes(draft) {
  const accepted = new Set(list(draft.accepted));
  const texts = list(draft.texts);
  const parents = list(draft.parents);
  const probs = list(draft.probs);
  const nodes = [];
  for (let node = 0; node < Math.min(texts.length, MAX_NODES); node += 1) {
    const parent = Number.isInteger(parents[node]) && parents[node] < node ? Math.max(parents[node], -1) : -1;
    const reached = parent < 0 || nodes[parent].outcome === "accepted";
    const outcome = !reached ? "unread" : accepted.has(node) ? "accepted" : "rejected";
    nodes.push({ text: text(texts[node]), parent, outcome, prob: finite(probs[node]) });
  }
  return nodes;
}

function readTimes(raw) {
  if (!isObject(raw)) return null;
  const times = Object.fromEntries(PARTS.map((part) => [part, finite(raw[part]) ?? 0]));
  const known = PARTS.reduce((sum, part) => sum + times[part], 0);
  times.total = Math.max(finite(raw.total) ?? 0, known);
  times.host += times.total - known;
  return times.total > 0 ? times : null;
}

/** Return whether the form of the answer gave a step its tokens, and no method drafted. */
export function isForced(step) {
  return step.tokens.some((token) => token.by === "forced");
}

/** Counts and times of the steps so far; every figure is a ratio of these sums. */
export class Tally {
  numSteps = 0;
  numTokens = 0;
  numDrafted = 0;
  numAccepted = 0;
  numTimed = 0;
  totalMs = 0;

  add(step) {
    this.numSteps += 1;
    this.numTokens += step.tokens.length;
    this.numDrafted += isForced(step) ? 0 : step.nodes.length;
    this.numAccepted += step.tokens.filter((token) => token.by === "draft").length;
    if (step.ms) {
      this.numTimed += step.tokens.length;
      this.totalMs += step.ms.total;
    }
  }

  /** Tokens per step: tau. */
  get tau() {
    return this.numSteps ? this.numTokens / this.numSteps : null;
  }

  get msPerToken() {
    return this.numTimed ? this.totalMs / this.numTimed : null;
  }

  get tokensPerS() {
    return this.numTimed ? (1000 * this.numTimed) / this.totalMs : null;
  }

  /** Speedup over plain decoding at `plainMs` a token, or null where one of the two is not known. */
  gain(plainMs) {
    return plainMs && this.numTimed ? plainMs / this.msPerToken : null;
  }
}

/** Return the rows of a drawn tree, from the root down, each with its lane and the row of its parent.
 *
 * The accepted path, and the token that the target adds after it, keeps lane 0. Every other branch leaves to the
 * right and is drawn before the path goes on, so no line crosses another.
 */
export function treeRows(step) {
  const last = step.tokens.at(-1);
  const below = new Map();
  step.nodes.forEach((node, index) => {
    if (!below.has(node.parent)) below.set(node.parent, []);
    below.get(node.parent).push(index);
  });
  let tip = -1;
  for (let next = tip; next !== undefined; next = acceptedChild(step, below, tip)) tip = next;
  const rows = [{ kind: "root", lane: 0, above: -1, node: -1 }];
  const stack = [{ node: -1, lane: 0, row: 0 }];
  const push = (children, lane, row) => stack.push(...children.map((node) => ({ node, lane, above: row })).reverse());
  while (stack.length) {
    const visit = stack.pop();
    let row = visit.row;
    if (row === undefined) {
      row = rows.length;
      const kind = visit.node === "added" ? last.by : step.nodes[visit.node].outcome;
      rows.push({ kind, lane: visit.lane, above: visit.above, node: visit.node });
    }
    const children = [...(below.get(visit.node) ?? [])];
    const onwards = visit.node === tip && last && OWN.has(last.by) ? "added" : acceptedChild(step, below, visit.node) ?? children[0];
    const aside = children.filter((child) => child !== onwards || visit.node === tip);
    if (onwards !== undefined && (onwards === "added" || visit.node !== tip)) push([onwards], visit.lane, row);
    push(aside, visit.lane + 1, row);
  }
  return rows;
}

function acceptedChild(step, below, node) {
  return (below.get(node) ?? []).find((child) => step.nodes[child].outcome === "accepted");
}

/** Return text in which no character acts: controls, overrides of direction and half characters become visible. */
export function visible(value) {
  return value.toWellFormed().replace(HIDDEN, (character) => {
    const code = character.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    return code === 0x7f ? "\u2421" : `\\u{${code.toString(16)}}`;
  });
}

/** Return a token's text for a label: visible, with blanks and line ends that can be seen. */
export function labelled(value, most = 40) {
  const shown = visible(value).replace(/ /g, "\u00b7").replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5");
  if (shown === "") return "\u2205";
  const characters = [...shown];
  return characters.length > most ? `${characters.slice(0, most - 1).join("")}\u2026` : shown;
}

function isObject(value) {
  return typeof value === "object" && value !== null;
}

function list(value) {
  return Array.isArray(value) ? value : [];
}

function text(value) {
  return typeof value === "string" ? value : "";
}

function finite(value) {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null;
}
