
"use strict";
// Everything is shown through textContent and attributes that hold no code: a text is never parsed.
const content = JSON.parse(document.getElementById("content").textContent);
const byId = (id) => document.getElementById(id);

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function fixed(value, digits) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

function plural(count, one, many) {
  return count.toLocaleString("en") + " " + (count === 1 ? one : many);
}

// ------------------------------------------------------------ colours

const dark = window.matchMedia("(prefers-color-scheme: dark)");
let theme = dark.matches ? "dark" : "light";

function showTheme() {
  byId("theme").textContent = theme === "dark" ? "Light colours" : "Dark colours";
}
byId("theme").addEventListener("click", () => {
  theme = theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  showTheme();
});
dark.addEventListener("change", (event) => {
  if (document.documentElement.dataset.theme) return;
  theme = event.matches ? "dark" : "light";
  showTheme();
});
showTheme();

// ------------------------------------------------------------ summary, plans, origin

function describe(list, entries) {
  for (const [label, value] of entries) {
    list.append(make("dt", "", label));
    const place = make("dd");
    if (value.includes("\n")) {
      const block = make("pre", "text", value);
      block.tabIndex = 0;
      block.setAttribute("role", "region");
      block.setAttribute("aria-label", label);
      place.append(block);
    } else {
      place.append(make("span", "text", value));
    }
    list.append(place);
  }
}

function drop(id) {
  const link = document.querySelector(`nav a[href="#${id}"]`);
  if (link) link.remove();
}

function show(id, there) {
  byId(id).hidden = !there;
  if (!there) drop(id);
}

describe(byId("facts"), content.summary || []);
for (const note of content.notes || []) byId("notes").append(make("li", "text", note));
describe(byId("sources"), Object.entries(content.origin || {}));
show("origin", Object.keys(content.origin || {}).length > 0);

const plans = content.plans && content.plans.rows.length ? content.plans : null;
show("plans", plans !== null);
if (plans) {
  const table = byId("plan-table");
  const caption = "One line per plan. The highlighted one is the plan of this page.";
  table.append(make("caption", "", plans.rows.some((row) => row[0] === content.step) ? caption : "One line per plan."));
  const head = make("tr");
  for (const column of plans.columns) {
    const cell = make("th", "number", column.title);
    cell.scope = "col";
    if (column.by) cell.append(make("span", "by", column.by));
    head.append(cell);
  }
  const top = make("thead");
  top.append(head);
  const body = make("tbody");
  for (const row of plans.rows) {
    const line = make("tr", row[0] === content.step ? "current" : "");
    row.forEach((value, i) => {
      const whole = Number.isInteger(value) && i < 2;
      const cell = make(i ? "td" : "th", "number", whole ? value.toLocaleString("en") : fixed(value, 3));
      if (!i) cell.scope = "row";
      line.append(cell);
    });
    body.append(line);
  }
  table.append(top, body);
}

// ------------------------------------------------------------ similarities

// Viridis, which the colour-blind can read, from its own values at ten even steps.
const STOPS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];
function colour(byte) {
  const place = (byte / 255) * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[low].map((value, i) => Math.round(value + (STOPS[low + 1][i] - value) * (place - low)));
}

function paint(canvas, matrix) {
  const bytes = Uint8Array.from(atob(matrix.bytes), (letter) => letter.charCodeAt(0));
  const zoom = Math.max(2, Math.floor(512 / matrix.side));
  canvas.width = canvas.height = matrix.side * zoom;
  const pen = canvas.getContext("2d");
  for (let row = 0; row < matrix.side; row++) {
    for (let column = 0; column < matrix.side; column++) {
      pen.fillStyle = `rgb(${colour(bytes[row * matrix.side + column]).join(",")})`;
      pen.fillRect(column * zoom, row * zoom, zoom, zoom);
    }
  }
  pen.fillStyle = "#ffffff";
  for (let line = matrix.width; matrix.width > 1 && line < matrix.side; line += matrix.width) {
    pen.fillRect(line * zoom - 1, 0, 2, canvas.height);
    pen.fillRect(0, line * zoom - 1, canvas.width, 2);
  }
}

