// Server-sent events over fetch. The browser's EventSource cannot send an Authorization header, and its retries cannot be seen.

/** The events of a response as `{ type, data }`; ends when the response does. Comments are `{ type: "comment" }`. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let type = "message";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const lines = text.split(/\r\n|\n|\r(?!$)/);
      text = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { type, data: data.join("\n") };
          type = "message";
          data = [];
        } else if (line.startsWith(":")) {
          yield { type: "comment", data: line.slice(1) };
        } else {
          const [, name, rest] = /^([^:]*):? ?(.*)$/s.exec(line);
          if (name === "data") data.push(rest);
          if (name === "event") type = rest;
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
