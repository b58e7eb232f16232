/* Filters, cards and keys. Names are only ever set as text. */
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const WORDS = { accepted: "accepted", "needs-correction": "needs correction", rejected: "rejected" };
const KEYS = { a: "accepted", c: "needs-correction", r: "rejected" };
const colours = new Map([...data.classes, data.void].map(([value, name, colour]) => [value, { name, colour }]));
const undone = [];
const store = makeStore(data, (text, bad = false) => {
  byId("state").textContent = text;
  byId("state").classList.toggle("bad", bad);
});

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

const namesOf = (item) => item[3].map((value) => colours.get(value)?.name ?? String(value));
const sure = (item) => (item[2] === null ? "no confidence" : item[2].toFixed(2));

function source(item, ending, folder = data.pictures) {
  return `${folder}/${item[1]}${ending}?${item[5].slice(7)}`;
}

function picture(item, ending, className) {
  const image = element("img", className);
  image.alt = "";
  image.decoding = "async";
  image.draggable = false;
  image.src = source(item, ending);
  return image;
}

function makeCard(index) {
  const item = data.items[index];
  const card = element("article", "card");
  card.setAttribute("role", "listitem");
  const frame = element("div", "picture");
  if (item[4]) frame.append(picture(item, ".jpg", "photo"));
  frame.append(picture(item, ".webp", "mask"));
  const badge = element("span", "badge");
  frame.append(badge);
  const about = element("div", "about");
  const name = element("b", "name", item[0]);
  name.title = item[0];
  const line = element("div", "line");
  line.append(element("span", "figure", sure(item)), swatches(item));
  const buttons = element("div", "buttons");
  for (const [key, decision] of Object.entries(KEYS)) {
    const button = element("button");
    button.type = "button";
    button.dataset.say = decision;
    button.append(element("i", `mark ${decision}`));
    button.title = `${WORDS[decision]} (${key})`;
    button.setAttribute("aria-label", `${WORDS[decision]}: ${item[0]}`);
    button.tabIndex = -1;
    buttons.append(button);
  }
  line.append(buttons);
  about.append(name, line);
  card.append(frame, about);
  card.addEventListener("click", (event) => {
    const said = event.target.closest("button")?.dataset.say;
    grid.go(grid.placeOf(index));
    if (said) decide(index, said, false);
  });
  card.addEventListener("dblclick", (event) => {
    if (!event.target.closest("button")) openLarge();
  });
  dress(card, index);
  return card;
}

function swatches(item) {
  const names = namesOf(item);
  const made = element("span", "swatches");
  item[3].slice(0, 6).forEach((value) => {
    const dot = element("i", "dot");
    dot.style.backgroundColor = colours.get(value)?.colour ?? "transparent";
    made.append(dot);
  });
  made.append(element("span", "soft", names.join(", ") || "no object"));
  made.title = names.join(", ");
  return made;
}

function dress(card, index) {
  const said = store.get(index);
  card.dataset.said = said ?? "";
  const badge = card.querySelector(".badge");
  badge.replaceChildren();
  if (said) badge.append(element("i", `mark ${said}`), WORDS[said]);
  for (const button of card.querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.say === said);
  const item = data.items[index];
  const classes = namesOf(item).join(", ") || "no object";
  card.setAttribute("aria-label", `${item[0]}, confidence ${sure(item)}, ${classes}, ${WORDS[said] ?? "undecided"}`);
}

const grid = makeGrid(byId("view"), byId("cards"), makeCard);
const lower = data.items.map((item) => item[0].toLowerCase());
const counts = { accepted: 0, "needs-correction": 0, rejected: 0 };
data.items.forEach((_, index) => {
  if (store.get(index)) counts[store.get(index)]++;
});

function fits(index, filter) {
  const item = data.items[index];
  const said = store.get(index);
  if (filter.said && filter.said !== (said ?? "undecided")) return false;
  if (filter.value === "none" ? item[3].length > 0 : filter.value && !item[3].includes(Number(filter.value))) return false;
  if (item[2] === null ? filter.from > 0 || filter.to < 1 : item[2] < filter.from || item[2] > filter.to) return false;
  return !filter.text || lower[index].includes(filter.text);
}

