// Starts work when a button is pressed, and asks each second where it is, until it has ended.
"use strict";

const POLL_MILLISECONDS = 1000;
const FINAL = ["SUCCESS", "FAILURE", "REVOKED"];

const form = document.querySelector("form");
const table = document.querySelector("#tasks");
const trouble = document.querySelector("#trouble");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = new URLSearchParams({ type: event.submitter.value });
  const answer = await ask(form.action, { method: "POST", body });
  if (answer) {
    const row = table.insertRow(0);
    for (const text of [answer.task_id, "PENDING", ""]) {
      row.insertCell().textContent = text;
    }
    watch(answer.task_id, row);
  }
});

/** Keep the row of a task as it is, until the task has ended. A request that fails is simply made again. */
async function watch(id, row) {
  const told = await ask(`${form.action}/${id}`);
  if (told) {
    row.cells[1].textContent = told.task_status;
    row.cells[2].textContent = told.task_result === null ? "" : JSON.stringify(told.task_result);
  }
  if (!told || !FINAL.includes(told.task_status)) {
    setTimeout(watch, POLL_MILLISECONDS, id, row);
  }
}

/** The JSON of an answer, or null; then the page says what went wrong. */
async function ask(url, options) {
  try {
    const answer = await fetch(url, options);
    const told = await answer.json();
    trouble.textContent = answer.ok ? "" : told.detail;
    return answer.ok ? told : null;
  } catch (error) {
    trouble.textContent = `No answer: ${error.message}`;
    return null;
  }
}
