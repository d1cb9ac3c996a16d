// How the dialects ask and answer: the body of a request, and what each event of its stream says.

// Each event becomes {text}, {citations}, {report}, {reason}, {usage}, {error} or {done}.
export const DIALECTS = {
  openai: {
    path: "v1/chat/completions",
    name: "OpenAI (messages)",
    body: (asked) => ({
      ...(asked.model && { model: asked.model }),
      messages: [
        ...(asked.system ? [{ role: "system", content: asked.system }] : []),
        ...asked.history,
        { role: "user", content: asked.question },
      ],
      ...(asked.documents.length && { documents: asked.documents }),
      ...asked.sampling,
      stream: true,
      stream_options: { include_usage: true },
      ...(asked.documents.length && { include_report: true }),
    }),
    python: (url, body, key) => {
      const { model, messages, stream, stream_options, max_tokens, temperature, top_p, ...rest } = body;
      const own = { max_tokens, temperature, top_p };
      const lines = Object.entries(own).filter(([, value]) => value !== undefined).map(([name, value]) => `    ${name}=${value},\n`);
      const extra = Object.keys(rest).length ? `    extra_body=${literal(rest, 4)},\n` : "";
      return `from openai import OpenAI\n\nclient = OpenAI(base_url=${literal(url + "v1")}, api_key=${literal(key || "none")})\n` +
        `stream = client.chat.completions.create(\n    model=${literal(model || "any")},\n    messages=${literal(messages, 4)},\n` +
        `${lines.join("")}${extra}    stream=True,\n)\nfor chunk in stream:\n    if chunk.choices:\n        print(chunk.choices[0].delta.content or "", end="", flush=True)\n`;
    },
  },
  opea: {
    path: "v1/chat/completions",
    name: "OPEA (query)",
    body: (asked) => ({
      ...(asked.model && { model: asked.model }),
      query: asked.question,
      ...(asked.documents.length && { documents: asked.documents }),
      ...asked.sampling,
      stream: true,
      ...(asked.documents.length && { include_report: true }),
    }),
    python: (url, body, key) =>
      `import requests\n\nbody = ${literal(body)}\nwith requests.post(${literal(url + "v1/chat/completions")}, json=body, stream=True` +
      `${key ? `, headers={"Authorization": ${literal("Bearer " + key)}}` : ""}) as response:\n    for line in response.iter_lines():\n        print(line.decode())\n`,
  },
};

// A value as Python writes it.
export function literal(value, indent = 0) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "number") return String(value);
  const inner = " ".repeat(indent + 4), end = " ".repeat(indent);
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, indent + 4))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, indent + 4)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return items.length ? `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${end}${close}` : open + close;
}

export function curl(url, body, key) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl -N ${url} \\\n  -H 'Content-Type: application/json' \\\n${key ? `  -H 'Authorization: Bearer ${key}' \\\n` : ""}  -d '${quoted}'\n`;
}

export function langchain(url, body, key) {
  const { model, messages, max_tokens, temperature, top_p, stream, stream_options, query, ...rest } = body;
  const turns = messages || [{ role: "user", content: query }];
  const own = { max_tokens, temperature, top_p };
  const lines = Object.entries(own).filter(([, value]) => value !== undefined).map(([name, value]) => `    ${name}=${value},\n`);
  const extra = Object.keys(rest).length ? `    extra_body=${literal(rest, 4)},\n` : "";
  return `from langchain_openai import ChatOpenAI\n\nmodel = ChatOpenAI(\n    base_url=${literal(url + "v1")},\n    api_key=${literal(key || "none")},\n` +
    `    model=${literal(model || "any")},\n${lines.join("")}${extra})\nfor chunk in model.stream(${literal(turns)}):\n    print(chunk.content, end="", flush=True)\n`;
}

// The text of a Python literal such as b'\xc3\xa9' or 'a\n'.
export function pythonText(said) {
  const bytes = [], isBytes = said.startsWith("b");
  const inner = said.slice(isBytes ? 2 : 1, -1);
  const simple = { n: "\n", r: "\r", t: "\t", "\\": "\\", "'": "'", '"': '"', a: "\x07", b: "\b", f: "\f", v: "\v", 0: "\0" };
  const encode = new TextEncoder();
  for (let at = 0; at < inner.length; at++) {
    let character = inner[at];
    if (character === "\\") {
      const kind = inner[++at], width = { x: 2, u: 4, U: 8 }[kind];
      if (width) {
        const code = parseInt(inner.slice(at + 1, at + 1 + width), 16);
        at += width;
        if (isBytes) { bytes.push(code); continue; }
        character = String.fromCodePoint(code);
      } else character = simple[kind] ?? kind;
    } else if (character >= "\ud800" && character <= "\udbff") character += inner[++at];
    bytes.push(...encode.encode(character));
  }
  return new TextDecoder().decode(new Uint8Array(bytes));
}

function cited(annotations) {
  return annotations.map((one) => one.document_citation).filter(Boolean);
}

// What an event says.
export function* said(event, data) {
  if (data === "[DONE]") { yield { done: true }; return; }
  if (/^b?['"]/.test(data)) { yield { text: pythonText(data) }; return; }
  let chunk;
  try { chunk = JSON.parse(data); } catch { yield { error: data }; return; }
  const error = chunk.error ?? chunk.detail;
  if (error) yield { error: typeof error === "string" ? error : error.message ?? JSON.stringify(error) };
  const report = chunk.report ?? (event === "report" ? chunk : null);
  if (report) yield { report };
  if (chunk.usage) yield { usage: chunk.usage };
  if (chunk.annotations) yield { citations: cited(chunk.annotations) };
  for (const choice of chunk.choices ?? []) {
    const delta = choice.delta ?? {};
    if (delta.content || choice.text) yield { text: delta.content || choice.text };
    if (delta.annotations) yield { citations: cited(delta.annotations) };
    if (choice.finish_reason) yield { reason: choice.finish_reason };
  }
}

// The events of a stream: its bytes cut at blank lines, whatever the pieces are that they come in.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    rest += value ?? "";
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = done ? "" : blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/);
      const name = lines.find((line) => line.startsWith("event:"))?.slice(6).trim() ?? "";
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      if (data) yield* said(name, data);
      const ended = block.match(/^: finish_reason=(\w+)/m);  // OPEA's own stream has it in a comment.
      if (ended) yield { reason: ended[1] };
    }
    if (done) return;
  }
}
