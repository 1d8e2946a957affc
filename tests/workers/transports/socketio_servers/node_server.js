// Node's `socket.io` server. Says its port, then serves `/` and `/other`, both alike:
//
//   connect with {token: "good"}   -> event `welcome` {sid, auth, headers}; any other token is refused
//   echo ...arguments              -> event `echoed` with the same arguments
//   add one other, acknowledged    -> their sum;  pair one other -> other one;  never -> never
//   ask ...arguments               -> event `question`, acknowledged by the client -> event `answered`
//   many count size                -> so many events `item`
//   kick                           -> the client is put out of the namespace
//
//   node node_server.js PING_INTERVAL_MS PING_TIMEOUT_MS
"use strict";

const http = require("node:http");
const { Server } = require("socket.io");

const [pingInterval, pingTimeout] = process.argv.slice(2, 4).map(Number);
const server = http.createServer();
const io = new Server(server, { pingInterval, pingTimeout });

for (const namespace of [io.of("/"), io.of("/other")]) {
  namespace.use((socket, next) => {
    if (socket.handshake.auth.token === "good") return next();
    const error = new Error("Authentication error");
    error.data = { code: "invalid_token" };
    next(error);
  });
  namespace.on("connection", (socket) => {
    const { "user-agent": agent, host } = socket.handshake.headers;
    socket.emit("welcome", { sid: socket.id, auth: socket.handshake.auth, headers: { "user-agent": agent, host } });
    socket.on("echo", (...given) => socket.emit("echoed", ...given));
    socket.on("add", (one, other, done) => done(one + other));
    socket.on("pair", (one, other, done) => done(other, one));
    socket.on("never", () => {});
    socket.on("ask", (...given) => socket.emit("question", ...given, (...answer) => socket.emit("answered", ...answer)));
    socket.on("many", (count, size) => {
      for (let number = 0; number < count; number += 1) socket.emit("item", number, "x".repeat(size));
    });
    socket.on("kick", () => socket.disconnect());
  });
}

server.listen(0, "127.0.0.1", () => console.log(server.address().port));
