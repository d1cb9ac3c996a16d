// The page: documents, conversation, and what is sent. All text is put in as text, never as HTML.
import { DIALECTS, curl, events, langchain } from "./dialects.js";

const $ = (id) => document.getElementById(id);
const base = new URL("..", import.meta.url).href;
const documents = [];   // {title, text, fate, reason}
const turns = [];       // {role, content}, what was said before
let running = null;     // the AbortController of the answer on its way
let last = null;        // what was asked last: the prompt and the code are of it until a new question is typed
let shown = "curl";

function make(tag, fields = {}, ...children) {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
}

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

// What is asked, by the form as it stands.
function asked() {
  const sampling = {};
  for (const name of ["max_tokens", "temperature", "top_p"])
    if ($(name).value !== "") sampling[name] = Number($(name).value);
  if (documents.length)
    for (const name of ["order", "citations"]) if ($(name).value) sampling[name] = $(name).value;
  return {
    model: $("model").value,
    system: $("system").value.trim(),
    question: $("question").value.trim(),
    history: $("history").checked ? turns : [],
    documents: documents.map(({ title, text }) => ({ title, text })),
    sampling,
  };
}

// What the prompt and the code are shown of; null before the first question.
function considered() {
  const now = asked();
  return now.question ? now : last && { ...now, question: last.question, history: last.history };
}

const dialect = () => DIALECTS[$("dialect").value];

// What a refusal says, in whatever form its dialect has.
async function refusal(response) {
  const text = await response.text();
  let said = text;
  try {
    const body = JSON.parse(text);
    said = body.error?.message ?? body.detail ?? body.message ?? body.error ?? text;
    if (Array.isArray(said)) said = said.map((one) => `${(one.loc ?? []).join(".")}: ${one.msg ?? one}`).join("; ");
  } catch { /* no JSON */ }
  const seconds = response.headers.get("retry-after");
  return `${response.status}: ${said}${seconds ? ` (try again in ${seconds} s)` : ""}`;
}

// --- documents ---

function showDocuments() {
  $("count").textContent = documents.length ? `(${documents.length})` : "";
  $("list").replaceChildren(...documents.map((one, index) => {
    const remove = make("button", { type: "button", className: "plain", textContent: "×", ariaLabel: `Remove document ${index + 1}` });
    remove.onclick = () => { documents.splice(index, 1); forgetFates(); showDocuments(); previewSoon(); };
    const fate = one.fate ? make("span", { className: `fate ${one.fate}`, textContent: one.fate, title: one.reason }) : "";
    const head = make("div", { className: "head" }, make("strong", { textContent: `[${index + 1}] ${one.title || "pasted"}` }), fate, remove);
    const item = make("li", { id: `document-${index + 1}`, tabIndex: -1 }, head);
    if (one.reason) item.append(make("div", { className: "quiet", textContent: one.reason }));
    item.append(make("div", { className: "text", textContent: one.text, tabIndex: 0 }));
    return item;
  }));
}

function forgetFates() {
  for (const one of documents) one.fate = one.reason = "";
}

function addDocument(title, text) {
  if (!text.trim()) return;
  documents.push({ title, text, fate: "", reason: "" });
  forgetFates();
  showDocuments();
  previewSoon();
}

async function readFiles(files) {
  for (const file of files) {
    $("reading").textContent = `Reading ${file.name} …`;
    try {
      if (/\.(pdf|docx|html?)$/i.test(file.name)) {
        const response = await fetch(`${base}ui/read?name=${encodeURIComponent(file.name)}`, {
          method: "POST", body: file, headers: { ...headers(), "Content-Type": "application/octet-stream" },
        });
        if (!response.ok) throw new Error(await refusal(response));
        addDocument(file.name, (await response.json()).text);
      } else addDocument(file.name, await file.text());
      $("reading").textContent = `${file.name} is added.`;
    } catch (error) {
      $("reading").textContent = `${file.name} cannot be read: ${error.message}`;
    }
  }
}

function showReport(report) {
  for (const use of report.documents) {
    const one = documents[use.number - 1];
    if (one) Object.assign(one, { fate: use.fate, reason: use.reason });
  }
  showDocuments();
}

function openDocument(number) {
  select("documents");
  for (const item of $("list").children) item.classList.toggle("cited", item.id === `document-${number}`);
  const item = $(`document-${number}`);
  item?.focus();
  item?.scrollIntoView({ block: "nearest" });
}

// --- the answer ---