const matrices = content.matrices || [];
show("similarities", matrices.length > 0);
if (matrices.length) {
  const ramp = byId("ramp").getContext("2d");
  for (let byte = 0; byte < 256; byte++) {
    ramp.fillStyle = `rgb(${colour(byte).join(",")})`;
    ramp.fillRect(byte, 0, 1, 1);
  }
}
for (const matrix of matrices) {
  const figure = make("figure");
  const canvas = make("canvas");
  const words = `Mean cosine of negatives within a batch ${fixed(matrix.within, 3)}, between batches ${fixed(matrix.between, 3)}.`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${matrix.title}, ${matrix.model}: similarities of ${matrix.side} rows. ${words}`);
  paint(canvas, matrix);
  const caption = make("figcaption");
  caption.append(make("strong", "", matrix.title), make("span", "", `, by ${matrix.model}. ${words}`));
  figure.append(canvas, caption);
  byId("matrices").append(figure);
}

const charts = content.charts || [];
show("charts", charts.length > 0);
for (const chart of charts) {
  const figure = make("figure");
  const picture = make("img");
  picture.src = chart.data;
  picture.alt = `Chart: ${chart.title}. The table of the plans holds the figures.`;
  figure.append(picture, make("figcaption", "", chart.title));
  byId("pictures").append(figure);
}

// ------------------------------------------------------------ batches

const shown = [];

function textOf(role, text) {
  const place = make("div", "pair");
  const words = make("span", "text", text);
  words.dir = "auto";
  place.append(make("span", "role", role + " "), words);
  return place;
}

function fillBatch(entry) {
  if (entry.table) return;
  const { batch } = entry;
  const table = make("table");
  table.append(make("caption", "", `Rows of batch ${batch.number}`));
  const head = make("tr");
  for (const title of ["Row", "Texts", "Own", "Hardest negatives in the batch"]) {
    const cell = make("th", title === "Own" ? "number" : "", title);
    cell.scope = "col";
    if (title === "Own") cell.title = "Cosine of anchor and own positive";
    head.append(cell);
  }
  const top = make("thead");
  top.append(head);
  const body = make("tbody");
  batch.rows.forEach(([id, own, wrong, nearest], place) => {
    const line = make("tr", wrong ? "tainted" : "");
    line.id = `row-${entry.index}-${place}`;
    line.tabIndex = -1;
    const name = make("th", "", String(id));
    name.scope = "row";
    if (wrong) name.append(make("span", "by", plural(wrong, "probable false negative", "probable false negatives")));
    const texts = make("td");
    texts.append(textOf("anchor", batch.texts[place][0]), textOf("positive", batch.texts[place][1]));
    const list = make("ul", "negatives");
    nearest.forEach(([other, score], rank) => {
      const item = make("li");
      const words = make("div");
      if (rank < wrong) words.append(make("span", "mark", "▲ above own"), " ");
      const text = make("span", "text", batch.texts[other][1]);
      text.dir = "auto";
      words.append(text, make("span", "role", ` row ${batch.ids[other]}`));
      item.append(make("span", "number", fixed(score, 3)), words);
      list.append(item);
    });
    const last = make("td");
    last.append(nearest.length ? list : make("span", "role", "none"));
    line.append(name, texts, make("td", "number", fixed(own, 3)), last);
    body.append(line);
  });
  table.append(top, body);
  entry.element.append(table);
  entry.table = table;
}

const TITLES = {
  all: (count) => `${plural(count, "batch", "batches")}`,
  hardest: (count) => `The ${count} hardest`,
  middle: (count) => `${count} of the middle`,
  easiest: (count) => `The ${count} easiest`,
};
for (const group of content.groups || []) {
  byId("groups").append(make("h3", "", TITLES[group.title](group.batches.length)));
  for (const batch of group.batches) {
    const entry = { batch, index: shown.length, element: make("details"), table: null };
    const line = make("summary");
    line.append(
      make("strong", "", `Batch ${batch.number}`),
      make("span", "", `: loss ${fixed(batch.loss, 2)} nats, hardest negatives ${fixed(batch.hardest, 2)} on average `),
    );
    if (batch.false_negatives) {
      const words = `▲ ${plural(batch.false_negatives, "probable false negative", "probable false negatives")} in ${plural(batch.tainted, "row", "rows")}`;
      line.append(make("span", "mark", words));
    } else {
      line.append(make("span", "quiet", "no probable false negative"));
    }
    entry.element.append(line);
    entry.element.addEventListener("toggle", () => entry.element.open && fillBatch(entry));
    byId("groups").append(entry.element);
    shown.push(entry);
  }
}
byId("only").addEventListener("change", (event) => byId("groups").classList.toggle("only", event.target.checked));

// ------------------------------------------------------------ search

const MOST = 100;

function goTo(entry, place) {
  byId("only").checked = false;
  byId("groups").classList.remove("only");
  entry.element.open = true;
  fillBatch(entry);
  for (const row of document.querySelectorAll("tr.hit")) row.classList.remove("hit");
  const row = byId(`row-${entry.index}-${place}`);
  row.classList.add("hit");
  row.scrollIntoView({ block: "center" });
  row.focus({ preventScroll: true });
}

function search() {
  const query = byId("query").value.trim().toLocaleLowerCase();
  byId("hits").replaceChildren();
  byId("found").textContent = "";
  if (!query) return;
  let count = 0;
  for (const entry of shown) {
    entry.batch.rows.forEach(([id], place) => {
      const text = entry.batch.texts[place].find((one) => one.toLocaleLowerCase().includes(query));
      if (text === undefined) return;
      count += 1;
      if (count > MOST) return;
      const button = make("button");
      button.type = "button";
      const words = make("span", "text", text);
      words.dir = "auto";
      button.append(`Batch ${entry.batch.number}, row ${id}: `, words);
      button.addEventListener("click", () => goTo(entry, place));
      const item = make("li");
      item.append(button);
      byId("hits").append(item);
    });
  }
  const rest = count > MOST ? `, the first ${MOST} of them below` : "";
  byId("found").textContent = count
    ? `${plural(count, "row", "rows")} of this page found${rest}.`
    : "No row of this page holds that. The page may hold a part of the batches only, see the summary.";
}

let waiting = 0;
byId("query").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(search, 150);
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(waiting);
  search();
});
