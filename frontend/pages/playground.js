// The playground: one conversation with one model, streamed. It uses nothing but the public API, with whatever key it is given.

import { byId, copy, h, say, tabs } from "./elements.js";
import { events } from "./events.js";
import { count, latency } from "./figures.js";
import { Refusal, ask, couldBeKey, openDoor, session } from "./session.js";
import { snippet } from "./snippets.js";

const conversation = []; // messages as the API takes them
let running = null; // the AbortController of the answer that is coming

// --- signing in

byId("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = byId("key").value.trim();
  const problem = couldBeKey(key) ? await open(key) : "A key is one word of letters, digits and signs.";
  byId("key-error").hidden = !problem;
  say(byId("key-error"), problem);
  if (problem) return byId("key").select();
  session.key = key;
  byId("key").value = "";
});

byId("sign-out").addEventListener("click", () => {
  running?.abort();
  session.forget();
  clear();
  gate();
});

function gate(problem = "") {
  byId("gate").hidden = false;
  byId("play").hidden = true;
  byId("sign-out").hidden = true;
  byId("key-error").hidden = !problem;
  say(byId("key-error"), problem);
  byId("key").focus();
}

/** Opens the playground with this key; returns what is wrong, or nothing. */
async function open(key) {
  let models;
  try {
    const answer = await ask("/v1/models", { key });
    models = (await answer.json()).data.map((model) => model.id);
  } catch (refusal) {
    return refusal.status === 401 ? "This gateway does not know the key." : refusal.message;
  }
  byId("gate").hidden = true;
  byId("play").hidden = false;
  byId("sign-out").hidden = openDoor;
  byId("models").replaceChildren(...models.map((id) => h("option", { value: id })));
  byId("model").value ||= models[0] ?? "";
  say(byId("model-hint"), models.length === 1 ? "1 model is served now" : `${count(models.length)} models are served now`);
  showSnippet();
  byId("message").focus();
  return "";
}

// --- the request

function request(messages) {
  const system = byId("system").value.trim();
  const body = {
    model: byId("model").value.trim(),
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    stream: true,
    stream_options: { include_usage: true },
  };
  const temperature = byId("temperature").valueAsNumber;
  const most = byId("max-tokens").valueAsNumber;
  if (!Number.isNaN(temperature)) body.temperature = temperature;
  if (!Number.isNaN(most)) body.max_tokens = most;
  return body;
}

byId("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("message").value.trim();
  if (!text || running) return;
  if (!byId("model").reportValidity()) return;
  byId("message").value = "";
  conversation.push({ role: "user", content: text });
  byId("empty").hidden = true;
  bubble("user", "You", text);
  answer(request(conversation));
});

byId("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("compose").requestSubmit();
});

byId("stop").addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", clear);

function clear() {
  running?.abort();
  conversation.length = 0;
  for (const message of byId("log").querySelectorAll(".message")) message.remove();
  byId("empty").hidden = false;
  gauges({});
  showSnippet();
}

// --- the answer

async function answer(body) {
  const round = new AbortController();
  busy(round);
  const message = bubble("assistant", body.model, "");
  message.classList.add("live");
  const began = performance.now();
  const told = { text: "", chunks: 0, first: null, usage: null, headers: new Headers(), finish: null };
  try {
    const response = await ask("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: round.signal,
    });
    told.headers = response.headers;
    gauges(told, began);
    await read(response, told, message, began);
    if (told.finish === "length") note(message, "It was cut at the limit of tokens.");
  } catch (problem) {
    if (round.signal.aborted) note(message, "Stopped.");
    else failure(message, problem);
  } finally {
    message.classList.remove("live");
    gauges(told, began);
    if (running === round) busy(null);
    // What was said stays said, also if it was stopped; an answer without words would be refused in the next request.
    if (told.text && conversation.at(-1)?.role === "user") conversation.push({ role: "assistant", content: told.text });
    else if (!told.text && conversation.at(-1)?.role === "user") conversation.pop();
    showSnippet();
  }
}

