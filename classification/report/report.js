"use strict";
// Text from results is inserted through textContent, so that it cannot become markup.

const make = (name, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
};
const show = (value) => {
  if (value === null || value === undefined || value === "") return "–";
  if (Array.isArray(value)) return value.map(show).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
};

// ---- sorting; missing cells are last in both directions

const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const compare = (a, b, down) => {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" && typeof b === "number" ? a - b : words.compare(a, b);
  return down ? -order : order;
};
const sortKey = (cell) => {
  if (cell.classList.contains("missing")) return null;
  return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
};
const mark = (heading) => {
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentElement.children) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  return down;
};
const sortable = (table) => {
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (!heading || !event.target.closest("button")) return;
    const down = mark(heading);
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => [sortKey(row.cells[heading.cellIndex]), row]);
    body.append(...rows.sort(([a], [b]) => compare(a, b, down)).map(([, row]) => row));
  });
};
document.querySelectorAll("table.sortable").forEach(sortable);

// ---- tables; the kind of a column decides how its cells are shown: text, number, percent or run

const KINDS = {
  text: { numeric: false, text: show },
  number: { numeric: true, text: show },
  percent: { numeric: true, text: (value) => value.toFixed(2) },
  run: { numeric: false, text: show },
};
const headings = (columns) => make("tr", {}, ...columns.map(({ heading, kind }) => {
  const cell = make("th", { scope: "col", className: KINDS[kind].numeric ? "number" : "" },
    make("button", { type: "button", textContent: heading }));
  cell.setAttribute("aria-sort", "none");
  return cell;
}));
const cell = (row, { key, kind }) => {
  const value = row[key];
  const missing = value === null || value === undefined || value === "";
  const { numeric, text } = KINDS[kind];
  const shown = missing ? show(null) : text(value);
  const node = make("td", { textContent: shown, className: (numeric ? "number" : "") + (missing ? " missing" : "") });
  if (numeric && !missing) node.dataset.sort = value;
  if (kind === "run") {
    node.replaceChildren(make("button", { type: "button", className: "runs", textContent: shown }));
    node.firstChild.dataset.runs = row.index;
  }
  return node;
};
const bodyRows = (columns, rows) => rows.map((row) => make("tr", {}, ...columns.map((column) => cell(row, column))));
const tableOf = (columns, rows) => {
  const table = make("table", {}, make("thead", {}, headings(columns)), make("tbody", {}, ...bodyRows(columns, rows)));
  sortable(table);
  return make("div", { className: "box" }, table);
};

// ---- details of a run, built when they are opened

let parsed;
const data = () => (parsed ??= JSON.parse(document.getElementById("data").textContent));
const title = (run) => [run.dataset, run.mode, run.arch, run.eps === null ? "" : `ε ${run.eps}`,
  run.mean === null ? "" : `${KINDS.percent.text(run.mean)} %`].filter(Boolean).join(" · ") || run.kind;
const list = (entries) => make("dl", {}, ...entries.flatMap(([key, value]) =>
  [make("dt", { textContent: key }), make("dd", { textContent: show(value) })]));
const part = (name, ...nodes) => [make("h3", { textContent: name }), ...nodes];
const isTable = (value) => Array.isArray(value) && value.length > 0
  && value.every((row) => row && typeof row === "object" && !Array.isArray(row));
const inWords = (value) => (value && typeof value === "object"
  ? Object.entries(value).map(([key, x]) => `${key} ${show(x)}`).join(", ") : value);

