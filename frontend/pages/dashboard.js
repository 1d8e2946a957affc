// The dashboard: signs in, follows /admin/live, and shows each overview. It says so when what it shows is old.

import { byId, h, say, sync } from "./elements.js";
import { events } from "./events.js";
import { Sparkline, clock, count, duration, latency, rate } from "./figures.js";
import { Refusal, ask, couldBeKey, openDoor, session } from "./session.js";

const SILENCE = 5000; // ms without an event after which a connection counts as lost
const LONGEST_PAUSE = 15000; // ms between two attempts to connect

// --- signing in

let following = null;

byId("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = byId("key").value.trim();
  const problem = await tryKey(key);
  byId("key-error").hidden = !problem;
  say(byId("key-error"), problem);
  if (problem) return byId("key").select();
  session.key = key;
  byId("key").value = "";
  open();
});

byId("sign-out").addEventListener("click", () => {
  session.forget();
  following?.abort();
  gate();
});

async function tryKey(key) {
  if (!couldBeKey(key)) return "A key is one word of letters, digits and signs.";
  try {
    await ask("/admin/overview", { key });
    return "";
  } catch (refusal) {
    return whyNot(refusal);
  }
}

function whyNot(refusal) {
  if (refusal.status === 401) return "This gateway does not know the key.";
  if (refusal.status === 403) return "The key is good for requests, but this page takes a master key.";
  return refusal.message;
}

function gate(problem = "") {
  byId("gate").hidden = false;
  byId("board").hidden = true;
  byId("sign-out").hidden = true;
  byId("key-error").hidden = !problem;
  say(byId("key-error"), problem);
  byId("key").focus();
}

function open() {
  byId("gate").hidden = true;
  byId("board").hidden = false;
  byId("sign-out").hidden = openDoor;
  follow();
}

// --- following

let latest = null;

