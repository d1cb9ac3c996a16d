// What Anthropic's SDK for JavaScript makes of the service's answers, as JSON: run with the service's URL.
import Anthropic from "@anthropic-ai/sdk";

const [url] = process.argv.slice(2);
const sdk = new Anthropic({ baseURL: url, apiKey: "s3cret", maxRetries: 0 });
const asked = { model: "scripted", max_tokens: 50 };
const user = (content) => [{ role: "user", content }];
const tools = [{ name: "weather", input_schema: { type: "object", properties: { city: { type: "string" } } } }];
const source = { type: "text", media_type: "text/plain", data: "Of colours. The grass is green." };
const citing = user([
  { type: "document", source, title: "Colours", citations: { enabled: true } },
  { type: "text", text: "Which colour has grass?" },
]);
const streamed = async (fields) => {
  const texts = [];
  const stream = sdk.messages.stream({ ...asked, ...fields }).on("text", (text) => texts.push(text));
  const final = await stream.finalMessage();
  return [texts, final.content, final.stop_reason];
};
const error = async (ask) => {
  try {
    await ask();
  } catch (failed) {
    return [failed.constructor.name, failed.status ?? null, failed.error?.error?.type];
  }
};

const whole = await sdk.messages.create({ ...asked, messages: user("Hello") });
const call = await sdk.messages.create({ ...asked, tools, tool_choice: { type: "any" }, messages: user("Paris?") });
const cited = await sdk.messages.create({ ...asked, messages: citing });
const models = [];
for await (const model of sdk.models.list({ limit: 1 })) models.push(model.id);
const counted = await sdk.messages.countTokens({ model: "scripted", messages: user("x") });
console.log(
  JSON.stringify({
    whole: [whole.content, whole.stop_reason, whole._request_id.length],
    streamed: await streamed({ messages: user("Hello") }),
    thought: (await streamed({ messages: user("think") }))[1],
    calls: [call.content, (await streamed({ tools, messages: user("Paris?") }))[1]],
    citations: [cited.content, (await streamed({ messages: citing }))[1]],
    errors: [
      await error(() => sdk.messages.create({ ...asked, model: "other", messages: user("?") })),
      await error(() => streamed({ messages: user("break") })),
    ],
    counted: counted.input_tokens,
    models: [models, (await sdk.models.retrieve("scripted")).display_name],
  }),
);