function number(id, otherwise) {
  const value = byId(id).valueAsNumber;
  return Number.isNaN(value) ? otherwise : value;
}

const chosen = () => document.querySelector("#chips input:checked").value;

function apply(keep) {
  const filter = {
    said: chosen(),
    value: byId("class").value,
    from: number("from", 0),
    to: number("to", 1),
    text: byId("search").value.toLowerCase(),
  };
  const list = orderOf(byId("order").value).filter((index) => fits(index, filter));
  grid.setList(list, keep);
  byId("empty").hidden = list.length > 0;
  count();
}

const orders = {};
function orderOf(name) {
  if (orders[name]) return orders[name];
  const all = data.items.map((_, index) => index); // least confident first, as the list came
  if (name === "most") {
    const known = all.filter((index) => data.items[index][2] !== null).reverse();
    orders[name] = known.concat(all.filter((index) => data.items[index][2] === null));
  } else if (name === "name") {
    const collator = new Intl.Collator(undefined, { numeric: true });
    orders[name] = all.sort((one, other) => collator.compare(data.items[one][0], data.items[other][0]));
  } else orders[name] = all;
  return orders[name];
}

function count() {
  const total = data.items.length;
  const done = counts.accepted + counts.rejected + counts["needs-correction"];
  const figures = { "": total, undecided: total - done, ...counts };
  for (const input of document.querySelectorAll("#chips input")) {
    input.nextElementSibling.querySelector("b").textContent = figures[input.value].toLocaleString("en");
  }
  for (const part of byId("progress").children) part.style.width = `${(100 * counts[part.className]) / (total || 1)}%`;
  const text = `${done.toLocaleString("en")} of ${total.toLocaleString("en")} decided`;
  byId("progress").setAttribute("aria-label", text);
  byId("counted").textContent = grid.length < total ? `${text}, ${grid.length.toLocaleString("en")} shown` : text;
  byId("undo").disabled = undone.length === 0;
}

function change(index, decision) {
  const before = store.get(index);
  if (before === decision) return;
  if (before) counts[before]--;
  if (decision) counts[decision]++;
  store.set(index, decision);
  const card = grid.cardOf(index);
  if (card) dress(card, index);
}

function decide(index, decision, onwards) {
  if (index === undefined) return;
  if (store.get(index) !== decision) undone.push([index, store.get(index)]);
  change(index, decision);
  const place = grid.placeOf(index);
  say(index);
  if (chosen()) {
    apply();
    grid.go(onwards ? place : grid.current);
  } else {
    count();
    if (onwards) grid.go(place + 1);
  }
  fillLarge();
}

function undo() {
  if (!undone.length) return;
  const [index, before] = undone.pop();
  change(index, before);
  apply(index);
  grid.go(Math.max(0, grid.placeOf(index)));
  say(index);
  fillLarge();
}

function say(index) {
  byId("spoken").textContent = `${data.items[index][0]}: ${WORDS[store.get(index)] ?? "undecided"}`;
}

function setOpacity(percent) {
  const value = Math.min(100, Math.max(0, percent));
  byId("opacity").value = value;
  byId("opaque").textContent = `${value}%`;
  document.documentElement.style.setProperty("--opacity", value / 100);
}

let before = 60;
function toggleMask() {
  const now = Number(byId("opacity").value);
  if (now > 0) before = now;
  setOpacity(now > 0 ? 0 : before);
}

/** A dialog whose first button has no focus, so that Enter does not press it. */
function openDialog(dialog) {
  dialog.showModal();
  dialog.focus();
}

const large = byId("large");
function openLarge() {
  if (grid.index === undefined) return;
  openDialog(large);
  fillLarge();
}

