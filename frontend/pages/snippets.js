// One request as a program that can be pasted and run. The key is never in it: it is read from the environment.

/** `language`: curl, python or js. `origin`: of this gateway. `body`: of `POST /v1/chat/completions`, streamed. */
export function snippet(language, origin, body) {
  return { curl, python, js }[language](origin, body);
}

function curl(origin, body) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl -N ${origin}/v1/chat/completions \\
  -H "Authorization: Bearer $SLUICE_API_KEY" \\
  -H 'Content-Type: application/json' \\
  -d '${json}'`;
}

function python(origin, { stream, stream_options: options, ...rest }) {
  const fields = Object.entries(rest).map(([name, value]) => `    ${name}=${literal(value, 4)},`);
  return `import os
from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key=os.environ["SLUICE_API_KEY"])
stream = client.chat.completions.create(
${fields.join("\n")}
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)`;
}

function js(origin, { stream, stream_options: options, ...rest }) {
  const fields = Object.entries(rest).map(([name, value]) => `  ${name}: ${JSON.stringify(value, null, 2).replaceAll("\n", "\n  ")},`);
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${origin}/v1", apiKey: process.env.SLUICE_API_KEY });
const stream = await client.chat.completions.create({
${fields.join("\n")}
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");`;
}

/** A JSON value as Python writes it; strings and numbers are the same in both. */
function literal(value, indent) {
  const inner = " ".repeat(indent + 4);
  if (Array.isArray(value)) return `[\n${value.map((one) => `${inner}${literal(one, indent + 4)},\n`).join("")}${" ".repeat(indent)}]`;
  if (value && typeof value === "object") {
    return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one, indent)}`).join(", ")}}`;
  }
  if (value === true || value === false) return value ? "True" : "False";
  return value === null ? "None" : JSON.stringify(value);
}
