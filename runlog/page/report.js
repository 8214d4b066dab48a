"use strict";
const { trajectories, again, pictures } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
// Text of a model goes into the page as text alone; characters that steer the display are spelled out.
const STEERING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;
const spelled = (c) => "\u27e6U+" + c.charCodeAt(0).toString(16).padStart(4, "0") + "\u27e7";
const plain = (text) => String(text ?? "").replace(STEERING, spelled);

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
function shape(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
const number = (value) => (value === null || value === undefined ? "-" : value.toFixed(2).replace("-", "\u2212"));
const unique = (values) => [...new Set(values)].filter((value) => value !== undefined && value !== null);
const isCorrect = (row) => row.reward.accuracy > 0;

// ---------------------------------------------------------------------------------------------------
// A trajectory.

function look(row) {
  const [width, height] = row.size, scale = Math.max(width, height) / 100;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.append(shape("title", {}, `${row.boxes.length} boxes, ${row.targets.length} targets (dashed)`));
  const frame = ([x1, y1, x2, y2], stroke) => shape("rect", {
    x: x1, y: y1, width: x2 - x1, height: y2 - y1, fill: "none", "stroke-width": scale, ...stroke,
  });
  for (const box of row.targets) {
    svg.append(frame(box, { stroke: "#0009" }));
    svg.append(frame(box, { stroke: "#fff", "stroke-dasharray": `${3 * scale} ${2 * scale}` }));
  }
  const numbers = cropNumbers(row);
  const letters = { fill: "#f0f", "font-size": 7 * scale, "font-weight": "bold" };
  row.boxes.forEach(([x1, y1, x2, y2], i) => {
    // Above the box, or below it, so that the number hides nothing that the box holds.
    const y = y1 > 8 * scale ? y1 - scale : Math.min(y2 + 7 * scale, height);
    svg.append(frame([x1, y1, x2, y2], { stroke: "#f0f" }));
    svg.append(shape("text", { ...letters, x: x1, y }, numbers[i]));
  });
  const image = node("img", { alt: "the first look" });
  if (pictures[row.pictures[0]]) image.src = pictures[row.pictures[0]];
  return node("div", { class: "look" }, image, svg);
}
function crop(row, i) {
  const source = pictures[row.pictures[i]];
  return source ? node("img", { src: source, alt: `crop ${i}` }) : "";
}
// What it wrote, and what it was given in between.
function transcript(row) {
  const parts = [];
  let image = 0;
  row.turns.forEach((turn, i) => {
    parts.push(node("div", { class: "turn", dir: "auto" }, plain(turn)));
    const seen = (row.observations || [])[i];
    if (seen === undefined) return;
    const element = node("div", { class: "seen", title: "given, not trained on" });
    if (seen.includes("[crop]")) {
      image += 1;
      element.append(crop(row, image), `${imageName(row, image)} + format reminder`);
    } else {
      element.classList.add("error");
      element.append(plain((seen.match(/Error: .*?(?=<\|im_end\|>|$)/s) || [seen])[0]));
    }
    parts.push(element);
  });
  return parts;
}
// The numbers of the images that are crops, in the order of the boxes.
function cropNumbers(row) {
  const tools = row.tools || row.boxes.map(() => "image_zoom_in_tool");
  return tools.map((tool, i) => [tool, i + 1]).filter(([tool]) => tool === "image_zoom_in_tool").map(([, i]) => i);
}
// What an image is, by the tool that brought it. Older rows, of zooms alone, name no tools.
function imageName(row, index) {
  const tool = (row.tools || [])[index - 1] || "image_zoom_in_tool";
  return tool === "image_zoom_in_tool" ? `crop ${index}` : `${plain(tool)}, image ${index}`;
}
function rewardText({ reward, advantage }) {
  const asked = ["price", "curiosity"].filter((name) => reward[name]);
  const names = ["accuracy", "format", "tool", ...asked];
  const terms = names.map((name) => `${name} ${number(reward[name])}`).join(", ");
  const end = advantage == null ? "" : `; advantage ${number(advantage)}`;
  return node("p", { class: "terms" }, `reward ${number(reward.total)}: ${terms}${end}`);
}
function card(row) {
  const answer = node("strong", { dir: "auto" }, plain(row.answer ?? "none"));
  const parts = [look(row), ...transcript(row), node("p", {}, "answer: ", answer, ` (${row.stop})`)];
  if (row.arm) parts.unshift(node("strong", {}, plain(row.arm)));
  else parts.push(rewardText(row));
  const verdict = !row.gold ? "" : isCorrect(row) ? " correct" : " wrong";
  return node("article", { class: "card" + verdict }, ...parts);
}
function group(rows) {
  const row = rows[0], head = node("div", { class: "head" });
  head.append(
    node("strong", {}, row.arm ? plain(row.id) : `step ${row.step}`),
    node("span", { dir: "auto" }, plain(row.question)),
    node("span", { class: "quiet" }, row.gold ? "gold: " + plain(row.gold) : ""),
  );
  const box = { class: "members", tabindex: "0", role: "group", "aria-label": "members of the group" };
  return node("div", { class: "group" }, head, node("div", box, ...rows.map(card)));
}

// ---------------------------------------------------------------------------------------------------
// One question at the first stored step, and at the step of the slider.

const PLAYED = 5000; // ms for all steps
const probes = trajectories.filter((row) => row.probe);
let asked = []; // the rows of the chosen question, oldest first
let playing = 0; // the timer

function end(row, name) {
  const tone = isCorrect(row) ? "good" : "bad", word = isCorrect(row) ? "\u2713 correct" : "\u2717 wrong";
  const crops = row.pictures.slice(1).map((_, i) => crop(row, i + 1));
  if (!crops.length) crops.push(node("div", { class: "none quiet" }, "no zoom"));
  const verdict = node("p", { dir: "auto" }, node("strong", { class: tone }, word), ": ");
  verdict.append(node("strong", {}, plain(row.answer ?? "no answer")));
  if (row.gold) verdict.append(node("span", { class: "quiet" }, ` (gold: ${plain(row.gold)})`));
  return node("article", { class: "end " + tone },
    node("p", {}, node("strong", {}, name), ` step ${row.step}`),
    look(row), node("div", { class: "crops" }, ...crops), verdict,
    node("details", {}, node("summary", { class: "quiet" }, "what it wrote"), ...transcript(row)));
}
// A bar for each step: high where the answer was correct.
function drawStrip(at) {
  const strip = byId("strip");
  strip.setAttribute("viewBox", `0 0 ${asked.length} 1`);
  strip.setAttribute("aria-label", `correct at ${asked.filter(isCorrect).length} of ${asked.length} stored steps`);
  strip.replaceChildren(...asked.map((row, i) => {
    const height = isCorrect(row) ? 1 : 0.3, colour = isCorrect(row) ? "var(--good)" : "var(--bad)";
    return shape("rect", { x: i + 0.08, y: 1 - height, width: 0.84, height, fill: colour, opacity: i === at ? 1 : 0.4 });
  }));
}
function showStep() {
  const at = Math.min(Number(byId("when").value), asked.length - 1), row = asked[at];
  byId("probe-step").textContent = row.step;
  const name = at === asked.length - 1 ? "last" : "then";
  const now = asked.length > 1 ? [end(row, name)] : [];
  const view = byId("probe-view"), open = [...view.querySelectorAll("details")].map((element) => element.open);
  view.replaceChildren(end(asked[0], "first"), ...now);
  view.querySelectorAll("details").forEach((element, i) => { element.open = open[i] ?? false; });
  drawStrip(at);
}
function showQuestion() {
  stop();
  asked = probes.filter((row) => row.id === byId("probe").value);
  byId("through").hidden = asked.length < 2;
  byId("when").max = asked.length - 1;
  byId("when").value = asked.length - 1;
  showStep();
}
function stop() {
  clearInterval(playing);
  playing = 0;
  byId("play").textContent = "\u25b6\ufe0e Play";
}
function advance() {
  byId("when").value = Number(byId("when").value) + 1;
  showStep();
  if (Number(byId("when").value) >= asked.length - 1) stop();
}
function play() {
  if (playing) return stop();
  if (Number(byId("when").value) >= asked.length - 1) byId("when").value = 0;
  showStep();
  byId("play").textContent = "\u23f8\ufe0e Pause";
  playing = setInterval(advance, Math.max(120, PLAYED / asked.length));
}
if (again.length) {
  for (const id of again) {
    byId("probe").append(node("option", { value: id }, plain(probes.find((row) => row.id === id).question)));
  }
  byId("probe").addEventListener("input", showQuestion);
  byId("when").addEventListener("input", () => { stop(); showStep(); });
  byId("play").addEventListener("click", play);
  showQuestion();
}

// ---------------------------------------------------------------------------------------------------
// All groups, and the choice among them.

const PAGE = 12;
const normal = trajectories.filter((row) => !row.probe);
const form = byId("filters");
for (const step of unique(normal.map((row) => row.step))) form.elements.step.append(node("option", {}, String(step)));
for (const kind of unique(normal.map((row) => (row.meta || {}).kind)).sort()) {
  form.elements.kind.append(node("option", {}, plain(kind)));
}
let found = [], shown = 0;
function wanted(row) {
  const f = Object.fromEntries(new FormData(form)), yes = (value, is) => value === "" || (value === "yes") === is;
  return (f.step === "" || String(row.step) === f.step) && (f.kind === "" || plain((row.meta || {}).kind) === f.kind)
    && (f.answer === "" || (f.answer === "correct") === isCorrect(row)) && yes(f.zoomed, row.pictures.length > 1)
    && yes(f.error, row.errors.length > 0)
    && (f.least === "" || row.reward.total >= Number(f.least)) && (f.most === "" || row.reward.total <= Number(f.most));
}
function showMore() {
  byId("groups").append(...found.slice(shown, shown + PAGE).map(group));
  shown = Math.min(shown + PAGE, found.length);
  byId("more").hidden = shown >= found.length;
}
function filter() {
  const groups = new Map(), rows = normal.filter(wanted);
  for (const row of rows) {
    const key = row.step + " " + row.id;
    groups.set(key, [...(groups.get(key) || []), row]);
  }
  found = [...groups.values()];
  shown = 0;
  byId("groups").replaceChildren();
  byId("count").textContent = `${rows.length} of ${normal.length} trajectories in ${found.length} groups`;
  showMore();
}
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", (event) => event.preventDefault());
byId("more").addEventListener("click", showMore);
filter();
