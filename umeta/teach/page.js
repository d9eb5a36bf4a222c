"use strict";
const token = document.querySelector("meta[name=token]").content;
const by = (id) => document.getElementById(id);
const PART = 120;
let view = "worth", state = null, shown = [], total = 0, chosen = new Set(), last = null, asking = 0;

function make(kind, text, more = {}) {
  const node = document.createElement(kind);
  if (text !== undefined) node.textContent = text;
  return Object.assign(node, more);
}

function say(text, bad = false) {
  by("said").textContent = text;
  by("said").classList.toggle("bad", bad);
}

async function ask(path, body) {
  const post = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  let answer, found;
  try {
    answer = await fetch(path, { ...post, headers: { "X-Token": token } });
    found = await answer.json();
  } catch {
    found = { error: "umeta teach no longer answers; start it again, nothing that you said is lost" };
  }
  if (found.error) {
    say(found.error, true);
    throw new Error(found.error);
  }
  if (body !== undefined) say("");  // what was said of the action before; looking at something leaves it
  return found;
}

function drawClasses() {
  const views = [["worth", "most worth a label", state.pictures - state.labelled]];
  for (const one of state.classes) views.push([`class:${one.name}`, one.name, one.looks, one.labelled]);
  views.push(["labelled", "labelled", state.labelled]);
  by("views").replaceChildren(...views.map(([key, name, count, labelled], place) => {
    const row = make("div", undefined, { className: "view" + (key === view ? " shown" : "") });
    const number = key.startsWith("class:") && place <= 9 ? `${place}  ` : "";
    const title = labelled ? `${name}: ${labelled} labelled, ${count} more look like it` : name;
    const button = make("button", `${number}${name} (${count})`, { onclick: () => show(key), title });
    row.append(button);
    if (key.startsWith("class:")) {
      button.dataset.name = name;
      button.ondragover = (event) => { event.preventDefault(); button.classList.add("over"); };
      button.ondragleave = () => button.classList.remove("over");
      button.ondrop = (event) => { event.preventDefault(); give(name); };
      row.append(make("button", "✎", { title: `rename ${name}; empty removes it`, onclick: () => rename(name) }));
    }
    return row;
  }));
  const told = state.told ? `; right before you said so: ${state.right} of ${state.told}` : "";
  const bad = state.unreadable ? `, ${state.unreadable} not readable` : "";
  by("numbers").textContent = `${state.pictures} pictures${bad}, ${state.labelled} labelled${told}`;
  const looking = state.looked < state.files ? `looking at the pictures: ${state.looked} of ${state.files}` : "";
  by("looking").textContent = state.trouble || looking;
  const hints = ["choose pictures of one kind, and name it", "name a second class, and all pictures are sorted"];
  by("hint").textContent = hints[state.classes.length] || "";
}

function drawPicture(one) {
  const figure = make("figure", undefined, { tabIndex: 0, draggable: true });
  figure.dataset.id = one.id;
  figure.append(make("img", undefined, {
    loading: "lazy", alt: one.name, title: one.name, src: `api/thumbnail/${one.id}?token=${encodeURIComponent(token)}`,
  }));
  const sure = one.confidence === null ? "" : `${Math.round(100 * one.confidence)} % `;
  figure.append(make("figcaption", one.label ? `✓ ${one.label}` : one.answer ? `${sure}${one.answer}` : one.name));
  figure.onclick = (event) => choose(one.id, event.shiftKey);
  figure.ondragstart = () => { if (!chosen.has(one.id)) choose(one.id, false); };
  figure.onkeydown = (event) => { if (event.key === " ") { event.preventDefault(); choose(one.id, event.shiftKey); } };
  return figure;
}

function choose(id, row) {
  const ids = shown.map((one) => one.id);
  if (row && last !== null) {
    const [a, b] = [ids.indexOf(last), ids.indexOf(id)].sort((x, y) => x - y);
    ids.slice(a, b + 1).forEach((one) => chosen.add(one));
  } else if (!chosen.delete(id)) chosen.add(id);
  last = id;
  drawChosen();
}

function drawChosen() {
  by("name").placeholder = chosen.size ? `name for ${chosen.size} chosen` : "name of a class";
  for (const node of by("grid").children) node.classList.toggle("chosen", chosen.has(Number(node.dataset.id)));
}

async function show(next) {
  view = next;
  shown = []; chosen.clear(); last = null; total = 1;
  by("grid").replaceChildren();
  drawChosen();
  drawClasses();
  await more();
}

async function more() {
  if (shown.length >= total) return;
  const mine = ++asking, wanted = view, start = shown.length;
  const found = await ask(`api/pictures?view=${encodeURIComponent(wanted)}&start=${start}&count=${PART}`);
  if (mine !== asking) return;
  total = found.total;
  shown.push(...found.pictures);
  by("grid").append(...found.pictures.map(drawPicture));
  const what = view === "worth" ? "Most worth a label" : view === "labelled" ? "Labelled" : `Looks like ${view.slice(6)}`;
  by("title").textContent = `${what}: ${total}`;
}

async function act(path, body) {
  state = await ask(`api/${path}`, body);
  const there = view === "worth" || view === "labelled" || state.classes.some((one) => `class:${one.name}` === view);
  await show(there ? view : "worth");
}

function give(label) {
  if (!chosen.size) { say("choose pictures first, by click", true); return; }
  act("label", { pictures: [...chosen], label }).catch(() => {});
}

function rename(old) {
  const name = prompt(`A new name for ${old}; empty removes the class and its labels`, old);
  if (name !== null && name !== old) act("rename", { old, new: name.trim() || null }).catch(() => {});
}

by("add").onsubmit = (event) => {
  event.preventDefault();
  const name = by("name").value.trim();
  if (name) { give(name); by("name").value = ""; by("name").blur(); }
};
by("undo").onclick = () => act("undo", {}).catch(() => {});
by("clear").onclick = () => give(null);
for (const button of document.querySelectorAll("[data-export]"))
  button.onclick = () => ask("api/export", { kind: button.dataset.export }).then((found) => {
    say(`written: ${found.path}` + (found.missing ? `; ${found.missing} no longer there` : ""));
  }).catch(() => {});
document.onkeydown = (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const named = state && state.classes[Number(event.key) - 1];
  if (named) give(named.name);
  else if (event.key === "u") by("undo").click();
  else if (event.key === "Enter" && chosen.size && event.target.tagName !== "BUTTON") {
    const one = shown.find((picture) => chosen.has(picture.id) && picture.answer);
    if (one) give(one.answer);
  }
};
new IntersectionObserver((seen) => { if (seen[0].isIntersecting) more().catch(() => {}); }, { rootMargin: "600px" })
  .observe(by("end"));
async function begin() { state = await ask("api/state"); await show("worth"); }
async function watch() {  // more pictures were looked at, or another window has said something
  if (!document.hidden && !chosen.size && state) {
    const before = state, now = await ask("api/state").catch(() => null);
    if (now && state === before && !chosen.size) {
      state = now;
      const few = shown.length < PART && now.pictures !== before.pictures;
      if (few || now.version !== before.version) await show(view).catch(() => {});
      else drawClasses();
    }
  }
  setTimeout(watch, state && state.looked < state.files && !state.trouble ? 1000 : 3000);
}
begin().catch(() => {}).then(watch);
