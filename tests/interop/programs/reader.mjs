// An application that reads one protocol with automatic credit, and stops reading when it is told to.
//
//   node reader.mjs ADDRESS PROTOCOL      commands on stdin, a word a line: pause, resume, report

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

// The libraries are those of the example.
const require = createRequire(new URL("../../../examples/node/client.mjs", import.meta.url));
const grpc = require("@grpc/grpc-js");
const includeDirs = [fileURLToPath(new URL("../../../proto", import.meta.url))];
const options = { includeDirs, keepCase: true, longs: Number, oneofs: true };
const definition = require("@grpc/proto-loader").loadSync("devp2p/v1/message.proto", options);
const { MessageService } = grpc.loadPackageDefinition(definition).devp2p.v1;

const [address, name] = process.argv.slice(2);
const counts = { messages: 0, gaps: 0, streams: 0 };
const say = (event) => console.log(JSON.stringify({ event, ...counts }));

const call = new MessageService(address, grpc.credentials.createInsecure()).Exchange();
const spec = { client_id: `node-${name}`, protocols: [{ name, version: 1, message_count: 8 }] };
call.write({ events: [{ attach: { spec, auto_credit: true } }] });
call.on("data", ({ events }) => {
  for (const { event, gap } of events) {
    if (event === "message") counts.messages++;
    else if (event === "gap") counts.gaps += gap.messages;
    else if (event === "attached" && ++counts.streams) say("attached");
  }
});
call.on("error", ({ code, details }) => {
  console.log(JSON.stringify({ event: "error", code, details }));
  process.exit(1);
});
createInterface({ input: process.stdin }).on("line", (word) => {
  if (word === "pause") call.pause();
  else if (word === "resume") call.resume();
  say(word);
});
