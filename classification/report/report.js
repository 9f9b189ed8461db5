"use strict";
// Every text from a result goes in through textContent, so that it stays text.

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

// ---- sorting: what is missing comes last, whichever way

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

const headings = (names, numbers) => make("tr", {}, ...names.map((name, i) => {
  const heading = make("th", { scope: "col", className: numbers[i] ? "number" : "" },
    make("button", { type: "button", textContent: name }));
  heading.setAttribute("aria-sort", "none");
  return heading;
}));
const cell = (value, number) => {
  const missing = value === null || value === undefined;
  const node = make("td", { textContent: show(value),
    className: (number ? "number" : "") + (missing ? " missing" : "") });
  if (number && !missing) node.dataset.sort = value;
  return node;
};
const boxed = (names, rows) => {
  const numbers = names.map((_, i) => rows.some((row) => typeof row[i] === "number"));
  const table = make("table", {}, make("thead", {}, headings(names, numbers)),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((v, i) => cell(v, numbers[i]))))));
  sortable(table);
  return make("div", { className: "box" }, table);
};

// ---- one run, drawn when it is asked for

let parsed;
const data = () => (parsed ??= JSON.parse(document.getElementById("data").textContent));
const title = (run) => [run.dataset, run.mode, run.arch, run.eps === null ? "" : `ε ${run.eps}`,
  run.mean === null ? "" : `${run.mean.toFixed(2)} %`].filter(Boolean).join(" · ") || run.kind;
const list = (entries) => make("dl", {}, ...entries.flatMap(([key, value]) =>
  [make("dt", { textContent: key }), make("dd", { textContent: show(value) })]));
const part = (name, ...nodes) => [make("h3", { textContent: name }), ...nodes];
const isTable = (value) => Array.isArray(value) && value.length > 0
  && value.every((row) => row && typeof row === "object" && !Array.isArray(row));

const metrics = (run) => {
  const entries = Object.entries(run.metrics);
  const nodes = part("Metrics", list(entries.filter(([, value]) => !isTable(value))));
  for (const [name, rows] of entries.filter(([, value]) => isTable(value))) {
    const names = [...new Set(rows.flatMap(Object.keys))];
    const plain = (v) => (v && typeof v === "object"
      ? Object.entries(v).map(([k, x]) => `${k} ${show(x)}`).join(", ") : v);
    nodes.push(...part(name, boxed(names, rows.map((row) => names.map((n) => plain(row[n] ?? null))))));
  }
  return nodes;
};
const classes = (run) => {
  if (!run.recalls) return run.skipped_classes ? [make("p", { textContent: `${run.skipped_classes} lies beside the result.` })] : [];
  const rows = data().classes[run.classes].map(([name, images], i) => [name, images, run.recalls[i]]);
  return [make("details", {}, make("summary", { textContent: `Recall of each class: ${rows.length}` }),
    boxed(["class", "test images, all trials", "recall, percent"], rows))];
};
const pictures = (run) => [
  ...(run.pictures ?? []).map(([name, source]) => make("figure", {},
    make("img", { src: source, alt: `picture of this run: ${name}` }), make("figcaption", { textContent: name }))),
  ...(run.skipped_pictures ?? []).map((name) => make("p", { textContent: `${name} lies beside the result.` })),
];
const body = (run) => {
  const common = Object.entries(data().common);
  const made = make("div", {},
    ...(run.simulated ? [make("p", { className: "loud" }, make("strong", { textContent: "SIMULATED" }), " This run was never made.")] : []),
    list([["file", run.path], ["kind", run.kind], ...Object.entries(run.facts)]),
    ...metrics(run), ...pictures(run), ...classes(run),
    ...part("Settings", list(Object.entries(run.settings))));
  if (common.length) made.append(make("details", {},
    make("summary", { textContent: `Settings that all runs of this page share: ${common.length}` }), list(common)));
  return made;
};

const dialog = document.getElementById("dialog");
const open = (places, heading) => {
  const runs = places.map((place) => data().rows[place]).filter(Boolean);
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
    const places = button.dataset.runs.split(" ").map(Number);
    open(places, places.length === 1 ? "The run behind this number" : `The ${places.length} runs behind this number`);
  }
  if (event.target === dialog) dialog.close(); // beside the dialog
});

// ---- all runs, a page at a time

const STEP = 100;
const COLUMNS = [["kind", "kind"], ["dataset", "dataset"], ["mode", "mode"], ["network", "arch"], ["ε", "eps"], ["protocol", "protocol"],
  ["trials", "trials"], ["mean, percent", "mean"], ["file", "path"]];
const NUMBERS = ["eps", "trials", "mean"];
const state = { rows: [], shown: STEP, found: [] };
const all = document.getElementById("all");

const fill = () => {
  const rows = state.found.slice(0, state.shown).map((run) => make("tr", {}, ...COLUMNS.map(([, key], i) => {
    const value = key === "mean" && run.mean !== null ? run.mean.toFixed(2) : run[key];
    const node = cell(value === "" ? null : value, NUMBERS.includes(key));
    if (i === COLUMNS.length - 1) {
      node.replaceChildren(make("button", { type: "button", className: "runs", textContent: value }));
      node.firstChild.dataset.runs = run.place;
    }
    return node;
  })));
  all.tBodies[0].replaceChildren(...rows);
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
  state.rows = data().rows.map((run, place) => ({ ...run, place,
    text: [run.kind, run.dataset, run.mode, run.arch, run.eps === null ? "" : `eps${run.eps}`, run.protocol, run.path].join(" ").toLowerCase() }));
  all.tHead.append(headings(COLUMNS.map(([name]) => name), COLUMNS.map(([, key]) => NUMBERS.includes(key))));
  all.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("button")?.parentElement;
    if (!heading) return;
    const down = mark(heading), key = COLUMNS[heading.cellIndex][1];
    const value = (run) => (run[key] === "" ? null : run[key]);
    state.rows.sort((a, b) => compare(value(a), value(b), down));
    filter();
  });
  document.getElementById("filter").addEventListener("input", filter);
  document.getElementById("more").addEventListener("click", () => { state.shown += STEP; fill(); });
  filter();
};
start();
for (const place of document.querySelectorAll("[data-pictures]")) { // Figure 1 is made of pictures
  place.append(...data().rows.filter((run) => run.kind === place.dataset.pictures).flatMap((run) =>
    [...pictures(run), make("p", { className: "caption", textContent: run.path })]));
}
