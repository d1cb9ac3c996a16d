// What Ollama's library for JavaScript makes of the service's answers, as JSON: run with the service's URL.
import { Ollama } from "ollama";

const [host] = process.argv.slice(2);
const ollama = new Ollama({ host });
const { models } = await ollama.list();
const model = models[0].model;
const messages = [{ role: "user", content: "What is Deep Learning?" }];
const tool = {
  type: "function",
  function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
};
const said = async (ask) => {
  try {
    await ask();
  } catch (error) {
    return [error.name, error.status_code ?? null, error.message];
  }
};
const all = async (stream, text) => {
  const pieces = [];
  for await (const piece of stream) pieces.push(text(piece));
  return pieces;
};

const whole = await ollama.chat({ model, messages });
const streamed = await ollama.chat({ model, messages, stream: true, options: { num_predict: 2 } });
const documents = ["Deep learning is fun."];
const cited = await ollama.chat({ model, messages, documents, citations: "matched" });
const citing = await ollama.chat({ model, messages, documents, citations: "matched", stream: true });
const called = await ollama.chat({ model, messages: [{ role: "user", content: "call" }], tools: [tool] });
const calling = await ollama.chat({ model, messages: [{ role: "user", content: "call" }], tools: [tool], stream: true });
const generated = await ollama.generate({ model, prompt: "Once", stream: true });
const embedded = await ollama.embed({ model, input: ["a", "bcd"] });

console.log(
  JSON.stringify({
    chat: [whole.message.content, whole.done_reason, whole.eval_count, whole.total_duration > whole.eval_duration],
    streamed: await all(streamed, (piece) => piece.message.content),
    cited: [cited.message.annotations, (await all(citing, (piece) => piece.message.annotations)).filter(Boolean)[0]],
    tools: [called.message.tool_calls, (await all(calling, (piece) => piece.message.tool_calls)).filter(Boolean)[0]],
    generate: await all(generated, (piece) => piece.response),
    embed: [embedded.embeddings, embedded.prompt_eval_count],
    models: [model, (await ollama.show({ model })).capabilities, (await ollama.ps()).models[0].name],
    errors: {
      model: await said(() => ollama.chat({ model: "other", messages })),
      pull: await said(() => ollama.pull({ model: "other" })),
      broken: await said(async () => all(await ollama.generate({ model, prompt: "break", stream: true }), () => 0)),
    },
  }),
);
