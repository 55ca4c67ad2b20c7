"use strict";
// The tables of the report: sorted, filtered, and only the rows in sight are in the document, so that 10,000 stay quick.
// Data becomes text nodes and nothing else. A column holds `numbers`, or `words` and for each row a code into them;
// where `by` is set, it holds one of these for each rule, and the rule chosen above the table says which is shown.

const HEIGHT = 29; // pixels of a row, with its line: see td in report.css
const FEW = 40; // so many different words make a menu of a column's filter
const data = JSON.parse(document.getElementById("data").textContent);

function make(tag, text = "", facts = {}) {
  const node = document.createElement(tag);
  if (text !== "") node.textContent = text;
  for (const [name, value] of Object.entries(facts)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  return node;
}

function shown(number, digits) {
  if (number === null || number === undefined) return "";
  return digits === undefined ? String(number) : number.toFixed(digits);
}

// What a filter of numbers says: 3..5, >= 80, < 2, = 4, or a number's beginning.
function numeric(text) {
  const range = text.match(/^\s*(-?[\d.]+)\s*\.\.\s*(-?[\d.]+)\s*$/);
  if (range) return (v) => v !== null && v >= +range[1] && v <= +range[2];
  const compared = text.match(/^\s*(<=|>=|<|>|=)\s*(-?[\d.]+(?:e-?\d+)?)\s*$/i);
  if (!compared) return (v, written) => written.startsWith(text.trim());
  const limit = +compared[2];
  const tests = { "<": (v) => v < limit, ">": (v) => v > limit, "<=": (v) => v <= limit, ">=": (v) => v >= limit, "=": (v) => v === limit };
  return (v) => v !== null && tests[compared[1]](v);
}

class Table {
  constructor(spec) {
    this.spec = spec;
    this.rules = spec.rules || [];
    this.rule = this.rules[0];
    this.columns = spec.columns.filter((c) => !c.hidden);
    this.sorting = { column: null, down: false };
    this.order = Array.from({ length: spec.rows }, (_, i) => i);
    this.seen = this.order;
    this.build();
    this.update();
  }

  of(column) {
    return column.by ? column.by[this.rule] : column;
  }

  text(column, row) {
    const c = this.of(column);
    return c.words ? c.words[c.codes[row]] : shown(c.numbers[row], column.digits);
  }

  build() {
    this.node = make("section");
    if (this.spec.note) this.node.append(make("p", this.spec.note, { class: "note" }));
    const tools = make("div", "", { class: "tools" });
    this.search = make("input", "", { type: "search", placeholder: "search in all columns", "aria-label": "search in all columns" });
    this.search.addEventListener("input", () => this.update());
    tools.append(this.search);
    if (this.rules.length) {
      const choose = make("select", "", { class: "rule", "aria-label": "operating point by" });
      for (const rule of this.rules) choose.append(make("option", `operating point: ${rule}`, { value: rule }));
      choose.addEventListener("change", () => { this.rule = choose.value; this.update(); });
      tools.append(choose);
    }
    tools.append(make("button", "clear filters", { type: "button", onclick: () => this.clear() }));
    this.count = make("span", "", { class: "count", role: "status" });
    tools.append(this.count);
    this.node.append(tools);

    this.box = make("div", "", { class: "rows", tabindex: "-1" });
    const table = make("table", "", { "aria-rowcount": String(this.spec.rows + 1) });
    const group = make("colgroup");
    const heads = make("tr");
    const filters = make("tr");
    this.filters = [];
    let total = 0;
    for (const column of this.columns) {
      const col = make("col");
      const width = this.width(column);
      total += width;
      col.style.width = `${width}px`;
      group.append(col);
      const head = make("th", "", { scope: "col", class: this.isNumber(column) ? "number" : "", "aria-sort": "none" });
      head.append(make("button", column.head || column.name, { type: "button", title: column.help || column.name, onclick: () => this.sort(column) }));
      column.cell = head;
      heads.append(head);
      const below = make("th");
      const filter = this.filter(column);
      filter.dataset.column = column.name;
      this.filters.push(filter);
      below.append(filter);
      filters.append(below);
    }
    table.style.width = `${total}px`;
    const top = make("thead");
    top.append(heads, filters);
    this.body = make("tbody");
    table.append(group, top, this.body);
    this.box.append(table);
    this.box.addEventListener("scroll", () => this.draw(false));
    this.empty = make("p", "No row fits these filters.", { class: "none" });
    this.node.append(this.box, this.empty);
  }

  isNumber(column) {
    return !this.of(column).words;
  }

  width(column) {
    const c = this.of(column);
    let longest = (column.head || column.name).length + 3;
    if (c.words) for (const word of c.words) longest = Math.max(longest, Math.min(word.length + 1, 34));
    else longest = Math.max(longest, 8);
    return Math.round(16 + 7.6 * longest);
  }

  filter(column) {
    const label = `filter ${column.head || column.name}`;
    const words = this.of(column).words;
    if (words && words.length <= FEW && !column.by) {
      const menu = make("select", "", { "aria-label": label });
      menu.append(make("option", "all", { value: "" }));
      words.forEach((word, code) => menu.append(make("option", word === "" ? "(empty)" : word, { value: String(code) })));
      menu.addEventListener("change", () => this.update());
      return menu;
    }
    const hint = words ? "contains" : ">= …";
    const field = make("input", "", { type: "text", placeholder: hint, "aria-label": label });
    field.addEventListener("input", () => this.update());
    return field;
  }

  clear() {
    this.search.value = "";
    for (const filter of this.filters) filter.value = "";
    this.update();
  }

  sort(column) {
    const again = this.sorting.column === column;
    this.sorting = again && this.sorting.down ? { column: null, down: false } : { column, down: again };
    for (const other of this.columns) other.cell.setAttribute("aria-sort", "none");
    if (this.sorting.column) column.cell.setAttribute("aria-sort", this.sorting.down ? "descending" : "ascending");
    this.update();
  }

  tests() {
    const found = [];
    this.columns.forEach((column, i) => {
      const value = this.filters[i].value;
      if (value === "") return;
      const c = this.of(column);
      if (this.filters[i].tagName === "SELECT") found.push((row) => c.codes[row] === +value);
      else if (c.words) {
        const wanted = value.toLowerCase();
        const fits = c.words.map((word) => word.toLowerCase().includes(wanted));
        found.push((row) => fits[c.codes[row]]);
      } else {
        const test = numeric(value);
        found.push((row) => test(c.numbers[row], this.text(column, row)));
      }
    });
    const wanted = this.search.value.trim().toLowerCase();
    if (wanted) {
      const texts = this.columns.filter((c) => this.of(c).words).map((c) => {
        const own = this.of(c);
        return [own.codes, own.words.map((word) => word.toLowerCase().includes(wanted))];
      });
      const numbers = this.columns.filter((c) => !this.of(c).words);
      found.push((row) => texts.some(([codes, fits]) => fits[codes[row]]) || numbers.some((c) => this.text(c, row).startsWith(wanted)));
    }
    return found;
  }

  update() {
    const tests = this.tests();
    this.seen = tests.length ? this.order.filter((row) => tests.every((test) => test(row))) : this.order.slice();
    if (this.sorting.column) {
      const c = this.of(this.sorting.column);
      const values = c.words ? c.codes : c.numbers; // words are in order
      const sign = this.sorting.down ? -1 : 1;
      const gone = (v) => v === null || v === undefined;
      this.seen.sort((a, b) => gone(values[a]) - gone(values[b]) || (gone(values[a]) ? 0 : sign * (values[a] - values[b])) || a - b);
    }
    const all = this.spec.rows.toLocaleString("en");
    this.count.textContent = this.seen.length === this.spec.rows ? `${all} rows` : `${this.seen.length.toLocaleString("en")} of ${all} rows`;
    this.empty.hidden = this.seen.length > 0;
    this.box.scrollTop = 0;
    this.draw();
  }

  // Draws the rows in sight and some around them. While these cover what is seen, scrolling draws nothing.
  draw(again = true) {
    const room = Math.ceil((this.box.clientHeight || 800) / HEIGHT);
    const top = Math.max(0, Math.min(Math.floor(this.box.scrollTop / HEIGHT), this.seen.length - room));
    if (!again && this.drawn && top >= this.drawn[0] && Math.min(top + room, this.seen.length) <= this.drawn[1]) return;
    const first = Math.max(0, top - 20);
    const last = Math.min(this.seen.length, top + room + 20);
    const focused = this.body.contains(document.activeElement) ? document.activeElement.getAttribute("aria-rowindex") : null;
    const rows = [];
    for (let i = first; i < last; i++) rows.push(this.row(this.seen[i], i));
    this.body.replaceChildren(this.space(first), ...rows, this.space(this.seen.length - last));
    this.drawn = [first, last];
    if (focused) this.body.querySelector(`[aria-rowindex="${+focused}"]`)?.focus({ preventScroll: true });
  }

  space(count) {
    const row = make("tr", "", { class: "space", "aria-hidden": "true" });
    const cell = make("td", "", { colspan: String(this.columns.length) });
    cell.style.height = `${count * HEIGHT}px`;
    row.append(cell);
    row.hidden = count === 0;
    return row;
  }

  row(index, place) {
    const row = make("tr", "", { "aria-rowindex": String(place + 2) });
    for (const column of this.columns) {
      const text = this.text(column, index);
      const cell = make("td", text, this.isNumber(column) ? { class: "number" } : {});
      if (text.length > 12) cell.title = text;
      row.append(cell);
    }
    if (this.spec.details) {
      row.className = "open";
      row.tabIndex = 0;
      row.addEventListener("click", () => details(this, index));
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") details(this, index); });
    }
    return row;
  }
}

function list(pairs) {
  const node = make("dl");
  for (const [name, value] of pairs) node.append(make("dt", name), make("dd", value === "" ? "–" : value));
  return node;
}

// One run: how to make it again, where it ran, what was measured, and its settings.
function details(table, row) {
  const box = document.getElementById("details");
  const value = (name) => {
    const column = table.spec.columns.find((c) => c.name === name);
    return column ? table.text(column, row) : "";
  };
  const bar = make("div", "", { class: "bar" });
  bar.append(make("h2", table.spec.details.title.map(value).join(" / ")));
  bar.append(make("button", "close", { type: "button", onclick: () => box.close() }));
  const parts = [bar, make("h3", value("command_is") || "Command"), make("pre", value("command"))];
  const skip = new Set(["command", "command_is"]);
  const facts = table.spec.columns.filter((c) => !skip.has(c.name)).map((c) => [c.head || c.name, table.text(c, row)]);
  parts.push(make("h3", "Measured, and where"), list(facts.filter(([, text]) => text !== "")));
  parts.push(make("h3", "Settings"));
  const settings = table.spec.details.settings.flatMap((part) => part.blocks[part.codes[row]]);
  parts.push(settings.length ? list(settings) : make("p", "unknown"));
  box.replaceChildren(...parts);
  box.showModal();
  box.scrollTop = 0;
}

function pictures(all) {
  const node = make("section");
  for (const picture of all) {
    const figure = make("figure");
    figure.append(make("figcaption", picture.name), make("img", "", { src: picture.url, alt: picture.name }));
    node.append(figure);
  }
  return node;
}

function start() {
  const tabs = document.getElementById("tabs");
  const main = document.getElementById("main");
  const parts = data.tables.map((spec) => ({ id: spec.id, title: spec.title, table: new Table(spec) }));
  for (const part of parts) part.node = part.table.node;
  if (data.pictures.length) parts.splice(1, 0, { id: "plots", title: "Plots", node: pictures(data.pictures) });
  const show = (chosen) => {
    for (const part of parts) {
      part.node.hidden = part !== chosen;
      part.tab.setAttribute("aria-selected", String(part === chosen));
    }
    if (chosen.table) chosen.table.draw();
  };
  for (const part of parts) {
    part.node.id = part.id;
    part.node.setAttribute("role", "tabpanel");
    part.node.setAttribute("aria-label", part.title);
    part.tab = make("button", part.title, { type: "button", role: "tab", "aria-controls": part.id, onclick: () => show(part) });
    tabs.append(part.tab);
    main.append(part.node);
  }
  show(parts[0]);
  window.addEventListener("resize", () => { for (const part of parts) if (part.table && !part.node.hidden) part.table.draw(); });
}

start();
