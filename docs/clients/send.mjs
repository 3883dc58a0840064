const url = 'http://127.0.0.1:5000/v1/messages';
const key = {Authorization: `Bearer ${process.env.MAILASYNC_API_KEY ?? ''}`};

async function ask(url, options) {
  const answer = await fetch(url, {signal: AbortSignal.timeout(60_000), ...options});
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

const {id} = await ask(url, {
  method: 'POST',
  headers: {...key, 'Content-Type': 'application/json', 'Idempotency-Key': 'order-4711'},
  body: JSON.stringify({to: 'you@example.org', subject: 'Order 4711', contents: 'It is on its way.'}),
});
const {status, why} = await ask(`${url}/${id}`, {headers: {...key, Prefer: 'wait=30'}});
console.log(id, status, why);
