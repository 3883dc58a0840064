// POST a mail; it is on its way when RabbitMQ has confirmed that it has it.
"use strict";
const amqp = require("amqplib");
const fastify = require("fastify")();

const schema = {
  body: {
    type: "object", required: ["to"], additionalProperties: false,
    properties: { to: { type: "string", format: "email" }, subject: { type: "string" }, contents: { type: "string" } },
  },
};

async function main() {
  const connection = await amqp.connect(process.env.BROKER_URL);
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue("mails", { durable: true });
  fastify.post("/", { schema }, (request, reply) => {
    channel.sendToQueue("mails", Buffer.from(JSON.stringify(request.body)), { persistent: true }, (error) => {
      if (error) reply.code(503).send({ error: "not confirmed" });
      else reply.code(202).send({ status: "queued" });
    });
  });
  await fastify.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
}

main();