/** Follows the stream for as long as somebody looks; a tab in the background costs the gateway nothing. */
async function follow() {
  following?.abort();
  if (document.hidden) return;
  const round = new AbortController();
  following = round;
  let failures = 0;
  while (!round.signal.aborted) {
    try {
      await once(round.signal, () => { failures = 0; });
      lost("The frontend that told this has gone.");
    } catch (problem) {
      if (round.signal.aborted) return;
      if (problem instanceof Refusal && (problem.status === 401 || problem.status === 403)) {
        session.forget();
        return gate(whyNot(problem));
      }
      lost(problem instanceof Refusal ? problem.message : "Connection lost.");
    }
    const pause = Math.min(LONGEST_PAUSE, 500 * 2 ** failures++) * (0.5 + Math.random() / 2);
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

/** One connection, until it ends or stays silent. */
async function once(signal, heard) {
  const connection = new AbortController();
  const stop = () => connection.abort();
  signal.addEventListener("abort", stop, { once: true });
  let timer = setTimeout(stop, SILENCE);
  try {
    const response = await ask("/admin/live", { signal: connection.signal });
    for await (const event of events(response)) {
      clearTimeout(timer);
      timer = setTimeout(stop, SILENCE);
      heard();
      if (event.type === "overview") {
        latest = JSON.parse(event.data);
        show(latest);
        found();
      } else if (event.type === "problem") {
        lost(JSON.parse(event.data).message);
      }
    }
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
    connection.abort();
  }
}

function lost(why) {
  byId("link").className = "pill warn";
  say(byId("link"), "not live");
  byId("lost").hidden = false;
  say(byId("lost"), latest ? `${why} Showing what was known at ${clock(latest.time)}.` : why);
}

function found() {
  byId("link").className = "pill good";
  say(byId("link"), "live");
  byId("lost").hidden = true;
}

document.addEventListener("visibilitychange", () => {
  if (!byId("board").hidden) follow();
});

// --- the figures on top

const tiles = [
  tile("Open requests", (all) => count(all.traffic.open), (all) => all.traffic.open,
    (all) => `${count(all.traffic.requests)} in the last minute`),
  tile("Waiting", (all) => count(all.waiting), (all) => all.waiting,
    (all) => `room for ${count(sum(workersOf(all), (worker) => worker.room))} more`),
  tile("Tokens per second", (all) => rate(all.traffic.tokens_per_second), (all) => all.traffic.tokens_per_second,
    (all) => `${count(all.traffic.tokens)} in the last minute`),
  tile("First token, median", (all) => latency(all.traffic.first_token_p50), (all) => all.traffic.first_token_p50,
    () => "of the last minute"),
  tile("First token, 95 %", (all) => latency(all.traffic.first_token_p95), (all) => all.traffic.first_token_p95,
    () => "come within this time"),
  tile("Errors", (all) => count(failures(all)), (all) => failures(all),
    () => "in the last minute", (all) => failures(all) > 0),
];
byId("tiles").append(...tiles.map((one) => one.element));

function tile(name, figure, value, aside, alarming = () => false) {
  const line = new Sparkline();
  const number = h("dd", {}, "–");
  const note = h("p", { class: "aside" });
  const element = h("dl", { class: "card tile" }, h("dt", {}, name), number, note, line.element);
  return {
    element,
    show(all) {
      say(number, figure(all));
      say(note, aside(all));
      line.push(value(all));
      element.classList.toggle("alarm", alarming(all));
    },
  };
}

const sum = (items, value) => items.reduce((total, item) => total + value(item), 0);
const workersOf = (all) => all.providers.flatMap((provider) => provider.workers);
const failures = (all) => sum(Object.values(all.traffic.errors), (number) => number);

// --- everything

let meanings = {};
fetch("/pages/errors.json").then((answer) => answer.json()).then((found) => { meanings = found; }, () => {});

function show(all) {
  for (const one of tiles) one.show(all);
  byId("no-providers").hidden = all.providers.length > 0;
  sync(byId("providers"), all.providers, (provider) => provider.name, makeProvider, (card, it) => card.show(it, all.time));
  const errors = Object.entries(all.traffic.errors).sort((one, other) => other[1] - one[1]);
  byId("no-errors").hidden = errors.length > 0;
  sync(byId("errors"), errors, ([code]) => code, makeError, showError);
  showUsage(all);
  sync(byId("frontends"), all.frontends, (one) => one.id, makeFrontend, (row, one) => showFrontend(row, one, all));
}

function makeError([code]) {
  return h("li", {}, h("code", {}, code), h("span", { class: "number" }), h("span", { class: "meaning" }));
}

function showError(item, [code, number]) {
  say(item.children[1], count(number));
  say(item.children[2], meanings[code]?.meaning ?? "");
}

const KEYS = { master: "master key", anybody: "anybody", foreign: "callers' own upstream keys" };

const FEW = 8; // rows of usage before somebody asks for the rest
let everyRow = false;
byId("all-usage").addEventListener("click", () => {
  everyRow = !everyRow;
  showUsage(latest);
});

function showUsage(all) {
  const button = byId("all-usage");
  button.hidden = all.usage.length <= FEW;
  button.setAttribute("aria-expanded", String(everyRow));
  say(button, everyRow ? "Show fewer" : `Show all ${count(all.usage.length)}`);
  byId("usage-table").hidden = all.usage.length === 0;
  byId("no-usage").hidden = all.usage.length > 0;
  sync(byId("usage"), everyRow ? all.usage : all.usage.slice(0, FEW), (one) => JSON.stringify([one.key, one.provider, one.model]),
    () => row("", "mono", "wide", "number", "number wide", "number wide", "number"), (line, one) => {
      const tokens = one.prompt_tokens + one.completion_tokens;
      const texts = [one.name || KEYS[one.key] || one.key, one.model, one.provider, count(one.requests),
        count(one.prompt_tokens), count(one.completion_tokens), count(tokens)];
      texts.forEach((text, place) => say(line.children[place], text));
      line.children[0].title = one.key;
    });
  byId("more-usage").hidden = !everyRow || all.usage_total <= all.usage.length;
  say(byId("more-usage"), `and ${count(all.usage_total - all.usage.length)} more, in GET /admin/usage`);
}

function row(...classes) {
  return h("tr", {}, ...classes.map((name) => h("td", { class: name })));
}

const makeFrontend = () => row("id", "wide", "number", "wide", "number", "");

function showFrontend(line, one, all) {
  const [id, address, open, version, up, state] = line.children;
  say(id, one.id.slice(0, 10));
  id.title = one.id === all.told_by ? `${one.id}, which tells this` : one.id;
  say(address, one.address);
  say(open, count(one.streams));
  say(version, one.version);
  say(up, duration(all.time - one.started));
  showPill(state, ...(one.draining ? ["warn", "leaving"] : ["good", "serving"]));
}

const pill = (kind, text) => h("span", { class: `pill ${kind}` }, text);

// --- one provider

function makeProvider(provider) {
  const title = `provider-${provider.name}`;
  const state = h("span", { class: "pill" });
  const facts = h("dl", { class: "facts" });
  const workers = h("tbody");
  const workerTable = table(["Worker", "Jobs", ["Version", "wide"], ["Up", "number"], "State"], workers);
  const credentials = h("tbody");
  const credentialTable = table(["Credential", ["From", "wide"], ["Calls", "number"], "State"], credentials);
  const more = h("p", { class: "more" });
  const broken = h("ul", { class: "circuits", "aria-label": "Models that are left alone for a while" });
  const kept = h("div", {}, h("h4", {}, "Credentials"), credentialTable, more);
  const card = h("article", { class: "card provider", "aria-labelledby": title },
    h("header", {}, h("h3", { id: title }, provider.name), state), facts, broken, workerTable, kept);
  card.show = (it, now) => {
    const [kind, text] = providerState(it);
    state.className = `pill ${kind}`;
    say(state, text);
    sync(facts, factsOf(it), ([name]) => name, ([name]) => h("div", {}, h("dt", {}, name), h("dd")),
      (fact, [, value]) => say(fact.lastChild, value));
    broken.hidden = it.circuits.length === 0;
    sync(broken, it.circuits, (one) => one.model, () => h("li", {}, h("code"), h("span", { class: "pill bad" })), showCircuit);
    workerTable.hidden = it.workers.length === 0;
    sync(workers, it.workers, (one) => one.id, makeWorker, (line, one) => showWorker(line, one, now));
    kept.hidden = it.credentials.length === 0;
    sync(credentials, it.credentials, (one) => one.id, () => row("id", "wide", "number", ""), showCredential);
    more.hidden = it.credentials_total <= it.credentials.length;
    say(more, `and ${count(it.credentials_total - it.credentials.length)} more that are ready`);
  };
  return card;
}

function table(titles, body) {
  const heads = titles.map((title) => {
    const [text, kind] = [title].flat();
    return h("th", { scope: "col", class: kind }, text);
  });
  return h("table", {}, h("thead", {}, h("tr", {}, ...heads)), body);
}

function providerState(provider) {
  const able = provider.workers.filter((worker) => !worker.draining).length;
  if (!provider.workers.length) return ["bad", "no worker"];
  if (!able) return ["warn", "leaving"];
  const usable = provider.credentials.filter((one) => one.usable_in_seconds === 0).length;
  if (provider.credentials.length && !usable) return ["bad", "no usable credential"];
  return ["good", able === 1 ? "1 worker" : `${able} workers`];
}

function showCircuit(item, one) {
  say(item.firstChild, one.model);
  const next = one.probe_in_seconds ? `next try in ${duration(one.probe_in_seconds)}` : one.probing ? "one call tries it" : "the next call tries it";
  say(item.lastChild, `left alone after failures, ${next}`);
}

function factsOf({ traffic, waiting }) {
  return [
    ["Open", count(traffic.open)],
    ["Waiting", count(waiting)],
    ["Tokens/s", rate(traffic.tokens_per_second)],
    ["Ended/min", count(traffic.requests)],
    ["First token", latency(traffic.first_token_p50)],
    ["95 %", latency(traffic.first_token_p95)],
    ["Left/min", count(traffic.left)],
    ["Errors/min", count(sum(Object.values(traffic.errors), (number) => number))],
  ];
}

function makeWorker() {
  const line = row("id", "", "wide", "number", "");
  line.children[1].append(h("div", { class: "load" }, h("progress", { "aria-label": "jobs of its room" }), h("span")));
  return line;
}

function showWorker(line, one, now) {
  const [id, jobs, version, up, state] = line.children;
  say(id, one.id.slice(0, 10));
  id.title = one.id;
  const [bar, figures] = jobs.firstChild.children;
  bar.max = Math.max(1, one.running + one.room);
  bar.value = one.running;
  say(figures, `${count(one.running)} of ${count(one.running + one.room)}`);
  say(version, one.version);
  say(up, duration(now - one.started));
  const [kind, text] = one.draining ? ["warn", "draining"] : one.room ? ["good", "working"] : ["warn", "full"];
  showPill(state, kind, text);
}

const STATES = {
  ready: ["good", "ready"],
  probation: ["warn", "on probation"],
  resting: ["warn", "rests"],
  refused: ["bad", "refused"],
  unpaid: ["bad", "unpaid"],
};
const SOURCES = { settings: "settings", minted: "signed up", added: "added" };

function showCredential(line, one) {
  const [id, source, calls, state] = line.children;
  say(id, one.id.slice(0, 10));
  id.title = one.id;
  say(source, SOURCES[one.source] ?? one.source);
  say(calls, count(one.calls));
  const [kind, name] = STATES[one.state] ?? ["", one.state];
  const wait = one.usable_in_seconds ? `, usable in ${duration(one.usable_in_seconds)}` : "";
  const rests = Object.entries(one.rests).map(([model, seconds]) => `${model} in ${duration(seconds)}`);
  const end = one.expires_in_seconds === null ? "" : ` Ends in ${duration(one.expires_in_seconds)}.`;
  showPill(state, rests.length && kind === "good" ? "warn" : kind, name + wait);
  state.title = end.trim();
  if (state.children.length < 2) state.append(h("div", { class: "soft small" }));
  say(state.children[1], rests.length ? `rests for ${rests.join(", ")}` : "");
}

function showPill(cell, kind, text) {
  if (!cell.firstChild) cell.append(pill(kind, text));
  cell.firstChild.className = `pill ${kind}`;
  say(cell.firstChild, text);
}

// --- begin

if (session.key || openDoor) open();
else gate();
