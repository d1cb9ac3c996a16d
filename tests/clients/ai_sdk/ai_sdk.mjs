// What Vercel's AI SDK makes of the service's answers, as JSON: run with the service's URL.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamObject, tool } from "ai";
import { z } from "zod";

const [url] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "ours", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
const models = await (await fetch(`${url}/v1/models`)).json();
const model = provider(models.data[0].id);
const schema = z.object({ name: z.string().max(10), age: z.number().int() });
const asked = { model, prompt: 'Repeat this JSON: {"name": "Jason", "age": 25}', temperature: 0, maxRetries: 0, maxOutputTokens: 80 };

const object = await generateObject({ ...asked, schema });
const stream = streamObject({ ...asked, schema });
let partials = 0;
for await (const _ of stream.partialObjectStream) partials += 1;
const add = tool({
  description: "Add a person.",
  inputSchema: schema,
  execute: async ({ name }) => `${name} was added.`,
});
const text = await generateText({ ...asked, tools: { add }, toolChoice: { type: "tool", toolName: "add" } });

console.log(
  JSON.stringify({
    object: [object.object, object.finishReason],
    stream: [await stream.object, partials > 1],
    call: text.toolCalls.map((call) => [call.toolName, call.input]),
    result: text.toolResults.map((result) => result.output),
    reason: text.finishReason,
  }),
);
