"use strict";
const data = JSON.parse(document.getElementById("data").textContent), words = data.words;
const $ = id => document.getElementById(id);
let number = 0, gold = null;  // number of the latest request; older responses are ignored

function make(name, attributes, ...inside) {
  const element = Object.assign(document.createElement(name), attributes);
  element.append(...inside);
  return element;
}

function marked(pieces) {
  return pieces.map(piece => typeof piece === "string" ? piece : make("mark", { className: "e" + piece.colour },
    ...marked(piece.inside), make("b", {}, piece.label)));
}

function triple([subject, one, predicate, object, other, p]) {
  const arrow = make("i", {}, ` — ${predicate} → `), sure = p === null ? "" : p.toFixed(4);
  return make("span", { className: "triple" }, subject, make("sub", {}, one), arrow, object, make("sub", {}, other),
    make("b", {}, sure));
}

function shown(task) {
  if (task.relations) {
    return make("div", { className: "entities" }, ...marked(task.marked), ...task.relations.map(triple));
  }
  if (task.marked) return make("p", { className: "entities" }, ...marked(task.marked));
  if ("value" in task) return make("p", { className: "value" }, String(Number(task.value.toPrecision(6))));
  if (!task.labels.length) return make("p", {}, words.none);
  return make("table", { className: "bars" }, ...task.labels.map(([label, p, chosen]) => {
    const bar = make("i");
    bar.style.width = 100 * (p || 0) + "%";
    return make("tr", { className: chosen ? "chosen" : "" }, make("td", {}, label),
      make("td", { className: "w" }, make("span", { className: "meter" }, bar)),
      make("td", { className: "n" }, p === null ? "" : p.toFixed(4)));
  }));
}

function rightAnswer(task) {
  if (task.marked) return shown(task);
  return make("span", {}, "value" in task ? String(task.value) : task.labels.map(one => one[0]).join(", ") || words.none);
}

function show(answer) {
  const cards = answer.tasks.map(task => {
    const card = make("div", { className: "card" }, make("h3", {}, task.task), shown(task));
    card.dataset.task = task.task;
    const known = gold && gold.find(one => one.task === task.task);
    if (known) card.append(make("div", { className: "gold note" }, words.gold + " ", rightAnswer(known)));
    return card;
  });
  if (answer.cut) cards.push(make("p", { className: "note" }, words.cut.replace("{n}", answer.cut)));
  $("answer").replaceChildren(...cards);
  $("answer").hidden = false;
}

function say(sentence) {
  $("said").textContent = sentence;
  $("said").hidden = !sentence;
  if (sentence) $("answer").hidden = true;
}

async function send() {
  const mine = ++number, given = { text: $("text").value };
  if (data.pairs) given.text_pair = $("text_pair").value;
  if (data.columns.length) {
    const cells = document.querySelectorAll(".column");
    given.extras = Object.fromEntries(data.columns.map((name, i) => [name, cells[i].value]));
  }
  try {
    const response = await fetch("label", { method: "POST", body: JSON.stringify({ texts: [given] }) });
    const answer = await response.json();
    if (mine !== number) return;
    say(answer.error || "");
    if (answer.answers) show(answer.answers[0]);
  } catch {
    if (mine === number) say(words.unreachable);
  }
}

function take(example) {
  $("text").value = example.given.text;
  if (data.pairs) $("text_pair").value = example.given.text_pair;
  document.querySelectorAll(".column").forEach((cell, i) => { cell.value = example.given.extras[data.columns[i]] ?? ""; });
  gold = example.gold;
  send();
}

$("typed").addEventListener("submit", event => { event.preventDefault(); send(); });
$("typed").addEventListener("input", () => { gold = null; });
$("typed").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
if ($("examples")) {
  $("examples").append(...data.examples.map(example => make("button", { type: "button", onclick: () => take(example) },
    example.given.text.slice(0, 200) + (data.pairs ? " ⏐ " + example.given.text_pair.slice(0, 200) : ""))));
  $("another").addEventListener("click", async () => {
    try { take(await (await fetch("example")).json()); } catch { say(words.unreachable); }
  });
}
$("text").focus();
