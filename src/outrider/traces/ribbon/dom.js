// Elements made from names, attributes and text. Strings become text nodes, never markup: model text stays inert.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element; `attributes` starting with "on" are listeners, null and false leave an attribute out. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Return an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a number with a fixed number of digits and separated thousands. */
export function fixed(value, digits = 0) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Return milliseconds as text with three significant figures or so. */
export function ms(value) {
  return `${fixed(value, value < 0.1 ? 3 : value < 10 ? 2 : value < 100 ? 1 : 0)} ms`;
}

/** Return a count and its noun: "1 token", "4 tokens". */
export function counted(number, noun) {
  return `${fixed(number)} ${noun}${number === 1 ? "" : "s"}`;
}
