// A Slack command that rolls back: `/rollback NAMESPACE/NAME [to REVISION] REASON`. Node.js 20 or newer, no packages.
//
// Slack's signature says that Slack sent it; PEOPLE says who that is in Kubernetes, never the text or the name that
// Slack shows. rollbackd is asked on that person's behalf, so the cluster's RBAC decides and the audit names both.
import { createHmac, timingSafeEqual } from "node:crypto";
import { readFile } from "node:fs/promises";
import http from "node:http";
import https from "node:https";
import { createInterface } from "node:readline";
import { json } from "node:stream/consumers";

const { ROLLBACKD_URL, ROLLBACKD_TOKEN_FILE, SLACK_SIGNING_SECRET_FILE, PEOPLE_FILE, PORT = "3000" } = process.env;
const HOOKS = process.env.SLACK_HOOKS ?? "https://hooks.slack.com/";
const USAGE = "usage: /rollback NAMESPACE/NAME [to REVISION] REASON";
const MINUTE = 60_000;

const secret = (await readFile(SLACK_SIGNING_SECRET_FILE, "utf8")).trim();
// {"U012AB3CD": {"user": "jane@example.com", "groups": ["oncall"]}, …}
const people = new Map(Object.entries(JSON.parse(await readFile(PEOPLE_FILE, "utf8"))));
const seen = new Map();

function isFromSlack(headers, body) {
  const time = Number(headers["x-slack-request-timestamp"]);
  const given = Buffer.from(String(headers["x-slack-signature"]));
  const right = Buffer.from(`v0=${createHmac("sha256", secret).update(`v0:${time}:`).update(body).digest("hex")}`);
  const now = Date.now();
  if (!(Math.abs(now - time * 1000) < 5 * MINUTE)) return false;
  if (given.length !== right.length || !timingSafeEqual(given, right)) return false;
  // The same request again is somebody else's.
  for (const [signature, at] of seen) if (now - at > 10 * MINUTE) seen.delete(signature);
  if (seen.has(right.toString())) return false;
  seen.set(right.toString(), now);
  return true;
}

const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const message = (text, everybody) => JSON.stringify({ response_type: everybody ? "in_channel" : "ephemeral", text: plain(text) });

async function ask(person, path, { method = "GET", headers, body, within }) {
  const token = (await readFile(ROLLBACKD_TOKEN_FILE, "utf8")).trim();
  const url = new URL(path, `${ROLLBACKD_URL}/`);
  return new Promise((resolve, reject) => {
    // Not fetch, which would make one group of several, with commas in its name.
    const request = (url.protocol === "https:" ? https : http).request(url, {
      method,
      signal: AbortSignal.timeout(within),
      headers: {
        ...headers,
        Authorization: `Bearer ${token}`,
        "Impersonate-User": person.user,
        "Impersonate-Group": person.groups ?? [],
      },
    });
    request.on("response", resolve).on("error", reject).end(body);
  });
}

async function rollBack(person, { namespace, name, toRevision, reason }, say) {
  const target = `${namespace}/${name}`;
  const answer = await ask(person, `daemonsets/${namespace}/${name}/rollback`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ toRevision, reason }),
    within: MINUTE,
  });
  const told = await json(answer);
  if (answer.statusCode >= 300) return say(`${target}: ${told.detail ?? told.title}`, false);
  await say(`${target}: ${told.message} (by ${person.user}: ${reason})`, true);
  if (told.endedAt) return;
  // The stream tells the end. Slack takes what we say for half an hour.
  const stream = await ask(person, told.links.self, { headers: { Accept: "text/event-stream" }, within: 25 * MINUTE });
  let now = told;
  try {
    for await (const line of createInterface({ input: stream })) {
      if (line.startsWith("data: ")) now = JSON.parse(line.slice("data: ".length));
    }
  } catch (error) {
    console.error(error);
  }
  await say(`${target}: ${now.state}${now.endedAt ? "" : ", and not ended yet"}. ${now.message}`, true);
}

async function handle(request, response) {
  const pieces = [];
  let size = 0;
  for await (const piece of request) if ((size += piece.length) <= 16_384) pieces.push(piece);
  const body = Buffer.concat(pieces);
  if (request.method !== "POST" || size > 16_384 || !isFromSlack(request.headers, body)) {
    return response.writeHead(401).end();
  }
  const form = new URLSearchParams(body.toString());
  const answer = (text) => response.writeHead(200, { "Content-Type": "application/json" }).end(message(text, false));
  const person = people.get(form.get("user_id"));
  if (!person) return answer("I don't know who you are in Kubernetes: ask for a line in PEOPLE.");
  const command = /^([a-z0-9-]+)\/([a-z0-9.-]+)\s+(?:to\s+(\d+|previous)\s+)?(\S.*)$/s.exec(form.get("text")?.trim() ?? "");
  if (!command) return answer(USAGE);
  const [, namespace, name, revision = "previous", reason] = command;
  const hook = form.get("response_url") ?? "";
  if (!hook.startsWith(HOOKS)) return answer("There is nowhere to answer to.");
  // Slack waits for three seconds, a rollback may take longer.
  answer(`Rolling ${namespace}/${name} back to ${revision}…`);
  const say = (text, everybody) =>
    fetch(hook, { method: "POST", redirect: "error", headers: { "Content-Type": "application/json" }, body: message(text, everybody) });
  const toRevision = revision === "previous" ? revision : Number(revision);
  rollBack(person, { namespace, name, toRevision, reason }, say).catch(async (error) => {
    console.error(error);
    await say(`${namespace}/${name}: rollbackd can't be asked: ${error.message}`, false).catch(console.error);
  });
}

const server = http.createServer((request, response) => {
  handle(request, response).catch((error) => {
    console.error(error);
    response.destroy();
  });
});
server.requestTimeout = 10_000;
server.listen(Number(PORT), () => console.log(`listening on ${server.address().port}`));
process.on("SIGTERM", () => server.close());
