// The key of whoever is signed in, and how the gateway is asked with it. The key lives in this tab's session storage and
// travels in the Authorization header: never in an address, never in a cookie.

const NAME = "sluice-key";

export const session = {
  get key() { return sessionStorage.getItem(NAME) ?? ""; },
  set key(key) { sessionStorage.setItem(NAME, key); },
  forget() { sessionStorage.removeItem(NAME); },
};

/** Whether this gateway lets everybody in. */
export const openDoor = document.documentElement.dataset.door === "open";

/** What the gateway refused, in its own words. `status` is 0 if it did not answer at all. */
export class Refusal extends Error {
  constructor(status, code, message, requestId = "", retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfter });
  }
}

/** Asks the gateway and returns its answer, whose body may still be on its way. Throws a `Refusal`, or `AbortError`. */
export async function ask(path, { key = session.key, ...options } = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "unreachable", "The gateway does not answer.");
  }
  if (response.ok) return response;
  throw await refusal(response);
}

async function refusal(response) {
  const requestId = response.headers.get("x-request-id") ?? "";
  const retryAfter = response.headers.get("retry-after");
  try {
    const { error } = await response.json();
    return new Refusal(response.status, error.code ?? error.type, error.message, requestId, retryAfter);
  } catch {
    return new Refusal(response.status, `http_${response.status}`, `The answer was ${response.status}.`, requestId, retryAfter);
  }
}

/** Characters that a header cannot carry make no key; telling that here is kinder than the browser's exception. */
export const couldBeKey = (text) => /^[\x21-\x7e]+$/.test(text);
