// What is asked is read from the form, kept in the address, and answered from DATA. CHART is a Vega-Lite specification.
"use strict";

const SHOWN = { time: ["Projected time by stage", "s", 1e-9], flop: ["FLOP by stage", "TFLOP", 1e-12], moved: ["Bytes moved by stage", "GB", 1e-9] };
const form = document.getElementById("asked");
const field = (name) => form.elements[name];
const by = (id) => document.getElementById(id);
const chosen = () => DATA.models.find((model) => model.name === field("model").value);

function amount(value) {
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  return value === 0 ? "0" : String(Number(value.toPrecision(3)));
}

function offer(name, values, wanted) {
  const select = field(name);
  select.replaceChildren(...values.map((value) => new Option(value, value)));
  if (values.map(String).includes(String(wanted))) select.value = wanted;
}

const sizeOf = (size) => `${size.height} × ${size.width}`;
const unique = (values) => [...new Set(values)];

// The sizes, frames and steps of a model; what was asked before stays where the model takes it.
function offerModel(wanted) {
  const model = chosen();
  const sizes = unique(model.sizes.map(sizeOf));
  offer("size", sizes, wanted.size ?? sizes[Math.min(1, sizes.length - 1)]);
  const frames = unique(model.sizes.map((size) => size.frames)).filter(Boolean);
  offer("frames", frames.length ? frames : ["–"], wanted.frames ?? frames[frames.length - 1]);
  field("frames").disabled = !frames.length;
  field("steps").disabled = model.steps === null;
  field("steps").value = model.steps === null ? "" : (wanted.steps ?? model.steps);
  field("steps").title = model.steps === null ? "a cascade: each denoiser keeps its own default" : "";
}

const stepsAsked = (model) => (model.steps === null ? null : Number(field("steps").value));

function wrong(model) {
  const steps = stepsAsked(model);
  if (steps === null || (Number.isInteger(steps) && steps >= 1 && steps <= 1000)) return "";
  return `steps=${field("steps").value || "nothing"} is not possible; give a whole number from 1 to 1000`;
}

// The cells of what is asked: stage, category, and amounts of the whole generation.
function answer() {
  const model = chosen();
  const size = model.sizes.find((each) => sizeOf(each) === field("size").value && (!each.frames || String(each.frames) === field("frames").value));
  const batch = size.batches[DATA.batches.indexOf(Number(field("batch").value))];
  const gpu = DATA.gpus.findIndex((each) => each.name === field("gpu").value);
  const more = model.steps === null ? 1 : stepsAsked(model) / model.steps;
  const cells = batch.cells.map(([stage, category, flop, moved, ...times]) => {
    const factor = 1 - model.per_step[stage] + model.per_step[stage] * more;
    return { stage, category, flop: flop * factor, moved: moved * factor, time: times[gpu] * factor };
  });
  return { model, size, cells, gpu: DATA.gpus[gpu], peak: model.weight_bytes + batch.live_bytes };
}

const sum = (cells, name) => cells.reduce((total, cell) => total + cell[name], 0);

function tell({ model, cells, gpu, peak }) {
  const [seconds, flop] = [sum(cells, "time") * 1e-9, sum(cells, "flop")];
  const batch = Number(field("batch").value);
  const rows = [
    ["Projected time", `${amount(seconds)} s`, `${amount(seconds / batch)} s each of ${batch}`],
    ["Memory at the peak", `${amount(peak / 1e9)} GB`, `${peak <= gpu.memory_bytes ? "fits" : "does not fit"} ${amount(gpu.memory_bytes / 1e9)} GB`],
    ["FLOP", `${amount(flop / 1e12)} T`, `${amount(flop / seconds / 1e12)} TFLOP/s`],
    ["Bytes moved", `${amount(sum(cells, "moved") / 1e9)} GB`, `weights ${amount(model.weight_bytes / 1e9)} GB`],
  ];
  by("answer").replaceChildren(...rows.map(([name, value, more]) => {
    const box = document.createElement("div");
    const [term, said, small] = ["dt", "dd", "small"].map((tag) => document.createElement(tag));
    [term.textContent, small.textContent] = [name, more];
    said.append(value, small);
    box.append(term, said);
    return box;
  }));
  by("summary").textContent = model.summary;
}

