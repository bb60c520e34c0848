// Sends each image to /v1/predict and shows the answer. Nothing leaves for another place; nothing is stored.

const byId = (id) => document.getElementById(id);
const answers = [];
let model = null;
let token = "";

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers });
  if (response.status === 429 || response.status === 503) {
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((done) => { setTimeout(done, 1000 * seconds); });
    return ask(path, options);
  }
  if (response.status === 401) {
    byId("token-row").hidden = false;
    byId("token").focus();
  }
  if (!response.ok) {
    const { detail } = await response.json().catch(() => ({ detail: "" }));
    throw new Error(typeof detail === "string" && detail ? detail : `the server refuses (${response.status})`);
  }
  return response.json();
}

async function loadModel() {
  try {
    model = await ask("v1/model");
  } catch (error) {
    say(`The model cannot be asked: ${error.message}`);
    return;
  }
  byId("token-row").hidden = true;
  byId("notice").textContent = model.notice;
  const signed = model.signed_by ? `signed by key ${model.signed_by}` : "signature not checked";
  byId("bundle").textContent = `${model.name}, version ${model.version}, ${signed}.`;
  say("");
}

const say = (text) => { byId("status").textContent = text; };
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const titleOf = (name) => model.classes.find((known) => known.name === name)?.title ?? name;

async function askAll(files) {
  if (!model) await loadModel();
  if (!model) return;
  for (const [index, file] of files.entries()) {
    say(`Looking at image ${index + 1} of ${files.length} …`);
    const form = new FormData();
    form.append("file", file, file.name);
    let answer;
    try {
      [answer] = (await ask("v1/predict?pictures=true", { method: "POST", body: form })).results;
    } catch (error) {
      answer = { path: file.name, error: error.message };
    }
    answers.push(answer);
    show(answer);
  }
  byId("actions").hidden = answers.length === 0;
  const failed = answers.filter((answer) => answer.error).length;
  say(`${answers.length} image${answers.length === 1 ? "" : "s"}${failed ? `, ${failed} could not be read` : ""}.`);
}

function show(answer) {
  const article = byId("answer").content.cloneNode(true).firstElementChild;
  const find = (selector) => article.querySelector(selector);
  find("h2").textContent = answer.path;
  if (answer.error) {
    find(".error").textContent = `Not answered: ${answer.error}`;
    find(".error").hidden = false;
    find(".body").remove();
  } else {
    fill(answer, find);
  }
  find(".on-paper").textContent = `${model.notice} ${byId("bundle").textContent}`;
  byId("results").append(article);
}

function fill(answer, find) {
  if (answer.abstain.length) {
    find(".abstain").textContent =
      `The model abstains; do not rely on what it says below. The image is ${answer.abstain.join(", ")}.`;
    find(".abstain").hidden = false;
  }
  find(".named").textContent =
    `Nearest to: ${titleOf(answer.predicted)}. Malignant: ${percent(answer.malignant_probability)}.`;
  for (const point of model.operating_points) {
    const row = find(".decisions tbody").insertRow();
    const reached = answer.decisions[point.name];
    const target = point.target === "malignant" ? "malignant" : titleOf(point.target);
    cell(row, "th", point.name).scope = "row";
    const share = (value) => (value === null ? "?" : percent(value, 0));
    const others = point.specificity === null ? null : 1 - point.specificity;
    const when = cell(row, "td", `${target} at ${percent(point.threshold)} or more`);
    cell(when, "small", `when tuned, ${share(point.sensitivity)} of such lesions reached it, ${share(others)} of others`);
    cell(row, "td", reached ? "reached" : "not reached").className = reached ? "yes" : "";
  }
  const byProbability = Object.entries(answer.probabilities).sort(([, one], [, other]) => other - one);
  for (const [name, probability] of byProbability) {
    const row = find(".classes tbody").insertRow();
    const malignant = model.classes.find((known) => known.name === name)?.malignant;
    cell(row, "th", titleOf(name) + (malignant ? " (malignant)" : "")).scope = "row";
    const meter = document.createElement("meter");
    meter.value = probability;
    meter.setAttribute("aria-label", titleOf(name));
    cell(row, "td", "").append(meter);
    cell(row, "td", percent(probability)).className = "number";
  }
  find(".set").textContent =
    `Cannot be ruled out: ${answer.prediction_set.map(titleOf).join(", ")}. `
    + `Of lesions such as those it was tuned on, ${percent(model.coverage)} are among those named here.`;
  for (const known of answer.similar) {
    find(".similar").hidden = false;
    const item = document.createElement("li");
    if (known.thumbnail) {
      const picture = document.createElement("img");
      picture.src = `data:image/jpeg;base64,${known.thumbnail}`;
      picture.alt = "";
      item.append(picture);
    }
    const name = known.image_id ? `, ${known.image_id}` : "";
    item.append(`${titleOf(known.label)}${name} (${percent(known.similarity)} alike)`);
    find(".similar ul").append(item);
  }
  if (answer.picture) {
    find("figure").hidden = false;
    const [plain, lit] = [find(".plain"), find(".lit")];
    plain.src = `data:image/jpeg;base64,${answer.picture}`;
    plain.alt = `The image ${answer.path}`;
    lit.src = `data:image/jpeg;base64,${answer.overlay}`;
    lit.alt = `Lit: what speaks for ${titleOf(answer.predicted)}`;
    find("input").addEventListener("input", (event) => { lit.style.opacity = event.target.value / 100; });
  }
}

function cell(row, kind, text) {
  const made = document.createElement(kind);
  made.textContent = text;
  row.append(made);
  return made;
}

function toCsv() {
  const names = model.classes.map((known) => known.name);
  const points = model.operating_points.map((point) => point.name);
  const head = ["image", "error", "abstain", "predicted", "malignant_probability",
    ...names, ...points, "cannot_be_ruled_out", "bundle", "notice"];
  const rows = answers.map((one) => [one.path, one.error ?? "", (one.abstain ?? []).join("; "), one.predicted ?? "",
    one.malignant_probability ?? "", ...names.map((name) => one.probabilities?.[name] ?? ""),
    ...points.map((name) => one.decisions?.[name] ?? ""), (one.prediction_set ?? []).join("; "),
    model.version, model.notice]);
  // a cell that begins so would be run as a formula by a spreadsheet
  const quote = (value) => `"${String(value).replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
  return [head, ...rows].map((row) => row.map(quote).join(",")).join("\r\n") + "\r\n";
}

function saveCsv() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([toCsv()], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

const drop = byId("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") askAll([...event.dataTransfer.files]);
  });
}
byId("files").addEventListener("change", (event) => {
  askAll([...event.target.files]);
  event.target.value = "";
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value;
  loadModel();
});
byId("print").addEventListener("click", () => window.print());
byId("csv").addEventListener("click", saveCsv);
byId("clear").addEventListener("click", () => {
  answers.length = 0;
  byId("results").replaceChildren();
  byId("actions").hidden = true;
  say("");
});
loadModel();