function fillLarge() {
  if (!large.open) return;
  if (grid.index === undefined) return large.close();
  const item = data.items[grid.index];
  const folder = data.served ? "large" : data.pictures;
  const [photo, mask] = large.querySelectorAll("img");
  photo.hidden = !item[4];
  if (item[4]) photo.src = source(item, ".jpg", folder);
  mask.src = source(item, ".webp", folder);
  byId("large-name").textContent = item[0];
  const said = WORDS[store.get(grid.index)] ?? "undecided";
  byId("large-about").textContent = `${sure(item)} · ${namesOf(item).join(", ") || "no object"} · ${said}`;
  large.dataset.said = store.get(grid.index) ?? "";
}

function download() {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([store.csv()], { type: "text/csv;charset=utf-8" }));
  link.download = "review.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function clearFilters() {
  byId("search").value = byId("class").value = "";
  byId("from").value = 0;
  byId("to").value = 1;
  document.querySelector("#chips input").checked = true;
  apply();
}

const moves = {
  ArrowLeft: () => grid.current - 1,
  ArrowRight: () => grid.current + 1,
  ArrowUp: () => (grid.current >= grid.columns ? grid.current - grid.columns : grid.current),
  ArrowDown: () => (grid.current + grid.columns < grid.length ? grid.current + grid.columns : grid.current),
  PageUp: () => grid.current - grid.columns * grid.rowsInView,
  PageDown: () => grid.current + grid.columns * grid.rowsInView,
  Home: () => 0,
  End: () => grid.length - 1,
};
const actions = {
  x: () => decide(grid.index, undefined, false),
  Backspace: () => decide(grid.index, undefined, false),
  u: undo,
  m: toggleMask,
  "[": () => setOpacity(Number(byId("opacity").value) - 10),
  "]": () => setOpacity(Number(byId("opacity").value) + 10),
  "/": () => byId("search").focus(),
  "?": () => openDialog(byId("keys")),
  Enter: () => (large.open ? large.close() : openLarge()),
};

addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input:not([type=radio]):not([type=range]), select");
  if (typing && event.key === "Escape") event.target.blur();
  if (typing || event.altKey || byId("keys").open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z" || event.shiftKey) return;
    event.preventDefault();
    return undo();
  }
  if (event.target.matches?.("input") && (key in moves || key === "Enter")) return;
  if (event.target.matches?.("button") && key === "Enter") return;
  if (key in KEYS) decide(grid.index, KEYS[key], true);
  else if (key in moves) {
    grid.go(moves[key](), !large.open);
    fillLarge();
  } else if (key in actions) actions[key]();
  else return;
  event.preventDefault();
});

for (const [value, name, colour] of [...data.classes, data.void]) {
  const used = data.items.reduce((sum, item) => sum + item[3].includes(value), 0);
  if (!used) continue;
  const entry = element("li");
  const dot = element("i", "dot");
  dot.style.backgroundColor = colour;
  entry.append(dot, name);
  byId("legend").append(entry);
  if (value !== data.void[0]) byId("class").append(new Option(`${name} (${used})`, value));
}
byId("class").prepend(new Option("any", ""));
byId("class").append(new Option("no object", "none"));
byId("class").value = "";
for (const id of ["search", "class", "from", "to", "order"]) byId(id).addEventListener("input", () => apply());
byId("chips").addEventListener("change", () => apply());
byId("opacity").addEventListener("input", (event) => setOpacity(Number(event.target.value)));
byId("undo").addEventListener("click", undo);
byId("download").addEventListener("click", download);
byId("help").addEventListener("click", () => openDialog(byId("keys")));
byId("keys-close").addEventListener("click", () => byId("keys").close());
byId("close").addEventListener("click", () => large.close());
byId("clear").addEventListener("click", clearFilters);
large.addEventListener("click", (event) => {
  const said = event.target.closest("button")?.dataset.say;
  if (said) decide(grid.index, said, true);
});
large.addEventListener("close", () => grid.go(grid.current));
setOpacity(60);
apply();
const undecided = data.items.findIndex((_, index) => !store.get(index));
grid.go(undecided > 0 ? undecided : 0);
