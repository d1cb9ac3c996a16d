// What OpenAI's library and the AI SDK's default model of OpenAI make of responses, as JSON: run with the service's URL.
// The model server behind it gives prepared answers, in the order of these calls.
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, documents] = process.argv.slice(2);
const extra = JSON.parse(documents);
const asked = { model: "m", input: "?" };
const weather = z.object({ city: z.string(), degrees: z.number().int() });
const messageOf = async (work) => {
  try {
    await work();
    return null;
  } catch (error) {
    return [error.constructor.name, error.status ?? error.statusCode ?? null, error.message];
  }
};

const sdk = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const whole = await sdk.responses.create({ ...asked, ...extra });
const deltas = [];
const added = [];
for await (const event of await sdk.responses.create({ ...asked, ...extra, stream: true })) {
  if (event.type === "response.output_text.delta") deltas.push(event.delta);
  if (event.type === "response.output_text.annotation.added") added.push(event.annotation.type);
}
const tools = [zodResponsesFunction({ name: "weather", parameters: weather })];
const called = await sdk.responses.stream({ ...asked, tools }).finalResponse();
const parsed = await sdk.responses.parse({ ...asked, text: { format: zodTextFormat(weather, "weather") } });
const kept = await messageOf(() => sdk.responses.create({ ...asked, previous_response_id: "resp_1" }));
const seen = [];
const broken = await messageOf(async () => {
  for await (const event of await sdk.responses.create({ ...asked, stream: true })) seen.push(event.type);
});

const fetching = (target, options) =>
  fetch(target, { ...options, body: JSON.stringify({ ...JSON.parse(options.body), ...extra }) });
const model = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" })("m");
const withDocuments = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none", fetch: fetching })("m");
const prompt = { model, prompt: "?", maxRetries: 0 };
const sourcesOf = (sources) => sources.map((source) => [source.sourceType, source.url ?? source.filename]);
const add = { weather: tool({ inputSchema: weather, execute: async ({ city }) => `It rains in ${city}.` }) };
const steps = { ...prompt, tools: add, stopWhen: stepCountIs(2) };

const text = await generateText({ ...prompt, model: withDocuments });
const stream = streamText({ ...prompt, model: withDocuments });
const pieces = [];
for await (const piece of stream.textStream) pieces.push(piece);
const object = await generateObject({ ...prompt, schema: weather });
const loop = await generateText({ ...steps, providerOptions: { openai: { store: false } } });
const referring = await messageOf(() => generateText(steps));
const options = { openai: { forceReasoning: true, reasoningSummary: "auto" } };
const thought = streamText({ ...prompt, providerOptions: options });
const failures = [];
const reasoning = await thought.reasoningText;
const streamedCall = streamText({ ...prompt, tools: { weather: tool({ inputSchema: weather }) } });
const toolCalls = await streamedCall.toolCalls;
const failing = streamText({ ...prompt, onError: ({ error }) => failures.push(error.message) });
await failing.consumeStream();

console.log(
  JSON.stringify({
    openai: {
      whole: [whole.output_text, whole.output[0].content[0].annotations.map((one) => one.type)],
      stream: [deltas, added],
      call: [called.output_text, called.output.map((item) => item.parsed_arguments ?? null)],
      parsed: parsed.output_parsed,
      kept,
      broken: [seen.at(-1), broken],
    },
    ai: {
      whole: [text.text, sourcesOf(text.sources), text.finishReason, text.usage.outputTokens],
      stream: [pieces, sourcesOf(await stream.sources), await stream.finishReason],
      object: object.object,
      loop: [loop.text, loop.steps.map((step) => step.toolResults.map((result) => result.output))],
      referring,
      reasoning: [reasoning, await thought.text],
      streamedCall: [await streamedCall.text, toolCalls.map((call) => call.input), await streamedCall.finishReason],
      failures,
    },
  }),
);