// The text with a button behind each place that cites a document. Places are counted in code points.
function withCitations(text, citations) {
  const characters = Array.from(text);
  const parts = [];
  let done = 0;
  for (const one of [...citations].sort((a, b) => a.end_index - b.end_index)) {
    const end = Math.min(one.end_index, characters.length);
    const isMark = /^\s*[\[【(（]/.test(characters.slice(one.start_index, end).join("")) && !one.matched_by;
    parts.push(characters.slice(done, isMark ? Math.max(one.start_index, done) : end).join(""));
    done = Math.max(end, done);
    const button = make("button", { type: "button", className: "cite", textContent: one.number, ariaLabel: `Document ${one.number}: ${one.title ?? ""}` });
    button.onclick = () => openDocument(one.number);
    parts.push(button);
  }
  parts.push(characters.slice(done).join(""));
  return parts;
}

function figuresOf(started, first, pieces, usage) {
  const now = performance.now(), tokens = usage?.completion_tokens ?? pieces;
  const told = [`first token after ${Math.round(first - started)} ms`, `${tokens} tokens`];
  if (tokens > 1 && now > first) told.push(`${((tokens - 1) / (now - first) * 1000).toFixed(1)} tokens/s`);
  return told;
}

async function ask() {
  const wanted = asked(), body = dialect().body(wanted);
  if (!wanted.question || running) return;
  last = { ...wanted, history: [...wanted.history] };
  $("empty")?.remove();
  const answer = make("p", { className: "answer" }), told = make("p", { className: "told quiet" });
  const turn = make("article", { className: "turn running" }, make("p", { className: "asked", textContent: wanted.question }), answer, told);
  $("turns").append(turn);
  $("question").value = "";
  busy(true);
  const started = performance.now();
  let text = "", first = 0, pieces = 0, usage = null, reason = "", citations = [], failed = "", drawing = 0, rested = started;
  const node = answer.appendChild(document.createTextNode("")), draw = () => {
    drawing = 0;
    node.appendData(text.slice(node.length));
    told.textContent = figuresOf(started, first, pieces, usage).join(" · ");
    follow();
  };
  running = new AbortController();
  try {
    const response = await fetch(base + dialect().path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal });
    if (!response.ok) throw new Error(await refusal(response));
    const ignored = response.headers.get("x-ignored-params");
    if (ignored) turn.append(make("p", { className: "quiet", textContent: `Without effect here: ${ignored}` }));
    for await (const one of events(response)) {
      if (one.text) {
        first ||= performance.now();
        pieces += 1;
        text += one.text;
        drawing ||= requestAnimationFrame(draw);
        if (performance.now() - rested > 16) {  // However fast it comes, the page is drawn and the buttons work.
          await new Promise((resolve) => setTimeout(resolve));
          rested = performance.now();
        }
      }
      if (one.citations) citations.push(...one.citations);
      if (one.report) showReport(one.report);
      usage = one.usage ?? usage;
      reason = one.reason ?? reason;
      failed = one.error ?? failed;
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped";
    else failed = error.message;
  }
  running = null;
  cancelAnimationFrame(drawing);
  if (first) draw();
  turn.classList.remove("running");
  if (citations.length) answer.replaceChildren(...withCitations(text, citations));
  if (first) told.textContent = [...figuresOf(started, first, pieces, usage), ...(reason && reason !== "stop" ? [said(reason)] : [])].join(" · ");
  else if (reason === "stopped") told.textContent = said(reason);
  if (failed) turn.append(make("p", { className: "error", role: "alert", textContent: failed }));
  if (text) turns.push({ role: "user", content: wanted.question }, { role: "assistant", content: text });
  busy(false);
  previewSoon();
  follow();
}

const said = (reason) => ({ length: "cut at the longest answer", stopped: "stopped" })[reason] ?? `ended: ${reason}`;

function follow() {
  const log = $("turns");
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
}

function busy(is) {
  $("send").disabled = is;
  $("stop").hidden = !is;
  if (!is) $("question").focus({ preventScroll: true });
}

// --- the prompt and the code ---

let waiting = 0, asking = null;

function previewSoon() {
  showCode();
  clearTimeout(waiting);
  waiting = setTimeout(preview, 400);
}

async function preview() {
  if ($("prompt").hidden) return;
  const wanted = considered();
  if (!wanted) { $("figures").textContent = "Type a question first."; $("messages").replaceChildren(); return; }
  asking?.abort();
  asking = new AbortController();
  try {
    const path = encodeURIComponent("/" + dialect().path);
    const response = await fetch(`${base}v1/prompt?route=${path}`, {
      method: "POST", headers: headers(), body: JSON.stringify(dialect().body(wanted)), signal: asking.signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    showPrompt((await response.json()).prompts[0]);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("figures").textContent = error.message;
    $("messages").replaceChildren();
  }
}

function showPrompt({ messages, prompt, rendered, report, sampling }) {
  const window_ = report.context_window ? ` of ${report.context_window}` : "";
  const counted = report.counted === "estimate" ? "about " : "";
  const parameters = Object.entries(sampling).map(([name, value]) => `${name} ${value}`).join(", ");
  $("figures").textContent = `${counted}${report.prompt_tokens ?? "?"}${window_} tokens, ${report.documents_tokens ?? 0} of them documents. ${parameters}`;
  const blocks = prompt !== undefined ? [["text", prompt]] : messages.map(({ role, content }) => [role, typeof content === "string" ? content : JSON.stringify(content, null, 1)]);
  $("messages").replaceChildren(...blocks.map(([role, content]) => make("div", { className: "message" }, make("b", { textContent: role }), content)));
  if (rendered) $("messages").append(make("details", {}, make("summary", { textContent: "As the model reads it" }), make("pre", { textContent: rendered })));
  if (documents.length) showReport(report);
}

function showCode() {
  const wanted = considered() ?? { ...asked(), question: "Your question" }, key = $("key").value.trim() && "YOUR_KEY";
  const url = base + dialect().path, body = dialect().body(wanted);
  $("source").textContent = { curl: () => curl(url, body, key), Python: () => dialect().python(base, body, key), LangChain: () => langchain(base, DIALECTS.openai.body(wanted), key) }[shown]();
}

// --- tabs, buttons, start ---

function select(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const is = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", is);
    tab.tabIndex = is ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !is;
  }
  if (name === "prompt") preview();
  if (name === "code") showCode();
}

function listen() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, index) => {
    tab.onclick = () => select(tab.getAttribute("aria-controls"));
    tab.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(index + step + tabs.length) % tabs.length];
      next.focus();
      next.click();
    };
  });
  $("ask").onsubmit = (event) => { event.preventDefault(); ask(); };
  $("keys").onsubmit = (event) => event.preventDefault();
  $("question").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
  };
  $("stop").onclick = () => running?.abort();
  $("fresh").onclick = () => { running?.abort(); turns.length = 0; last = null; $("turns").replaceChildren(); $("question").focus(); previewSoon(); };
  $("add").onclick = () => { addDocument("", $("paste").value); $("paste").value = ""; };
  $("pick").onclick = () => $("files").click();
  $("files").onchange = async () => { await readFiles($("files").files); $("files").value = ""; };
  for (const name of ["dragover", "dragleave", "drop"])
    addEventListener(name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      $("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") { select("documents"); readFiles(event.dataTransfer.files); }
    });
  $("copy").onclick = async () => { await navigator.clipboard.writeText($("source").textContent); $("copy").textContent = "Copied"; setTimeout(() => { $("copy").textContent = "Copy"; }, 1500); };
  for (const language of ["curl", "Python", "LangChain"]) {
    const button = make("button", { type: "button", className: "plain", textContent: language });
    button.onclick = () => { shown = language; showCode(); };
    $("languages").append(button);
  }
  for (const field of document.querySelectorAll("#settings input, #settings select, #settings textarea, #question, #model")) field.addEventListener("input", previewSoon);
}

async function start() {
  listen();
  $("key").addEventListener("change", meet);
  await meet();
  $("question").focus();
}

// Ask the service what it has, again where it takes a key first.
async function meet() {
  const response = await fetch(`${base}ui/service.json`, { headers: headers() });
  if (!response.ok) {
    $("service").textContent = response.status === 401 ? "This service needs an API key: see Settings." : await refusal(response);
    if (response.status === 401) select("settings");
    return;
  }
  const service = await response.json();
  document.title = service.name;
  $("service").textContent = `${service.name} ${service.version}`;
  $("model").replaceChildren(...service.models.map((name) => make("option", { textContent: name })));
  const known = service.dialects.filter((name) => DIALECTS[name]);
  $("dialect").replaceChildren(...known.map((name) => make("option", { value: name, textContent: DIALECTS[name].name })));
  if (known.includes("openai")) $("dialect").value = "openai";
  showCode();
}

start();