async function read(response, told, message, began) {
  for await (const { type, data } of events(response)) {
    if (type === "comment") continue;
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) {
      throw new Refusal(200, chunk.error.code ?? chunk.error.type, chunk.error.message, told.headers.get("x-request-id") ?? "");
    }
    told.usage = chunk.usage ?? told.usage;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    told.finish = choice.finish_reason ?? told.finish;
    const { content, reasoning_content: thought, tool_calls: calls } = choice.delta ?? {};
    if (!content && !thought && !calls) continue;
    told.first ??= performance.now();
    told.chunks += 1;
    const atEnd = isAtEnd();
    if (thought) append(thoughts(message), thought);
    if (content) {
      told.text += content;
      append(message.querySelector(".text"), content);
    }
    gauges(told, began);
    if (atEnd) scrollToEnd();
  }
  throw new Refusal(200, "upstream_stream_truncated", "The stream ended without saying that it was complete.");
}

/** Adds to the last text node: nothing that was there is drawn anew, and nothing is ever read as markup. */
function append(element, text) {
  if (element.lastChild instanceof Text) element.lastChild.appendData(text);
  else element.append(text);
}

function bubble(kind, who, text) {
  const message = h("article", { class: `message ${kind}` }, h("div", { class: "who" }, who), h("div", { class: "text" }, text));
  byId("log").append(message);
  scrollToEnd();
  return message;
}

function thoughts(message) {
  let box = message.querySelector(".thought");
  if (!box) {
    box = h("div", { class: "thought" });
    message.querySelector(".who").after(h("details", { open: true }, h("summary", {}, "Thinking"), box));
  }
  return box;
}

const note = (message, text) => message.append(h("p", { class: "note" }, text));

let advice = {};
fetch("/pages/errors.json").then((found) => found.json()).then((found) => { advice = found; }, () => {});

function failure(message, problem) {
  const refusal = problem instanceof Refusal ? problem : new Refusal(0, "connection_lost", "The connection broke in the middle.");
  const wait = refusal.retryAfter ? ` (${refusal.retryAfter} s)` : "";
  message.append(h("div", { class: "failure", role: "alert" },
    h("strong", {}, refusal.status >= 400 ? `${refusal.status} ${refusal.code}` : refusal.code),
    h("span", {}, refusal.message),
    advice[refusal.code] ? h("span", { class: "advice" }, advice[refusal.code].advice.replaceAll("`", "") + wait) : null,
    refusal.requestId ? h("span", { class: "soft small mono" }, refusal.requestId) : null));
  scrollToEnd();
}

// --- what can be seen of it

const isAtEnd = () => byId("log").scrollHeight - byId("log").scrollTop - byId("log").clientHeight < 60;
const scrollToEnd = () => { byId("log").scrollTop = byId("log").scrollHeight; };

function busy(round) {
  running = round;
  byId("send").hidden = round !== null;
  byId("stop").hidden = round === null;
}

function gauges(told, began = 0) {
  const { first = null, chunks = 0, usage = null, headers = new Headers() } = told;
  const tokens = usage?.completion_tokens ?? chunks;
  const seconds = first === null ? 0 : (performance.now() - first) / 1000;
  say(byId("g-first"), first === null ? "–" : latency((first - began) / 1000));
  say(byId("g-speed"), seconds > 0.2 && chunks > 1 ? `${(tokens / seconds).toFixed(tokens / seconds < 100 ? 1 : 0)} tokens/s` : "–");
  say(byId("g-tokens"), tokens ? (usage ? `${count(usage.prompt_tokens ?? 0)} + ${count(tokens)}` : count(tokens)) : "–");
  say(byId("g-provider"), headers.get("x-sluice-provider") ?? "–");
  say(byId("g-attempts"), headers.get("x-sluice-attempts") ?? "–");
  const requestId = headers.get("x-request-id") ?? "";
  say(byId("g-request"), requestId ? `${requestId.slice(0, 12)}…` : "–");
  byId("g-request").title = requestId;
}

// --- the same from a program

let language = "curl";
tabs(byId("languages"), (tab) => {
  language = tab.id.replace("tab-", "");
  byId("snippet-panel").setAttribute("aria-labelledby", tab.id);
  showSnippet();
});
byId("copy").addEventListener("click", () => copy(byId("copy"), byId("snippet").textContent));
byId("play").addEventListener("input", showSnippet);

function showSnippet() {
  const draft = byId("message").value.trim();
  const next = draft || !conversation.length ? [{ role: "user", content: draft || "Hello!" }] : [];
  say(byId("snippet"), snippet(language, location.origin, request([...conversation, ...next])));
}

// --- begin

if (session.key || openDoor) {
  const problem = await open(session.key);
  if (problem) {
    session.forget();
    gate(problem);
  }
} else gate();
