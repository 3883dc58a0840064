// Takes mails from the queue and hands them over by a pool of connections; each is acknowledged when the server has it.
"use strict";
const amqp = require("amqplib");
const nodemailer = require("nodemailer");

const connections = Number(process.env.CONNECTIONS || 5);
const transport = nodemailer.createTransport({
  host: "127.0.0.1", port: Number(process.env.SMTP_PORT), secure: Boolean(process.env.SMTP_PASSWORD), pool: true, maxConnections: connections,
  maxMessages: Infinity, ...(process.env.SMTP_PASSWORD
    ? { auth: { user: process.env.SMTP_USER, pass: process.env.SMTP_PASSWORD }, tls: { ca: require("fs").readFileSync(process.env.SMTP_CA) } }
    : { ignoreTLS: true }),
});

async function main() {
  const connection = await amqp.connect(process.env.BROKER_URL);
  const channel = await connection.createChannel();
  await channel.assertQueue("mails", { durable: true });
  await channel.prefetch(2 * connections);
  await channel.consume("mails", async (message) => {
    const { to, subject, contents } = JSON.parse(message.content);
    try {
      await transport.sendMail({ from: "alice@example.org", to, subject, text: contents });
      channel.ack(message);
    } catch (error) {
      channel.nack(message);
    }
  });
}

main();
