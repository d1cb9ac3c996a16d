// What Cohere's SDK for JavaScript makes of the service's answers, as JSON: run with the service's URL.
import { CohereClientV2 } from "cohere-ai";

const [url] = process.argv.slice(2);
const client = new CohereClientV2({ token: "none", environment: url, maxRetries: 0 });
const model = (await client.models.list()).models[0].name;
const asked = { model, messages: [{ role: "user", content: "Where do penguins live?" }] };
const documents = [{ id: "100", data: { text: "Emperor penguins live in Antarctica." } }];
const parameters = { type: "object", properties: { bird: { type: "string" } } };
const tools = [{ type: "function", function: { name: "find", parameters } }];

const read = async (fields) => {
  const events = [];
  for await (const event of await client.chatStream({ ...asked, ...fields })) events.push(event);
  return events;
};
const whole = await client.chat({ ...asked, documents });
const streamed = await read({ documents });
const called = await client.chat({ ...asked, tools });
const calling = await read({ tools });
const broken = await read({ messages: [{ role: "user", content: "break" }] });
const embedded = await client.embed({ model, texts: ["a"], inputType: "search_query", embeddingTypes: ["float"] });
let error = null;
try {
  await client.chat({ ...asked, model: "command-a-03-2025" });
} catch (thrown) {
  error = [thrown.constructor.name, thrown.statusCode, thrown.body.message];
}
const last = (events) => events.at(-1).delta;
const kinds = (events) => events.map((event) => event.type).filter((kind, place, all) => kind !== all[place - 1]);
const cited = ({ start, end, text, sources }) => [start, end, text, sources.map((source) => source.id)];
const calls = calling.filter((event) => event.type.startsWith("tool-call-") && event.delta).map((event) => event.delta.message.toolCalls);

console.log(
  JSON.stringify({
    whole: [whole.message.content, whole.finishReason, whole.usage.tokens, whole.message.citations.map(cited)],
    streamed: [
      kinds(streamed),
      streamed.filter((event) => event.type === "content-delta").map((event) => event.delta.message.content.text),
      streamed.filter((event) => event.type === "citation-start").map((event) => cited(event.delta.message.citations)),
      last(streamed).finishReason,
    ],
    called: [called.message.content, called.message.toolCalls, called.finishReason],
    calling: [calls[0].function.name, calls.map((call) => call.function.arguments).join(""), last(calling).finishReason],
    broken: [kinds(broken), last(broken).finishReason, last(broken).error],
    embedded: embedded.embeddings.float,
    error,
  }),
);