function table(id, head, rows) {
  const line = (cells, tag) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => Object.assign(document.createElement(tag), { textContent: text })));
    return row;
  };
  const [top, body] = [document.createElement("thead"), document.createElement("tbody")];
  top.append(line(head, "th"));
  body.append(...rows.map((row) => line(row, "td")));
  by(id).replaceChildren(top, body);
}

function tabulate({ model, size, cells }) {
  const steps = stepsAsked(model) ?? 0;
  const total = sum(cells, "time");
  const rows = model.stages.map((name, stage) => {
    const own = cells.filter((cell) => cell.stage === stage);
    const calls = model.calls[stage][0] + model.calls[stage][1] * steps;
    const time = sum(own, "time");
    return [name, calls, amount(time * 1e-9), `${amount(100 * time / total)} %`, amount(sum(own, "flop") * 1e-12), amount(sum(own, "moved") * 1e-9)];
  });
  table("stages", ["stage", "calls", "s", "of time", "TFLOP", "GB moved"], rows);
  const span = (low, high) => (low === high ? String(low) : `${low} to ${high}`);
  table("lengths", ["stage", "attention", "query", "key, at most"], size.lengths.map(([stage, kind, low, high, key]) => [model.stages[stage], kind, span(low, high), key]));
}

function draw({ model, cells }) {
  const [title, unit, scale] = SHOWN[field("show").value];
  const key = field("show").value;
  const total = sum(cells, key);
  const rows = cells.filter((cell) => cell[key] > 0).map((cell) => ({
    stage: model.stages[cell.stage],
    category: DATA.categories[cell.category],
    order: cell.category,
    value: cell[key] * scale,
    shown: `${amount(cell[key] * scale)} ${unit}`,
    share: `${(100 * cell[key] / total).toFixed(1)} % of all`,
  }));
  by("charted").textContent = `${title} (${unit})`;
  const spec = structuredClone(CHART);
  spec.data = { values: rows };
  spec.height = 34 * unique(rows.map((row) => row.stage)).length;
  spec.encoding.x.title = unit;
  const shown = DATA.categories.filter((name) => rows.some((row) => row.category === name));
  spec.encoding.color.scale = { domain: shown, range: shown.map((name) => COLORS[name]) };
  spec.encoding.color.legend.columns = by("chart").clientWidth < 480 ? 2 : 4;
  spec.config = { background: null, view: { stroke: null }, axis: { gridColor: "#8884" } };
  return vegaEmbed("#chart", spec, { renderer: "svg", actions: false });
}

function update() {
  const line = wrong(chosen());
  by("wrong").textContent = line;
  if (line) return;  // the last answer stays
  const found = answer();
  tell(found);
  tabulate(found);
  draw(found);
  const { model, size } = found;
  const asked = [["height", size.height], ["width", size.width], ["frames", size.frames], ["batch", field("batch").value], ["steps", stepsAsked(model)]];
  const options = asked.filter(([, value]) => value).map(([name, value]) => `--${name} ${value}`).join(" ");
  by("again").textContent = `mmchar project ${model.name} --gpu ${field("gpu").value} ${options}`;
  history.replaceState(null, "", "#" + new URLSearchParams([...new FormData(form)]));
}

function start() {
  const wanted = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  offer("model", DATA.models.map((model) => model.name), wanted.model);
  offer("gpu", DATA.gpus.map((gpu) => gpu.name), wanted.gpu);
  offer("batch", DATA.batches, wanted.batch);
  if (wanted.show in SHOWN) field("show").value = wanted.show;
  offerModel(wanted);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target === field("model")) offerModel({ });
    update();
  });
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width !== width && !by("wrong").textContent) draw(answer());
    width = entry.contentRect.width;
  }).observe(by("chart"));
  update();
}

start();