const metrics = (run) => {
  const entries = Object.entries(run.metrics);
  const nodes = part("Metrics", list(entries.filter(([, value]) => !isTable(value))));
  for (const [name, rows] of entries.filter(([, value]) => isTable(value))) {
    const columns = [...new Set(rows.flatMap(Object.keys))].map((key) => ({ key, heading: key,
      kind: rows.some((row) => typeof row[key] === "number") ? "number" : "text" }));
    const shown = rows.map((row) => Object.fromEntries(Object.entries(row).map(([key, x]) => [key, inWords(x)])));
    nodes.push(...part(name, tableOf(columns, shown)));
  }
  return nodes;
};
const CLASSES = [
  { key: "name", heading: "class", kind: "text" },
  { key: "images", heading: "test images, all trials", kind: "number" },
  { key: "recall", heading: "recall, percent", kind: "number" },
];
const classes = (run) => {
  if (run.skipped_classes) return [make("p", { textContent: `${run.skipped_classes} is in the folder of the result.` })];
  if (!run.recalls) return [];
  const rows = data().classes[run.classes].map(([name, images], i) => ({ name, images, recall: run.recalls[i] }));
  return [make("details", {}, make("summary", { textContent: `Recall of each class: ${rows.length}` }), tableOf(CLASSES, rows))];
};
const pictures = (run) => [
  ...(run.pictures ?? []).map(([name, source]) => make("figure", {},
    make("img", { src: source, alt: `picture of this run: ${name}` }), make("figcaption", { textContent: name }))),
  ...(run.skipped_pictures ?? []).map((name) => make("p", { textContent: `${name} is in the folder of the result.` })),
];
const body = (run) => {
  const common = Object.entries(data().common);
  const node = make("div", {},
    ...(run.simulated ? [make("p", { className: "loud" }, make("strong", { textContent: "SIMULATED" }), " No network was trained for this result.")] : []),
    list([["file", run.path], ["kind", run.kind], ...Object.entries(run.facts)]),
    ...metrics(run), ...pictures(run), ...classes(run),
    ...part("Settings", list(Object.entries(run.settings))));
  if (common.length) node.append(make("details", {},
    make("summary", { textContent: `Settings that all runs of this page share: ${common.length}` }), list(common)));
  return node;
};

const dialog = document.getElementById("dialog");
const open = (indices, heading) => {
  const runs = indices.map((index) => data().rows[index]).filter(Boolean);
  document.getElementById("dialog-title").textContent = heading;
  document.getElementById("details").replaceChildren(...runs.map((run, i) => {
    const node = make("details", { open: i === 0 }, make("summary", { textContent: `${title(run)} · ${run.path}` }));
    const fill = () => { if (node.open && node.children.length === 1) node.append(body(run)); };
    node.addEventListener("toggle", fill);
    fill();
    return node;
  }));
  dialog.showModal();
  dialog.scrollTop = 0;
};
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.runs");
  if (button) {
    const indices = button.dataset.runs.split(" ").map(Number);
    open(indices, indices.length === 1 ? "The run behind this number" : `The ${indices.length} runs behind this number`);
  }
  if (event.target === dialog) dialog.close(); // a click outside of the dialog's content
});

// ---- all runs, a page at a time

const STEP = 100;
const COLUMNS = [
  { key: "kind", heading: "kind", kind: "text" },
  { key: "dataset", heading: "dataset", kind: "text" },
  { key: "mode", heading: "mode", kind: "text" },
  { key: "arch", heading: "network", kind: "text" },
  { key: "eps", heading: "ε", kind: "number" },
  { key: "protocol", heading: "protocol", kind: "text" },
  { key: "trials", heading: "trials", kind: "number" },
  { key: "mean", heading: "mean, percent", kind: "percent" },
  { key: "path", heading: "file", kind: "run" },
];
const state = { rows: [], shown: STEP, found: [] };
const all = document.getElementById("all");

const fill = () => {
  const rows = state.found.slice(0, state.shown);
  all.tBodies[0].replaceChildren(...bodyRows(COLUMNS, rows));
  const more = document.getElementById("more");
  const left = state.found.length - rows.length;
  more.hidden = left <= 0;
  more.textContent = `Show ${Math.min(STEP, left)} more of ${left}`;
  document.getElementById("count").textContent = `${state.found.length} of ${state.rows.length} runs`;
};
const filter = () => {
  const parts = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  state.found = state.rows.filter((run) => parts.every((text) => run.text.includes(text)));
  state.shown = STEP;
  fill();
};
const start = () => {
  state.rows = data().rows.map((run, index) => ({ ...run, index,
    text: [run.kind, run.dataset, run.mode, run.arch, run.eps === null ? "" : `eps${run.eps}`, run.protocol, run.path].join(" ").toLowerCase() }));
  all.tHead.append(headings(COLUMNS));
  all.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("button")?.parentElement;
    if (!heading) return;
    const down = mark(heading), { key } = COLUMNS[heading.cellIndex];
    const value = (run) => (run[key] === "" ? null : run[key]);
    state.rows.sort((a, b) => compare(value(a), value(b), down));
    filter();
  });
  document.getElementById("filter").addEventListener("input", filter);
  document.getElementById("more").addEventListener("click", () => { state.shown += STEP; fill(); });
  filter();
};
start();
for (const node of document.querySelectorAll("[data-pictures]")) { // pictures of Figure 1
  node.append(...data().rows.filter((run) => run.kind === node.dataset.pictures).flatMap((run) =>
    [...pictures(run), make("p", { className: "caption", textContent: run.path })]));
}
